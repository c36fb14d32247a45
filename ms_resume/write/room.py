"""Whether a save fits, asked before anything is touched for it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from ms_resume.errors import DiskError

PATIENCE_S = 60.0
"""How long a rank waits for room that others have to make, too: each removes its own files."""

_POLL_S = 0.5


def check(
    save: Path, needed_bytes: int, needed_files: int, *, ranks: int = 1, make: Callable[[], None] | None = None
) -> None:
    """Compares what this rank is about to write with what the file system of the save directory has.

    Other ranks take from the same room, so a save that passes may still find the disk full.

    Args:
        ranks: So many write about as much, perhaps to the same disk.
        make: Takes away what may go already. Called where not all ranks would fit, until this one does.

    Raises:
        DiskError: There is too little. Nothing was changed.
    """
    if make and _short(save, needed_bytes * ranks, needed_files * ranks):
        until = time.monotonic() + PATIENCE_S
        make()
        while _short(save, needed_bytes, needed_files) and time.monotonic() < until:
            time.sleep(_POLL_S)
            make()
    if short := _short(save, needed_bytes, needed_files):
        raise DiskError(
            f"{save}: {os.strerror(errno.ENOSPC)}: {short}",
            hint="free space or inodes there (`df -h`, `df -i`), or prune: `ms-resume prune` shows what may go",
            path=str(save),
            errno=errno.ENOSPC,
        )


def _short(save: Path, needed_bytes: int, needed_files: int) -> str:
    """What there is too little of; empty when it fits."""
    there = next(step for step in (save, *save.parents) if step.exists())
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    if needed_bytes > free:
        return f"this save needs {needed_bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
    if found.f_files and needed_files > found.f_favail:
        return f"this save needs {needed_files} inodes, {found.f_favail} are free"
    return ""
