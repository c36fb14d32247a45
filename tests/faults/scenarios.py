"""What the campaign disturbs: a directory as a run left it, then one stretch of a run, of which every call is a point.

A scenario says what is acknowledged, so that the judge knows what may be found: the last acknowledged checkpoint, or
the one that was being made. Contents differ from attempt to attempt, so that a mixture shows.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from faults.job import Digests, Job
from faults.processes import Tell, in_child
from ms_resume import repair
from ms_resume.ondisk import atomic, attempts, direct, names
from ms_resume.records import Position
from ms_resume.retention import Keep

Candidate = tuple[str, Digests]
"""A position, as E_S, and the state of all ranks there; ("", ()) for a directory without a checkpoint."""

NOTHING: Candidate = ("", ())


@dataclass
class Expected:
    """What a start may find: `floor`, or what was being made. `known` has every state that was saved, by position."""

    floor: Candidate = NOTHING
    coming: list[Candidate] = field(default_factory=list)
    known: dict[str, Digests] = field(default_factory=dict)
    stand: tuple[str, ...] = ()
    """Positions that stay whole, whatever is disturbed, until a later save's retention."""

    def hear(self, *told: tuple[str, str, Digests]) -> Expected:
        """The same after what a process said before it ended."""
        later = Expected(self.floor, list(self.coming), dict(self.known), self.stand)
        for word, position, digests in told:
            if word == "keeps":
                later.stand = tuple(position.split())
                continue
            later.stand = ()
            if word == "did":
                later.floor, later.coming = (position, digests), []
            else:
                later.coming = [(position, digests)]
            later.known[position] = digests
        return later

    @property
    def candidates(self) -> list[Candidate]:
        return [self.floor, *self.coming]


@dataclass
class Stage:
    """Where a scenario acts: it tells what it is about to do, and what it did; only `under_test` counts."""

    save: Path
    tell: Tell
    expected: Expected = field(default_factory=Expected)
    arm: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    job: Job | None = None
    """The job that saves, for parts that let it go on after what was under test."""

    def under_test(self) -> contextlib.AbstractContextManager[None]:
        return self.arm()

    def will(self, position: str, digests: Digests) -> None:
        self._say("will", position, digests)

    def did(self, position: str, digests: Digests) -> None:
        self._say("did", position, digests)

    def keeps(self, *positions: str) -> None:
        """They are whole, and stay so."""
        self._say("keeps", " ".join(positions), ())

    def saves(self, job: Job, step: int, digests: Digests) -> None:
        """A whole save of all ranks, announced and acknowledged."""
        self.will(f"0_{step}", digests)
        job.save(step)
        self.did(f"0_{step}", digests)

    def _say(self, *word: Any) -> None:
        self.expected = self.expected.hear(word)  # type: ignore[arg-type]  # the two methods above
        self.tell(word)


@dataclass(frozen=True)
class Scenario:
    """`prepare` leaves a directory, in a process of its own; `act` is disturbed. Both start with nothing in memory."""

    name: str
    world_size: int
    prepare: Callable[[Stage], None] = field(compare=False)
    act: Callable[[Stage], None] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.world_size} rank{'s' if self.world_size > 1 else ''}"

    def __reduce__(self) -> Any:
        return named, (self.name, self.world_size)


def named(name: str, world_size: int) -> Scenario:
    from faults import node_local  # it is told in the words of this module

    known = (*of_size(world_size), *node_local.scenarios())
    return next(scenario for scenario in known if (scenario.name, scenario.world_size) == (name, world_size))


def run(
    world_size: int,
    *steps: int,
    tag: int = 0,
    resume: bool = False,
    save_format: str = "safetensors",
    replicas: bool = False,
    local: bool = False,
    **start: Any,
) -> Callable[[Stage], None]:
    """A run that saves at these steps of epoch 0, all of them whole, and keeps them."""

    def act(stage: Stage) -> None:
        job = Job(stage.save, world_size, tag, keep_last=0, save_format=save_format, replicas=replicas, local=local)
        job.start(resume=resume, **start)
        for step in steps:
            stage.saves(job, step, job.train())

    return act


