"""Tensors on their way from files into live memory: read, digested, and placed by several threads, each byte once.

What lies in host memory is read to where it lies, and no second copy of a model comes to be. What does not, or shares
its memory with another tensor, is read ahead, a few tensors at a time, and placed by the thread that asked, as
MindSpore wants it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from ms_resume.errors import Damaged, MsResumeError
from ms_resume.load.source import Poured, Readable, pour
from ms_resume.ondisk import payload, sums
from ms_resume.ondisk.direct import address_of
from ms_resume.progress import Progress
from ms_resume.state import HostTensor, Tensors

_AHEAD_BYTES = 256 << 20
"""Of tensors that are read before they are placed, where each is read as a whole. A larger one is read alone."""


@dataclass(frozen=True)
class Role:
    """What is to be placed: `names`, but for `again`, weights that the policy's file holds, too, and that are placed
    from there."""

    source: Readable
    tensors: Tensors
    names: Collection[str]
    again: frozenset[str]


class Where(NamedTuple):
    """Where a tensor's bytes lie, to be written by any thread."""

    address: int
    view: memoryview


Lies = Mapping[str, Where]


@dataclass(frozen=True)
class Begun:
    """A role that threads are at work on. `apart` is placed tensor by tensor."""

    role: Role
    lies: Lies
    apart: tuple[str, ...]
    poured: Poured


@dataclass(frozen=True)
class Placed:
    """The same role when it is done, and the digests of what its tensors have to hold."""

    begun: Begun
    digests: Mapping[str, str]


def where(roles: Mapping[str, Role]) -> dict[str, Lies]:
    """By role, where those tensors lie that are in host memory, each by itself."""
    found = {name: dict(_lying(role)) for name, role in roles.items()}
    crowded = _overlapping(lies for placed in found.values() for lies in placed.values())
    return {
        name: {n: lies for n, lies in placed.items() if lies.address not in crowded} for name, placed in found.items()
    }


def _lying(role: Role) -> Iterator[tuple[str, Where]]:
    memory = getattr(role.tensors, "memory", lambda name: None)
    for name in role.names:
        view = memory(name) if name not in role.again else None
        if view and len(view) == payload.size_of(role.source.tensors[name]) and (address := address_of(view)):
            yield name, Where(address, view)


def begin(role: Role, lies: Lies, threads: sums.Threads, tell: Progress) -> Begun:
    """Sets the threads to work on everything that is not placed tensor by tensor."""
    apart = tuple(name for name in role.names if name not in role.again and name not in lies)

    def told(count: int) -> None:
        threads.check()
        tell(count)

    names = [name for name in role.names if name in lies or name in role.again]
    into = {name: found.view for name, found in lies.items()}
    return Begun(role, lies, apart, pour(role.source, names, into, told, threads))


def finish(begun: Begun, policy: Placed | None, threads: sums.Threads, tell: Progress) -> Placed:
    """Places what this thread has to, and waits for the others.

    Raises:
        Damaged: A digest does not hold, or a weight is not the policy's: two generations are mixed.
    """
    role, digests = begun.role, {}
    for name, value in _read_ahead(role.source, begun.apart, threads):
        if len(value.data):
            role.tensors.place(name, value)
        digests[name] = payload.digest_of(value.data)
        tell(len(value.data))
    digests |= begun.poured()
    for name in role.again:
        if policy is not None and digests[name] != policy.digests[name]:
            raise Damaged(
                f"{role.source.path}: weight {name!r} differs from the policy file's: two generations are mixed",
                hint="an older checkpoint is whole if `ms-resume verify --all --deep` says so",
                path=str(role.source.path),
                tensor=name,
            )
    return Placed(begun, digests)


def check_held(roles: Mapping[str, Placed]) -> None:
    """The live tensors hold what was placed.

    Bytes that were written where a tensor lies are there if it lies there still: then to look at its address is enough.
    Anything else is read once more.

    Raises:
        MsResumeError: A tensor does not.
    """
    for role_name, placed in roles.items():
        role = placed.begun.role
        lies_at = getattr(role.tensors, "address", lambda name: None)
        for name, digest in placed.digests.items():
            written = roles["policy" if name in role.again else role_name].begun.lies.get(name)
            if written and lies_at(name) == written.address:
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


def _overlapping(places: Iterable[Where]) -> set[int]:
    """The addresses of those of which a part is another one's."""
    found: set[int] = set()
    reached = last = 0
    for address, length in sorted((address, len(view)) for address, view in places):
        if address < reached:
            found |= {address, last}
        if address + length > reached:
            reached, last = address + length, address
    return found
