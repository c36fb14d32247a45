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
from typing import Any, BinaryIO

from ms_resume.errors import Damaged
from ms_resume.ondisk import payload, sums
from ms_resume.records import TensorInfo

SLICE_BYTES = 512 << 20
CRC_MARK = b"crc_num"
_TRAILER_BYTES = len(CRC_MARK) + 10

DTYPES = {
    "Float32": "F32", "Float16": "F16", "BFloat16": "BF16", "Float64": "F64",
    "Int8": "I8", "Int16": "I16", "Int32": "I32", "Int64": "I64",
    "UInt8": "U8", "UInt16": "U16", "UInt32": "U32", "UInt64": "U64", "Bool": "BOOL",
}  # fmt: skip  # one line per family
"""MindSpore's names of dtypes to those of safetensors."""

_TYPES = {dtype: name for name, dtype in DTYPES.items()}


_NAME_LIMIT = 1 << 16


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
    tensors: dict[str, TensorInfo] = {}
    pieces: dict[str, tuple[tuple[int, int], ...]] = {}
    with open(path, "rb") as file:
        size, crc = _trailer(file)
        end = size if crc is None else size - _TRAILER_BYTES
        if end <= 0:
            raise payload_damaged(path, f"{size} bytes, no tensor in it")
        try:
            for tag, info, begin, length in _records(_Window(file, end)):
                tensors[tag] = info
                pieces[tag] = (*pieces.get(tag, ()), (begin, length))
        except (IndexError, ValueError, KeyError) as error:
            raise payload_damaged(path, f"{size} bytes, does not parse to its end ({error!r})") from None
    _check_sizes(path, tensors, pieces)
    return Contents(path, tensors, pieces, size, crc)


def check_crc(path: Path) -> None:
    """Raises Damaged where the file has a CRC and it does not hold."""
    with open(path, "rb") as file:
        size, saved = _trailer(file)
        crc = sums.Crc()
        sums.feed(file, 0, size - _TRAILER_BYTES if saved is not None else 0, [crc.update])
        compare_crc(path, crc.value, saved)


def compare_crc(path: Path, found: int, saved: int | None) -> None:
    if saved is not None and found != saved:
        raise payload_damaged(path, f"its bytes have CRC {found:#x}, its trailer says {saved:#x}")


def sum_up(file: BinaryIO, contents: Contents, end: int, whole: Sequence[sums.Sink], sinks: sums.OfTensor) -> None:
    """Reads the file once, up to `end`: `whole` takes every byte of that, `sinks(name)` those of a tensor."""
    at = 0
    placed = sorted((begin, length, name) for name, pieces in contents.pieces.items() for begin, length in pieces)
    for begin, length, name in (*placed, (end, 0, "")):
        short = sums.feed(file, at, begin - at, whole)
        short += sums.feed(file, begin, length, [*whole, *sinks(name)] if length else ())
        if short:
            raise payload_damaged(contents.path, f"ends before byte {begin + length}, it had {contents.file_bytes}")
        at = begin + length


def _trailer(file: BinaryIO) -> tuple[int, int | None]:
    """The file's size, and the CRC at its end where there is one."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TRAILER_BYTES))
    tail = file.read(_TRAILER_BYTES)
    found = len(tail) == _TRAILER_BYTES and tail.startswith(CRC_MARK)
    return size, int.from_bytes(tail[len(CRC_MARK) :], "big") if found else None


class _Window:
    """The first `size` bytes of a file, seen through one block: what lies between tensors is small."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._begin, self._block = 0, b""

    def __len__(self) -> int:
        return self._size

    def byte(self, offset: int) -> int:
        """Raises IndexError past the end."""
        if not 0 <= offset - self._begin < len(self._block):
            self._file.seek(offset)
            self._begin, self._block = offset, self._file.read(min(4096, max(0, self._size - offset)))
        return self._block[offset - self._begin]

    def text(self, begin: int, end: int) -> str:
        if end - begin > _NAME_LIMIT:
            raise ValueError(f"a name of {end - begin} bytes at byte {begin}")
        self._file.seek(begin)
        return self._file.read(end - begin).decode()


def read_tensor(contents: Contents, name: str) -> memoryview:
    with open(contents.path, "rb") as file:
        pieces = []
        for begin, length in contents.pieces[name]:
            file.seek(begin)
            pieces.append(file.read(length))
    return memoryview(b"".join(pieces))


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


def _records(data: _Window) -> Iterator[tuple[str, TensorInfo, int, int]]:
    offset = 0
    while offset < len(data):
        key, begin, end = _field(data, offset)
        if key != 1:
            raise ValueError(f"field {key} at byte {offset}")
        yield _value(data, begin, end)
        offset = end


def _value(data: _Window, offset: int, end: int) -> tuple[str, TensorInfo, int, int]:
    tag, tensor = "", (0, 0)
    while offset < end:
        key, begin, offset = _field(data, offset, end)
        if key == 1:
            tag = data.text(begin, offset)
        elif key == 2:
            tensor = (begin, offset)
    dims: list[int] = []
    dtype, content = "", (0, 0)
    offset, end = tensor
    while offset < end:
        key, begin, offset = _field(data, offset, end)
        if key == 1:
            dims += _dims(data, begin, offset)
        elif key == 2:
            dtype = DTYPES[data.text(begin, offset)]
        elif key == 3:
            content = (begin, offset - begin)
    if not (tag and dtype):
        raise ValueError(f"a record without name or type at byte {offset}")
    shape = () if dims == [0] else tuple(dims)  # MindSpore reads one dimension of 0 as a 0-d tensor
    return tag, TensorInfo(dtype, shape), *content


def _field(data: _Window, offset: int, limit: int | None = None) -> tuple[int, int, int]:
    """(field number, begin, end) of the field at `offset`; a varint field spans its own bytes."""
    key, offset = _read_varint(data, offset)
    if key & 7 == 0:
        return key >> 3, offset, _read_varint(data, offset)[1]
    if key & 7 != 2:
        raise ValueError(f"wire type {key & 7} at byte {offset}")
    length, offset = _read_varint(data, offset)
    if offset + length > (len(data) if limit is None else limit):
        raise ValueError(f"a field of {length} bytes at byte {offset}")
    return key >> 3, offset, offset + length


def _dims(data: _Window, offset: int, end: int) -> list[int]:
    dims = []
    while offset < end:
        value, offset = _read_varint(data, offset)
        dims.append(value)
    return dims


def _read_varint(data: _Window, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data.byte(offset)
        value |= (byte & 0x7F) << shift
        offset += 1
        if byte < 0x80:
            return value, offset
        shift += 7


def _check_sizes(path: Path, tensors: Mapping[str, TensorInfo], pieces: Mapping[str, Any]) -> None:
    for name, info in tensors.items():
        found = sum(length for _, length in pieces[name])
        expected = payload.item_bytes(info.dtype) * math.prod(info.shape)
        if found != expected:
            reason = f"tensor {name!r}: {found} bytes, {info.dtype}{list(info.shape)} needs {expected}"
            raise payload_damaged(path, reason)


def payload_damaged(path: Path, reason: str) -> Damaged:
    return Damaged(f"{path}: {reason}", path=str(path), reason=reason)
