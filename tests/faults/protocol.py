"""Every interleaving of two ranks, the zombies of an older attempt, and a start, one disk operation at a time.

    reads    nothing: the disk is a dictionary, a process a generator of operations
    proves   that what was acknowledged is found again, whoever is stopped where, and for how long

A process that is stopped for ever is one that is not chosen any more, so each reachable state is also a crash. In each
of them a new start and a save are tried. The programs below follow `write.save`, `commit`, `retention` and a start,
line by line; `Rules` says how they remove a file, so that the ways that lose something can be seen to lose it.

Not modelled: the contents of files beyond who wrote them, syncs (power_model.py has those), foreign files, `meta.json`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from faults.cases import Tally

Name = tuple[Any, ...]
"""("record", n), ("votes", P), ("vote", directory, rank), ("payload", P, rank), ("ref", P, rank), ("deleted", P, by),
("aside", by, name); ("acked", n, P, rank), ("started", n), ("begun", n, P) are what an observer notes."""
Disk = Mapping[Name, Any]
"""Content of a payload: who wrote it. Of a vote: (who, ((payload, who), ...)). Of a record: (P, who) or None."""


@dataclass(frozen=True)
class Rules:
    """How the writers behave. The defaults are what holds; the others show what each rule is for.

    Attributes:
        retire: How a file that is in the way goes. "unlink": ask who owns the directory, unlink. "seen": rename aside,
            give it back when it is not the file that was looked at. "aside": rename aside, ask again, then unlink; it
            stays aside when a newer attempt owns the directory.
        put_back: What a start gives back its name to: "live" files, "all", or nothing.
        newer_wins: A start also puts back what a zombie's older file has taken the place of.
        stable: A start looks again after it has located, until there is nothing to put back.
        patience: How often a name is cleared for a payload; a vote once less.
        recheck: A start looks at its checkpoint again when its record is there.
        sweep: A start removes what is left aside and is no part of its line.
    """

    retire: str = "aside"
    put_back: str = "live"
    newer_wins: bool = True
    stable: bool = True
    patience: int = 3
    recheck: bool = True
    sweep: bool = True


UNLINK = Rules("unlink", put_back="", stable=False, patience=1, recheck=False, sweep=False)
SEEN = Rules("seen", put_back="all", newer_wins=False, stable=False, recheck=False, sweep=False)
ASIDE = Rules()


class Op(NamedTuple):
    kind: str
    name: Any = None
    to: Any = None
    note: Name | None = None
    why: str = ""


class Me(NamedTuple):
    attempt: int
    rank: int
    world: int
    rules: Rules

    def __str__(self) -> str:
        return f"attempt {self.attempt} rank {self.rank}"


class Superseded(Exception):
    pass


class Refused(Exception):
    """A start that says no, or a save that failed."""


Steps = Generator[Op, Any, Any]


def votes(position: int) -> Name:
    return ("votes", position)


def vote(position: int, rank: int) -> Name:
    return ("vote", votes(position), rank)


def payload(position: int, rank: int) -> Name:
    return ("payload", position, rank)


def record(attempt: int) -> Name:
    return ("record", attempt)


# What an operation does.


def directory_of(name: Name) -> Name | None:
    """The vote directory that a name lies in; others are always there."""
    inner = name[2] if name[0] == "aside" else name
    return inner[1] if inner[0] == "vote" else None


def inside(disk: Disk, directory: Name) -> list[Name]:
    return [name for name in disk if directory_of(name) == directory]


def applied(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    """What the caller sees, and the disk afterwards: the same object when it did not change."""
    return _OPERATIONS[op.kind](disk, op)


def _newest(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return newest_attempt(disk), disk


def _read(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return disk.get(op.name), disk


def _look(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    """A listing of some kinds, with contents: what is done with it comes later, which is what matters."""
    return frozenset((name, content) for name, content in disk.items() if _kind(name) in op.name), disk


def _kind(name: Name) -> str:
    return "aside" if name[0] == "vote" and name[1][0] == "aside" else str(name[0])


def _publish(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    if op.name in disk:
        return "exists", disk
    if (directory := directory_of(op.name)) is not None and directory not in disk:
        return "no directory", disk
    noted = {op.note: None} if op.note else {}
    return "done", {**disk, op.name: op.to, **noted}


def _link(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    """`name` gets the further name `to`, where that is free."""
    if op.name not in disk:
        return "gone", disk
    return _publish(disk, Op("publish", op.to, disk[op.name]))


def _unlink(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return None, _without(disk, op.name) if op.name in disk else disk


def _rmdir(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return None, disk if op.name not in disk or inside(disk, op.name) else _without(disk, op.name)


def _note(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return None, disk if op.name in disk else {**disk, op.name: None}


def _begin(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    return _note(disk, Op("note", ("begun", op.name, floor(disk, op.to))))


def _rename(disk: Disk, op: Op) -> tuple[Hashable, Disk]:
    """A file replaces what stands at `to`, a directory does not."""
    held = inside(disk, op.name)
    if op.name not in disk or (held and inside(disk, op.to)):
        return False, disk
    after = {**_without(disk, op.name, *held), op.to: disk[op.name]}
    return True, {**after, **{_moved(name, op.to): disk[name] for name in held}}


def _moved(name: Name, directory: Name) -> Name:
    return (*name[:2], ("vote", directory, name[2][2])) if name[0] == "aside" else ("vote", directory, name[2])


def _without(disk: Disk, *gone: Name) -> Disk:
    return {name: content for name, content in disk.items() if name not in gone}


_OPERATIONS: dict[str, Callable[[Disk, Op], tuple[Hashable, Disk]]] = {
    "ask who owns": _newest,
    "read": _read,
    "await": _read,
    "look": _look,
    "publish": _publish,
    "link": _link,
    "unlink": _unlink,
    "rename": _rename,
    "make": _note,
    "remove empty": _rmdir,
    "note": _note,
    "begin": _begin,
}


# What is whole, by the files alone.


def newest_attempt(disk: Disk) -> int:
    return max(int(name[1]) for name in disk if name[0] == "record")


def line(disk: Disk) -> dict[int, int | None]:
    """Each attempt on the line of the newest one, with its last live position."""
    bounds: dict[int, int | None] = {}
    attempt, bound = newest_attempt(disk), None
    while attempt not in bounds:
        bounds[attempt] = bound
        origin = disk.get(record(attempt))
        if origin is None:
            break
        bound, attempt = min(bound or origin[0], origin[0]), origin[1]
    return bounds


def is_live(bounds: Mapping[int, int | None], attempt: int, position: int) -> bool:
    return attempt in bounds and (bounds[attempt] is None or position <= (bounds[attempt] or 0))


def author(content: Any) -> int:
    return int(content[0] if isinstance(content, tuple) else content)


def position_of(name: Name) -> int:
    directory = name[1] if name[0] == "vote" else name
    return int(directory[1])


def whole(disk: Disk, world: int, position: int, bounds: Mapping[int, int | None], *, headers: bool) -> int | None:
    """The attempt whose checkpoint is live and complete at `position`: by sizes, or by headers as well."""
    found: list[Any] = [disk.get(vote(position, rank)) for rank in range(world)]
    if None in found or len({v[0] for v in found}) > 1 or not is_live(bounds, found[0][0], position):
        return None
    named = [file for v in found for file in v[1]]
    good = all(name in disk and (not headers or disk[name] == by) for name, by in named)
    return int(found[0][0]) if good else None


def newest_whole(disk: Disk, world: int, positions: tuple[int, ...]) -> tuple[int, int] | None:
    bounds = line(disk)
    found = ((p, whole(disk, world, p, bounds, headers=True)) for p in sorted(positions, reverse=True))
    return next(((position, by) for position, by in found if by is not None), None)


def floor(disk: Disk, world: int) -> int | None:
    """The position that no later start may fall behind: acknowledged by all ranks of the newest attempt, or its start.

    None when the newest start was refused after its record was there: it says so, and promises nothing.
    """
    attempt = newest_attempt(disk)
    if ("started", attempt) not in disk:
        return None
    acked = [name[2] for name in disk if name[:2] == ("acked", attempt)]
    origin = disk[record(attempt)]
    return max([p for p in acked if acked.count(p) == world] + ([origin[0]] if origin else []), default=None)


# The programs: what each process does, in the order in which it does it.


def assert_owner(me: Me) -> Steps:
    if (yield Op("ask who owns")) > me.attempt:
        raise Superseded


def retire(me: Me, name: Name, seen: Any, why: str) -> Steps:
    yield from assert_owner(me)
    if me.rules.retire == "unlink":
        yield Op("unlink", name, why=why)
        return
    aside = ("aside", me.attempt, name)
    if not (yield Op("rename", name, aside, why=why)):
        return
    if me.rules.retire == "seen":
        if (yield Op("read", aside)) not in (seen, None):
            yield from give_back(aside, name)
            raise Superseded
    else:
        yield from assert_owner(me)  # otherwise it stays aside: a start knows what to do with it
    yield Op("unlink", aside, why=why)


def retire_votes(me: Me, position: int) -> Steps:
    yield from assert_owner(me)
    deleted, aside = ("deleted", position, me.attempt), ("aside", me.attempt, votes(position))
    if me.rules.retire == "aside":
        if (yield Op("rename", votes(position), aside, why="retention")):
            yield from assert_owner(me)
            yield Op("rename", aside, deleted, why="retention")
        return
    yield Op("rename", votes(position), deleted, why="retention")
    if me.rules.retire == "seen":
        try:
            yield from assert_owner(me)
        except Superseded:
            yield from give_back_votes(deleted)
            raise


def give_back(aside: Name, name: Name) -> Steps:
    yield Op("link", aside, name, why="give back")
    yield Op("unlink", aside, why="give back")


def give_back_votes(directory: Name) -> Steps:
    home = votes(directory[1])
    yield Op("make", home)
    for name in sorted(name for name, _ in (yield Op("look", ("vote",))) if name[1] == directory):
        yield from give_back(name, ("vote", home, name[2]))
    yield Op("remove empty", directory)


def taken_from(origin: Any, owner: int, cast: Any, deleted_by: int) -> bool:
    went_on_from = origin == (cast[1][0][0][1], cast[0])
    return bool(cast[0] > deleted_by or (went_on_from and deleted_by < owner))


def clear(me: Me, name: Name, why: str) -> Steps:
    there = yield Op("read", name)
    if there is None:
        return
    if author(there) > me.attempt - (name[0] == "vote"):
        raise Superseded
    yield from retire(me, name, there, why)


def publish(me: Me, name: Name, content: Any, note: Name | None = None) -> Steps:
    patience = me.rules.patience + (me.rules.retire == "unlink" and name[0] != "vote")
    for _ in range(patience):
        if name[0] == "vote":
            yield Op("make", name[1])
        yield from assert_owner(me)
        done = yield Op("publish", name, content, note)
        if done == "done":
            return
        if done == "exists" and patience > 1:
            yield from clear(me, name, "in the way")
    if done == "no directory":
        raise Refused("the vote directory was renamed away")
    raise Superseded


def in_place(file: tuple[Name, int]) -> Steps:
    return (yield Op("read", file[0])) == file[1]


class Base(NamedTuple):
    """What a process knows of the checkpoint that it went on from: where, and its reference."""

    position: int = 0
    ref: tuple[Name, int] | None = None


def save(me: Me, base: Base, position: int, *, with_ref: bool = False) -> Steps:
    if position <= base.position:
        return base
    yield from assert_owner(me)
    standing = yield Op("read", vote(position, me.rank))
    if standing and standing[0] == me.attempt:
        there = []
        for file in standing[1]:
            there.append((yield from in_place(file)))
        if all(there):
            return base
    kept = base.ref if with_ref and base.ref and (yield from in_place(base.ref)) else None
    anew = [payload(position, me.rank)] + ([("ref", position, me.rank)] if with_ref and not kept else [])
    yield from retract(me, position, anew)
    for name in anew:
        yield from publish(me, name, me.attempt)
    if kept and not (yield from in_place(kept)):
        kept, anew = None, [*anew, ("ref", position, me.rank)]
        yield from publish(me, anew[-1], me.attempt)
    files = [(name, me.attempt) for name in anew] + ([kept] if kept else [])
    noted = ("acked", me.attempt, position, me.rank)
    yield from publish(me, vote(position, me.rank), (me.attempt, tuple(files)), noted)
    return Base(base.position, next((file for file in files if file[0][0] == "ref"), None))


def retract(me: Me, position: int, anew: list[Name]) -> Steps:
    old = yield Op("read", vote(position, me.rank))
    if old:
        yield from retire(me, vote(position, me.rank), old, "older vote")
    here = [name for name, _ in (old[1] if old else ()) if name[1] == position]
    for name in sorted({*anew, *here}):
        yield from clear(me, name, "older payload")


def judge(me: Me, position: int, bounds: Mapping[int, int | None]) -> Steps:
    """`whole`, read by read."""
    found = []
    for rank in range(me.world):
        found.append((yield Op("read", vote(position, rank))))
        if found[-1] is None or found[-1][0] != found[0][0]:
            return None
    if not is_live(bounds, found[0][0], position):
        return None
    for file in [file for v in found for file in v[1]]:
        if not (yield from in_place(file)):
            return None
    return found[0][0]


def put_back(me: Me, bounds: Mapping[int, int | None]) -> Steps:
    """Gives files their names back; how many. What no live checkpoint can need stays where it is."""
    count = 0
    for aside, home, content in _asides((yield Op("look", ("aside",)))):
        if is_live(bounds, author(content), position_of(home)):
            count += yield from _put_back(me, aside, home, content)
    return count


def _put_back(me: Me, aside: Name, home: Name, content: Any) -> Steps:
    if home[0] == "vote":
        yield Op("make", home[1])
    done = yield Op("link", aside, home, why="put back")
    if done == "exists" and me.rules.newer_wins:
        there = yield Op("read", home)
        if there is not None and author(there) < author(content):
            yield Op("rename", home, ("aside", author(there), home), why="a zombie's")
            done = yield Op("link", aside, home, why="put back")
    if done == "done":
        yield Op("unlink", aside)
    return int(done == "done")


def _asides(seen: frozenset[tuple[Name, Any]]) -> list[tuple[Name, Name, Any]]:
    """Each file that lies aside, by itself or in a directory, with the name it had."""
    files = [(name, content) for name, content in seen if content is not None]
    return sorted(((name, _home(name), content) for name, content in files), key=repr)


def _home(name: Name) -> Name:
    inner = name[2] if name[0] == "aside" else name
    return ("vote", _home(inner[1]), inner[2]) if inner[0] == "vote" else inner


def give_back_all(me: Me) -> Steps:
    """The start's part of "seen"."""
    seen = yield Op("look", ("record", "aside", "deleted", "vote"))
    disk = dict(seen)
    for aside in sorted((name for name in disk if name[0] == "aside"), key=repr):
        yield from give_back(aside, aside[2])
    owner = newest_attempt(disk)
    for directory in sorted(name for name in disk if name[0] == "deleted"):
        held = [disk[name] for name in inside(disk, directory)]
        if any(taken_from(disk[record(owner)], owner, cast, directory[2]) for cast in held):
            yield from give_back_votes(directory)


