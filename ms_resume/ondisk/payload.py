"""A payload: plain safetensors whose header carries our mark and the digest of every tensor.

    8 bytes   length of the header, little endian
    header    JSON, padded with spaces so that the data part starts at a multiple of 4096
    data      the tensors, without gaps

The header block (all before the data part) determines the file: its xxh3-128 is the file's digest, because it holds the
digest of every tensor. Format: https://huggingface.co/docs/safetensors. Reading needs neither NumPy nor MindSpore.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ms_resume.errors import Damaged
from ms_resume.ondisk import sums
from ms_resume.records import Position, TensorInfo

FORMAT_VERSION = "1"
ALIGNMENT = 4096
HEADER_LIMIT = 100_000_000
"""Readers of safetensors refuse larger headers."""

CRC_KEY = "crc_num"
"""MindSpore's key in `__metadata__`."""

_MOST_ZEROS = 1 << 30
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip  # one line per width
_WHOLE = frozenset(dtype for dtype in _ITEM_BYTES if dtype[0] in "IU")


@dataclass(frozen=True, slots=True)
class Mark:
    """What makes a payload ours: whose it is, and of which attempt and position."""

    attempt: str
    position: Position
    rank: int
    role: str


@dataclass(frozen=True, slots=True)
class Header:
    """A payload's header, checked against the file it came from."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_bytes: int
    digest: str
    mark: Mark | None
    digests: Mapping[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """The plain JSON values that travel beside the tensors (`state` payloads)."""
        loaded: dict[str, Any] = json.loads(self.metadata.get("values", "{}"))
        return loaded


def digest_of(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def item_bytes(dtype: str) -> int:
    return _ITEM_BYTES[dtype]


def lay_out(sizes: Mapping[str, tuple[str, tuple[int, ...]]], first: Collection[str] = ()) -> dict[str, TensorInfo]:
    """Offsets of tensors in the data part: wide dtypes first, so that each tensor is aligned to its items.

    Args:
        first: These come before all others; their bytes must be a multiple of the others' items.
    """
    placed, offset = {}, 0
    for name in sorted(sizes, key=lambda name: (name not in first, -item_bytes(sizes[name][0]), name)):
        dtype, shape = sizes[name]
        end = offset + item_bytes(dtype) * math.prod(shape)
        placed[name] = TensorInfo(dtype, shape, offset, end)
        offset = end
    return placed


def header_block(
    tensors: Mapping[str, TensorInfo], digests: Mapping[str, str], mark: Mark, values: Mapping[str, Any]
) -> bytes:
    """All bytes before the data part."""
    metadata = {
        "format": "ms",
        "ms_resume": FORMAT_VERSION,
        "attempt": mark.attempt,
        "epoch": str(mark.position.epoch),
        "step": str(mark.position.step),
        "rank": str(mark.rank),
        "role": mark.role,
        "digests": json.dumps(dict(digests), separators=(",", ":")),
    }
    if values:
        metadata["values"] = json.dumps(values, separators=(",", ":"))
    entries: dict[str, Any] = {"__metadata__": metadata}
    for name, info in tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.begin, info.end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return struct.pack("<Q", padded) + text.ljust(padded)


def read_header(path: Path) -> Header:
    """The header of a safetensors file, ours or not, which describes exactly the bytes that are there.

    Raises:
        Damaged: It does not. The message says what was found and what was expected.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise _damaged(path, f"{size} bytes, not a safetensors file (header length {length})")
    block = prefix + file.read(length)
    metadata, tensors = _entries(path, block)
    _check_cover(path, tensors, 8 + length, size)
    mark, digests = _mark(path, metadata, tensors)
    return Header(path, tensors, metadata, 8 + length, size, digest_of(block), mark, digests)


