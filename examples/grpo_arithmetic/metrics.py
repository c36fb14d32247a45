"""One JSON line a step from rank 0, and the same numbers for TensorBoard when it is installed.

Everything in a line but `seconds` is a function of the training state, so two runs are compared line by line
without that key. Opening at a global step drops what an abandoned future wrote from there on.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

LINES = "steps.jsonl"


class Metrics:
    """Counters that a resume restores, and the log that they go to; only the rank that opens it writes."""

    def __init__(self) -> None:
        self.global_step = 0
        self.samples_seen = 0
        self.right_seen = 0
        self.skipped_updates = 0
        self._lines: Any = None
        self._board: Any = None
        self._since = time.monotonic()

    def open(self, directory: Path, *, tensorboard: Path | None) -> None:
        """Starts writing at `global_step`; what stood at or after it is gone."""
        directory.mkdir(parents=True, exist_ok=True)
        drop_from(directory / LINES, self.global_step)
        self._lines = (directory / LINES).open("a", encoding="utf-8")
        self._board = _board(tensorboard, self.global_step) if tensorboard else None
        self._since = time.monotonic()

    def record(self, line: dict[str, Any], *, samples: int, right: int) -> dict[str, Any]:
        """Counts one step of all ranks and writes its line."""
        self.samples_seen += samples
        self.right_seen += right
        counters = {k: getattr(self, k) for k in ("samples_seen", "right_seen", "skipped_updates")}
        full = {"global_step": self.global_step, **line, **counters, "seconds": self._lap()}
        self._write(full)
        self.global_step += 1
        return full

    def close(self) -> None:
        for sink in (self._lines, self._board):
            if sink is not None:
                sink.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._lines is not None:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        if self._board is not None:
            for key in ("loss", "reward", "right", "kl", "lr", "loss_scale"):
                self._board.add_scalar(f"grpo/{key}", line[key], line["global_step"])

    def _lap(self) -> float:
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        return round(elapsed, 4)


def drop_from(path: Path, global_step: int) -> None:
    """Rewrites a log without the lines at or after `global_step`, and without one that a kill cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_before(line, global_step)]
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(scratch, path)


def _is_before(line: str, global_step: int) -> bool:
    try:
        return int(json.loads(line)["global_step"]) < global_step
    except (ValueError, KeyError, TypeError):
        return False


def _board(directory: Path, global_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        print("tensorboardX is not installed: no TensorBoard log, the JSON lines are complete", flush=True)
        return None
    # Readers of the log then forget points that an abandoned future drew at or after this step.
    return SummaryWriter(str(directory), purge_step=global_step)