def sweep_asides(me: Me, bounds: Mapping[int, int | None]) -> Steps:
    for aside, home, content in _asides((yield Op("look", ("aside",)))):
        by = aside[1] if aside[0] == "aside" else aside[1][1]
        if (
            by < me.attempt
            and author(content) <= me.attempt
            and not is_live(bounds, author(content), position_of(home))
        ):
            yield from assert_owner(me)
            yield Op("unlink", aside, why="left aside")


def start(
    me: Me, _: Base, positions: tuple[int, ...], *, at: tuple[int, int] | None = None, wait: bool = True
) -> Steps:
    """Rank 0: locates, or takes the live or abandoned checkpoint `at`, and writes its record."""
    if wait:
        yield Op("await", record(me.attempt - 1))
        if at is None:  # a purpose may fall behind
            yield Op("begin", me.attempt, me.world)
    before = dict((yield Op("look", ("record",))))
    if newest_attempt(before) >= me.attempt:
        raise Refused("another start was faster")
    bounds: Mapping[int, int | None] = {at[1]: at[0]} if at else line(before)
    while True:
        yield from give_back_all(me) if me.rules.put_back == "all" else ()
        yield from put_back(me, line(before)) if me.rules.put_back == "live" else ()
        origin = yield from _locate(me, [at[0]] if at else sorted(positions, reverse=True), bounds)
        if not me.rules.stable or not (yield from put_back(me, line(before))):
            break
    if origin is None:
        raise Refused("nothing to resume")
    started = None if me.rules.recheck else ("started", me.attempt)
    if (yield Op("publish", record(me.attempt), origin, started)) != "done":
        raise Refused("another start was faster")
    after = line({**before, record(me.attempt): origin})
    if me.rules.recheck:
        if (yield from judge(me, origin[0], after)) is None:
            raise Refused("the checkpoint went while it was loaded")
        yield Op("note", ("started", me.attempt))
    yield from sweep_asides(me, after) if me.rules.sweep else ()
    return (yield from _base(me, origin[0]))


