"""SIGTERM to one worker of msrun: the example, two ranks, chained. Both leave at one position, or msrun would end the
other one in the middle of its save."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from exact.campaign import versions
from exact.ranks import long_enough

from grpo_arithmetic import compare, launching
from grpo_arithmetic.launching import Launch
from leave import standing
from ms_resume import locate

RANKS = 2
PHASES = {"load": 3, "compile": 2, "rollout": 3, "update": 3, "save": 2}
WORDS = {"load": ("start",), "compile": ("rollout", "update")}

PATIENT = {"MS_CPU_COMM_OP_TIMEOUT": "300"}
"""Seconds. On a loaded machine one rank may compile for longer than the other one waits in a reduction, 30 s."""


class Asker:
    """Signals one rank of one launch, in a phase of one of its first steps, by what its pulse says."""

    def __init__(self, watch: Path, chance: random.Random, *, new: bool, most_steps: int) -> None:
        self._watch, self._most_steps = watch, most_steps
        self.rank = chance.randrange(RANKS)
        weights = [0 if new and name == "load" else weight for name, weight in PHASES.items()]
        self.phase = chance.choices([*PHASES], weights)[0]
        self._nth = 0 if self.phase in WORDS else chance.randrange(most_steps)
        self._delay_s = {"load": 0.3, "compile": 1.0}.get(self.phase, 0.02) * chance.random()
        self.struck = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._strike, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._stop.set()
        self._thread.join()

    def _strike(self) -> None:
        words, begun, before = WORDS.get(self.phase, (self.phase,)), 0, ("", None)
        while not self._stop.wait(0.001):
            pulse = _document(self._watch / f"rank_{self.rank}.pulse")
            now = (pulse.get("phase", ""), pulse.get("position"))
            if now == before:
                continue
            before = now
            begun += now[0] == "update"
            if (now[0] in words and begun >= self._nth) or begun > self._most_steps:
                time.sleep(self._delay_s)
                os.kill(pulse["pid"], signal.SIGTERM)
                self.struck = self.phase if now[0] in words else now[0]
                return


def chain(
    signals: int, seed: int, directory: Path, *, reuse: Path | None = None, config: Path | None = None
) -> dict[str, Any]:
    """One chain of so many signals; the line for `leave.jsonl`.

    Args:
        reuse: The directory of an earlier one: its undisturbed run and base model serve again.
        config: Instead of one that has room for twenty.

    Raises:
        SystemExit: A launch ended otherwise than it should, or left something else than a whole checkpoint of where
            it was.
    """
    began, chance = time.monotonic(), random.Random(f"leave {seed}")
    config, earlier = config or long_enough(directory), reuse or directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    undisturbed, save, base = earlier / "a", directory / "b", earlier / "base"
    if reuse is None and launching.run(
        Launch(undisturbed, config, base, directory / "a.txt"), PATIENT, lambda line: None
    ):
        raise SystemExit(f"the undisturbed run failed, see {directory}/a.txt")
    asked: Counter[str] = Counter()
    for number in range(signals + 1):
        log, watch = directory / f"b-{number}.txt", directory / f"{number:06d}-watch"
        watch.mkdir()
        resume = save.is_dir() and locate.latest(save).checkpoint is not None
        asker = Asker(watch, chance, new=not resume, most_steps=3) if number < signals else None
        code = launching.run(
            Launch(save, config, base, log, resume=resume),
            {**PATIENT, "MS_RESUME_WATCH_DIR": str(watch)},
            lambda line: None,
        )
        if asker is None:
            if code:
                raise SystemExit(f"the last launch ended with {code}, see {log}")
            break
        steps = has_left(asker, watch, save, f"msrun, seed {seed}, launch {number}, exit {code}, see {log}")
        asked[asker.struck] += 1
        told = f"rank {asker.rank} asked in {asker.struck}: left at {steps} steps"
        print(f"msrun, seed {seed}, launch {number}, {told}", flush=True)
    result = compare.runs(undisturbed, save)
    if not result.equal:
        print(compare.table(result), flush=True)
    return {
        "kind": "msrun",
        "setting": "jit/AdamWeightDecay/safetensors/schedule",
        "ranks": RANKS,
        "seed": seed,
        "signals": asked.total(),
        "in": dict(asked),
        "equal": result.equal,
        "tensors": result.tensors,
        "differ": result.differ,
        "seconds": round(time.monotonic() - began, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(),
    }


def has_left(asker: Asker, watch: Path, save: Path, where: str) -> int:
    """How many steps are done, of which a whole checkpoint stands; all ranks left there.

    Raises:
        SystemExit: It ended otherwise.
    """
    asker.wait()
    where = f"{where}: rank {asker.rank} asked in {asker.struck or 'nothing'}"
    outcomes = [_document(watch / f"rank_{rank}.outcome") for rank in range(RANKS)]
    codes = {outcome.get("exit_code", 50) for outcome in outcomes}  # msrun may be quicker than a rank's exit
    if not asker.struck or codes != {50} or not all(outcome.get("left") for outcome in outcomes):
        raise SystemExit(f"{where}: {outcomes}")
    steps = len(compare.steps(save))
    standing.check(save, divmod(steps, compare.steps_per_epoch(save) or 1), where)
    return steps


def _document(path: Path) -> dict[str, Any]:
    """Empty where there is none, or where it is being written."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found