def described(path: Path, block: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of one of our header blocks, and their digests."""
    metadata, tensors = _entries(path, block)
    return tensors, _mark(path, metadata, tensors)[1]


def _entries(path: Path, block: bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    entries = _parse_json(path, block[8:])
    metadata = entries.pop("__metadata__", {})
    return metadata, {name: _tensor_info(path, name, entry) for name, entry in entries.items()}


def read_tensor(file: BinaryIO, header: Header, name: str) -> memoryview:
    """One tensor's bytes, checked against its digest where the header has one.

    Raises:
        Damaged: The file is shorter than its header says, or the digest does not hold; the tensor is named.
    """
    info = header.tensors[name]
    buffer = memoryview(bytearray(info.end - info.begin))
    file.seek(header.data_start + info.begin)
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]  # BinaryIO lacks readinto
        if not count:
            raise _damaged(header.path, f"tensor {name!r}: ends {len(buffer) - done} bytes early", tensor=name)
        done += count
    _check_digest(header, name, digest_of(buffer))
    return buffer


def check_tensor(file: BinaryIO, header: Header, name: str, sinks: Iterable[sums.Sink] = ()) -> None:
    """Reads one tensor in pieces; `sinks` take them too. Raises as `read_tensor` does."""
    digest = xxhash.xxh3_128()
    _feed(file, header, name, [digest.update, *sinks])
    _check_digest(header, name, digest.hexdigest())


def check_crc(header: Header, sinks: sums.OfTensor = lambda name: ()) -> None:
    """Holds the tensors to the CRC that MindSpore saved, where it did; `sinks(name)` take a tensor's bytes meanwhile.

    It is over each name and the tensor's bytes, by name. MindSpore feeds it `bytes(array)`, which Python answers for a
    0-d whole number with as many zeros (2.7.1 to 2.10.0).

    Raises:
        Damaged: It does not hold, or the file is shorter than its header says.
    """
    if CRC_KEY not in header.metadata:
        return
    crc = sums.Crc()
    with open(header.path, "rb", buffering=0) as file:
        for name, info in sorted(header.tensors.items()):
            crc.update(name.encode())
            if info.shape == () and info.dtype in _WHOLE:
                crc.update_zeros(_as_count(header, name, read_tensor(file, header, name)))
            else:
                _feed(file, header, name, [crc.update, *sinks(name)])
    if str(crc.value) != header.metadata[CRC_KEY]:
        raise _damaged(header.path, f"its tensors have CRC {crc.value}, its header says {header.metadata[CRC_KEY]}")


def _as_count(header: Header, name: str, data: memoryview) -> int:
    count = int.from_bytes(data, "little", signed=header.tensors[name].dtype.startswith("I"))
    if 0 <= count <= _MOST_ZEROS:
        return count
    raise _damaged(header.path, f"tensor {name!r}: it is {count}, for which MindSpore has no CRC", tensor=name)


def _feed(file: BinaryIO, header: Header, name: str, sinks: Iterable[sums.Sink]) -> None:
    info = header.tensors[name]
    if left := sums.feed(file, header.data_start + info.begin, info.end - info.begin, sinks):
        raise _damaged(header.path, f"tensor {name!r}: ends {left} bytes early", tensor=name)


def _check_digest(header: Header, name: str, found: str) -> None:
    expected = header.digests.get(name, found if header.mark is None else "none")
    if found != expected:
        reason = f"tensor {name!r}: its bytes have digest {found}, the header says {expected}"
        raise _damaged(header.path, reason, tensor=name)


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from None
    if not isinstance(entries, dict) or not isinstance(entries.get("__metadata__", {}), dict):
        raise _damaged(path, "its header is not a JSON object")
    return entries


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    try:
        begin, end = entry["data_offsets"]
        if not all(type(number) is int for number in (*entry["shape"], begin, end)):
            raise TypeError  # 6.1 would pass for 6
        info = TensorInfo(entry["dtype"], tuple(entry["shape"]), begin, end)
        expected = item_bytes(info.dtype) * math.prod(info.shape)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _damaged(path, f"tensor {name!r}: the header entry {entry!r} cannot be read", tensor=name) from None
    if info.end - info.begin != expected:
        reason = f"tensor {name!r}: {info.end - info.begin} bytes, {info.dtype}{list(info.shape)} needs {expected}"
        raise _damaged(path, reason, tensor=name)
    return info


def _check_cover(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    offset = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != offset:
            raise _damaged(path, f"tensor {name!r}: starts at {info.begin}, expected {offset}", tensor=name)
        offset = info.end
    if data_start + offset != size:
        raise _damaged(path, f"{size} bytes, its header says {data_start + offset}")


def _mark(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> tuple[Mark | None, dict[str, str]]:
    if "ms_resume" not in metadata:
        return None, {}
    if metadata["ms_resume"] != FORMAT_VERSION:
        version = metadata["ms_resume"]
        raise _damaged(path, f"format version {version!r} of ms_resume, this version reads {FORMAT_VERSION!r}")
    try:
        position = Position(int(metadata["epoch"]), int(metadata["step"]))
        mark = Mark(metadata["attempt"], position, int(metadata["rank"]), metadata["role"])
        digests: dict[str, str] = dict(json.loads(metadata["digests"]))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, f"its ms_resume mark cannot be read ({error!r})") from None
    if digests.keys() != tensors.keys():
        raise _damaged(path, f"{len(digests)} digests for {len(tensors)} tensors")
    return mark, digests


def _damaged(path: Path, reason: str, **fields: Any) -> Damaged:
    return Damaged(f"{path}: {reason}", path=str(path), reason=reason, **fields)
