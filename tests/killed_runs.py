"""Chains of runs that SIGKILL ends, each a process of its own, and the run that nobody killed beside them.

A plan says where a run ends: `step:N` after so many steps, `sync:NAME` before it syncs what has a name that ends so,
`end`. By `term:N` and `touch:N` it is asked to, with SIGTERM or its stop file, and has to leave with 50. The runs are
forked from one process that has imported what they need, so a chain costs one start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Told:
    """Where a run says what it saw, row by row; a row that is said stays, whatever ends the process."""

    def __init__(self, log: Path, plan: str) -> None:
        what, _, where = plan.partition(":")
        self._log = log
        self._ends = {"step": _die, "term": _ask, "touch": _touch}.get(what)
        self._left = int(where) if self._ends else 0
        if what == "sync":
            _kill_before_sync_of(where)

    def say(self, row: Row) -> None:
        _append(self._log, row)

    def step(self, row: Row) -> None:
        """A step is over."""
        self.say(row)
        self._left -= 1
        if self._left == 0 and self._ends:
            self._ends()


def forked(root: Path, run: Callable[[Path, Told], None], plans: Sequence[str]) -> None:
    """`run` into `root`/whole to its end, then into `root`/killed by each plan, one after the other."""
    for name, plan in [("whole", "end"), *(("killed", plan) for plan in plans)]:
        log = root / f"{name}.jsonl"
        child = os.fork()
        if child == 0:
            run(root / name, Told(log, plan))
            os._exit(0)
        _append(log, {"ended": os.waitpid(child, 0)[1]})


def chained(script: Path, root: Path, kills: Sequence[tuple[str, set[int]]]) -> tuple[list[Row], list[int]]:
    """What the run said that nobody killed, and the step from which each of the others went on.

    Args:
        script: Calls `forked` with the directory and the plans that it is given.
        kills: The plans, and from which steps the run after each may go on.

    Raises:
        AssertionError: A run was not killed, or did not leave, or saw another thing than the one that nobody killed.
    """
    command = [sys.executable, str(script), str(root), *(plan for plan, _ in kills), "end"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ((whole, _),) = _read(root / "whole.jsonl")
    *killed, (last, status) = _read(root / "killed.jsonl")
    assert status == 0, ended.stderr
    left = [plan.partition(":")[0] in ("term", "touch") for plan, _ in kills]
    assert [was for _, was in killed] == [50 << 8 if asked else signal.SIGKILL for asked in left], ended.stderr
    starts = [0]
    following = [seen for seen, _ in killed[1:]] + [last]
    for (seen, _), after, (plan, may) in zip(killed, following, kills, strict=True):
        assert seen == whole[starts[-1] : starts[-1] + len(seen)], plan
        if after:  # else it was killed before its first step
            assert whole.index(after[0]) in may, plan
        starts.append(whole.index(after[0]) if after else starts[-1])
    assert last == whole[starts[-1] :]
    return whole, starts


def _read(log: Path) -> list[tuple[list[Row], int]]:
    """What each run said, and its wait status."""
    runs: list[tuple[list[Row], int]] = []
    said: list[Row] = []
    for row in map(json.loads, log.read_text().splitlines()):
        if "ended" in row:
            runs.append((said, row["ended"]))
            said = []
        else:
            said.append(row)
    return runs


def _append(log: Path, row: Row) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _touch() -> None:
    Path(os.environ["MS_RESUME_STOP_FILE"]).touch()


def _kill_before_sync_of(name: str) -> None:
    sync = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").partition(".0000")[0].endswith(name):  # a part has its attempt behind it
            _die()
        sync(fd)

    os.fsync = fsync
