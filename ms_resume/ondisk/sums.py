"""Stretches of files, read piece by piece into whatever sums them up: digests, CRCs, counts of what is not finite.

Each thread has one buffer of `PIECE` bytes, whatever is read: memory does not grow with the files, and a sum finds its
bytes in the processor's cache. xxhash and zlib let other threads run meanwhile.
"""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")
Sink = Callable[[memoryview], object]
"""Takes each piece in order; the piece is valid until the next."""

OfTensor = Callable[[str], Sequence[Sink]]
"""What takes the bytes of the tensor of that name."""

PIECE = 1 << 20

MOST_THREADS = 8
"""Of one process. A guess: eight ranks of a host then read by 64 threads, which is more than its disks need, and not by
one for each of its 192 cores."""

_own = threading.local()


class Stopped(Exception):
    """Another thread has failed, or the user has had enough: what is read now is of no use to anybody."""


class Threads:
    """One for each core, at most `MOST_THREADS`. Given to `feed` as a sink, `check` ends a thread at its next piece
    once there is no use in it."""

    def __init__(self) -> None:
        self.count = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self.failure: BaseException | None = None
        self._pool = ThreadPoolExecutor(self.count, "ms_resume read")
        self._stopped = threading.Event()
        self._held = ExitStack()

    def hold(self, file: BinaryIO) -> BinaryIO:
        """Open until all of them have ended."""
        return self._held.enter_context(file)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.submit(self._run, work, *arguments)

    def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return work(*arguments)
        except BaseException as error:
            if not isinstance(error, Stopped):
                self.failure = error
            self._stopped.set()
            raise

    def check(self, piece: object = None) -> None:
        if self._stopped.is_set():
            raise Stopped

    def end(self) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._held.close()


@contextmanager
def threads() -> Iterator[Threads]:
    """They have ended when the block has, whatever ended it; what was not begun is left undone. What a thread raised
    is raised here, where its result is asked for, or that of one that it stopped."""
    some = Threads()
    try:
        yield some
    except Stopped:
        assert some.failure is not None  # the block ends the others itself only when it is left
        raise some.failure from None
    finally:
        some.end()


def feed(file: BinaryIO, begin: int, length: int, sinks: Iterable[Sink]) -> int:
    """Reads `length` bytes from `begin` on. Gives the number of those that the file is short of."""
    buffer, sinks, left = _buffer(), tuple(sinks), length
    while left:
        piece = buffer[: min(left, PIECE)]
        done = _fill(file.fileno(), piece, begin + length - left)
        for sink in sinks:
            sink(piece[:done])
        left -= done
        if done < len(piece):
            break
    return left


def spread(file: BinaryIO, begin: int, views: Sequence[memoryview]) -> int:
    """Reads what follows `begin` into one view after the other, in one call. Gives the number of bytes that the file is
    short of."""
    asked = sum(map(len, views))
    if os.preadv(file.fileno(), views, begin) == asked:
        return 0
    left = asked  # a network file system may give less at a time
    for view in views:
        left -= _fill(file.fileno(), view, begin)
        begin += len(view)
    return left


class Crc:
    """A CRC-32 that goes on, also with bytes that another thread has summed up."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, piece: memoryview | bytes) -> None:
        self.value = zlib.crc32(piece, self.value)

    def extend(self, crc: int, length: int) -> None:
        """With `length` bytes whose own CRC is `crc`."""
        self.value = _times(_powers(length), self.value) ^ crc

    def update_zeros(self, count: int) -> None:
        self.value = _times(_powers(count), self.value ^ _ONES) ^ _ONES


# A CRC is the remainder of a polynomial over GF(2), lowest power in the highest bit: to put `n` bytes behind it
# multiplies it by x to the 8n.
_POLYNOMIAL, _ONES, _X_TO_0 = 0xEDB88320, 0xFFFFFFFF, 1 << 31


def _times(one: int, other: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache
def _powers(length: int) -> int:
    """x to the power of 8 times `length`."""
    result, square = _X_TO_0, _X_TO_0 >> 8
    while length:
        if length & 1:
            result = _times(result, square)
        square = _times(square, square)
        length >>= 1
    return result


_FLOATS = {"F16": (2, 10), "BF16": (2, 7), "F32": (4, 23), "F64": (8, 52)}
"""Bytes of a number, and bits of its mantissa."""

_STRIDE = 1 << 14


class NotFinite:
    """Counts NaN and infinities, without NumPy: many numbers at once are one long integer.

    A number without its sign is infinite where all bits of its exponent are set and none of its mantissa, NaN where
    it is larger: what is added to it carries into the place of the sign exactly then.
    """

    def __init__(self, dtype: str) -> None:
        self.nan = self.infinite = 0
        self._bytes = _FLOATS[dtype][0]
        self._sign, self._to_infinite, self._to_nan = _addends(dtype)
        self._rest = b""

    @property
    def found(self) -> bool:
        return bool(self.nan or self.infinite)

    def update(self, piece: memoryview) -> None:
        """A piece may end inside a number."""
        data = memoryview(self._rest + bytes(piece)) if self._rest else piece
        whole = len(data) // self._bytes * self._bytes
        for begin in range(0, whole, _STRIDE):
            self._count(int.from_bytes(data[begin : min(whole, begin + _STRIDE)], "little"))
        self._rest = bytes(data[whole:])

    def _count(self, numbers: int) -> None:
        unsigned = numbers & ~self._sign
        if found := (unsigned + self._to_infinite) & self._sign:
            nan = ((unsigned + self._to_nan) & self._sign).bit_count()
            self.nan += nan
            self.infinite += found.bit_count() - nan


def is_float(dtype: str) -> bool:
    return dtype in _FLOATS


@lru_cache
def _addends(dtype: str) -> tuple[int, int, int]:
    width, mantissa = _FLOATS[dtype]
    one_each = int.from_bytes((1).to_bytes(width, "little") * (_STRIDE // width), "little")
    return one_each << (8 * width - 1), one_each << mantissa, (one_each << mantissa) - one_each


def _buffer() -> memoryview:
    if not hasattr(_own, "buffer"):
        _own.buffer = memoryview(mmap.mmap(-1, PIECE))
    buffer: memoryview = _own.buffer
    return buffer


def _fill(fd: int, piece: memoryview, offset: int) -> int:
    done = 0
    while done < len(piece) and (count := os.preadv(fd, [piece[done:]], offset + done)):
        done += count
    return done
