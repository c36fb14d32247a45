"""MindSpore's `.ckpt`: read without MindSpore, and written with its CRC.

    file    = record*  [ "crc_num" crc ]           crc: 10 bytes big endian, crc32 of all records
    record  = Checkpoint.value: tag (string), tensor {dims, tensor_type (string), tensor_content (bytes)}

A tensor larger than 512 MiB lies in several records with one tag, each with the whole shape. The wire format is
protobuf's; the fields are those of MindSpore's checkpoint.proto (2.7.1 to 2.10.0).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ms_resume.ondisk import payload, reading, sums
from ms_resume.records import TensorInfo

SLICE_BYTES = 512 << 20
CRC_MARK = b"crc_num"
_TRAILER_BYTES = len(CRC_MARK) + 10
_READ_SIZE = 4 << 20
_WALK_LIMIT = 64 << 20
_LONGEST_VARINT = 10
_LONGEST_TEXT = 4096
_MOST_FIELDS = payload.MOST_DIMENSIONS + 8

DTYPES = {
    "Float32": "F32", "Float16": "F16", "BFloat16": "BF16", "Float64": "F64",
    "Int8": "I8", "Int16": "I16", "Int32": "I32", "Int64": "I64",
    "UInt8": "U8", "UInt16": "U16", "UInt32": "U32", "UInt64": "U64", "Bool": "BOOL",
}  # fmt: skip  # one line per family
"""MindSpore's names of dtypes to those of safetensors."""

_TYPES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Contents:
    """The records of one file. `pieces` has (offset, length) of each tensor's bytes, in order; `crc` is what the
    trailer says, None where there is none."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    pieces: Mapping[str, tuple[tuple[int, int], ...]]
    file_bytes: int
    crc: int | None

    @property
    def has_crc(self) -> bool:
        return self.crc is not None

    @property
    def records_end(self) -> int:
        """What the CRC is over ends here."""
        return self.file_bytes - (_TRAILER_BYTES if self.has_crc else 0)


def read(path: Path) -> Contents:
    """Walks all records; the bytes of the tensors are not looked at.

    Raises:
        Damaged: The file does not parse to its end, or a tensor has not the bytes that its shape needs.
    """
    contents, trouble = walked(path)
    if trouble:
        raise reading.damaged(path, f"{contents.file_bytes} bytes, {trouble}")
    for name, info in contents.tensors.items():
        if not has_all(contents, name):
            found = sum(length for _, length in contents.pieces[name])
            needs = f"{info.dtype}{list(info.shape)} needs {_needs(info)}"
            raise reading.damaged(path, f"tensor {name!r}: {found} bytes, {needs}", tensor=name)
    return contents


def has_all(contents: Contents, name: str) -> bool:
    """Whether a tensor has the bytes that its shape needs."""
    return sum(length for _, length in contents.pieces[name]) == _needs(contents.tensors[name])


def _needs(info: TensorInfo) -> int:
    return payload.item_bytes(info.dtype) * math.prod(info.shape)


def walked(path: Path) -> tuple[Contents, str]:
    """The records down to the first that does not parse, and what is wrong with that one; nothing when all do."""
    tensors: dict[str, TensorInfo] = {}
    pieces: dict[str, list[_Piece]] = {}
    trouble = ""
    with reading.opened(path) as file:
        size, crc = trailer(file)
        end = size if crc is None else size - _TRAILER_BYTES
        try:
            _gather(_records(_Walk(file), end), tensors, pieces)
        except ValueError as error:
            trouble = f"does not parse to its end ({error})"
    if end <= 0:
        trouble = "no tensor in it"
    return Contents(path, tensors, {name: tuple(parts) for name, parts in pieces.items()}, size, crc), trouble


def trailer(file: BinaryIO) -> tuple[int, int | None]:
    """The file's size, and the CRC at its end, None without one."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TRAILER_BYTES))
    tail = file.read(_TRAILER_BYTES)
    found = len(tail) == _TRAILER_BYTES and tail.startswith(CRC_MARK)
    return size, int.from_bytes(tail[len(CRC_MARK) :], "big") if found else None


def check_crc(path: Path) -> None:
    """Raises Damaged where the file has a CRC and it does not hold."""
    with reading.opened(path) as file:
        size, saved = trailer(file)
        crc = sums.Crc()
        sums.feed(file, 0, size - _TRAILER_BYTES if saved is not None else 0, [crc.update])
        compare_crc(path, crc.value, saved)


def compare_crc(path: Path, found: int, saved: int | None) -> None:
    if saved is not None and found != saved:
        raise reading.damaged(path, f"its bytes have CRC {found:#x}, its trailer says {saved:#x}")


def sum_up(file: BinaryIO, contents: Contents, end: int, whole: Sequence[sums.Sink], sinks: sums.OfTensor) -> None:
    """Reads the file once, up to `end`: `whole` takes every byte of that, `sinks(name)` those of a tensor."""
    at = 0
    placed = sorted((begin, length, name) for name, pieces in contents.pieces.items() for begin, length in pieces)
    for begin, length, name in (*placed, (end, 0, "")):
        short = sums.feed(file, at, begin - at, whole)
        short += sums.feed(file, begin, length, [*whole, *sinks(name)] if length else ())
        if short:
            raise reading.damaged(contents.path, f"ends before byte {begin + length}, it had {contents.file_bytes}")
        at = begin + length


def read_tensor(contents: Contents, name: str) -> memoryview:
    """One tensor's bytes. Raises Damaged where the file has become shorter since it was walked."""
    return memoryview(b"".join(_pieces(contents, name)))


