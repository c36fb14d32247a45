"""A MindSpore net or optimizer as `state.Tensors`: read without a copy where the device allows, placed in place.

After the first compiled step `Parameter.set_data`, `assign_value`, and `load_param_into_net` detach a parameter: it
shows the loaded values while training goes on with the old ones. On a CPU `data_ptr` is where the buffer lies that
training uses: it is written there. Elsewhere `Parameter.copy_` writes into that buffer, but broadcasts and casts
without a word, so shape and dtype are checked before it (`copy_` tried on 2.7.1 to 2.10.0, `data_ptr` on 2.10.0).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

from ms_resume.errors import MsResumeError, NamesMismatch, UsageError
from ms_resume.ondisk import ckpt
from ms_resume.records import TensorInfo
from ms_resume.state import Arrays, HostTensor, Tensors, from_array, to_array


class Net:
    """The parameters of a Cell by name. For an optimizer that is its own state and the weights it updates."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self._parameters: dict[str, Any] = {}
        for parameter in cell.get_parameters():
            held = self._parameters.setdefault(parameter.name, parameter)
            if held is not parameter:
                raise UsageError(
                    f"two parameters of {type(cell).__name__} are named {parameter.name!r}: only one could be saved",
                    hint="give the cells different names, for example with update_parameters_name",
                )

    def read(self, name: str) -> HostTensor:
        return from_array(self._parameters[name].asnumpy())

    def infos(self) -> dict[str, TensorInfo]:
        return {name: _info(parameter) for name, parameter in self._parameters.items()}

    def memory(self, name: str) -> memoryview | None:
        """The buffer that training uses, where that is host memory and a CPU is what it runs on; else None.

        To ask waits for what was launched and has not yet run. On Ascend a parameter lies in host memory only until it
        is first used, so `place` it is.
        """
        parameter = self._parameters[name]
        if not self._on_cpu or parameter.device != "CPU" or not parameter.is_contiguous():
            return None
        if parameter.has_init:
            parameter.init_data()  # of a net that was built without values, which has no memory until then
        if not (address := parameter.data_ptr()):
            return None
        # Not from `asnumpy`: NumPy then parses in Python what the items are, which takes five times as long.
        buffer = (ctypes.c_ubyte * parameter.nbytes).from_address(address)
        buffer.storage = parameter.storage()  # else `set_data` would free what this is a view of
        return memoryview(buffer).cast("B")

    def address(self, name: str) -> int:
        return int(self._parameters[name].data_ptr())

    @cached_property
    def _on_cpu(self) -> bool:
        from mindspore import get_context

        return bool(get_context("device_target") == "CPU")

    def place(self, name: str, value: HostTensor) -> None:
        _place(self._parameters[name], value, name)

    def holds(self, name: str, other: Net) -> bool:
        """Whether `other` has the same parameter under that name."""
        return self._parameters[name] is other._parameters.get(name)

    def addresses(self) -> dict[int, str]:
        """Buffer address to name, for finding parameters that two nets share; 0 is no address."""
        held = self._parameters.items()
        return {address: name for name, parameter in held if parameter.size and (address := parameter.data_ptr())}


def wrap(role: Any) -> Tensors:
    """A role as `Tensors`: what has `read` and `place` as it is, anything else as a MindSpore cell."""
    return role if hasattr(role, "read") and hasattr(role, "place") else Net(role)


def compile_anew(roles: Iterable[Tensors]) -> None:
    """Lets whatever uses the parameters of nets be compiled again when it is next called.

    Where somebody detached them before they were loaded (`load_param_into_net` or `set_data` after a compiled step),
    what was compiled trains memory that no parameter shows, so that no look at a parameter tells. MindSpore keeps in
    a set which graphs are compiled; one that is not in it is compiled with the parameters as they are (tried on
    2.10.0).
    """
    cells = [tensors.cell for tensors in roles if isinstance(tensors, Net)]
    if not cells:
        return
    from mindspore.common import api

    getattr(api, "ms_compile_cache", set()).clear()
    for cell in cells:
        for _, inner in cell.cells_and_names():
            getattr(inner, "compile_cache", set()).clear()