def _locate(me: Me, positions: list[int], bounds: Mapping[int, int | None]) -> Steps:
    for position in positions:
        by = yield from judge(me, position, bounds)
        if by is not None:
            return position, by
    return None


def joined(me: Me, _: Base) -> Steps:
    """Another rank: goes on when rank 0 has handed the attempt out."""
    yield Op("await", ("started", me.attempt))
    origin = yield Op("read", record(me.attempt))
    return (yield from _base(me, origin[0]))


def _base(me: Me, position: int) -> Steps:
    mine = yield Op("read", vote(position, me.rank))
    return Base(position, next((file for file in mine[1] if file[0][0] == "ref"), None) if mine else None)


def tidy(me: Me, base: Base, positions: tuple[int, ...]) -> Steps:
    if me.rank == 0:
        yield from sweep(me, positions)
    yield from remove_payloads(me)
    return base


def sweep(me: Me, positions: tuple[int, ...]) -> Steps:
    disk = dict((yield Op("look", ("record", "votes", "vote", "deleted", "payload", "ref"))))
    gone = removable(disk, me, positions)
    for position in gone:
        if votes(position) in disk:
            yield from retire_votes(me, position)
        else:
            yield from assert_owner(me)
            yield Op("make", ("deleted", position, me.attempt), why="retention")
    for directory in sorted(name for name in disk if name[0] == "deleted"):
        saved_again = votes(directory[1]) in disk and directory[1] not in gone
        if saved_again or not _payloads(disk, directory[1]):
            yield Op("remove empty", directory)


