"""Many names looked at, several at a time where a network file system answers each only after a while.

On a local disk, and where there are few, one after the other in the caller's thread: threads would gain nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ms_resume.ondisk import mounts

Item = TypeVar("Item")
Answer = TypeVar("Answer")

THREADS = 16
FEW = 256
_AT_ONCE = 64
"""Items that a thread takes in one go: handing over a single one costs more than a look."""


def each(look: Callable[[Item], Answer], items: Sequence[Item], where: Path) -> Iterator[Answer]:
    """`look(item)` of every item below `where`, in their order.

    What it raises is raised here; looks that were not begun by then, or that nobody asks for any more, are left undone.
    """
    if len(items) < FEW or not mounts.is_network(where):
        yield from map(look, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    def look_at(begin: int) -> list[Answer]:
        return [look(item) for item in items[begin : begin + _AT_ONCE]]

    with ThreadPoolExecutor(THREADS, "ms_resume look") as pool:
        for answers in pool.map(look_at, range(0, len(items), _AT_ONCE)):
            yield from answers


@contextmanager
def uncollected() -> Iterator[None]:
    """For what makes some hundred thousand values that stay: the collector of cycles would walk over all of them again
    and again, and find none. It stands still for the whole process, and only where this stopped it, it goes on."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
