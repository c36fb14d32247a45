"""One payload to load from, of either format, its bytes checked as they are read."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import xxhash

from ms_resume import verify
from ms_resume.errors import DiskError, MsResumeError
from ms_resume.load import spread
from ms_resume.ondisk import ckpt, payload, reading, sums
from ms_resume.progress import Progress
from ms_resume.records import Payload, TensorInfo
from ms_resume.state import HostTensor, copy

Poured = Callable[[], dict[str, str]]
"""Waits until everything is read, and gives the digests by name; raises Damaged or DiskError."""

Works = tuple[list[tuple[Any, ...]], Callable[[], None]]
"""What threads do, each a function and its arguments, and what comes after."""

_BATCH_BYTES = 4 << 20
"""Of tensors of one file, which one thread reads one after the other."""

_MOST_NAMES = 256
"""And so many of them, so that many small ones are not one thread's work."""

_T = TypeVar("_T")


class Readable(Protocol):
    """What can be loaded from: a payload, or what gives its tensors under other names."""

    @property
    def path(self) -> Path: ...

    @property
    def bytes(self) -> int: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    def read(self, name: str) -> HostTensor:
        """A copy of one tensor, checked. Called from any thread."""


class NameMap(Protocol):
    """Gives a source the names that a role has, as another source: `name_map.NameMap`, or anything that does."""

    def apply(self, source: Any, role: str | None = None) -> Readable: ...


def pour(
    source: Readable, names: Collection[str], into: Mapping[str, memoryview], told: Progress, threads: sums.Threads
) -> Poured:
    """Lets threads read the tensors `names`, each once, to where `into` says they belong. Returns at once.

    A source whose own method `pour` does that in pieces is asked to; of another one each tensor is read as a whole.
    Bytes are there before it is known that they are damaged.

    Args:
        into: Memory of its own for each tensor. Of a name without one only the digest is taken.
        told: Called with bytes that are done, from any thread. What it raises ends the thread.
    """
    own = getattr(source, "pour", None)
    if own is not None:
        poured: Poured = own(names, into, told, threads)
        return poured

    def read(name: str) -> dict[str, str]:
        value, said = source.read(name), source.tensors[name]
        if (value.dtype, value.shape) != (said.dtype, said.shape):
            raise MsResumeError(f"{source.path}: {name!r} is {value.info}, expected {said}")
        if name in into:
            copy(value.data, into[name])
        told(len(value.data))
        return {name: payload.digest_of(value.data)}

    parts = [threads.submit(read, name) for name in names]
    return lambda: {name: digest for part in parts for name, digest in part.result().items()}


class Source:
    """A payload held open by path. With `expected`, it must be the file that a vote names.

    What carries a digest or CRC for the whole file only is checked as a whole: while it is poured, or before the first
    tensor is read.

    Raises:
        Damaged: It is not, or it is not whole.
        DiskError: It cannot be read. That is no reason to pass it over: the disk may recover.
    """

    def __init__(self, path: Path, expected: Payload | None = None) -> None:
        self.path = path
        self.digests: Mapping[str, str] = {}
        self.values: dict[str, Any] = {}
        self._checking = threading.Lock()
        self._checked = False
        with _reported(path):
            self.bytes = reading.size(path)
            self._file = _Ckpt(path, expected) if path.suffix == ".ckpt" else _Safetensors(path, expected)
            self.tensors: Mapping[str, TensorInfo] = self._file.tensors
            if isinstance(self._file, _Safetensors):
                self.digests, self.values = self._file.header.digests, self._file.header.values

    def read(self, name: str) -> HostTensor:
        """A copy of one tensor. Raises Damaged, naming it, where its digest does not hold."""
        info = self.tensors[name]
        with _reported(self.path):
            with self._checking:
                if not self._checked:
                    self._file.check()
                    self._checked = True
            return HostTensor(info.dtype, info.shape, self._file.read(name))

    def pour(
        self, names: Collection[str], into: Mapping[str, memoryview], told: Progress, threads: sums.Threads
    ) -> Poured:
        """As the function of that name, each byte of the file read at most once."""

        def reported(work: Callable[..., dict[str, str]], *arguments: Any) -> dict[str, str]:
            with _reported(self.path):
                return work(*arguments)

        with _reported(self.path):
            works, end = self._file.works(names, into, told, threads)
        parts = [threads.submit(reported, *work) for work in works]

        def finish() -> dict[str, str]:
            digests = {name: digest for part in parts for name, digest in part.result().items()}
            with _reported(self.path):
                end()
            return {name: digests[name] for name in names}

        return finish