def removable(disk: Disk, me: Me, positions: tuple[int, ...]) -> list[int]:
    """`retention.removable`, with two to keep: older than those, or torn and left behind by its own attempt."""
    bounds = line(disk)
    deleted = {name[1] for name in disk if name[0] == "deleted"}
    there = [p for p in positions if votes(p) in disk or (_payloads(disk, p) and p not in deleted)]
    complete = {p: by for p in there if (by := whole(disk, me.world, p, bounds, headers=False)) is not None}
    if len(complete) < 2:
        return []
    origin = disk[record(me.attempt)]
    protected = origin[0] if origin and sum(p > origin[0] for p in complete) < 2 else None
    newest_of = {by: max(p for p in complete if complete[p] == by) for by in complete.values()}
    older = [p for p in there if p < sorted(complete)[-2]]
    torn = [p for p in there if p not in complete and p < newest_of.get(_torn_by(disk, me, p, bounds), 0)]
    return [p for p in sorted({*older, *torn}) if p != protected]


def _torn_by(disk: Disk, me: Me, position: int, bounds: Mapping[int, int | None]) -> int:
    """The attempt that left a torn position; -1 for an abandoned one."""
    cast = [found[0] for rank in range(me.world) if (found := disk.get(vote(position, rank)))]
    live = [by for by in cast if is_live(bounds, by, position)]
    return max(live) if live else -1 if cast else min(_payloads(disk, position), default=-1)


