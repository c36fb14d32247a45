"""Host copies of MindRLHF's nets, and the state beside them that its own checkpoints lack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ms_resume.adapters.mindrlhf.known import need
from ms_resume.errors import NamesMismatch
from ms_resume.framework import stock
from ms_resume.framework.nets import Net
from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo
from ms_resume.state import Component, HostTensor, from_array, to_array


class Held:
    """A role between the disk and its net: filled from the disk at a start, and from the net when MindRLHF saves it.

    MindRLHF has policy, optimizer and reference on the device one after the other, so nobody can read all three at
    once. What the optimizer has in common with the policy is held there.
    """

    def __init__(self, cell: Any, policy: Held | None = None) -> None:
        self.cell = cell
        self._net = Net(cell)
        self._infos = self._net.infos()
        self._data: dict[str, memoryview] = {}
        self._policy = policy
        self._lent = {name for name in self._infos if policy is not None and self._net.holds(name, policy._net)}

    def infos(self) -> dict[str, TensorInfo]:
        return dict(self._infos)

    def read(self, name: str) -> HostTensor:
        if name in self._lent and self._policy is not None:
            return self._policy.read(name)
        info = self._infos[name]
        return HostTensor(info.dtype, info.shape, self._room(name))

    def place(self, name: str, value: HostTensor) -> None:
        self._room(name)[:] = value.data

    def take(self) -> None:
        """Copies what the net holds now."""
        for name in self._infos.keys() - self._lent:
            self.place(name, self._net.read(name))

    def all(self) -> dict[str, HostTensor]:
        return {name: self.read(name) for name in self._infos}

    def _room(self, name: str) -> memoryview:
        if name not in self._data:
            info = self._infos[name]
            self._data[name] = memoryview(bytearray(payload.item_bytes(info.dtype) * math.prod(info.shape)))
        return self._data[name]


class Later:
    """A component that is restored when training begins: between the load and that MindRLHF seeds, compiles, and opens
    its data."""

    def __init__(self, component: Component) -> None:
        self.name = component.name
        self._component = component
        self._state: Mapping[str, Any] | None = None

    def state(self) -> Mapping[str, Any]:
        return self._component.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def apply(self) -> None:
        """Raises NamesMismatch where the component does not take its state. This process must not train."""
        if self._state is None:
            return
        try:
            self._component.restore(self._state)
        except (KeyError, TypeError, ValueError) as error:
            raise NamesMismatch(
                f"component {self.name}: cannot take its saved state: {error!r}",
                hint="run with the code and the configuration that saved it",
            ) from error


class Counters:
    """The numbers by which MindRLHF's metrics and prompt dumps count."""

    name = "counters"
    _PATHS = (
        "train.global_training_step",
        "experience_maker.make_exp_step",
        "experience_maker.total_processed_tokens",
    )

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state(self) -> dict[str, Any]:
        """Zeros while there is no experience maker yet."""
        made = hasattr(self._trainer, "experience_maker")
        return {path: need(self._trainer, path) if made else 0 for path in self._PATHS}

    def restore(self, state: Mapping[str, Any]) -> None:
        for path in self._PATHS:
            owner, _, name = path.rpartition(".")
            setattr(need(self._trainer, owner), name, state[path])


class LossScale:
    """What of the update is neither a weight nor in the optimizer: the scale, and how long it has been good."""

    name = "loss_scale"
    _NOT_STATE = ("accu_grads",)
    """Zero between two updates, and as large as the weights."""

    def __init__(self, update: Any, *known: Any) -> None:
        self._net = stock.rest(update, known, self._NOT_STATE)

    def state(self) -> dict[str, Any]:
        return {name: to_array(self._net.read(name)).copy() for name in self._net.infos()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in self._net.infos():
            self._net.place(name, from_array(state[name]))


class Data:
    """How many batches a pass over the data has: with others, a position means other prompts."""

    name = "data"

    def __init__(self, batches: int, num_rollouts: int) -> None:
        self._now = {"batches": batches, "num_rollouts": num_rollouts}

    def state(self) -> dict[str, Any]:
        return dict(self._now)

    def restore(self, state: Mapping[str, Any]) -> None:
        if changed := [key for key, value in self._now.items() if state[key] != value]:
            said = ", ".join(f"{key} was {state[key]}, is {self._now[key]}" for key in changed)
            raise ValueError(f"the data set is another one: {said}")
