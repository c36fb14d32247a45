"""This process among the others: device, rank, and the two collectives that work on every backend.

On a CPU, MindSpore's MCCL reduces and gathers float32 and little else, so integers travel as float32, which
is exact below 2**24.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindspore import Tensor, ops
from mindspore.communication import get_group_size, get_rank, init

from grpo_arithmetic.errors import ConfigError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class World:
    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, values: Floats) -> Floats:
        """Rows of all ranks in rank order: (n,) here becomes (size, n)."""
        if self.size == 1:
            return values[None, :]
        gathered: Floats = ops.AllGather()(Tensor(values)).asnumpy()
        return gathered.reshape(self.size, -1).copy()

    def wait(self) -> None:
        """Returns once every rank has come here."""
        self.gather(np.zeros(1, np.float32))


def announced_size() -> int:
    """How many workers `msrun` is starting; known before the group is joined."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def join(device_target: str) -> World:
    """Sets the device up and joins the group that `msrun` announced; without `msrun`, a world of one.

    Raises:
        ConfigError: MindSpore, as it is installed here, does not run on that device.
    """
    ms.set_context(mode=ms.PYNATIVE_MODE)
    _set_device(device_target)
    ms.set_deterministic(True)
    if device_target == "CPU":
        # Kernels that try out block sizes as they run would sum in an order that depends on the clock; one
        # thread also halves the time of an update of this size.
        ms.device_context.cpu.op_tuning.threads_num(1)
    if announced_size() == 1:
        return World(0, 1)
    init()
    return World(get_rank(), get_group_size())


def _set_device(target: str) -> None:
    try:
        ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split(". ")[0]
        raise ConfigError(f"device_target: found {target!r}, which MindSpore refuses: {reason}") from error