def shared(policy: Tensors, optimizer: Tensors) -> frozenset[str]:
    """The names under which both have the same memory: the weights that the optimizer updates."""
    if isinstance(policy, Net) and isinstance(optimizer, Net):
        return frozenset(name for name in policy.infos() if policy.holds(name, optimizer))
    if isinstance(policy, Arrays) and isinstance(optimizer, Arrays):
        return frozenset(name for name, array in policy.items() if array is optimizer.get(name))
    return frozenset()


def check_separate(policy: Tensors, ref: Tensors | None) -> None:
    """Raises UsageError where policy and reference share memory, so that training one would train the other."""
    if not isinstance(policy, Net) or not isinstance(ref, Net):
        return
    shared = policy.addresses().keys() & ref.addresses().keys()
    if shared:
        names = sorted(policy.addresses()[address] for address in shared)
        raise UsageError(
            f"policy and reference share the memory of {len(names)} parameters, first {names[0]!r}: "
            "training the policy would train the reference",
            hint="load them from two dicts, or copy each value (one dict loaded into two nets is shared)",
        )


def learning_rates(optimizer: Any) -> dict[str, Any]:
    """The learning rates that are parameters, by a name of their own. Those of `experimental.optim` are in `lrs` and in
    no list of parameters; of `nn` optimizers all are registered, a schedule's is none."""
    rates = getattr(optimizer, "lrs", None)
    if rates is None:
        held = getattr(optimizer, "learning_rate", ())
        rates = held if isinstance(held, (list, tuple)) else [held]
    return {f"rate_{number}": rate for number, rate in enumerate(rates) if hasattr(rate, "copy_")}


def counters(scheduler: Any, prefix: str = "schedule") -> dict[str, Any]:
    """Every parameter that a scheduler of `experimental.optim.lr_scheduler` counts in, also of schedulers within it.
    It has no `state_dict`, and is no Cell."""
    held = vars(scheduler) if scheduler is not None else {}
    found = {f"{prefix}_{name}": value for name, value in held.items() if type(value).__name__ == "Parameter"}
    for number, inner in enumerate(held.get("_schedulers", ())):
        found |= counters(inner, f"{prefix}_{number}")
    return found


def to_plain_array(parameter: Any) -> Any:
    """A copy of a parameter's value, which `assign` takes; bfloat16, which NumPy lacks, as its bits."""
    import numpy as np

    array = parameter.asnumpy()
    return array.view(np.uint16).copy() if array.dtype.name == "bfloat16" else np.array(array)


def assign(parameter: Any, array: Any, name: str) -> None:
    """Gives a parameter a value of `to_plain_array`, in place. Raises NamesMismatch where it does not fit."""
    value, held = from_array(array), _info(parameter)
    if (value.dtype, held.dtype) == ("U16", "BF16"):
        value = replace(value, dtype="BF16")
    if value.info != held:
        raise NamesMismatch(
            f"{name}: the checkpoint has {value.dtype}{list(value.shape)}, this trainer {held.dtype}{list(held.shape)}",
            hint="run with the code and the configuration that saved it",
        )
    _place(parameter, value, name)


def _place(parameter: Any, value: HostTensor, name: str) -> None:
    from mindspore import Tensor

    array, held = array_of(value), _info(parameter)
    if (value.dtype, value.shape) != (held.dtype, held.shape):
        raise MsResumeError(f"{name}: {value.dtype}{value.shape} does not fit {held.dtype}{held.shape}")
    device, address = parameter.device, parameter.data_ptr()
    parameter.copy_(Tensor(array))  # which copies: what is read next into the same buffer is not seen
    # On Ascend a parameter lies in host memory, at an address of its own or none, until it is first used.
    if address and parameter.device == device and parameter.data_ptr() != address:
        raise MsResumeError(f"{name}: moved while it was loaded, so training would not see the loaded values")


def _info(parameter: Any) -> TensorInfo:
    return _info_of(parameter.dtype, tuple(parameter.shape))


@cache
def _info_of(dtype: Any, shape: tuple[int, ...]) -> TensorInfo:
    """Remembered: a model has few that differ, and many parameters."""
    return TensorInfo(ckpt.DTYPES[str(dtype)], shape)


def array_of(value: HostTensor) -> Any:
    """A view of the bytes as NumPy array, of MindSpore's bfloat16 as well."""
    if value.dtype != "BF16":
        return to_array(value)
    import numpy as np
    from mindspore.common.np_dtype import bfloat16

    return np.frombuffer(value.data, dtype=np.uint16).view(bfloat16).reshape(value.shape)