def in_order(*parts: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """One after the other, each as if in a process of its own: nothing is carried over but the directory."""

    def act(stage: Stage) -> None:
        for part in parts:
            part(stage)

    return act


def tear(position: str, rank: int = 0, role: str = "state") -> Callable[[Stage], None]:
    """Loses one payload: the position is torn from now on."""

    def act(stage: Stage) -> None:
        names.payload(stage.save, role, rank, Position.parse(position)).unlink()
        known = stage.expected.known
        newest = max((p for p in known if Position.parse(p) < Position.parse(position)), key=Position.parse)
        stage.did(newest, known[newest])

    return act


def save_next(world_size: int, step: int, *, tag: int = 7, new_reference: bool = False, **job: Any) -> Any:
    """Goes on from the newest, trains, and saves at `step`: the save, `latest` and retention are under test."""

    def act(stage: Stage) -> None:
        me = stage.job = Job(stage.save, world_size, tag, **job)
        me.start()
        digests = me.train(new_reference=new_reference)
        with stage.under_test():
            stage.saves(me, step, digests)

    return act


def save_apart(world_size: int, step: int, victim: int, *, last: bool) -> Callable[[Stage], None]:
    """Every rank saves in a process of its own and only one of them is disturbed, before or after the others."""

    def act(stage: Stage) -> None:
        me = Job(stage.save, world_size, tag=7)
        me.start()
        digests = me.train()
        others = [rank for rank in range(world_size) if rank != victim]
        stage.will(f"0_{step}", digests)
        ends = [
            in_child(lambda tell, rank=rank: _saves_alone(stage, me, rank, step, disturbed=rank == victim))
            for rank in ([*others, victim] if last else [victim, *others])
        ]
        if bad := [end.value for end in ends if end.kind not in ("killed", "returned")]:
            raise AssertionError(bad[0])
        if all(end.value is True for end in ends):
            stage.did(f"0_{step}", digests)

    return act


def _saves_alone(stage: Stage, job: Job, rank: int, step: int, *, disturbed: bool) -> bool:
    """Whether the save worked: what stages the disturbance may swallow its error."""
    with stage.under_test() if disturbed else contextlib.nullcontext():
        job.ranks[rank].save(step)
        return True
    return False


class Dies(BaseException):
    """The end of one rank, whose process the others share here."""


def save_then_prune(world_size: int, step: int) -> Callable[[Stage], None]:
    """The last rank casts its vote and dies before it is durable; rank 0 sees a whole checkpoint and prunes."""

    def act(stage: Stage) -> None:
        me = Job(stage.save, world_size, tag=7)
        me.start()
        digests = me.train()
        with stage.under_test():
            stage.will(f"0_{step}", digests)
            for rank in me.ranks[:-1]:
                rank.save(step)
            with contextlib.suppress(Dies), _dying_before_the_sync_of(names.vote_dir(stage.save, Position(0, step))):
                me.ranks[-1].save(step)
            me.ranks[0].checkpointer._saver.tidy()

    return act


@contextlib.contextmanager
def _dying_before_the_sync_of(directory: Path) -> Iterator[None]:
    real = atomic.sync_dir

    def sync_dir(path: Path) -> None:
        if path == directory and list(directory.glob("rank_*.json")):
            raise Dies
        real(path)

    with mock.patch.object(atomic, "sync_dir", sync_dir):
        yield


def first_save(world_size: int, **job: Any) -> Callable[[Stage], None]:
    """The start of a run in a directory that does not exist, and its first save."""

    def act(stage: Stage) -> None:
        me = Job(stage.save, world_size, 7, **job)
        with stage.under_test():
            me.start(resume=False)
            stage.saves(me, 2, me.train())

    return act


def goes_back(world_size: int, position: str) -> Callable[[Stage], None]:
    """A run that went back to `position`, and ended there."""

    def act(stage: Stage) -> None:
        digests = stage.expected.known[position]
        Job(stage.save, world_size, 5, keep_last=0).start(position=Position.parse(position))
        stage.did(position, digests)

    return act


def nothing(stage: Stage) -> None:
    """A directory that does not exist."""


def start_at(world_size: int, position: str, **job: Any) -> Callable[[Stage], None]:
    """A start, from `position` by choice or from the newest, as a whole: record, meta.json, temp files, retention."""

    def act(stage: Stage) -> None:
        digests = stage.expected.known[position]
        stage.will(position, digests)
        with stage.under_test():
            Job(stage.save, world_size, 9, **job).start(position=Position.parse(position))
            stage.did(position, digests)

    return act


def left_temp_files(world_size: int) -> Callable[[Stage], None]:
    """What a killed attempt leaves: temp files of payloads, of a vote, of a meta.json, and of `latest`."""

    def act(stage: Stage) -> None:
        at, dead = Position(0, 8), "000000-0123456789abcdef"
        for rank in range(world_size):
            role = names.rank_dir(stage.save, "policy", rank)
            finals = [names.payload(stage.save, "policy", rank, at), role / names.META]
            for final in (*finals, names.vote(stage.save, Position(0, 4), rank)):
                names.part(final, dead).write_bytes(b"torn")
        os.symlink("commits/0_8", names.part(stage.save / names.LATEST, dead))

    return act


def restores(position: str) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        digests = stage.expected.known[position]
        stage.will(position, digests)
        with stage.under_test():
            repair.restore(stage.save, Position.parse(position))
            stage.did(position, digests)

    return act


BROKEN_META = {"policy": b'{"last_ep', "optimizer": b""}


def breaks_meta(world_size: int) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        for rank in range(world_size):
            for role, content in BROKEN_META.items():
                (names.rank_dir(stage.save, role, rank) / names.META).write_bytes(content)

    return act


def repairs(stage: Stage) -> None:
    with stage.under_test():
        repair.repair(stage.save)


def prunes(stage: Stage) -> None:
    stage.keeps("0_6", "0_8")
    with stage.under_test():
        repair.prune(stage.save, Keep(2))


def saves_again(world_size: int) -> Callable[[Stage], None]:
    """The same attempt saves a position twice; it stands there, with one `meta.json` that is behind."""

    def act(stage: Stage) -> None:
        me = stage.job = Job(stage.save, world_size, 7, keep_last=0)
        me.start()
        behind = names.rank_dir(stage.save, "policy", 0) / names.META
        said = behind.read_bytes()
        digests = me.train()
        stage.saves(me, 6, digests)
        behind.write_bytes(said)
        with stage.under_test():
            me.save(6)

    return act


def saves_again_after_a_loss(world_size: int) -> Callable[[Stage], None]:
    """The same, where a payload has become another one of that size."""

    def act(stage: Stage) -> None:
        me = stage.job = Job(stage.save, world_size, 7, keep_last=0)
        me.start()
        stage.saves(me, 6, me.train())
        older, said = stage.expected.floor, {path: path.read_bytes() for path in stage.save.glob("*/rank_*/meta.json")}
        digests = me.train()
        stage.saves(me, 8, digests)
        other, lost = (names.payload(stage.save, "optimizer", 0, Position(0, step)) for step in (6, 8))
        lost.write_bytes(other.read_bytes())
        for path, content in said.items():
            path.write_bytes(content)
        (stage.save / names.LATEST).unlink()
        (stage.save / names.LATEST).symlink_to("commits/0_6")
        stage.did(*older)
        with stage.under_test():
            stage.saves(me, 8, digests)

    return act


def lay_aside(position: str, votes_of: str) -> Callable[[Stage], None]:
    """A worker died with a payload in its hands, and with the votes of another position."""

    def act(stage: Stage) -> None:
        attempt = attempts.read_all(stage.save)[-1].attempt
        for path in (
            names.payload(stage.save, "policy", 0, Position.parse(position)),
            names.vote(stage.save, Position.parse(position), 0),
            names.vote_dir(stage.save, Position.parse(votes_of)),
        ):
            path.rename(names.retired(path, attempt))

    return act


def older_ckpt_aside(position: str, older: str) -> Callable[[Stage], None]:
    """A worker took an older `.ckpt` aside while the newer one was written, and died: who wrote it nobody can tell."""

    def act(stage: Stage) -> None:
        attempt = attempts.read_all(stage.save)[-1].attempt
        paths = [names.payload(stage.save, "policy", 0, Position.parse(at), "ckpt") for at in (position, older)]
        names.retired(paths[0], attempt).write_bytes(paths[1].read_bytes())

    return act


def goes_past_stock(stage: Stage) -> None:
    """Back to stock's first checkpoint, and a save at its second: those files get another name, never lost."""
    me = stage.job = Job(stage.save, 1, 7)
    me.start(position=Position(0, 2))
    stage.did("0_2", stage.expected.known["0_2"])
    digests = me.train()
    with stage.under_test():
        stage.saves(me, 4, digests)
        if len(kept := [*stage.save.glob("*/rank_0/*-0_4.safetensors.superseded-*")]) != 3:
            raise AssertionError(f"of stock's files are left {kept}")


def save_with(world_size: int, step: int, link: Callable[..., None]) -> Callable[[Stage], None]:
    """As `save_next`, where hard links are made, or not made, by `link`."""

    def act(stage: Stage) -> None:
        with mock.patch.object(os, "link", link):
            save_next(world_size, step)(stage)

    return act


def save_past_the_cache(world_size: int, step: int) -> Callable[[Stage], None]:
    """As `save_next`, where no file is too small to be preallocated and written in pieces, by two threads, as in direct
    I/O; all goes through the page cache, because not every file system can do without."""

    def act(stage: Stage) -> None:
        large = mock.patch.multiple(direct, LARGE=0, PIECE=2 * direct.BLOCK, THREADS=2)
        with large, mock.patch.object(os, "O_DIRECT", 0):
            save_next(world_size, step)(stage)

    return act


def _link_whose_reply_is_lost(source: Path, target: Path, link: Callable[[Path, Path], None] = os.link) -> None:
    """The file system repeats the call, and finds its own work."""
    link(source, target)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _no_link(source: Path, target: Path) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(target))


