"""How far a deep check has come: bytes, rate, time left; on standard error, only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ms_resume.records import Checkpoint
from ms_resume.verify import Progress


@contextmanager
def shown(checkpoint: Checkpoint) -> Iterator[Progress | None]:
    """Gives what to call with the number of bytes just read; None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"checking {checkpoint.position}", total=size_bytes(checkpoint))
        yield lambda count: bar.advance(task, count)


def size_bytes(checkpoint: Checkpoint) -> int:
    """What a resume reads: a reference that an older position wrote counts too."""
    if checkpoint.votes:
        return sum(file.bytes for vote in checkpoint.votes for file in vote.files)
    return sum(found.path.stat().st_size for found in checkpoint.files)
