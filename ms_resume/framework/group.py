"""The ranks of the job, and the one collective that the toolkit needs: everybody hears what everybody says."""

from __future__ import annotations

import os
from typing import Any, Protocol

from ms_resume.errors import UsageError


class Group(Protocol):
    """`exchange` is called by all ranks in the same order; it returns what each rank gave, by rank."""

    rank: int
    world_size: int

    def exchange(self, data: bytes) -> list[bytes]: ...


_GATHERED = 1 << 22
"""Values that one AllGather brings in from all ranks together: 16 MiB of device memory, however long the messages."""


class Solo:
    """A job of one rank."""

    rank = 0
    world_size = 1

    def exchange(self, data: bytes) -> list[bytes]:
        return [data]


class MindSporeGroup:
    """All ranks of MindSpore's default group.

    Bytes travel as float32 through AllGather, the one collective and dtype that works on every backend, CPU included
    (tried on 2.10.0: int32 AllReduce and the `comm_func` collectives do not).
    """

    def __init__(self) -> None:
        from mindspore.communication import get_group_size, get_rank

        self.rank = int(get_rank())
        self.world_size = int(get_group_size())

    def exchange(self, data: bytes) -> list[bytes]:
        import numpy as np

        lengths = [int(length[0]) for length in self._gather(np.array([len(data)], np.float32))]
        padded = np.zeros(max(*lengths, 1), np.float32)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        step = max(_GATHERED // self.world_size, 1)
        pieces = [self._gather(padded[begin : begin + step]) for begin in range(0, len(padded), step)]
        gathered = map(np.concatenate, zip(*pieces, strict=True))
        return [part[:length].astype(np.uint8).tobytes() for part, length in zip(gathered, lengths, strict=True)]

    def _gather(self, values: Any) -> list[Any]:
        from mindspore import Tensor, ops

        gathered = ops.AllGather()(Tensor(values)).asnumpy()
        return list(gathered.reshape(self.world_size, -1))


def current() -> Group:
    """The job's ranks. Raises UsageError where msrun started several and communication is not initialised yet."""
    from mindspore.communication import GlobalComm, get_group_size

    if GlobalComm.INITED and get_group_size() > 1:
        return MindSporeGroup()
    workers = int(os.environ.get("MS_WORKER_NUM", "1"))  # msrun's own variable, not a knob of ours
    if not GlobalComm.INITED and workers > 1:
        raise UsageError(
            f"this is one of {workers} ranks, but communication is not initialised",
            hint="call mindspore.communication.init() before the Checkpointer is made",
        )
    return Solo()
