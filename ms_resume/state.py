"""What a checkpoint is made of, on the side of the trainer: named tensors, and components with a small state.

A role (policy, optimizer, ref) is anything with the methods of `Tensors`: a MindSpore net through
`framework.nets.Net`, a dict of NumPy arrays through `Arrays`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ms_resume.errors import UsageError
from ms_resume.records import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16",
    "bfloat16": "BF16", "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64",
    "float64": "F64",
}  # fmt: skip  # one table
_NUMPY = {dtype: name for name, dtype in _DTYPES.items() if dtype != "BF16"}


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A tensor's bytes in host memory, row-major and little endian. `data` is flat and may be a view of live memory."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.dtype, self.shape)


class Tensors(Protocol):
    """Named tensors of one role that training works on.

    Those in host memory may have the methods `memory` and `address`, too: see `Arrays`.
    """

    def read(self, name: str) -> HostTensor:
        """The value now. A view that the next update may change; whoever keeps it longer copies it. Called from any
        thread."""

    def infos(self) -> dict[str, TensorInfo]:
        """Their dtypes and shapes, without a copy of what a device holds."""

    def place(self, name: str, value: HostTensor) -> None:
        """Gives the tensor `name` new bytes, in place: whatever trains on it trains on them."""


@runtime_checkable
class Component(Protocol):
    """A named piece of state beside the tensors: a random source, a cursor, a scale, counters.

    One that has `of_rank` set is each rank's own: a job with another number of ranks leaves it as the trainer built it.
    """

    name: str

    def state(self) -> Mapping[str, Any]:
        """NumPy arrays and plain JSON values by key; what `restore` needs to make the component itself again."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""


class Arrays(dict[str, "NDArray[Any]"]):
    """NumPy arrays as a role: for trainers without MindSpore, and for tests."""

    def read(self, name: str) -> HostTensor:
        return from_array(self[name])

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(_form(array.dtype)[0], array.shape) for name, array in self.items()}

    def place(self, name: str, value: HostTensor) -> None:
        self[name][...] = to_array(value)

    def memory(self, name: str) -> memoryview | None:
        """The bytes of a tensor where they are, flat, to be written by any thread: whatever trains on it trains on
        them. None where they do not lie one after the other, are not little endian, or may not be written: `place`
        then says what is wrong, or does it."""
        return writable(self[name])

    def address(self, name: str) -> int:
        """Where the memory of a tensor begins, which is faster to ask for."""
        return int(self[name].__array_interface__["data"][0])


def from_array(array: NDArray[Any]) -> HostTensor:
    """A view where the array is contiguous, a copy otherwise."""
    import numpy as np

    dtype, little_endian = _form(array.dtype)
    flat = np.ascontiguousarray(array, little_endian).reshape(-1)
    data = flat.view(np.uint8).data if flat.size else memoryview(b"")
    return HostTensor(dtype, array.shape, data)


@functools.cache
def _form(dtype: np.dtype[Any]) -> tuple[str, np.dtype[Any]]:
    """What an array's dtype is called in a file, and how it lies there. Remembered: asking takes longer than a copy."""
    if dtype.name not in _DTYPES:
        raise UsageError(f"an array of dtype {dtype} cannot be saved", hint="convert it to numbers or booleans")
    return _DTYPES[dtype.name], dtype.newbyteorder("<")


def writable(array: NDArray[Any]) -> memoryview | None:
    """What `Arrays.memory` says of an array."""
    import numpy as np

    flags = array.flags
    if not (array.size and flags.c_contiguous and flags.writeable) or array.dtype != _form(array.dtype)[1]:
        return None
    return array.reshape(-1).view(np.uint8).data


_SMALL = 64 << 10
"""Bytes that are copied in a few microseconds."""


def copy(source: memoryview, target: memoryview) -> None:
    """Bytes of flat views. Other threads run meanwhile, where it takes longer than to hand over to them and back."""
    import numpy as np

    if len(source) < _SMALL:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def to_array(value: HostTensor) -> NDArray[Any]:
    """A view of the bytes. bfloat16, which NumPy lacks, is not known here."""
    import numpy as np

    return np.frombuffer(value.data, dtype=_NUMPY[value.dtype]).reshape(value.shape)


def scalar(value: int) -> HostTensor:
    """A 0-d int64, the form in which MindRLHF stores a position."""
    return HostTensor("I64", (), memoryview(value.to_bytes(8, "little", signed=True)))


def read_all(tensors: Tensors) -> dict[str, HostTensor]:
    """Every tensor of a role, by name."""
    return {name: tensors.read(name) for name in tensors.infos()}


def infos(tensors: Mapping[str, HostTensor]) -> dict[str, TensorInfo]:
    return {name: tensor.info for name, tensor in tensors.items()}


def pack(components: Mapping[str, Component]) -> tuple[dict[str, HostTensor], dict[str, Any]]:
    """The states of all components as tensors named `<component>.<key>`, and plain values by component and key."""
    import numpy as np

    tensors: dict[str, HostTensor] = {}
    values: dict[str, Any] = {}
    for name, component in components.items():
        values[name] = {}
        for key, value in component.state().items():
            if isinstance(value, np.ndarray):
                tensors[f"{name}.{key}"] = from_array(value)
            else:
                _check_plain(f"{name}.{key}", value)
                values[name][key] = value
    return tensors, values


def _check_plain(where: str, value: Any) -> None:
    """JSON would give a tuple back as a list and the key 1 as "1": what cannot come back the same is not saved."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, entry in value.items():
            _check_plain(f"{where}.{key}", entry)
    elif isinstance(value, list):
        for entry in value:
            _check_plain(where, entry)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise UsageError(
            f"component state {where}: {type(value).__name__} {value!r:.60} would not come back as it was saved",
            hint="give NumPy arrays, numbers, strings, booleans, None, and lists or dicts (with str keys) of these",
        )


def unpack(tensors: Mapping[str, HostTensor], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `pack` was given, by component. Arrays are copies."""
    states: dict[str, dict[str, Any]] = {name: dict(plain) for name, plain in values.items()}
    for full, tensor in tensors.items():
        name, _, key = full.partition(".")
        states.setdefault(name, {})[key] = to_array(tensor).copy()
    return states
