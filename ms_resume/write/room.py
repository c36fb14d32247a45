"""Whether a save fits, asked before anything is touched for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ms_resume.errors import DiskError


def check(save: Path, needed_bytes: int, needed_files: int) -> None:
    """Compares what this rank is about to write with what the file system of the save directory has.

    Other ranks take from the same room, so a save that passes may still find the disk full.

    Raises:
        DiskError: There is too little. Nothing was changed.
    """
    there = next(step for step in (save, *save.parents) if step.exists())
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    if needed_bytes > free:
        raise _full(save, f"this save needs {needed_bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free")
    if found.f_files and needed_files > found.f_favail:
        raise _full(save, f"this save needs {needed_files} inodes, {found.f_favail} are free")


def _full(save: Path, reason: str) -> DiskError:
    return DiskError(
        f"{save}: {os.strerror(errno.ENOSPC)}: {reason}",
        hint="free space or inodes there (`df -h`, `df -i`), or prune: `ms-resume ls` shows what is there",
        path=str(save),
        errno=errno.ENOSPC,
    )
