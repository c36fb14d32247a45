"""The host copy of a rank's tensors: allocated once, laid out as the payload files are, filled by several threads.

A *run* is memory whose tensors lie behind one another in a file. Weights that the optimizer shares with the policy are
one run, which goes into both files; what else a role has is another. A run lies in memory as in its file, modulo a
block, so that all but its edges can be written past the page cache. Digests are taken from the copies.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.ondisk import direct, payload
from ms_resume.records import TensorInfo
from ms_resume.state import HostTensor, copy

Read = Callable[[], HostTensor]
"""Gives a tensor's bytes as they are now; called once in each save, from any thread."""

THREADS = 2
FEW = 1 << 20
"""Bytes up to which starting threads takes longer than copying."""

STAGED = ("policy", "optimizer")
"""The roles that change with every step."""

_BATCH = 4 << 20
"""Bytes of small tensors that one thread copies in one go."""

_MOST_NAMES = 256
"""And so many of them."""

_WIDEST = 8
"""Bytes of the widest item."""

_UNKNOWN = 1 << 62
_WIPE_ON_FORK = 18  # of Linux 4.14, and the next of 5.14; `mmap` has no names for them
_POPULATE_WRITE = 23


@dataclass(frozen=True)
class Run:
    """`placed` has offsets in the data part of the files of `roles`, in order; `start` is its place in the buffer."""

    roles: tuple[str, ...]
    placed: Mapping[str, TensorInfo]
    start: int

    @cached_property
    def begin(self) -> int:
        return next(iter(self.placed.values())).begin

    @cached_property
    def end(self) -> int:
        return max(info.end for info in self.placed.values())

    def where(self, info: TensorInfo) -> slice:
        """Of one of its tensors, in the buffer."""
        return slice(self.start + info.begin - self.begin, self.start + info.end - self.begin)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes: each role's data part, and the runs in a buffer of `size` bytes."""

    placed: Mapping[str, Mapping[str, TensorInfo]]
    runs: tuple[Run, ...]
    size: int