def encode(tensors: Iterable[tuple[str, TensorInfo, memoryview]]) -> Iterator[bytes]:
    """The chunks of a whole file, CRC last."""
    crc = 0
    for name, info, data in tensors:
        for begin in range(0, max(len(data), 1), SLICE_BYTES):
            record = _record(name, info, data[begin : begin + SLICE_BYTES])
            crc = zlib.crc32(record, crc)
            yield record
    yield CRC_MARK + crc.to_bytes(10, "big")


def _record(name: str, info: TensorInfo, data: memoryview) -> bytes:
    dims = b"".join(_varint(1 << 3) + _varint(size) for size in info.shape)
    tensor = dims + _block(2, _TYPES[info.dtype].encode()) + _block(3, bytes(data))
    return _block(1, _block(1, name.encode()) + _block(2, tensor))


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _pieces(contents: Contents, name: str) -> Iterator[bytes]:
    with reading.opened(contents.path) as file:
        for begin, length in contents.pieces[name]:
            file.seek(begin)
            left = length
            while left:
                piece = file.read(min(left, _READ_SIZE))
                if not piece:
                    raise reading.damaged(contents.path, f"tensor {name!r}: ends {left} bytes early", tensor=name)
                left -= len(piece)
                yield piece


class _Walk:
    """A file of records, read field by field: names and numbers, never what a tensor holds.

    All that is read of it is counted, so that a file of nothing but names is not taken into memory whole.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._read_bytes = 0

    def field(self, offset: int, end: int) -> tuple[int, int, int]:
        """(field number, begin, end) of the field at `offset`; a varint field spans its own bytes."""
        key, begin = self.varint(offset, end)
        if key & 7 == 0:
            return key >> 3, begin, self.varint(begin, end)[1]
        if key & 7 != 2:
            raise ValueError(f"wire type {key & 7} at byte {offset}")
        length, begin = self.varint(begin, end)
        if begin + length > end:
            raise ValueError(f"a field of {length} bytes at byte {offset}, {end - begin} are left")
        return key >> 3, begin, begin + length

    def fields(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        while offset < end:
            number, begin, offset = self.field(offset, end)
            yield number, begin, offset

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        """(value, end) of the number at `offset`, which ends before `end`."""
        value = 0
        found = self.bytes(offset, min(offset + _LONGEST_VARINT, end))
        for index, byte in enumerate(found):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, offset + index + 1
        raise ValueError(f"a number without end at byte {offset}")

    def text(self, offset: int, end: int) -> str:
        if end - offset > _LONGEST_TEXT:
            raise ValueError(f"a name of {end - offset} bytes at byte {offset}")
        try:
            return self.bytes(offset, end).decode()
        except UnicodeError:
            raise ValueError(f"a name that is not UTF-8 at byte {offset}") from None

    def bytes(self, offset: int, end: int) -> bytes:
        self._file.seek(offset)
        found = self._file.read(end - offset)
        self._read_bytes += len(found)
        if len(found) < end - offset:
            raise ValueError(f"ends at byte {offset + len(found)}")
        if self._read_bytes > _WALK_LIMIT:
            raise ValueError(f"more than {_WALK_LIMIT} bytes of names and shapes")
        return found


_Piece = tuple[int, int]


def _gather(
    records: Iterable[tuple[str, TensorInfo, _Piece]], tensors: dict[str, TensorInfo], pieces: dict[str, list[_Piece]]
) -> None:
    for tag, info, piece in records:
        if tensors.setdefault(tag, info) != info:
            raise ValueError(f"tensor {tag!r} is there twice, with another type or shape")
        pieces.setdefault(tag, []).append(piece)


def _records(walk: _Walk, end: int) -> Iterator[tuple[str, TensorInfo, _Piece]]:
    for number, begin, stop in walk.fields(0, end):
        if number != 1:
            raise ValueError(f"field {number} at byte {begin}")
        yield _value(walk, begin, stop)


def _value(walk: _Walk, offset: int, end: int) -> tuple[str, TensorInfo, _Piece]:
    dims: list[int] = []
    outer = _once(walk, offset, end)
    tag = walk.text(*outer[1]) if 1 in outer else ""
    parts = _once(walk, *outer.get(2, (0, 0)), dims)
    dtype = walk.text(*parts[2]) if 2 in parts else ""
    if not tag or dtype not in DTYPES:
        raise ValueError(f"a record named {tag!r} of type {reading.brief(dtype)} at byte {offset}")
    shape = () if dims == [0] else tuple(dims)  # MindSpore reads one dimension of 0 as a 0-d tensor
    begin, stop = parts.get(3, (0, 0))
    return tag, TensorInfo(DTYPES[dtype], shape), (begin, stop - begin)


def _once(walk: _Walk, offset: int, end: int, dims: list[int] | None = None) -> dict[int, tuple[int, int]]:
    """Where each field of a message lies; of one that is there twice, readers do not agree which counts.

    Args:
        dims: Takes field 1, which is a list: each number by itself, or packed.
    """
    found: dict[int, tuple[int, int]] = {}
    for count, (number, begin, stop) in enumerate(walk.fields(offset, end)):
        if count > _MOST_FIELDS:
            raise ValueError(f"more than {_MOST_FIELDS} fields in one record at byte {begin}")
        if number == 1 and dims is not None:
            _add_dims(walk, begin, stop, dims)
        elif found.setdefault(number, (begin, stop)) != (begin, stop):
            raise ValueError(f"field {number} twice in one record at byte {begin}")
    return found


def _add_dims(walk: _Walk, offset: int, end: int, dims: list[int]) -> None:
    while offset < end:
        value, offset = walk.varint(offset, end)
        dims.append(reading.whole(value))
        if len(dims) > payload.MOST_DIMENSIONS:
            raise ValueError(f"more than {payload.MOST_DIMENSIONS} dimensions at byte {offset}")