class _Safetensors:
    """Digests for each tensor where the file is ours, one CRC over all where MindSpore wrote it with one."""

    def __init__(self, path: Path, expected: Payload | None) -> None:
        self.header = verify.header_as_voted(path, expected) if expected else payload.read_header(path)
        self.tensors = self.header.tensors

    def check(self) -> None:
        payload.check_crc(self.header)

    def read(self, name: str) -> memoryview:
        with reading.opened(self.header.path) as file:
            return payload.read_tensor(file, self.header, name)

    def works(
        self, names: Collection[str], into: Mapping[str, memoryview], told: Progress, threads: sums.Threads
    ) -> Works:
        """What comes after: the CRCs of all tensors, each taken by itself, put together."""
        wanted, has_crc = set(names), payload.has_crc(self.header)
        crcs: dict[str, sums.Crc] = {name: sums.Crc() for name in (self.tensors if has_crc else ())}

        def sinks(name: str) -> list[sums.Sink]:
            return [crcs[name].update] if has_crc else []

        def tell(piece: memoryview) -> None:
            told(len(piece))

        def read(file: BinaryIO, batch: list[str]) -> dict[str, str]:
            digests = spread.read(file, self.header, {name: into[name] for name in batch if name in into}, told, sinks)
            for name in batch:
                if name not in into:
                    each = [threads.check, *sinks(name), *([tell] if name in wanted else ())]
                    digests[name] = payload.check_tensor(file, self.header, name, each)
            return digests

        def end() -> None:
            if has_crc:
                with reading.opened(self.header.path) as file:
                    payload.join_crcs(self.header, file, lambda name: crcs[name].value)

        streams = _streams(list(_batches(self.tensors, crcs or wanted)), threads.count)
        files = [threads.hold(reading.opened(self.header.path)) for _ in streams]
        rounds = itertools.zip_longest(*streams)
        return [(read, files[n], batch) for each in rounds for n, batch in enumerate(each) if batch], end


class _Ckpt:
    """No digest for a tensor: what the vote has is that of the whole file, and a CRC is over all records."""

    def __init__(self, path: Path, expected: Payload | None) -> None:
        self._contents, self._expected = ckpt.read(path), expected
        self.tensors = self._contents.tensors

    def check(self) -> None:
        if self._expected or self._contents.has_crc:
            self._read_all((), lambda name: ())

    def read(self, name: str) -> memoryview:
        return ckpt.read_tensor(self._contents, name)

    def works(
        self, names: Collection[str], into: Mapping[str, memoryview], told: Progress, threads: sums.Threads
    ) -> Works:
        def sinks(name: str) -> list[sums.Sink]:
            copied: list[sums.Sink] = [_copier(into[name])] if name in into else []
            return [lambda piece: told(len(piece)), *copied]

        return [(self._read_all, names, sinks)], lambda: None

    def _read_all(self, names: Collection[str], sinks: sums.OfTensor) -> dict[str, str]:
        digests = {name: xxhash.xxh3_128() for name in names}
        into = {name: [digests[name].update, *sinks(name)] for name in names}
        verify.check_ckpt(self._contents, self._expected, (), lambda name: into.get(name, ()))
        return {name: digest.hexdigest() for name, digest in digests.items()}


def _batches(tensors: Mapping[str, TensorInfo], names: Collection[str]) -> Iterator[list[str]]:
    """In the order of the file: a large tensor, or some small ones that lie near each other."""
    batch: list[str] = []
    filled = 0
    for name in sorted(names, key=lambda name: tensors[name].begin):
        batch.append(name)
        filled += tensors[name].end - tensors[name].begin
        if filled >= _BATCH_BYTES or len(batch) == _MOST_NAMES:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def _streams(batches: Sequence[_T], count: int) -> list[Sequence[_T]]:
    """As many stretches of the file, each read by one descriptor from its begin to its end: read-ahead of the system
    follows a descriptor, and starts anew where one jumps."""
    length = max(1, -(-len(batches) // count))
    return [batches[at : at + length] for at in range(0, len(batches), length)]


def _copier(memory: memoryview) -> sums.Sink:
    at = 0

    def append(piece: memoryview) -> None:
        nonlocal at
        copy(piece, memory[at : at + len(piece)])
        at += len(piece)

    return append


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot read: {error.strerror or error}",
            hint="look at `dmesg` and at the mount, then start again; nothing was changed on disk",
            path=str(path),
        ) from error
