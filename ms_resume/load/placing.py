"""Tensors on their way from files into live memory: read, digested, and placed by several threads, each byte once.

A thread reads a piece into a buffer of its own, sums it up while it is in the cache, and copies it to where the tensor
lies: that is faster than to let the kernel write there, and no second copy of a model comes to be. What does not lie in
host memory is read ahead, a few tensors at a time, and placed by the thread that asked, as MindSpore wants it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from ms_resume.errors import Damaged, MsResumeError
from ms_resume.load.source import Poured, Readable, pour
from ms_resume.ondisk import payload, sums
from ms_resume.progress import Progress
from ms_resume.state import HostTensor, Tensors, address_of

_AHEAD_BYTES = 256 << 20
"""Of tensors that are read before they are placed, where each is read as a whole. A larger one is read alone."""

_SMALL = 64 << 10
"""Bytes that are copied in a few microseconds."""


@dataclass(frozen=True)
class Begun:
    """A role that threads are at work on. `again` are weights that the policy's file holds, too, and that are placed
    from there; `memory` has what is written where it lies, `apart` what is placed tensor by tensor."""

    source: Readable
    tensors: Tensors
    again: frozenset[str]
    memory: Mapping[str, memoryview]
    apart: tuple[str, ...]
    poured: Poured


@dataclass(frozen=True)
class Placed:
    """The same role when it is done, and the digests of what its tensors have to hold."""

    begun: Begun
    digests: Mapping[str, str]


def begin(
    source: Readable,
    tensors: Tensors,
    names: Collection[str],
    again: frozenset[str],
    threads: sums.Threads,
    tell: Progress,
) -> Begun:
    """Sets the threads to work on everything that is not placed tensor by tensor."""
    where = getattr(tensors, "memory", lambda name: None)
    memory = {name: view for name in names if name not in again and (view := where(name))}
    apart = tuple(name for name in names if name not in again and name not in memory)

    def sinks(name: str) -> list[sums.Sink]:
        each: list[sums.Sink] = [threads.check, lambda piece: tell(len(piece))]
        return [*each, _into(memory[name])] if name in memory else each

    poured = pour(source, [name for name in names if name in memory or name in again], sinks, threads)
    return Begun(source, tensors, again, memory, apart, poured)


def finish(role: Begun, policy: Placed | None, threads: sums.Threads, tell: Progress) -> Placed:
    """Places what this thread has to, and waits for the others.

    Raises:
        Damaged: A digest does not hold, or a weight is not the policy's: two generations are mixed.
    """
    digests = {}
    for name, value in _read_ahead(role.source, role.apart, threads):
        if len(value.data):
            role.tensors.place(name, value)
        digests[name] = payload.digest_of(value.data)
        tell(len(value.data))
    digests |= role.poured()
    for name in role.again:
        if policy is not None and digests[name] != policy.digests[name]:
            raise Damaged(
                f"{role.source.path}: weight {name!r} differs from the policy file's: two generations are mixed",
                hint="an older checkpoint is whole if `ms-resume verify --all --deep` says so",
                path=str(role.source.path),
                tensor=name,
            )
    return Placed(role, digests)


def check_held(roles: Mapping[str, Placed]) -> None:
    """The live tensors hold what was placed.

    Bytes that were written where a tensor lies are there if it lies there still, and nothing else was written over
    them: then to look at its address is enough. Anything else is read once more.

    Raises:
        MsResumeError: A tensor does not.
    """
    written = {role: {n: _stretch(v) for n, v in placed.begun.memory.items()} for role, placed in roles.items()}
    crowded = _overlapping(stretch for placed in written.values() for stretch in placed.values())
    for role_name, placed in roles.items():
        role = placed.begun
        lies_at = getattr(role.tensors, "address", lambda name: None)
        for name, digest in placed.digests.items():
            stretch = written["policy" if name in role.again else role_name].get(name)
            if stretch and stretch not in crowded and lies_at(name) == stretch[0]:
                continue
            if (found := payload.digest_of(role.tensors.read(name).data)) != digest:
                # Not Damaged: the file is right, so going back to older ones would only throw them away.
                raise MsResumeError(
                    f"{role.source.path}: tensor {name!r} does not hold what was placed (digest {found})",
                    hint="the optimizer must update the policy's own parameters, not copies of them; else this is a "
                    "bug",
                    tensor=name,
                )


def _read_ahead(source: Readable, names: Iterable[str], threads: sums.Threads) -> Iterator[tuple[str, HostTensor]]:
    """In order."""
    ahead: deque[tuple[str, Future[HostTensor]]] = deque()
    sizes = {name: payload.size_of(source.tensors[name]) for name in names}
    under_way = 0
    for name, size in sizes.items():
        while ahead and under_way + size > _AHEAD_BYTES:
            first, read = ahead.popleft()
            yield first, read.result()
            under_way -= sizes[first]
        ahead.append((name, threads.submit(source.read, name)))
        under_way += size
    while ahead:
        name, read = ahead.popleft()
        yield name, read.result()


def _into(memory: memoryview) -> sums.Sink:
    """Lets other threads run meanwhile, where the copy takes longer than to hand over to them and back."""
    import numpy as np

    at = 0

    def copy(piece: memoryview) -> None:
        nonlocal at
        end = at + len(piece)
        if len(piece) < _SMALL:
            memory[at:end] = piece
        else:
            np.copyto(np.frombuffer(memory[at:end], np.uint8), np.frombuffer(piece, np.uint8))
        at = end

    return copy


_Stretch = tuple[int, int]


def _stretch(view: memoryview) -> _Stretch:
    """Address and length."""
    return address_of(view), len(view)


def _overlapping(stretches: Iterable[_Stretch]) -> set[_Stretch]:
    """Those of which a part is another one's."""
    found: set[_Stretch] = set()
    reached: _Stretch = (0, 0)
    for stretch in sorted(stretches):
        if stretch[0] < sum(reached):
            found |= {stretch, reached}
        if sum(stretch) > sum(reached):
            reached = stretch
    return found
