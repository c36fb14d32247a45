"""Two stored tensors, compared piece by piece: memory does not grow with them, and every byte is checked on the way.

Equal means bit for bit, except that every NaN equals every other: which one a kernel makes says nothing. Zero and minus
zero differ, by 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from ms_resume.load.names.recipes import floats
from ms_resume.ondisk import ckpt, payload, reading
from ms_resume.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE = 1 << 20


class Stored:
    """The tensors of one payload, to be read in pieces of one length. Raises Damaged where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: Mapping[str, str] = {}
        self.values: Mapping[str, Any] = {}
        if path.suffix == ".ckpt":
            contents = ckpt.read(path)
            self.tensors, self._extents = contents.tensors, contents.pieces
        else:
            header = payload.read_header(path)
            self.tensors, self.digests, self.values = header.tensors, header.digests, header.values
            self._extents = {
                name: ((header.data_start + info.begin, info.end - info.begin),)
                for name, info in header.tensors.items()
            }

    def pieces(self, name: str) -> Iterator[memoryview]:
        """Of `_PIECE` bytes, the last one shorter. Raises Damaged where the bytes are not what was saved."""
        digest = xxhash.xxh3_128()
        with reading.opened(self.path) as file:
            for piece in self._filled(file, name):
                digest.update(piece)
                yield piece
        expected = self.digests.get(name)
        if expected is not None and digest.hexdigest() != expected:
            reason = f"tensor {name!r}: its bytes have digest {digest.hexdigest()}, the header says {expected}"
            raise reading.damaged(self.path, reason, tensor=name)

    def _filled(self, file: BinaryIO, name: str) -> Iterator[memoryview]:
        buffer = bytearray()
        for begin, length in self._extents[name]:
            file.seek(begin)
            while length:
                found = file.read(min(length, _PIECE - len(buffer)))
                if not found:
                    raise reading.damaged(self.path, f"tensor {name!r}: ends {length} bytes early", tensor=name)
                length -= len(found)
                buffer += found
                if len(buffer) == _PIECE:
                    yield memoryview(bytes(buffer))
                    buffer.clear()
        if buffer:
            yield memoryview(bytes(buffer))


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two tensors of one dtype and shape lie apart.

    Attributes:
        elements: Numbers in each.
        differing: Of these, those that are not equal.
        not_finite: Of these, those that are NaN or infinite on one side or both: no distance is known.
        largest: Of the distances, None without any.
        mean: Of the distances, over all elements but those that are `not_finite`.
    """

    elements: int
    differing: int = 0
    not_finite: int = 0
    largest: float | None = None
    mean: float | None = None

    @property
    def share(self) -> float:
        return self.differing / self.elements if self.elements else 0.0


def compare(one: Stored, other: Stored, name: str, progress: Progress | None = None) -> Difference:
    """How far a tensor that both have, of one dtype and shape, is apart."""
    import math

    info = one.tensors[name]
    elements = math.prod(info.shape)
    differing = not_finite = measured = 0
    total, largest = 0.0, -1.0
    for mine, theirs in zip(one.pieces(name), other.pieces(name), strict=True):
        if mine != theirs:
            distances, unknown = _distances(info.dtype, mine, theirs)
            differing += len(distances) + unknown
            not_finite += unknown
            measured += len(distances)
            if len(distances):
                total += float(distances.sum())
                largest = max(largest, float(distances.max()))
        if progress:
            progress(2 * len(mine))
    known = elements - not_finite
    return Difference(
        elements, differing, not_finite, largest if measured else None, total / known if measured and known else None
    )


def _distances(dtype: str, mine: memoryview, theirs: memoryview) -> tuple[NDArray[Any], int]:
    """The distances of those that differ, and how many of them have none."""
    import numpy as np

    item = np.dtype(f"<u{payload.item_bytes(dtype)}")
    one, other = np.frombuffer(mine, item), np.frombuffer(theirs, item)
    differ = one != other
    here, there = _numbers(one[differ], dtype), _numbers(other[differ], dtype)
    known = np.isfinite(here) & np.isfinite(there)
    both_nan = int((np.isnan(here) & np.isnan(there)).sum())
    with np.errstate(over="ignore"):
        return np.abs(here[known] - there[known]), int((~known).sum()) - both_nan


def _numbers(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    import numpy as np

    if dtype == "C64":
        return array.view(np.complex64).astype(np.complex128)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (array.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    if dtype == "F8_E4M3":
        return _e4m3(array)
    return array.astype(np.float64) if dtype == "BOOL" else floats(array, dtype).astype(np.float64)


def _e4m3(array: NDArray[Any]) -> NDArray[Any]:
    """Bias 7, no infinity, NaN where all bits but the sign are set."""
    import numpy as np

    exponent, fraction = (array >> 3 & 15).astype(np.int32), (array & 7).astype(np.float64)
    size = np.where(exponent > 0, np.ldexp(1 + fraction / 8, exponent - 7), np.ldexp(fraction / 8, -6))
    size = np.where(array & 127 == 127, np.nan, size)
    return np.where(array >> 7, -size, size)
