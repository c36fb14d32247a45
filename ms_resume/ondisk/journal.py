"""An append-only log of records that each carry their own length and digest, so that a torn tail is seen and cut.

    8 bytes   `ms_roll1`
    8, 8      N, M: lengths of header and data, unsigned, little endian
    16        xxh3-128 of the 16 bytes of both lengths, the header, and the data
    N         header: JSON; `tensors` has name, dtype, and shape of each array in the data, in order
    M         the arrays, row-major, little endian

A log ends at its first record that is cut short or does not begin as one: whoever wrote it died there. A record whose
bytes have changed is damaged; those behind it are good.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ms_resume.ondisk import payload, reading
from ms_resume.state import HostTensor

_MAGIC = b"ms_roll1"
_LENGTHS = struct.Struct("<QQ")
_HEAD = len(_MAGIC) + _LENGTHS.size + 16
_HEADER_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a record lies, and what its header says; nothing of its data was read."""

    path: Path
    offset: int
    header: Mapping[str, Any]


def encode(header: Mapping[str, Any], tensors: Mapping[str, HostTensor]) -> bytes:
    """A record: a copy of the arrays, which may change afterwards."""
    described = [[name, tensor.dtype, list(tensor.shape)] for name, tensor in tensors.items()]
    text = json.dumps({**header, "tensors": described}).encode()
    data = b"".join(tensor.data for tensor in tensors.values())
    lengths = _LENGTHS.pack(len(text), len(data))
    return _MAGIC + lengths + _digest(lengths, text, data) + text + data


def entries(path: Path) -> tuple[list[Entry], int]:
    """The records of a log, and the size of the part that they fill. Their data is not read.

    Raises:
        Damaged: Not a plain file.
        OSError: It cannot be read.
    """
    found: list[Entry] = []
    with reading.opened(path) as file:
        size, offset = reading.size(path), 0
        while (record := _header(file, offset, size)) is not None:
            header, end = record
            found.append(Entry(path, offset, header))
            offset = end
    return found, offset


def read(entry: Entry) -> dict[str, HostTensor]:
    """The arrays of a record. Raises Damaged where its bytes are not those that were written, OSError."""
    with reading.opened(entry.path) as file:
        file.seek(entry.offset)
        head = file.read(_HEAD)
        text_size, data_size = _LENGTHS.unpack(head[len(_MAGIC) : len(_MAGIC) + _LENGTHS.size])
        if entry.offset + _HEAD + text_size + data_size > reading.size(entry.path):
            raise reading.damaged(entry.path, f"the record at {entry.offset} is cut short")
        body = file.read(text_size + data_size)
    if _digest(head[len(_MAGIC) : -16], body) != head[-16:]:
        raise reading.damaged(entry.path, f"the record at {entry.offset} is not what was written")
    view, at, tensors = memoryview(body), text_size, {}
    for name, dtype, shape in entry.header["tensors"]:
        end = at + _size(dtype, shape)
        tensors[name] = HostTensor(dtype, tuple(shape), view[at:end])
        at = end
    return tensors


def _digest(*pieces: bytes) -> bytes:
    hashed = xxhash.xxh3_128()
    for piece in pieces:
        hashed.update(piece)
    return hashed.digest()


def _header(file: BinaryIO, offset: int, size: int) -> tuple[dict[str, Any], int] | None:
    file.seek(offset)
    head = file.read(_HEAD)
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        return None
    text_size, data_size = _LENGTHS.unpack(head[len(_MAGIC) : len(_MAGIC) + _LENGTHS.size])
    end = offset + _HEAD + text_size + data_size
    if text_size > _HEADER_LIMIT or end > size:
        return None
    try:
        header = reading.parse(file.read(text_size))
        if sum(_size(dtype, shape) for _, dtype, shape in header["tensors"]) != data_size:
            return None
    except (ValueError, TypeError, KeyError):
        return None
    return header, end


def _size(dtype: str, shape: list[int]) -> int:
    return payload.item_bytes(dtype) * math.prod(reading.whole(length) for length in shape)
