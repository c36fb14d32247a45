"""How one tensor of a net is made from those of a file: taken, cut, joined, turned, cast; a source seen through that.

Nothing is read until a tensor is asked for, and then through the source, which checks what it reads. Bytes are moved,
never interpreted, so every dtype is right; only a cast looks at values.
"""

from __future__ import annotations

import fnmatch
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ms_resume.errors import NamesMismatch, UsageError
from ms_resume.load.source import Readable
from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo
from ms_resume.state import HostTensor

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from numpy.typing import NDArray

Take = Callable[[str], HostTensor]
Array: TypeAlias = "NDArray[Any]"

UNKNOWN = TensorInfo("", ())
"""Of a list that has names and no more."""

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_WIDER = {
    "F16": ("F32", "F64"), "BF16": ("F32", "F64"), "F32": ("F64",),
    "I8": ("I16", "I32", "I64"), "I16": ("I32", "I64"), "I32": ("I64",),
    "U8": ("U16", "U32", "U64", "I16", "I32", "I64"), "U16": ("U32", "U64", "I32", "I64"), "U32": ("U64", "I64"),
}  # fmt: skip  # one line per kind
_INTEGERS = {
    f"{sign}{bits}": f"{name}{bits}" for sign, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}
_HELD = 4
"""Tensors of the file kept in memory because more than one of the net's is made of them."""


def widens(old: str, new: str) -> bool:
    """Whether every value of one dtype is one of the other's, too."""
    return new in _WIDER.get(old, ())


def castable(old: str, new: str) -> bool:
    """Between floats, and between whole numbers; a number is no flag, and what is quantised needs its scales."""
    return {old, new} <= FLOATS.keys() or {old, new} <= _INTEGERS.keys()


class Recipe(Protocol):
    """`info` is what comes out, `uses` which tensors of the file go in."""

    @property
    def info(self) -> TensorInfo: ...

    @property
    def uses(self) -> tuple[str, ...]: ...

    def make(self, take: Take) -> Array: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """A tensor as it lies in the file."""

    name: str
    info: TensorInfo

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.name,)

    def make(self, take: Take) -> Array:
        return _opaque(take(self.name))


@dataclass(frozen=True, slots=True)
class Cut:
    """From `begin` to `end` of an axis; with `groups`, the same of each of so many equal blocks of it."""

    of: Recipe
    axis: int
    begin: int
    end: int
    groups: int = 1

    @property
    def info(self) -> TensorInfo:
        shape = list(self.of.info.shape)
        if self.of.info.dtype:
            shape[self.axis] = self.end - self.begin
        return _described(self.of, tuple(shape))

    @property
    def uses(self) -> tuple[str, ...]:
        return self.of.uses

    def make(self, take: Take) -> Array:
        blocks = _in_blocks(self.of.make(take), self.axis, self.groups)
        begin, end = self.begin // self.groups, self.end // self.groups
        return blocks[(slice(None),) * (self.axis + 1) + (slice(begin, end),)].reshape(self.info.shape)


@dataclass(frozen=True, slots=True)
class Joined:
    """Several along an axis; with `groups`, block by block."""

    of: tuple[Recipe, ...]
    axis: int
    groups: int = 1

    @property
    def info(self) -> TensorInfo:
        first = self.of[0].info
        if not all(part.info.dtype for part in self.of):
            return UNKNOWN
        shape = list(first.shape)
        shape[self.axis] = sum(part.info.shape[self.axis] for part in self.of)
        return _described(self.of[0], tuple(shape))

    @property
    def uses(self) -> tuple[str, ...]:
        return tuple(name for part in self.of for name in part.uses)

    def make(self, take: Take) -> Array:
        import numpy as np

        blocks = [_in_blocks(part.make(take), self.axis, self.groups) for part in self.of]
        return np.concatenate(blocks, self.axis + 1).reshape(self.info.shape)


@dataclass(frozen=True, slots=True)
class Stacked:
    """Several of one shape, along a new first axis."""

    of: tuple[Recipe, ...]

    @property
    def info(self) -> TensorInfo:
        return _described(self.of[0], (len(self.of), *self.of[0].info.shape))

    @property
    def uses(self) -> tuple[str, ...]:
        return tuple(name for part in self.of for name in part.uses)

    def make(self, take: Take) -> Array:
        import numpy as np

        return np.stack([part.make(take) for part in self.of])


@dataclass(frozen=True, slots=True)
class Picked:
    """One entry of the first axis."""

    of: Recipe
    index: int

    @property
    def info(self) -> TensorInfo:
        return _described(self.of, self.of.info.shape[1:])

    @property
    def uses(self) -> tuple[str, ...]:
        return self.of.uses

    def make(self, take: Take) -> Array:
        picked: Array = self.of.make(take)[self.index]
        return picked


@dataclass(frozen=True, slots=True)
class Transposed:
    """Its last two axes exchanged."""

    of: Recipe

    @property
    def info(self) -> TensorInfo:
        *rest, rows, columns = self.of.info.shape if self.of.info.dtype else (0, 0)
        return _described(self.of, (*rest, columns, rows))

    @property
    def uses(self) -> tuple[str, ...]:
        return self.of.uses

    def make(self, take: Take) -> Array:
        return self.of.make(take).swapaxes(-1, -2)


