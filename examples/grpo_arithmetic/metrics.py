"""One JSON line a step from rank 0, and the same numbers for TensorBoard.

Everything in a line but `seconds` is a function of the training state, so two runs are compared line by line
without that key.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ms_resume

LINES = "steps.jsonl"
DRAWN = ("loss", "reward", "right", "kl", "lr", "loss_scale", "eval_sampled", "eval_greedy")


def due(done: int, interval: int) -> bool:
    """Whether something comes after `done` global steps that comes every `interval` of them. A resume restores the
    step, and with it the place in this cycle."""
    return interval > 0 and done > 0 and done % interval == 0


class Metrics:
    """Counters that a resume restores, and the log that they go to; only the rank that is given a directory writes."""

    def __init__(self, directory: Path | None, *, tensorboard: Path | None = None) -> None:
        self.global_step = 0
        self.samples_seen = 0
        self.right_seen = 0
        self.skipped_updates = 0
        path = directory / LINES if directory else None
        self.log = ms_resume.MetricsLog(path, board=tensorboard, drawn=DRAWN, prefix="grpo/", key="global_step")
        self._since = time.monotonic()

    def record(self, line: dict[str, Any], *, samples: int, right: int) -> dict[str, Any]:
        """Counts one step of all ranks and writes its line."""
        self.samples_seen += samples
        self.right_seen += right
        counters = {k: getattr(self, k) for k in ("samples_seen", "right_seen", "skipped_updates")}
        full = {"global_step": self.global_step, **line, **counters, "seconds": self._lap()}
        self.log.write(full)
        self.global_step += 1
        return full

    def _lap(self) -> float:
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        return round(elapsed, 4)