def _payloads(disk: Disk, position: int) -> list[int]:
    return [by for name, by in disk.items() if name[0] in ("payload", "ref") and name[1] == position]


def remove_payloads(me: Me) -> Steps:
    for directory in sorted(name for name, _ in (yield Op("look", ("deleted",)))):
        _, position, deleted_by = directory
        mine = yield Op("read", ("vote", directory, me.rank))
        if mine and me.rules.retire == "seen":
            origin = yield Op("read", record(me.attempt))
            if taken_from(origin, me.attempt, mine, deleted_by):
                continue
        named = dict(mine[1]) if mine else {}
        seen = yield Op("look", ("vote",))
        kept = {file for n, v in seen if n[1][0] == "votes" and n[2] == me.rank for file, _ in v[1]}
        for name in sorted({*named, payload(position, me.rank), ("ref", position, me.rank)} - kept):
            there = yield Op("read", name)
            if there is not None and (there == named[name] if name in named else there <= deleted_by):
                yield from retire(me, name, there, "retention")
        if mine:
            yield Op("unlink", ("vote", directory, me.rank), why="retention")


# Exploring.


class Process:
    """A program as a graph: what it has seen so far decides what it does next, so the same past is one node."""

    def __init__(self, me: Me, *segments: Callable[[Me, Base], Steps], base: Base | None = None) -> None:
        self.me, self._segments = me, segments
        self._known: dict[Hashable, int] = {}
        self._pasts: list[tuple[int, Base, tuple[Hashable, ...]]] = []
        self._next: list[dict[Hashable, int]] = []
        self.ops: list[Op | None] = []
        self.ends: list[str] = []
        self.first = self._node(0, base or Base(), ())

    def step(self, node: int, result: Hashable) -> int:
        if result not in self._next[node]:
            segment, base, past = self._pasts[node]
            self._next[node][result] = self._node(segment, base, (*past, result))
        return self._next[node][result]

    def _node(self, segment: int, base: Base, past: tuple[Hashable, ...]) -> int:
        end, op = "returned", None
        try:
            while segment < len(self._segments):
                try:
                    op = _replayed(self._segments[segment](self.me, base), past)
                    break
                except StopIteration as done:
                    segment, base, past = segment + 1, done.value, ()
        except (Superseded, Refused) as error:
            end = type(error).__name__
        key = (segment, base, past) if op else end
        if key not in self._known:
            self._known[key] = len(self.ops)
            self.ops.append(op)
            self.ends.append("" if op else end)
            self._pasts.append((segment, base, past))
            self._next.append({})
        return self._known[key]


def _replayed(steps: Steps, past: tuple[Hashable, ...]) -> Op:
    op = next(steps)
    for result in past:
        op = steps.send(result)
    return op


@dataclass
class Config:
    """Where it begins, and who is there. `at` (purpose) is no start that may not fall behind."""

    name: str
    disk: Disk
    processes: list[Process]
    world: int
    positions: tuple[int, ...]
    rules: Rules
    with_ref: bool = False


@dataclass
class Violation:
    invariant: str
    culprit: str
    trace: list[str]

    def __str__(self) -> str:
        return "\n    ".join([f"{self.invariant}, when {self.culprit}", *self.trace])


@dataclass
class Result:
    states: int
    violations: list[Violation]
    seconds: float = 0.0

    @property
    def invariants(self) -> set[str]:
        return {violation.invariant for violation in self.violations}


MIXTURE = "I1 a mixture is complete by sizes"
LOST = "I2 an acknowledged position is not found"
NOTHING = "I2 nothing is found"
FELL_BEHIND = "I2 a start fell behind what was acknowledged"
PRUNED = "I3 retention took the newest checkpoint"
TOLD = "I4 the newest attempt is told that it is superseded"
FAILED = "I4 a save of the newest attempt fails"
STUCK = "I5 a new start and save fail"


