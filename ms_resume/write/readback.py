"""What is on the disk, read past the page cache and compared with what was to be there, before it counts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

from ms_resume.errors import DiskError
from ms_resume.ondisk import direct, payload
from ms_resume.records import Payload


def check(path: Path, written: Payload) -> None:
    """Reads one payload from the disk.

    Raises:
        DiskError: It is not what was written. The disk, or the way to it, changes bytes.
    """
    found = _File(path)
    if path.suffix == ".ckpt":
        _compare(path, "its bytes", found.digest(written.bytes), written.digest)
        return
    prefix = found.take(8)
    block = prefix + found.take(struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0)
    _compare(path, "its header", payload.digest_of(block), written.digest)
    tensors, digests = payload.described(path, block)
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        _compare(path, f"tensor {name!r}", found.digest(info.end - info.begin), digests[name])


def _compare(path: Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise DiskError(
            f"{path}: {what} has digest {found} on the disk, {expected} was written",
            hint="look at `dmesg` and at the disk, and save to another one; nothing that was saved before is changed",
            path=str(path),
            errno=None,
        )


class _File:
    """A file's bytes, in order, in portions of any size."""

    def __init__(self, path: Path) -> None:
        self._pieces: Iterator[memoryview] = direct.read(path)
        self._left = memoryview(b"")

    def take(self, size: int) -> bytes:
        return b"".join(bytes(part) for part in self._parts(size))

    def digest(self, size: int) -> str:
        digest = xxhash.xxh3_128()
        for part in self._parts(size):
            digest.update(part)
        return digest.hexdigest()

    def _parts(self, size: int) -> Iterator[memoryview]:
        """Less where the file ends early."""
        while size:
            self._left = self._left or next(self._pieces, memoryview(b""))
            if not self._left:
                return
            part, self._left = self._left[:size], self._left[size:]
            size -= len(part)
            yield part