@dataclass(frozen=True, slots=True)
class Cast:
    """In another dtype, rounded to the nearest where it is narrower."""

    of: Recipe
    dtype: str

    @property
    def info(self) -> TensorInfo:
        return _described(self.of, self.of.info.shape, self.dtype)

    @property
    def uses(self) -> tuple[str, ...]:
        return self.of.uses

    def make(self, take: Take) -> Array:
        return _cast(self.of.make(take), self.of.info.dtype, self.dtype, ", ".join(self.of.uses))


class View:
    """A source under other names and shapes, itself one; `read` may be called from any thread."""

    def __init__(self, source: Readable, recipes: Mapping[str, Recipe]) -> None:
        self.path, self.values, self.bytes = source.path, source.values, source.bytes
        self.recipes = recipes
        self.tensors: Mapping[str, TensorInfo] = {name: recipe.info for name, recipe in recipes.items()}
        plain = {name: recipe.name for name, recipe in recipes.items() if isinstance(recipe, Taken)}
        self.digests: Mapping[str, str] = {n: source.digests[old] for n, old in plain.items() if old in source.digests}
        self._source = source
        self._users = Counter(name for recipe in recipes.values() for name in set(recipe.uses))
        self._held: OrderedDict[str, HostTensor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str) -> HostTensor:
        """A tensor of the net, made now. Raises Damaged, naming the file's tensor, where one's digest does not hold."""
        recipe = self.recipes[name]
        if isinstance(recipe, Taken):
            return self._take(recipe.name)
        return as_host(recipe.info, recipe.make(self._take))

    def _take(self, name: str) -> HostTensor:
        """Reads what several are made of once, as long as they are asked for one after the other: three hundred experts
        in one tensor are not read three hundred times."""
        if self._users[name] == 1:
            return self._source.read(name)
        with self._lock:
            if name not in self._held:
                self._held[name] = self._source.read(name)
                if len(self._held) > _HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(name)
            return self._held[name]


def as_host(info: TensorInfo, array: Array) -> HostTensor:
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    return HostTensor(info.dtype, info.shape, flat.view(np.uint8).data if flat.size else memoryview(b""))


def fitting(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those that one of the patterns of `fnmatch` fits."""
    wanted = list(patterns)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]


def floats(array: Array, dtype: str) -> Array:
    """Opaque items as NumPy's floats or whole numbers; bfloat16, which NumPy lacks, as float32."""
    import numpy as np

    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.view(f"float{8 * FLOATS[dtype]}" if dtype in FLOATS else _INTEGERS[dtype])


def _opaque(tensor: HostTensor) -> Array:
    import numpy as np

    return np.frombuffer(tensor.data, np.dtype(f"<u{payload.item_bytes(tensor.dtype)}")).reshape(tensor.shape)


def _in_blocks(array: Array, axis: int, groups: int) -> Array:
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


def _described(of: Recipe, shape: tuple[int, ...], dtype: str | None = None) -> TensorInfo:
    """It begins where the first of its parts does, so that reading by offset stays in order."""
    if not of.info.dtype:
        return UNKNOWN
    dtype = dtype or of.info.dtype
    return TensorInfo(dtype, shape, of.info.begin, of.info.begin + payload.item_bytes(dtype) * math.prod(shape))


def _cast(array: Array, old: str, new: str, name: str) -> Array:
    import numpy as np

    if not castable(old, new):
        raise UsageError(f"{name}: {old} cannot be cast to {new}", hint="only floats and whole numbers can be cast")
    flat = array.reshape(-1)
    values = floats(flat, old)
    with np.errstate(over="ignore", invalid="ignore"):
        made = _to_bfloat16(values) if new == "BF16" else values.astype(_numpy_name(new))
        back = floats(made.view(f"<u{payload.item_bytes(new)}"), new)
        lost = np.isfinite(values) & ~np.isfinite(back) if new in FLOATS else back != values
    if lost.any():
        raise NamesMismatch(
            f"{name}: {int(lost.sum())} of {values.size} values do not fit {new}, first {values[lost][0]}",
            hint=f"leave it in {old}, or take another dtype than {new}",
        )
    return made.view(f"<u{payload.item_bytes(new)}").reshape(array.shape)


def _to_bfloat16(values: Array) -> Array:
    """Round half to even, as hardware does; a NaN stays one."""
    import numpy as np

    single = _to_odd(values) if values.dtype == np.float64 else values.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0) | (bits >> 16).astype(np.uint16), rounded)


def _to_odd(values: Array) -> Array:
    """float64 as float32 whose last bit tells that something was cut off, so that the next rounding is right too."""
    import numpy as np

    single = values.astype(np.float32)
    toward_zero = np.where(np.abs(single) > np.abs(values), np.nextafter(single, np.float32(0)), single)
    bits = toward_zero.view(np.uint32)
    inexact = (toward_zero != values) & np.isfinite(values)
    odd: Array = (bits | inexact.astype(np.uint32)).view(np.float32)
    return odd


def _numpy_name(dtype: str) -> str:
    return f"float{8 * FLOATS[dtype]}" if dtype in FLOATS else _INTEGERS[dtype]