@lru_cache(maxsize=64)
def _next_job(attempt: int, world: int, rules: Rules, positions: tuple[int, ...], with_ref: bool) -> Any:
    """A start of the next attempt, and for each position the ranks that save there."""

    def saver(rank: int, position: int) -> Process:
        everywhere = (*positions, positions[-1] + 1)
        return Process(
            Me(attempt, rank, world, rules),
            joined,
            partial(save, position=position, with_ref=with_ref),
            partial(tidy, positions=everywhere),
        )

    first = Process(Me(attempt, 0, world, rules), partial(start, positions=positions, wait=False))
    savers = {p: [saver(rank, p) for rank in range(world)] for p in (*positions, positions[-1] + 1)}
    return first, savers


def alone(disk: Disk, process: Process) -> tuple[Disk, str]:
    """The disk after a process that nobody disturbs, and how it ended."""
    node = process.first
    while (op := process.ops[node]) is not None:
        result, disk = applied(disk, op)
        node = process.step(node, result)
    return disk, process.ends[node]


def wrong(config: Config, disk: Disk) -> set[str]:
    """The invariants that do not hold, if every process stopped now for ever."""
    bounds, found = line(disk), set()
    for position in config.positions:
        by_size, by_header = (whole(disk, config.world, position, bounds, headers=h) for h in (False, True))
        if by_size is not None and by_header is None:
            found.add(MIXTURE)
    behind = [n for n in disk if n[0] == "begun" and disk.get(record(n[1])) and disk[record(n[1])][0] < (n[2] or 0)]
    return found | ({FELL_BEHIND} if behind else set()) | _wrong_later(config, disk)


def _wrong_later(config: Config, disk: Disk) -> set[str]:
    attempt = newest_attempt(disk) + 1
    first, savers = _next_job(attempt, config.world, config.rules, config.positions, config.with_ref)
    wanted = floor(disk, config.world)
    after, end = alone(disk, first)
    if end != "returned":
        return {NOTHING} if wanted is not None else set()
    got = after[record(attempt)][0]
    stuck = any(_stuck(config, after, attempt, p, ranks) for p, ranks in savers.items() if p > got)
    return ({LOST} if wanted is not None and got < wanted else set()) | ({STUCK} if stuck else set())


def _stuck(config: Config, disk: Disk, attempt: int, position: int, ranks: list[Process]) -> bool:
    for process in ranks:
        disk, end = alone(disk, process)
        if end != "returned":
            return True
    return newest_whole(disk, config.world, (*config.positions, position)) != (position, attempt)


