"""How far a deep check has come."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ms_resume import progress
from ms_resume.progress import Progress
from ms_resume.records import Checkpoint


def shown(checkpoint: Checkpoint) -> AbstractContextManager[Progress | None]:
    """Gives what to call with the number of bytes just read; None where nobody looks."""
    return progress.shown(f"checking {checkpoint.position}", size_bytes(checkpoint))


def size_bytes(checkpoint: Checkpoint) -> int:
    """What a resume reads: a reference that an older position wrote counts too."""
    if checkpoint.votes:
        return sum(file.bytes for vote in checkpoint.votes for file in vote.files)
    return sum(found.path.lstat().st_size for found in checkpoint.files)
