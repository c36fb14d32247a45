"""MindSpore's `.ckpt`: read without MindSpore, and written with its CRC.

    file    = record*  [ "crc_num" crc ]           crc: 10 bytes big endian, crc32 of all records
    record  = Checkpoint.value: tag (string), tensor {dims, tensor_type (string), tensor_content (bytes)}

A tensor larger than 512 MiB lies in several records with one tag, each with the whole shape. The wire format is
protobuf's; the fields are those of MindSpore's checkpoint.proto (2.7.1 to 2.10.0).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.ondisk import payload
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


@dataclass(frozen=True, slots=True)
class Contents:
    """The records of one file. `pieces` has (offset, length) of each tensor's bytes, in order."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    pieces: Mapping[str, tuple[tuple[int, int], ...]]
    has_crc: bool


def read(path: Path) -> Contents:
    """Walks all records; the bytes of the tensors are not looked at.

    Raises:
        Damaged: The file does not parse to its end, or a tensor has not the bytes that its shape needs.
    """
    data = path.read_bytes()
    has_crc = data[-_TRAILER_BYTES : -_TRAILER_BYTES + len(CRC_MARK)] == CRC_MARK
    end = len(data) - _TRAILER_BYTES if has_crc else len(data)
    if end <= 0:
        raise payload_damaged(path, f"{len(data)} bytes, no tensor in it")
    tensors: dict[str, TensorInfo] = {}
    pieces: dict[str, tuple[tuple[int, int], ...]] = {}
    try:
        for tag, info, begin, length in _records(memoryview(data)[:end]):
            tensors[tag] = info
            pieces[tag] = (*pieces.get(tag, ()), (begin, length))
    except (IndexError, ValueError, KeyError) as error:
        raise payload_damaged(path, f"{len(data)} bytes, does not parse to its end ({error!r})") from None
    _check_sizes(path, tensors, pieces)
    return Contents(path, tensors, pieces, has_crc)


def check_crc(path: Path) -> None:
    """Raises Damaged where the file has a CRC and it does not hold."""
    data = path.read_bytes()
    if data[-_TRAILER_BYTES : -_TRAILER_BYTES + len(CRC_MARK)] == CRC_MARK:
        saved = int.from_bytes(data[-10:], "big")
        found = zlib.crc32(memoryview(data)[:-_TRAILER_BYTES])
        if saved != found:
            raise payload_damaged(path, f"its bytes have CRC {found:#x}, its trailer says {saved:#x}")


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


def _records(data: memoryview) -> Iterator[tuple[str, TensorInfo, int, int]]:
    offset = 0
    while offset < len(data):
        key, begin, end = _field(data, offset)
        if key != 1:
            raise ValueError(f"field {key} at byte {offset}")
        yield _value(data, begin, end)
        offset = end


def _value(data: memoryview, offset: int, end: int) -> tuple[str, TensorInfo, int, int]:
    tag, tensor = "", (0, 0)
    while offset < end:
        key, begin, offset = _field(data, offset, end)
        if key == 1:
            tag = bytes(data[begin:offset]).decode()
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
            dtype = DTYPES[bytes(data[begin:offset]).decode()]
        elif key == 3:
            content = (begin, offset - begin)
    if not (tag and dtype):
        raise ValueError(f"a record without name or type at byte {offset}")
    shape = () if dims == [0] else tuple(dims)  # MindSpore reads one dimension of 0 as a 0-d tensor
    return tag, TensorInfo(dtype, shape), *content


def _field(data: memoryview, offset: int, limit: int | None = None) -> tuple[int, int, int]:
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


def _dims(data: memoryview, offset: int, end: int) -> list[int]:
    dims = []
    while offset < end:
        value, offset = _read_varint(data, offset)
        dims.append(value)
    return dims


def _read_varint(data: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
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
