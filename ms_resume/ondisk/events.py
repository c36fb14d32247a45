"""TensorBoard's event records, for scalars: what is appended to one file is shown without a gap, whatever is killed.

A record is its length (8 bytes), the masked CRC-32C of that, a protobuf `Event`, and the masked CRC-32C of it. An event
`SessionLog.START` with a step lets readers forget what was drawn at or after it.

Written here and not by tensorboardX 2.6: there events wait in a queue that `flush` does not empty, so a kill loses some
that lie before the checkpoint; and two starts within a second, or with a clock that was set back, write over one file.

Source: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache

NAME = "events.out.tfevents.0.ms_resume"
"""TensorBoard reads every file in a directory whose name has `tfevents` in it."""

_HEAD = 12
_VERSION, _SUMMARY, _SESSION_LOG = 3, 5, 7
"""Fields of `Event`; `wall_time` is 1 and `step` 2."""


def version() -> bytes:
    """The first record of a file."""
    return _record(_double(1, 0.0) + _bytes(_VERSION, b"brain.Event:2"))


def scalars(step: int, values: Mapping[str, float], wall_time: float) -> bytes:
    tags = [_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in values.items()]
    return _record(_double(1, wall_time) + _varint(2, step) + _bytes(_SUMMARY, b"".join(tags)))


def restart(step: int, wall_time: float) -> bytes:
    """From here on what was drawn at `step` or after it is drawn anew."""
    return _record(_double(1, wall_time) + _varint(2, step) + _bytes(_SESSION_LOG, _varint(1, 1)))


def whole(content: bytes) -> int:
    """The length of the whole records at the beginning; behind them something was cut short."""
    at = 0
    while len(content) - at >= _HEAD + 4:
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + _HEAD + length
        if end + 4 > len(content) or content[end : end + 4] != _masked_crc(content[at + _HEAD : end]):
            break
        at = end + 4
    return at


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _masked_crc(length) + event + _masked_crc(event)


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return bytes([field << 3 | 5]) + struct.pack("<f", value)


def _varint(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _base128(value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _base128(len(value)) + value


def _base128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked_crc(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    """CRC-32C, reflected."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)