def _of_one_rank(prepared: Callable[[Stage], None]) -> list[Scenario]:
    from faults import stock  # it is told in the words of this module

    ckpt = in_order(run(1, 2, 4, save_format="ckpt"), older_ckpt_aside("0_4", "0_2"))
    return [
        Scenario(
            "a stock position saved again", 1, in_order(stock.trains(1, 2), stock.trains(1, 4, 2)), goes_past_stock
        ),
        Scenario("a start where an older .ckpt lies aside", 1, ckpt, start_at(1, "0_4")),
        Scenario("a save where replies are lost", 1, prepared, save_with(1, 6, _link_whose_reply_is_lost)),
        Scenario("a save without hard links", 1, prepared, save_with(1, 6, _no_link)),
        Scenario("a save past the page cache", 1, prepared, save_past_the_cache(1, 6)),
    ]


@lru_cache
def of_size(world_size: int) -> list[Scenario]:
    """Every scenario, for a number of ranks."""
    from faults import stock  # it is told in the words of this module

    n = world_size
    plain, three = run(n, 2, 4), run(n, 2, 4, 6)
    torn = in_order(three, tear("0_6", n - 1))
    back = in_order(three, goes_back(n, "0_2"))
    apart = [
        Scenario(f"rank {victim} saves {when} the others", n, plain, save_apart(n, 6, victim, last=when == "after"))
        for victim, when in ((0, "before"), (n - 1, "before"), (n - 1, "after"))
        if n > 1
    ]
    if n == 2:
        same = run(n, 2, 4, replicas=True)
        shared = save_next(n, 6, replicas=True, new_reference=True)
        apart.append(Scenario("a save that replicas share", n, same, shared))
    if n > 1:
        apart.append(Scenario("pruned on the word of a rank that died", n, plain, save_then_prune(n, 6)))
    stock_only = in_order(stock.trains(n, 2), stock.trains(n, 4, 2))
    formats = in_order(run(n, 2, save_format="ckpt"), run(n, 4, resume=True))
    both = in_order(run(n, 2), stock.trains(n, 4, 2), save_next(n, 6), stock.trains(n, 8, 6))
    return [
        *apart,
        Scenario("the first save into a stock directory", n, stock_only, save_next(n, 6)),
        Scenario("a save after stock and ours in turn", n, both, save_next(n, 10)),
        Scenario("the first save of all", n, nothing, first_save(n)),
        Scenario("a save, with retention", n, plain, save_next(n, 6)),
        Scenario("a save with a new reference", n, plain, save_next(n, 6, new_reference=True)),
        Scenario("a save as .ckpt", n, formats, save_next(n, 6, save_format="ckpt")),
        Scenario("a torn position saved again", n, torn, save_next(n, 6)),
        Scenario("an abandoned position saved again", n, back, save_next(n, 4)),
        Scenario("a start", n, in_order(torn, left_temp_files(n)), start_at(n, "0_4")),
        Scenario("going back", n, three, start_at(n, "0_4")),
        Scenario("restore", n, back, restores("0_6")),
        Scenario("repair", n, in_order(plain, breaks_meta(n)), repairs),
        Scenario("prune", n, run(n, 2, 4, 6, 8), prunes),
        Scenario("its own attempt saves again", n, plain, saves_again(n)),
        Scenario("its own attempt saves again after a loss", n, plain, saves_again_after_a_loss(n)),
        Scenario("a start where files lie aside", n, in_order(three, lay_aside("0_6", "0_4")), start_at(n, "0_6")),
        Scenario("restore where files lie aside", n, in_order(three, lay_aside("0_4", "0_6")), restores("0_6")),
        *(_of_one_rank(plain) if n == 1 else []),
    ]
