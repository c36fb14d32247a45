"""What something costs when nothing disturbs it: other processes take caches and half of a core that is shared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 5


def of(work: Callable[[], T], enough_s: float) -> tuple[T, float]:
    """What `work` gives, and the processor time that it took: done again, a few times, while that was more."""
    for _ in range(TRIES):
        began = time.process_time()
        given = work()
        took_s = time.process_time() - began
        if took_s < enough_s:
            break
    return given, took_s
