"""What the ranks of an attempt that hangs are doing: Python stacks, by py-spy where installed, by faulthandler else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from ms_resume.pulse import STACKS_SIGNAL
from ms_resume.supervisor import processes
from ms_resume.supervisor.processes import Process

_PY_SPY_S = 10.0
_WRITTEN_WITHIN_S = 2.0


def collect(ranks: Mapping[int, Process], directory: Path, *, listening: set[int]) -> dict[int, str]:
    """The stacks of each rank, as far as they can be had.

    Args:
        listening: Ranks that answer the signal: it would kill another one.
    """
    found = {rank: text for rank, its in ranks.items() if (text := _spied(its))}
    asked = {rank: its for rank, its in ranks.items() if rank not in found and rank in listening}
    before = {rank: _size(directory, rank) for rank in asked}
    for its in asked.values():
        processes.send(its, STACKS_SIGNAL)
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while time.monotonic() < deadline and any(_size(directory, rank) == before[rank] for rank in asked):
        time.sleep(0.05)
    time.sleep(0.05)  # for the last lines of what has begun to be written
    for rank in asked:
        if _size(directory, rank) > before[rank]:
            found[rank] = _path(directory, rank).read_text(errors="replace")
    return found


def _spied(process: Process) -> str:
    """Empty where py-spy is not installed, or may not look."""
    command = ["py-spy", "dump", "--nonblocking", "--pid", str(process.pid)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PY_SPY_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _path(directory: Path, rank: int) -> Path:
    return directory / f"rank_{rank}.stacks"


def _size(directory: Path, rank: int) -> int:
    try:
        return _path(directory, rank).stat().st_size
    except OSError:
        return 0
