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
import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ms_resume.errors import Damaged
from ms_resume.ondisk import names, reading, sums
from ms_resume.records import Position, TensorInfo

FORMAT_VERSION = "1"
ALIGNMENT = 4096
HEADER_LIMIT = 100_000_000
"""Readers of safetensors refuse larger headers."""

MOST_DIMENSIONS = 64
"""NumPy allows no more, and MindSpore fewer."""

CRC_KEY = "crc_num"
"""MindSpore's key in `__metadata__`."""

_METADATA = '{"__metadata__":'
_TABLE_LIMIT = 1 << 20
"""Characters of one that is remembered: some ten thousand tensors."""

_MOST_ZEROS = 1 << 30
_LONGEST_NAME = 4096
_ENTRY = {"dtype", "shape", "data_offsets"}
_DECIMAL = re.compile(r"\d{1,18}", re.ASCII)
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
        """The plain JSON values that travel beside the tensors (`state` payloads). Raises Damaged."""
        try:
            loaded = reading.parse(self.metadata.get("values", "{}").encode())
            if not isinstance(loaded, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise reading.damaged(self.path, f"its plain values cannot be read ({error})") from None
        return loaded


def digest_of(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def item_bytes(dtype: str) -> int:
    return _ITEM_BYTES[dtype]


def size_of(info: TensorInfo) -> int:
    """Bytes of a tensor, wherever it lies."""
    return item_bytes(info.dtype) * math.prod(info.shape)


def total(infos: Iterable[TensorInfo]) -> int:
    """Bytes of several."""
    return sum(map(size_of, infos))


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
    with reading.opened(path) as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise reading.damaged(path, f"{size} bytes, not a safetensors file (header length {length})")
    block = prefix + file.read(length)
    if len(block) < 8 + length:
        raise reading.damaged(path, f"ends in its header, it had {size} bytes a moment ago")
    metadata, table = _entries(path, block)
    _check_cover(path, table, 8 + length, size)
    mark, digests = _mark(path, metadata, table.tensors)
    return Header(path, table.tensors, metadata, 8 + length, size, digest_of(block), mark, digests)


def described(path: Path, block: bytes) -> tuple[Mapping[str, TensorInfo], dict[str, str]]:
    """The tensors of one of our header blocks, and their digests."""
    metadata, table = _entries(path, block)
    return table.tensors, _mark(path, metadata, table.tensors)[1]


@dataclass(slots=True)
class _Table:
    """All of a header but its metadata. `end` is that of the data, None until the tensors were seen to cover it."""

    tensors: Mapping[str, TensorInfo]
    end: int | None = None


def _entries(path: Path, block: bytes) -> tuple[dict[str, str], _Table]:
    try:
        plain = str(memoryview(block)[8:], "utf-8")
        metadata, end = reading.begin(plain, _METADATA)
        if len(plain) - end <= _TABLE_LIMIT and _is_metadata(metadata):
            return metadata, _table(plain[end:])
    except (ValueError, Damaged):
        pass  # read whole, it is either right or says what is wrong
    entries = _parse_json(path, memoryview(block)[8:])
    metadata = entries.pop("__metadata__", {})
    return metadata, _Table({name: _tensor_info(path, name, entry) for name, entry in entries.items()})


@lru_cache(8)
def _table(rest: str) -> _Table:
    """What follows the metadata: all ranks that hold the same part of a model have it alike, for each role."""
    if not rest.startswith(","):
        raise ValueError("no tensors")
    entries = reading.parse(f"{{{rest[1:]}".encode())
    if "__metadata__" in entries:
        raise ValueError("metadata twice")
    return _Table({name: _tensor_info(Path(), name, entry) for name, entry in entries.items()})


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
            raise reading.damaged(header.path, f"tensor {name!r}: ends {len(buffer) - done} bytes early", tensor=name)
        done += count
    _check_digest(header, name, digest_of(buffer))
    return buffer


def check_tensor(file: BinaryIO, header: Header, name: str, sinks: Iterable[sums.Sink] = ()) -> str:
    """Reads one tensor in pieces; `sinks` take them too. Gives its digest; raises as `read_tensor` does."""
    digest = xxhash.xxh3_128()
    _feed(file, header, name, [digest.update, *sinks])
    found = digest.hexdigest()
    _check_digest(header, name, found)
    return found


def has_crc(header: Header) -> bool:
    return CRC_KEY in header.metadata


def check_crc(header: Header, sinks: sums.OfTensor = lambda name: ()) -> None:
    """Holds the tensors to the CRC that MindSpore saved, where it did; `sinks(name)` take a tensor's bytes meanwhile.

    Raises:
        Damaged: It does not hold, or the file is shorter than its header says.
    """
    if not has_crc(header):
        return
    with reading.opened(header.path) as file:

        def read(name: str) -> int:
            crc = sums.Crc()
            _feed(file, header, name, [crc.update, *sinks(name)])
            return crc.value

        join_crcs(header, file, read)


def join_crcs(header: Header, file: BinaryIO, crc_of: Callable[[str], int]) -> None:
    """Holds the CRCs of the tensors, each by itself, to the one of the file. Raises as `check_crc` does.

    It is over each name and the tensor's bytes, by name. MindSpore feeds it `bytes(array)`, which Python answers for a
    0-d whole number with as many zeros (2.7.1 to 2.10.0).
    """
    crc, zeros = sums.Crc(), 0
    for name, info in sorted(header.tensors.items()):
        crc.update(name.encode())
        if info.shape == () and info.dtype in _WHOLE:
            count = _as_count(header, name, read_tensor(file, header, name), _MOST_ZEROS - zeros)
            crc.update_zeros(count)
            zeros += count
        else:
            crc.extend(crc_of(name), info.end - info.begin)
    if str(crc.value) != header.metadata[CRC_KEY]:
        said = reading.brief(header.metadata[CRC_KEY])
        raise reading.damaged(header.path, f"its tensors have CRC {crc.value}, its header says {said}")


def _as_count(header: Header, name: str, data: memoryview, most: int) -> int:
    count = int.from_bytes(data, "little", signed=header.tensors[name].dtype.startswith("I"))
    if 0 <= count <= most:
        return count
    raise reading.damaged(header.path, f"tensor {name!r}: it is {count}, for which MindSpore has no CRC", tensor=name)


def _feed(file: BinaryIO, header: Header, name: str, sinks: Iterable[sums.Sink]) -> None:
    info = header.tensors[name]
    if left := sums.feed(file, header.data_start + info.begin, info.end - info.begin, sinks):
        raise reading.damaged(header.path, f"tensor {name!r}: ends {left} bytes early", tensor=name)


def digest_file(path: Path) -> str:
    """The digest of a whole file, read in pieces."""
    digest = xxhash.xxh3_128()
    with reading.opened(path) as file:
        sums.feed(file, 0, file.seek(0, 2), [digest.update])
    return digest.hexdigest()


def _check_digest(header: Header, name: str, found: str) -> None:
    expected = header.digests.get(name, found if header.mark is None else "none")
    if found != expected:
        reason = f"tensor {name!r}: its bytes have digest {found}, the header says {expected}"
        raise reading.damaged(header.path, reason, tensor=name)


def _parse_json(path: Path, text: memoryview) -> dict[str, Any]:
    try:
        entries = reading.parse(text)
    except ValueError as error:
        raise reading.damaged(path, f"its header is not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise reading.damaged(path, "its header is not a JSON object")
    if not _is_metadata(entries.get("__metadata__", {})):
        raise reading.damaged(path, "its __metadata__ is not a JSON object of strings")
    return entries


def _is_metadata(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    if len(name) > _LONGEST_NAME:
        raise reading.damaged(path, f"a tensor name of {len(name)} characters, at most {_LONGEST_NAME} are read")
    try:
        if entry.keys() != _ENTRY:
            raise ValueError("not the keys of a tensor")
        begin, end = map(reading.whole, entry["data_offsets"])
        info = TensorInfo(entry["dtype"], tuple(map(reading.whole, _shape(entry))), begin, end)
        expected = item_bytes(info.dtype) * math.prod(info.shape)
    except (AttributeError, KeyError, TypeError, ValueError):
        reason = f"tensor {name!r}: the header entry {reading.brief(entry)} cannot be read"
        raise reading.damaged(path, reason, tensor=name) from None
    if info.end - info.begin != expected:
        needs = f"{info.dtype}{list(info.shape)} needs {expected}"
        reason = f"tensor {name!r}: {info.end - info.begin} bytes, {needs}"
        raise reading.damaged(path, reason, tensor=name)
    return info


def _shape(entry: Mapping[str, Any]) -> list[Any]:
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError("not a shape")
    return shape


def _check_cover(path: Path, table: _Table, data_start: int, size: int) -> None:
    if table.end is None:
        offset = 0
        for name, info in sorted(table.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != offset:
                raise reading.damaged(path, f"tensor {name!r}: starts at {info.begin}, expected {offset}", tensor=name)
            offset = info.end
        table.end = offset
    if data_start + table.end != size:
        raise reading.damaged(path, f"{size} bytes, its header says {data_start + table.end}")


def _mark(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> tuple[Mark | None, dict[str, str]]:
    if "ms_resume" not in metadata:
        return None, {}
    if metadata["ms_resume"] != FORMAT_VERSION:
        version = reading.brief(metadata["ms_resume"])
        raise reading.damaged(path, f"format version {version} of ms_resume, this version reads {FORMAT_VERSION!r}")
    try:
        position = Position(_decimal(metadata["epoch"]), _decimal(metadata["step"]))
        mark = Mark(_attempt(metadata["attempt"]), position, _decimal(metadata["rank"]), metadata["role"])
        digests = reading.parse(metadata["digests"].encode())
        if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
            raise ValueError("its digests are not a JSON object of strings")
    except (KeyError, ValueError) as error:
        raise reading.damaged(path, f"its ms_resume mark cannot be read ({error!r})") from None
    if digests.keys() != tensors.keys():
        raise reading.damaged(path, f"{len(digests)} digests for {len(tensors)} tensors")
    return mark, digests


def _decimal(text: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{reading.brief(text)} is not a number")
    return int(text)


def _attempt(text: str) -> str:
    if not names.is_attempt(text):
        raise ValueError(f"{reading.brief(text)} is no attempt")
    return text
