"""Bytes of large files, written from several threads and past the page cache where the file system allows that.

Direct I/O takes whole blocks of memory to whole blocks of the file. Whatever part of a view lies so goes directly;
heads, tails, and small or unaligned views are written as usual. A file system that refuses is asked once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096
LARGE = 1 << 20
"""Bytes from which a file is preallocated and written so."""

PIECE = 8 << 20
"""Bytes of one write."""

THREADS = 4
_MOST_AT_ONCE = 1 << 30  # one write moves at most 2 GiB - 4096 bytes
_NOT_HERE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_refusing: set[int] = set()
"""Devices of file systems that refused direct I/O to this process."""


def write(
    path: Path, fd: int, size: int, pieces: Iterable[tuple[int, memoryview]], tell: Callable[[int], None]
) -> None:
    """Writes `pieces`, each an offset and its bytes, to a new file of `size` bytes. Returns before they are durable.

    Args:
        path, fd: The file, empty, and a descriptor of it that goes through the page cache.
        pieces: In any order; taken one by one, so they may come to be while others are being written.
        tell: Called from any thread with the number of bytes just written.
    """
    if size < LARGE:
        for offset, view in pieces:
            _write_all(fd, view, offset)
        return
    _preallocate(fd, size)
    with _opened(path, fd) as direct_fd, ThreadPoolExecutor(THREADS, "ms_resume write") as pool:
        file = _File(direct_fd, fd, tell)
        for written in [pool.submit(file.write, view, offset) for offset, view in _cut(pieces)]:
            written.result()


@dataclass(slots=True)
class _File:
    """The descriptors of one file; `failed` spares the disk what comes after a failure."""

    direct_fd: int | None
    fd: int
    tell: Callable[[int], None]
    failed: bool = False

    def write(self, view: memoryview, offset: int) -> None:
        if self.failed:
            return
        try:
            self._write(view, offset)
            self.tell(len(view))
        except BaseException:
            self.failed = True
            raise

    def _write(self, view: memoryview, offset: int) -> None:
        head, body = _whole_blocks(view, offset) if self.direct_fd is not None else (0, 0)
        if self.direct_fd is None or not body:
            _write_all(self.fd, view, offset)
            return
        _write_all(self.fd, view[:head], offset)
        _write_direct(self.direct_fd, self.fd, view[head : head + body], offset + head)
        _write_all(self.fd, view[head + body :], offset + head + body)


def read(path: Path) -> Iterator[memoryview]:
    """The bytes of a file that is synced, in order, from the disk and not from the page cache where that is possible.
    Each piece is valid until the next."""
    buffer = memoryview(mmap.mmap(-1, PIECE))
    fd, offset = _open_uncached(path), 0
    try:
        while count := os.preadv(fd, [buffer], offset):
            yield buffer[:count]
            offset += count
            if offset % BLOCK:  # only its end can be there
                return
    finally:
        os.close(fd)


def _open_uncached(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def address_of(view: memoryview) -> int | None:
    """Where the bytes of a flat view lie; None where it is read-only, which ctypes cannot tell."""
    return None if view.readonly or not len(view) else ctypes.addressof(ctypes.c_char.from_buffer(view))


def _cut(pieces: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """Pieces of at most `PIECE` bytes, cut at whole blocks of the file."""
    for offset, view in pieces:
        at = 0
        while at < len(view):
            end = min(len(view), at + PIECE - (offset + at) % BLOCK)
            yield offset + at, view[at:end]
            at = end


def _whole_blocks(view: memoryview, offset: int) -> tuple[int, int]:
    """How many bytes come before the first whole block, and how many whole blocks' bytes follow, in memory and file."""
    head = -offset % BLOCK
    address = address_of(view)
    if address is None or (address + head) % BLOCK:
        return 0, 0
    return head, max(0, len(view) - head) // BLOCK * BLOCK


def _write_direct(direct_fd: int, fd: int, view: memoryview, offset: int) -> None:
    while view:
        try:
            count = os.pwrite(direct_fd, view[:_MOST_AT_ONCE], offset)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            _refusing.add(os.fstat(fd).st_dev)  # some file systems say so only now
            count = 0
        if count % BLOCK or not count:  # what is left does not begin with a whole block
            _write_all(fd, view[count:], offset + count)
            return
        view, offset = view[count:], offset + count


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(fd, view[:_MOST_AT_ONCE], offset)
        view, offset = view[count:], offset + count


@contextlib.contextmanager
def _opened(path: Path, fd: int) -> Iterator[int | None]:
    """A descriptor for direct writes; None where the file system refuses them."""
    device = os.fstat(fd).st_dev
    direct_fd = None
    if device not in _refusing:
        try:
            direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            _refusing.add(device)
    try:
        yield direct_fd
    finally:
        if direct_fd is not None:
            os.close(direct_fd)


def _preallocate(fd: int, size: int) -> None:
    """One extent, and an early end where there is no room. Without `posix_fallocate`, which where a file system cannot
    do it writes the whole file."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while libc.fallocate(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in _NOT_HERE:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
