"""Every state that a power cut may leave, worked out from the calls that a stretch of a run made, rebuilt, and judged.

What may be lost, cut, or reordered says `disk`. What lay there when the scenario began is on disk; what it did before
the part under test may be pending still.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import random
import signal
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from faults import cases, disk, judge, scenarios
from faults.disk import Change, Disk, Snapshot
from faults.job import Job
from faults.processes import Tell, in_child
from faults.scenarios import Candidate, Expected, Scenario, Stage
from faults.shim import Call, Kind
from ms_resume import repair
from ms_resume.errors import DiskError
from ms_resume.ondisk import atomic, attempts, names
from ms_resume.records import Position

Kept = frozenset[int]
"""Which of the pending changes are on disk after the cut, by index."""

_EXHAUSTIVE = 6
"""Up to so many pending changes, every subset of them is a choice."""

_SAID = 8
"""So many lost changes are named in a failure."""


@dataclass(frozen=True)
class Case:
    """One state, as a plain value: `check` makes and judges it again, in any process."""

    scenario: str
    world_size: int
    point: int
    kept: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.scenario}, {self.world_size} ranks: power lost after call {self.point}, kept {self.kept}"


@dataclass(frozen=True)
class Recording:
    """What a scenario did. `told` has each message with the number of calls before it; `first` and `last` are the
    numbers of calls between which the power is cut."""

    top: str
    snapshot: Snapshot
    calls: tuple[Call, ...]
    acknowledged: Expected
    told: tuple[tuple[int, Any], ...]
    first: int
    last: int

    def points(self) -> Iterator[tuple[int, Disk]]:
        """The disk after each number of calls."""
        now = Disk(self.snapshot, self.top)
        for point, call in enumerate((None, *self.calls)):
            if call:
                now.apply(call)
            if self.first <= (call.number if call else 0) <= self.last:
                yield point, now

    def disk(self, point: int) -> Disk:
        now = Disk(self.snapshot, self.top)
        for call in self.calls[:point]:
            now.apply(call)
        return now

    def expected(self, point: int) -> Expected:
        """What was told before the call after `point` began must hold there."""
        before = self.calls[point].number if point < len(self.calls) else self.calls[-1].number + 1
        heard = self.acknowledged
        for seen, (word, *state) in self.told:
            if seen < before:
                coming = heard.coming if word == "also" else []
                heard = heard.hear((word, *state))
                heard.coming += coming
        return heard


def record(scenario: Scenario) -> Recording:
    """Lets a scenario act once. All that it does is recorded; the power is cut only in what it has under test."""
    _, acknowledged = cases.prepared(scenario)
    with cases.fresh(scenario) as top, cases.steered(top, recorded=True) as control:
        span = mmap.mmap(-1, 16)  # shared: a scenario may act in children of its own

        @contextlib.contextmanager
        def under_test() -> Iterator[None]:
            struct.pack_into("=q", span, 0, control.seen)
            yield
            struct.pack_into("=q", span, 8, control.seen)

        def work(_: Tell) -> tuple[Snapshot, list[tuple[int, Any]]]:
            told: list[tuple[int, Any]] = []
            stage = Stage(top / "save", lambda word: told.append((control.seen, word)), acknowledged, under_test)
            snapshot = Snapshot.of(top)
            with control.armed():
                scenario.act(stage)
            return snapshot, told

        end = in_child(work)
        if end.kind != "returned":
            raise AssertionError(f"{scenario}: fails undisturbed: {end.value}")
        snapshot, told = end.value
        first, last = struct.unpack_from("=qq", span)
        return Recording(str(top), snapshot, tuple(control.calls()), acknowledged, tuple(told), first, last)


@lru_cache(maxsize=64)
def recording(name: str, world_size: int) -> Recording:
    """That of a scenario, made once in a process: every recording makes the same calls in the same order."""
    there = [*scenarios.of_size(world_size), *unsynced(world_size)]
    return record(next(found for found in there if found.name == name))


def states(scenario: Scenario, *, budget: int, seed: int) -> list[Case]:
    """Different states after a cut in this scenario, or equal ones of which something else is expected.

    Args:
        budget: New states at one point, at most.
    """
    made, draw = recording(scenario.name, scenario.world_size), random.Random(f"{seed} {scenario}")
    seen: set[tuple[int, tuple[Candidate, ...]]] = set()
    found = []
    for point, now in made.points():
        candidates = tuple(made.expected(point).candidates)
        tried = itertools.islice(choices(now.pending, draw), 4 * budget)
        new = (kept for kept in tried if _is_new((_digest(now.after(kept)), candidates), seen))
        found += [
            Case(scenario.name, scenario.world_size, point, tuple(sorted(kept)))
            for kept in itertools.islice(new, budget)
        ]
    return found


def choices(pending: Sequence[Change], draw: random.Random) -> Iterator[Kept]:
    """What may be kept: all subsets where there are few changes; else the telling ones, then, for ever, drawn ones."""
    everything = range(len(pending))
    if len(pending) <= _EXHAUSTIVE:
        yield from (few for size in range(len(pending) + 1) for few in map(frozenset, _subsets(everything, size)))
        return
    yield from (frozenset(), frozenset(everything))
    yield from telling(pending)
    for pair in _subsets(everything, 2):
        yield frozenset(everything) - frozenset(pair)
        yield frozenset(pair)
    while True:
        odds = draw.choice((0.25, 0.5, 0.75, 0.9))
        yield frozenset(index for index in everything if draw.random() < odds)


def telling(pending: Sequence[Change]) -> Iterator[Kept]:
    """Each change lost alone and kept alone; names without bytes, sizes without bytes; each file cut at each block."""
    everything = frozenset(range(len(pending)))
    entries = frozenset(index for index, change in enumerate(pending) if change.names)
    sizes = frozenset(index for index, change in enumerate(pending) if change.size >= 0)
    yield from (entries, entries | sizes, everything - entries, everything - sizes)
    for index in sorted(everything):
        alone = frozenset({index})
        yield from (everything - alone, alone, entries | alone, entries | sizes | alone)
    for index in sorted(sizes):
        later = frozenset(other for other in sizes if other > index and pending[other].of == pending[index].of)
        yield from (everything - later, entries | (sizes - later))


def check(case: Case) -> str:
    """Rebuilds a state and has it judged: what is wrong with it, or nothing."""
    made = recording(case.scenario, case.world_size)
    now = made.disk(case.point)
    with tempfile.TemporaryDirectory(prefix="power_", dir=cases.room()) as top:
        disk.rebuild(now.after(case.kept), Path(top), made.snapshot)
        said = judge.look(Path(top) / "save", case.world_size, made.expected(case.point))
    return f"{case} ({_lost(now.pending, case.kept)}): {said}" if said else ""


def least(case: Case) -> Case:
    """A failing state with as little lost as possible, for a person to look at."""
    for index in range(len(recording(case.scenario, case.world_size).disk(case.point).pending)):
        more = replace(case, kept=tuple(sorted({*case.kept, index})))
        case = more if check(more) else case
    return case


def loose_ends(scenario: Scenario) -> str:
    """The first step that the scenario took with an older one not on disk yet: each is durable before the next.

    A step begins where a file is made; the last one ends with the acknowledgement. An emptied directory may come back.
    Where a save is cut short on purpose, or ranks overlap, nothing can be said.
    """
    made = recording(scenario.name, scenario.world_size)
    words = {word for _, (word, *_) in made.told}
    if words == {"will"} or scenario in unsynced(scenario.world_size):
        return ""
    ends = [seen for seen, (word, *_) in made.told if word == "did"]
    for point, now in made.points():
        following = made.calls[point] if point < len(made.calls) else None
        number = following.number if following else made.last + 1
        began = following is not None and following.kind in (Kind.OPEN, Kind.SYMLINK) and number <= made.last
        ended = any(seen < number and (point == 0 or made.calls[point - 1].number <= seen) for seen in ends)
        pending = [change for change in now.pending if _may_not_wait(change, made)] if began or ended else []
        if pending:
            return f"{scenario}: after call {point} a step ended, and not on disk is {_lost(pending, ())}"
    return ""


def run(
    chosen: Iterable[Scenario],
    *,
    budget: int,
    seed: int,
    spread: Callable[[Callable[[Case], str], list[Case]], Iterable[str]] = map,
) -> cases.Tally:
    """Judges the states of all these scenarios.

    Args:
        spread: A `map`; that of a pool of processes shares the work.
    """
    began = time.monotonic()
    tally = cases.Tally("power loss, enumerated", "states", notes={"points": 0, "stretches in order": 0})
    for scenario in chosen:
        found = states(scenario, budget=budget, seed=seed)
        tally.notes["points"] += len({case.point for case in found})
        for failure in spread(check, found):
            tally.add(failure)
        loose = loose_ends(scenario)
        tally.notes["stretches in order"] += not loose
        tally.failures += [loose] if loose else []
    tally.seconds = time.monotonic() - began
    return tally


def unsynced(world_size: int) -> list[Scenario]:
    """Stretches that begin with what a death or an error left behind before it was synced: only power loss shows it."""
    n, one = world_size, scenarios.run(world_size, 2)
    found = [
        Scenario(
            "directories that nobody synced, then a first save", n, scenarios.nothing, after_dead_directories(n, 2)
        ),
        Scenario("directories that nobody synced, then a save", n, one, after_dead_directories(n, 4)),
        Scenario("directories whose sync failed once, then a save", n, scenarios.nothing, after_failed_syncs(n, 2)),
    ]
    found += [
        Scenario("a save of files whose first sync failed", n, one, after_failed_file_syncs(n, 4)),
        Scenario("restored again after a death", n, abandoned(n), after_a_dead_restore("0_6")),
    ]
    late = Scenario("retention, votes of a dead and of a slow rank", n, one, after_a_dead_vote(n))
    return [*found, late] if n > 1 else found


def after_dead_directories(world_size: int, step: int) -> Callable[[Stage], None]:
    """A process made every directory that the save needs, and died before it synced one of them."""

    def act(stage: Stage) -> None:
        for directory in (names.attempts(stage.save), names.vote_dir(stage.save, Position(0, step))):
            directory.mkdir(parents=True, exist_ok=True)
        for role, rank in itertools.product(names.DIRECTORIES, range(world_size)):
            names.rank_dir(stage.save, role, rank).mkdir(parents=True, exist_ok=True)
        with stage.under_test():
            job = Job(stage.save, world_size, 7)
            job.start()
            stage.saves(job, step, job.train())

    return act


def after_failed_syncs(world_size: int, step: int) -> Callable[[Stage], None]:
    """Every directory that a save makes could not be synced at first: the save reported it, and training went on."""

    def act(stage: Stage) -> None:
        job = Job(stage.save, world_size, 7)
        job.start(resume=False)
        digests = job.train()
        stage.will(f"0_{step}", digests)
        with mock.patch.object(atomic, "make_dirs", _make_dirs_unsynced):
            for _ in range(len(names.DIRECTORIES) * world_size + 1):
                with contextlib.suppress(DiskError):
                    job.save(step)
        with stage.under_test():
            stage.saves(job, step, digests)

    return act


def after_failed_file_syncs(world_size: int, step: int) -> Callable[[Stage], None]:
    """Each first sync of a file fails. Like the kernel, later ones of the same file report success and sync nothing."""

    def act(stage: Stage) -> None:
        job = Job(stage.save, world_size, 7)
        job.start()
        digests = job.train()
        with stage.under_test(), _failing_file_syncs():
            stage.saves(job, step, digests)

    return act


@contextlib.contextmanager
def _failing_file_syncs(real: Callable[[int], None] = os.fsync) -> Iterator[None]:
    failed: dict[int, int] = {}
    due = itertools.cycle((True, False))

    def fsync(fd: int) -> None:
        inode = os.fstat(fd).st_ino
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            real(fd)
        elif inode not in failed:
            if next(due):
                failed[inode] = os.dup(fd)  # so that no other file gets its number
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

    try:
        with mock.patch.object(os, "fsync", fsync):
            yield
    finally:
        for fd in failed.values():
            os.close(fd)


def abandoned(world_size: int) -> Callable[[Stage], None]:
    return scenarios.in_order(scenarios.run(world_size, 2, 4, 6), scenarios.goes_back(world_size, "0_2"))


def after_a_dead_restore(position: str) -> Callable[[Stage], None]:
    """A restore died when its record had a name that was not synced; the next one finds that record."""

    def act(stage: Stage) -> None:
        in_child(lambda _: _restore_until_record(stage.save, Position.parse(position)))
        scenarios.restores(position)(stage)

    return act


def _restore_until_record(save: Path, position: Position) -> None:
    real, before = atomic.sync_dir, attempts.newest_ordinal(save)

    def sync_dir(path: Path) -> None:
        if attempts.newest_ordinal(save) > before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    with mock.patch.object(atomic, "sync_dir", sync_dir):
        repair.restore(save, position)


def _make_dirs_unsynced(path: Path, real: Callable[[Path], None] = atomic.make_dirs) -> None:
    if path.is_dir():
        return real(path)
    path.mkdir(parents=True)
    raise DiskError(f"{path}: cannot sync directory", path=str(path), errno=errno.EIO)


def after_a_dead_vote(world_size: int) -> Callable[[Stage], None]:
    """The last rank died before it synced its vote for 0_4, from which the next start goes on; it is slow to sync its
    vote for 0_6, too, when the others see both positions complete, and tidy."""

    def act(stage: Stage) -> None:
        dead = Job(stage.save, world_size, 5)
        dead.start()
        stage.will("0_4", dead.train())
        in_child(lambda _: _save_until_vote(dead, 4, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        job = Job(stage.save, world_size, 7)
        job.start()
        digests = job.train()
        stage.tell(("also", "0_6", digests))
        with stage.under_test():
            _save_until_vote(job, 6, lambda: _others_tidy(job))
        stage.did("0_6", digests)

    return act


def _save_until_vote(job: Job, step: int, then: Callable[[], Any]) -> None:
    """All ranks save; `then` comes when the last one's vote has its name, which is not synced yet."""
    votes, real = names.vote_dir(job.save_dir, Position(0, step)), atomic.sync_dir
    *others, last = job.ranks
    for rank in others:
        rank.save(step)
    due = [then]

    def sync_dir(path: Path) -> None:
        if path == votes and due:
            due.pop()()
        real(path)

    with mock.patch.object(atomic, "sync_dir", sync_dir):
        last.save(step)


def _others_tidy(job: Job) -> None:
    for rank in job.ranks[:-1]:
        rank.checkpointer._saver.tidy()


def _may_not_wait(change: Change, made: Recording) -> bool:
    return change.call.kind != Kind.RMDIR and made.first < change.call.number


def _subsets(of: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return itertools.combinations(of, size)


def _is_new(state: Any, seen: set[Any]) -> bool:
    if state in seen:
        return False
    seen.add(state)
    return True


def _digest(tree: disk.Tree) -> int:
    """Good within one process: Python keeps a content's hash with it, so unchanged files cost nothing."""
    return hash(frozenset(tree.items()))


def _lost(pending: Sequence[Change], kept: Iterable[int]) -> str:
    spared = set(kept)
    lost = [change.says for index, change in enumerate(pending) if index not in spared]
    more = f" and {len(lost) - _SAID} more" if len(lost) > _SAID else ""
    return f"lost: {', '.join(lost[:_SAID]) or 'nothing'}{more}"
