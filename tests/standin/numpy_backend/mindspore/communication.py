"""The ranks of a job, each a thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

_here = threading.local()


class GlobalComm:
    INITED = True


def join(group: Any) -> None:
    """Says which rank this thread is; `group` has `rank`, `world_size`, and `exchange`."""
    _here.group = group


def get_rank() -> int:
    group = getattr(_here, "group", None)
    return group.rank if group else 0


def get_group_size() -> int:
    group = getattr(_here, "group", None)
    return group.world_size if group else 1


def gather(values: np.ndarray) -> np.ndarray:
    group = getattr(_here, "group", None)
    told = group.exchange(values.tobytes()) if group else [values.tobytes()]
    return np.concatenate([np.frombuffer(data, values.dtype) for data in told])