def plan(roles: Mapping[str, Mapping[str, TensorInfo]], shared: Collection[str] = ()) -> Plan:
    """Lays out the files of some roles, and a buffer for them.

    Args:
        shared: Names of tensors of the policy and the optimizer that are the same memory.
    """
    first = _first(roles, shared)
    placed = {
        role: payload.lay_out(
            {name: (info.dtype, info.shape) for name, info in infos.items()}, first if role in STAGED else ()
        )
        for role, infos in roles.items()
    }
    groups: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
    for role, infos in placed.items():
        for name, info in infos.items():
            owners: tuple[str, ...] = STAGED if role in STAGED and name in first else (role,)
            groups.setdefault(owners, {})[name] = info
    runs, size = [], 0
    for owners, infos in groups.items():
        run = Run(owners, infos, size + next(iter(infos.values())).begin % direct.BLOCK)
        runs.append(run)
        size = -(-(run.start + run.end - run.begin) // direct.BLOCK) * direct.BLOCK
    return Plan(placed, tuple(runs), size)


class Staging:
    """The buffer of one rank, for as long as the job runs; one save at a time has it.

    Raises:
        UsageError: There is not so much memory.
    """

    def __init__(self, roles: Mapping[str, Mapping[str, TensorInfo]], shared: Collection[str] = ()) -> None:
        self.plan = plan(roles, shared)
        self._memory = _allocate(self.plan.size)
        self._buffer = memoryview(self._memory)

    def take(self, reads: Mapping[str, Mapping[str, Read]]) -> Staged:
        """Begins to copy every tensor; returns at once.

        Raises:
            UsageError: The names are not those that the buffer was made for.
        """
        for role, placed in self.plan.placed.items():
            if other := placed.keys() ^ reads[role].keys():
                raise UsageError(f"{role}: {sorted(other)[:3]} came or went since the start", hint=_ANEW)
        return Staged(self.plan, self._buffer, reads)

    def close(self) -> None:
        """Gives the memory back now: whoever still has a view of it, such as the traceback of a save that failed, sees
        zeros."""
        for advice in (mmap.MADV_REMOVE, mmap.MADV_DONTNEED):  # of a shared mapping, and of a private one
            with contextlib.suppress(OSError):  # else it goes with the last view
                self._memory.madvise(advice)


_ANEW = "end this process and resume: names and shapes must stay as they are while it runs"


class Staged:
    """One save's contents, while they are being copied and afterwards."""

    def __init__(self, plan: Plan, buffer: memoryview, reads: Mapping[str, Mapping[str, Read]]) -> None:
        self._plan, self._buffer = plan, buffer
        with contextlib.closing(_Pool() if plan.size > FEW else _Here()) as pool:
            self._copied = {
                run.roles: [(last.end, pool.submit(self._copy, run, names, reads)) for names, last in _batches(run)]
                for run in plan.runs
            }
            self._digested: dict[tuple[str, ...], dict[str, Future[dict[str, str]]]] = {}
            for run in plan.runs:  # behind all copies, which are what training waits for
                jobs = self._digested[run.roles] = {}
                for (names, _), (_, copied) in zip(_batches(run), self._copied[run.roles], strict=True):
                    jobs |= dict.fromkeys(names, pool.submit(self._digest, run, names, copied))

    def wait(self) -> None:
        """Returns when every tensor is copied: from then on training may change them.

        Raises:
            UsageError: A tensor has another shape or dtype than at the start. What was saved before is untouched.
        """
        for copied in self._jobs():
            copied.result()

    def settle(self) -> bool:
        """Returns when the tensors are not read any more: whether everything was copied."""
        done, _ = futures.wait(self._jobs())
        return not any(copied.exception() for copied in done)

    def release(self) -> None:
        """Returns when the buffer may be used again."""
        self.settle()
        futures.wait({job for jobs in self._digested.values() for job in jobs.values()})

    def digests(self, role: str) -> dict[str, str]:
        """Of every tensor of a role, by name, taken from the copies."""
        jobs = [job for run in self._of(role) for job in dict.fromkeys(self._digested[run.roles].values())]
        return {name: digest for job in jobs for name, digest in job.result().items()}

    def holds(self, role: str, name: str, tensor: HostTensor) -> bool:
        """Whether the copy of a tensor, when it is made, has the same bytes. By its digest where that is there already:
        then only one of the two has to be read."""
        run = next(run for run in self._of(role) if name in run.placed)
        job = self._digested[run.roles][name]
        if job.done() and not job.exception():
            return payload.digest_of(tensor.data) == job.result()[name]
        return _equal(tensor.data, self._buffer[run.where(run.placed[name])])

    def placed(self, role: str) -> Mapping[str, TensorInfo]:
        return self._plan.placed[role]

    def tensors(self, role: str) -> dict[str, HostTensor]:
        """Views of the copies, when they are made."""
        self.wait()
        return {
            name: HostTensor(info.dtype, info.shape, self._buffer[run.where(info)])
            for run in self._of(role)
            for name, info in run.placed.items()
        }

    def pieces(self, role: str) -> Iterator[tuple[int, memoryview]]:
        """Offsets in the data part and bytes, each as soon as it is there."""
        for run in self._of(role):
            done = run.begin
            for end, copied in self._copied[run.roles]:
                copied.result()
                cut = end if end == run.end else end // direct.BLOCK * direct.BLOCK
                if cut - done >= direct.PIECE or cut == run.end:
                    yield done, self._buffer[run.start + done - run.begin : run.start + cut - run.begin]
                    done = cut

    def _jobs(self) -> list[Future[None]]:
        return [copied for jobs in self._copied.values() for _, copied in jobs]

    def _of(self, role: str) -> list[Run]:
        return [run for run in self._plan.runs if role in run.roles]

    def _copy(self, run: Run, names: list[str], reads: Mapping[str, Mapping[str, Read]]) -> None:
        for name in names:
            tensor, info = reads[run.roles[0]][name](), run.placed[name]
            if (tensor.dtype, tensor.shape) != (info.dtype, info.shape):
                found, was = f"{tensor.dtype}{list(tensor.shape)}", f"{info.dtype}{list(info.shape)}"
                raise UsageError(f"{run.roles[0]}: {name!r} is {found} now, it was {was} at the start", hint=_ANEW)
            copy(tensor.data, self._buffer[run.where(info)])

    def _digest(self, run: Run, names: list[str], copied: Future[None]) -> dict[str, str]:
        copied.result()
        return {name: payload.digest_of(self._buffer[run.where(run.placed[name])]) for name in names}


def _equal(one: memoryview, other: memoryview) -> bool:
    """Bit by bit: -0.0 is not 0.0, and a NaN is itself."""
    import numpy as np

    if not len(one) or len(one) != len(other):
        return len(one) == len(other)
    first, second = (np.frombuffer(view, np.uint8).ctypes.data for view in (one, other))
    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return bool(memcmp(first, second, len(one)) == 0)


class _Pool(ThreadPoolExecutor):
    """Threads that end when the work is done, without anybody waiting for them."""

    def __init__(self) -> None:
        super().__init__(THREADS, "ms_resume copy")

    def close(self) -> None:
        self.shutdown(wait=False)


class _Here(Executor):
    """The caller's own thread, at once."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **more))
        except Exception as error:  # noqa: BLE001  # raised by whoever asks for the result
            done.set_exception(error)
        return done

    def close(self) -> None:
        pass


def _first(roles: Mapping[str, Mapping[str, TensorInfo]], shared: Collection[str]) -> set[str]:
    """The shared tensors that can lie in front in both files: what follows them stays aligned to its items."""
    if not all(role in roles for role in STAGED):
        return set()
    alone = payload.lay_out({name: (roles["policy"][name].dtype, roles["policy"][name].shape) for name in shared})
    return {name for name, info in alone.items() if (info.end - info.begin) % _WIDEST == 0}


def _batches(run: Run) -> Iterable[tuple[list[str], TensorInfo]]:
    """Names that are copied in one go, and the last of their tensors."""
    names: list[str] = []
    begin = run.begin
    for name, info in run.placed.items():
        names.append(name)
        if info.end - begin >= _BATCH or len(names) == _MOST_NAMES:
            yield names, info
            names, begin = [], info.end
    if names:
        yield names, run.placed[names[-1]]


def _allocate(size: int) -> mmap.mmap:
    """Memory of whole pages, all of them there, so that no save waits for the kernel to find them."""
    if size > (free := available_bytes()):
        raise UsageError(
            f"a host copy of {size / 2**30:.1f} GiB is needed for saving, {free / 2**30:.1f} GiB of memory are free",
            hint="MS_RESUME_STAGING=0 saves without one: training then waits for the disk",
        )
    buffer = _mapped(max(size, direct.BLOCK))
    with contextlib.suppress(OSError):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    try:
        buffer.madvise(_POPULATE_WRITE)
    except (OSError, ValueError):
        for at in range(0, size, direct.BLOCK):
            buffer[at] = 0
    return buffer


def _mapped(size: int) -> mmap.mmap:
    """Private, because few systems give huge pages to shared memory: a save of 1 GiB takes a quarter less time with
    them. What is forked from this process has zeros there: else the next save would copy each page, and keep both."""
    private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        private.madvise(_WIPE_ON_FORK)
    except (OSError, ValueError):
        return mmap.mmap(-1, size)
    return private


def available_bytes() -> int:
    """Memory that this process can still have: what the machine has free, or its control group allows."""
    free = _numbers(Path("/proc/meminfo")).get("MemAvailable:", _UNKNOWN >> 10) << 10
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        free = min(free, limit - used + _numbers(group / "memory.stat").get("file", 0))
    return free


def _numbers(path: Path) -> dict[str, int]:
    """Of a file with a name and a number in each line."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