class Explorer:
    """Breadth first, so the first way to a violation is a shortest one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._ids: dict[frozenset[tuple[Name, Any]], int] = {}
        self._disks: list[Disk] = []
        self._wrong: list[set[str]] = []
        self._edges: dict[tuple[int, int, Op], tuple[Hashable, int]] = {}
        self._parents: dict[tuple[int, ...], tuple[tuple[int, ...], int] | None] = {}
        self._found: dict[tuple[str, str], Violation] = {}

    def run(self) -> Result:
        began = time.monotonic()
        origin = (self._disk(self.config.disk), *(process.first for process in self.config.processes))
        self._parents[origin] = None
        queue = deque([origin])
        while queue:
            state = queue.popleft()
            for who, process in enumerate(self.config.processes):
                op = process.ops[state[who + 1]]
                if op is None or (op.kind == "await" and op.name not in self._disks[state[0]]):
                    continue
                after = self._after(state, who, op)
                self._report(state, who, op, after)
                if after not in self._parents:
                    self._parents[after] = (state, who)
                    queue.append(after)
        return Result(len(self._parents), list(self._found.values()), time.monotonic() - began)

    def _disk(self, disk: Disk) -> int:
        key = frozenset(disk.items())
        if key not in self._ids:
            self._ids[key] = len(self._disks)
            self._disks.append(disk)
            self._wrong.append(wrong(self.config, disk))
        return self._ids[key]

    def _after(self, state: tuple[int, ...], who: int, op: Op) -> tuple[int, ...]:
        edge = self._edges.get((state[0], who, op))
        if edge is None:
            before = self._disks[state[0]]
            result, disk = applied(before, op)
            edge = self._edges[state[0], who, op] = result, state[0] if disk is before else self._disk(disk)
        node = self.config.processes[who].step(state[who + 1], edge[0])
        return (edge[1], *state[1 : who + 1], node, *state[who + 2 :])

    def _report(self, state: tuple[int, ...], who: int, op: Op, after: tuple[int, ...]) -> None:
        process = self.config.processes[who]
        for invariant in {*(self._wrong[after[0]] - self._wrong[state[0]]), *self._told(state, who, op, after)}:
            culprit = f"{process.me} does: {said(op)}"
            if (invariant, culprit) not in self._found:
                self._found[invariant, culprit] = Violation(invariant, culprit, self._trace(state, who))

    def _told(self, state: tuple[int, ...], who: int, op: Op, after: tuple[int, ...]) -> set[str]:
        """What only this step shows: how a process ended, and what retention did."""
        process, before, disk = self.config.processes[who], self._disks[state[0]], self._disks[after[0]]
        found = set()
        if newest_attempt(disk) == process.me.attempt:
            refused = ("started", process.me.attempt) in disk  # otherwise it is the start that says no
            end = process.ends[after[who + 1]]
            found |= {TOLD} if end == "Superseded" else {FAILED} if end == "Refused" and refused else set()
        if op.why == "retention" and after[0] != state[0] and newest_attempt(disk) == process.me.attempt:
            had, has = (newest_whole(d, self.config.world, self.config.positions) for d in (before, disk))
            found |= {PRUNED} if had and (not has or has[0] < had[0]) else set()
        return found

    def _trace(self, state: tuple[int, ...], who: int) -> list[str]:
        steps: list[tuple[tuple[int, ...], int]] = [(state, who)]
        while (parent := self._parents[steps[-1][0]]) is not None:
            steps.append(parent)
        return [self._line(at, by) for at, by in reversed(steps)]

    def _line(self, state: tuple[int, ...], who: int) -> str:
        process = self.config.processes[who]
        op = process.ops[state[who + 1]]
        assert op is not None  # it did something
        result = "" if op.kind in ("look", "note", "begin") else f" -> {applied(self._disks[state[0]], op)[0]}"
        return f"{process.me}: {said(op)}{result}"


def said(op: Op) -> str:
    """An operation in plain words."""
    target = f" as {named(op.to)}" if op.kind in ("link", "rename") else ""
    what = named(op.name) if isinstance(op.name, tuple) and op.kind != "look" else ""
    why = f" ({op.why})" if op.why else ""
    return f"{op.kind} {what}{target}{why}".strip()


def named(name: Name) -> str:
    kind, *rest = name
    if kind == "aside":
        return f"{named(rest[1])} aside, by {rest[0]}"
    if kind == "vote":
        return f"{named(rest[0])}/rank_{rest[1]}"
    words = {
        "votes": "commits/P{}",
        "deleted": "commits/P{}.deleted-{}",
        "record": "record {}",
        "started": "the start of {}",
    }
    return words.get(kind, str(kind) + " of P{} rank {}").format(*rest)


def explore(config: Config) -> Result:
    return Explorer(config).run()


# Where it begins, and who is there.


def _with(disk: Disk, position: int, by: int, world: int, *, votes_of: tuple[int, ...], ref: int | None = None) -> Disk:
    """A checkpoint, torn where not every rank voted; its reference lies at position `ref`."""
    after: dict[Name, Any] = {**disk, votes(position): None}
    for rank in range(world):
        files = [payload(position, rank)] + ([("ref", ref, rank)] if ref else [])
        after |= dict.fromkeys(files, by)
        if rank in votes_of:
            after[vote(position, rank)] = (by, tuple((name, by) for name in files))
    return after


def _records(*origins: tuple[int, int] | None) -> Disk:
    numbered = dict(enumerate(origins, 1))
    return {record(n): origin for n, origin in numbered.items()} | {("started", n): None for n in numbered}


def _rank(me: Me, positions: tuple[int, ...], *saves: int, start_at: Any = None, **how: bool) -> Process:
    """One rank of a new attempt: it starts, then saves at these positions."""

    def starts(me: Me, base: Base) -> Steps:
        return start(me, base, positions, at=start_at) if me.rank == 0 else joined(me, base)

    return Process(me, starts, *_saving(positions, *saves, **how))


def _saving(
    positions: tuple[int, ...], *saves: int, tidies: bool = False, with_ref: bool = False
) -> list[Callable[[Me, Base], Steps]]:
    segments: list[Callable[[Me, Base], Steps]] = []
    for position in saves:
        segments.append(partial(save, position=position, with_ref=with_ref))
        segments += [partial(tidy, positions=positions)] if tidies else []
    return segments


def saved_again(rules: Rules, world: int, newer: int = 1, zombie_ranks: tuple[int, ...] = ()) -> Config:
    """Attempt 2 saves the torn P2 again; up to `newer` attempts start meanwhile, and save it as well."""
    disk = _with(_records(None, (1, 1)), 1, 1, world, votes_of=tuple(range(world)))
    disk = _with(disk, 2, 1, world, votes_of=(0,) if world > 1 else ())
    disk = disk if world > 1 else {**disk, vote(2, 0): (1, ((payload(2, 0), 1), (payload(2, 9), 1)))}
    zombies = [Process(Me(2, rank, world, rules), *_saving((1, 2), 2)) for rank in zombie_ranks or range(world)]
    others = [_rank(Me(3 + n, rank, world, rules), (1, 2), 2) for n in range(newer) for rank in range(world)]
    return Config(f"a torn position saved again, {newer} newer", disk, zombies + others, world, (1, 2), rules)


def pruned(rules: Rules, world: int) -> Config:
    """Attempt 2 saves P3 and prunes P1, when attempt 3 goes back to P1 and saves P2 anew."""
    disk = _with(_records(None, (2, 1)), 1, 1, world, votes_of=tuple(range(world)))
    disk = _with(disk, 2, 1, world, votes_of=tuple(range(world)))
    zombies = [Process(Me(2, rank, world, rules), *_saving((1, 2, 3), 3, tidies=True)) for rank in range(world)]
    others = [_rank(Me(3, rank, world, rules), (1, 2, 3), 2, start_at=(1, 1)) for rank in range(world)]
    return Config("going back to what is pruned", disk, zombies + others, world, (1, 2, 3), rules)


def swept(rules: Rules, world: int, newer: int = 1, zombie_ranks: tuple[int, ...] = ()) -> Config:
    """Attempt 2 prunes the torn P2, when attempt 3 goes back to P1 and saves P2 anew; a fourth may follow."""
    everyone = tuple(range(world))
    disk = _with(_records(None, (1, 1)), 1, 1, world, votes_of=everyone)
    disk = _with(_with(disk, 2, 2, world, votes_of=everyone[:-1]), 3, 2, world, votes_of=everyone)
    zombies = [Process(Me(2, r, world, rules), partial(tidy, positions=(1, 2, 3))) for r in zombie_ranks or everyone]
    back = [_rank(Me(3, rank, world, rules), (1, 2, 3), 2, start_at=(1, 1)) for rank in everyone]
    after = [_rank(Me(4 + n, rank, world, rules), (1, 2, 3), 3) for n in range(newer - 1) for rank in everyone]
    return Config(f"a torn position pruned, {newer} newer", disk, zombies + back + after, world, (1, 2, 3), rules)


def brought_back(rules: Rules, world: int) -> Config:
    """Attempt 2 went back to P1 and saves P2 anew, when attempt 3 brings the abandoned P2 back."""
    everyone = tuple(range(world))
    disk = _with(_records(None, (1, 1)), 1, 1, world, votes_of=everyone)
    disk = _with(disk, 2, 1, world, votes_of=everyone)
    zombies = [Process(Me(2, rank, world, rules), *_saving((1, 2), 2)) for rank in everyone]
    others = [_rank(Me(3, rank, world, rules), (1, 2), start_at=(2, 1)) for rank in everyone]
    return Config("an abandoned position brought back", disk, zombies + others, world, (1, 2), rules)


def with_reference(rules: Rules, world: int) -> Config:
    """Attempt 2 saves P2 and P3, whose votes name the reference at P1, and prunes; attempt 3 does the same."""
    everyone = tuple(range(world))
    disk = _with(_records(None, (1, 1)), 1, 1, world, votes_of=everyone, ref=1)
    disk = _with(disk, 2, 1, world, votes_of=(0,) if world > 1 else ())
    steps = _saving((1, 2, 3), 2, 3, tidies=True, with_ref=True)
    bases = [Base(1, (("ref", 1, rank), 1)) for rank in everyone]
    zombies = [Process(Me(2, rank, world, rules), *steps, base=bases[rank]) for rank in everyone]
    others = [_rank(Me(3, rank, world, rules), (1, 2, 3), 2, 3, tidies=True, with_ref=True) for rank in everyone]
    return Config("a reference that later votes name", disk, zombies + others, world, (1, 2, 3), rules, with_ref=True)


def configs(rules: Rules) -> list[Config]:
    """One rank with up to two newer attempts, whose zombies meet; two ranks with a zombie of an older attempt."""
    return [
        saved_again(rules, 1, newer=2),
        swept(rules, 1, newer=2),
        pruned(rules, 1),
        brought_back(rules, 1),
        with_reference(rules, 1),
        saved_again(rules, 2, zombie_ranks=(1,)),
        swept(rules, 2, zombie_ranks=(0,)),
        brought_back(rules, 2),
        pruned(rules, 2),
    ]


HARMLESS = {MIXTURE}
"""Two zombies of one rank can do it. A start reads headers, passes the mixture over, and puts right what is aside."""

LESSER: tuple[tuple[str, Rules, str], ...] = (
    ("a start does not see that an older file stands in the place", replace(ASIDE, newer_wins=False), LOST),
    ("a name is cleared twice only", replace(ASIDE, patience=2), TOLD),
)
"""Rules that lack something which only zombies of two attempts show, and what then goes wrong."""


def run() -> Tally:
    """Explores all configurations under the rules that the product follows, and that lesser rules do not hold."""
    tally = Tally("protocol", "states", notes={"violations of lesser rules": 0})
    began = time.monotonic()
    for config in configs(ASIDE):
        result = explore(config)
        tally.cases += result.states
        bad = [violation for violation in result.violations if violation.invariant not in HARMLESS]
        tally.failures += [f"{config.name}: {violation}" for violation in bad]
    for what, rules, invariant in LESSER:
        found = [v for v in explore(saved_again(rules, 1, newer=2)).violations if v.invariant == invariant]
        tally.notes["violations of lesser rules"] += len(found)
        tally.failures += [] if found else [f"{what}: the model no longer shows that {invariant}"]
    tally.seconds = time.monotonic() - began
    return tally
