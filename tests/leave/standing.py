"""What stands after a run has left: a whole checkpoint, to the last byte, of the step that it would have done next."""

from __future__ import annotations

from pathlib import Path

from ms_resume import locate, verify
from ms_resume.records import Position


def check(save: Path, expected: tuple[int, int], where: str) -> None:
    """Raises SystemExit where it is another one, or none."""
    found = locate.latest(save).checkpoint
    if found is None or found.position != Position(*expected):
        at = found.position if found else "nothing"
        raise SystemExit(f"{where}: it left {at} in {save}, expected {Position(*expected)}")
    if faults := verify.check(found, deep=True):
        raise SystemExit(f"{where}: it left a checkpoint that is not whole: {faults}")
