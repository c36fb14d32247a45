"""A worker of an older attempt that goes on when its successor is at work, and other orders nobody planned.

A *zombie* stops (SIGSTOP) before one of its calls. Its successor starts, trains on other numbers, and saves at the same
position; the zombie goes on while the successor is at some call of its own, or after it. Contents differ from attempt
to attempt: what was mixed shows. The zombie may fail, clearly; the successor must not notice.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import cases, judge
from faults.job import Job, Rank
from faults.processes import Child, End, Tell, in_child
from faults.scenarios import NOTHING, Expected, Scenario, Stage, breaks_meta, named
from faults.shim import Call, Control, Kind, Mode
from ms_resume.errors import DirectoryInUse, MsResumeError


@dataclass(frozen=True)
class Zombie:
    """Stops before its call `at`, goes on at the successor's call `until` (0: after its end), and is killed `then`
    calls later (0: never)."""

    scenario: Scenario
    at: int
    until: int = 0
    then: int = 0

    def __str__(self) -> str:
        when = f"at the successor's call {self.until}" if self.until else "after the successor"
        end = f" and is killed {self.then} calls later" if self.then else ""
        return f"{self.scenario}: a worker stopped before call {self.at} goes on {when}{end}"


def zombies(scenarios: Iterable[Scenario]) -> Iterator[Zombie]:
    """Every call of every scenario; when the successor has ended it goes on, and every second one dies a call later."""
    for scenario in scenarios:
        total, _ = cases.calls(scenario)
        for at in range(1, total + 1):
            yield Zombie(scenario, at)
            if at % 2:
                yield Zombie(scenario, at, then=1)


def in_between(scenarios: Iterable[Scenario], count: int, seed: int) -> list[Zombie]:
    """Both are in the middle of something: drawn at random."""
    draw, all_of_them = random.Random(seed), list(scenarios)
    drawn = []
    for _ in range(count):
        scenario = draw.choice(all_of_them)
        at, until = draw.randint(1, cases.calls(scenario)[0]), draw.randint(1, 150 * scenario.world_size)
        drawn.append(Zombie(scenario, at, until, draw.choice((0, 0, 0, 1, 2, 3))))
    return drawn


def check(zombie: Zombie) -> str:
    """What is wrong afterwards; empty when the successor's last save is there, and nothing came in its way."""
    world_size = zombie.scenario.world_size
    _, expected = cases.prepared(zombie.scenario)
    with cases.fresh(zombie.scenario) as case, _two(case) as (old, new):
        worker = Child(lambda tell: _work(zombie, case, expected, old, tell))
        if not worker.stops():
            return f"{zombie}: the call was not reached: {worker.wait().value}"
        mode = Mode.STOP if zombie.until else Mode.COUNT
        successor = Child(lambda tell: _succeed(case, world_size, new, mode, zombie.until, tell))
        if zombie.until:
            successor.stops()
            end = _let_go(worker, old, zombie.then)
            successor.go_on()
            done = successor.wait()
        else:
            done = successor.wait()
            end = _let_go(worker, old, zombie.then)
        begun = "" if zombie.until or not done.value else _begun(old, zombie.at)
        wrong = begun or _wrong(case, world_size, expected, end, done)
        return f"{zombie}: {wrong}" if wrong else ""


def _begun(zombie: Control, at: int) -> str:
    """What a worker began although it asked, or had to, after its successor had taken the directory over."""
    for call in zombie.calls():
        makes = call.kind == Kind.SYMLINK or (call.kind == Kind.OPEN and call.path.endswith(".part"))
        if call.number > at and (makes or _takes(call)) and call.path != zombie.hit_path:
            return f"it goes on with call {call.number}, {call.kind.name.lower()} {call.to or call.path}"
    return ""


def _takes(call: Call) -> bool:
    return call.kind == Kind.RENAME and call.to.endswith(".retired")


@contextlib.contextmanager
def _two(case: Path) -> Iterator[tuple[Control, Control]]:
    with cases.steered(case, recorded=True) as old, cases.steered(case, name="successor") as new:
        yield old, new


def _work(zombie: Zombie | Taker, case: Path, expected: Expected, control: Control, tell: Tell) -> str:
    try:
        zombie.scenario.act(Stage(case / "save", tell, expected, lambda: control.armed(Mode.STOP, zombie.at)))
    except MsResumeError as error:
        return type(error).__name__
    return ""


def _succeed(
    case: Path, world_size: int, control: Control, mode: Mode, until: int, tell: Tell, *, saves: bool = True
) -> bool:
    """One save, at the position where the zombie was at work: nothing newer hides what becomes of it."""
    stage = Stage(case / "save", tell)
    job = Job(stage.save, world_size, tag=21)
    with control.armed(mode, until):
        try:
            digests = job.start(resume=stage.save.is_dir(), take_over=True)
        except DirectoryInUse:
            return False
        stage.did(*((str(job.position), digests) if job.position.step else NOTHING))
        if saves:
            stage.saves(job, job.position.step + 2, job.train())
    if warnings := [text for text in job.said[1:] if "warning" in text]:  # the first text is the banner
        raise AssertionError(f"the successor warns: {warnings[0]}")
    return True


def _let_go(worker: Child, control: Control, then: int) -> End:
    if then:
        control.aim(Mode.KILL, control.seen + then)
    worker.go_on()
    return worker.wait()


def _wrong(case: Path, world_size: int, expected: Expected, zombie: End, successor: End) -> str:
    if zombie.kind not in ("returned", "killed"):
        return f"the zombie {zombie.kind}: {zombie.value}"
    if successor.kind != "returned":
        return f"the successor {successor.kind}: {successor.value}"
    if not successor.value:  # the zombie opened its attempt while the successor loaded: the race was won by the other
        return judge.look(case / "save", world_size, expected.hear(*zombie.told))
    return judge.look(case / "save", world_size, Expected().hear(*successor.told))


@dataclass(frozen=True)
class Taker:
    """Stops before call `at`, with which it takes a file; its successor saves there, and ends; it goes on at call
    `until` of the start after that."""

    scenario: Scenario
    at: int
    until: int

    def __str__(self) -> str:
        return f"{self.scenario}: taken with call {self.at} at call {self.until} of the start after the successor's"


def takers(scenarios: Iterable[Scenario]) -> Iterator[Taker]:
    """Every file that is taken, at every call of a start."""
    for scenario in scenarios:
        starts, _ = cases.calls(named("going back", scenario.world_size))
        taking = [call.number for call in cases.undisturbed(scenario)[1] if _takes(call)]
        yield from (Taker(scenario, at, until) for at in taking for until in range(1, starts + 1))


def check_taker(taker: Taker) -> str:
    """What is wrong afterwards; empty when that start goes on from what its predecessor saved, and nothing is lost."""
    world_size = taker.scenario.world_size
    _, expected = cases.prepared(taker.scenario)
    with cases.fresh(taker.scenario) as case, _two(case) as (old, new):
        worker = Child(lambda tell: _work(taker, case, expected, old, tell))
        if not worker.stops():
            return f"{taker}: the call was not reached: {worker.wait().value}"
        successor = in_child(lambda tell: _succeed(case, world_size, new, Mode.COUNT, 0, tell))
        breaks_meta(world_size)(Stage(case / "save", lambda word: None))  # so that the start writes something, too
        start = Child(lambda tell: _start(case, world_size, new, taker.until, tell))
        start.stops()
        end = _let_go(worker, old, 0)
        start.go_on()
        started = start.wait()
        wrong = _wrong(case, world_size, expected, end, successor)
        if started.kind != "returned" or started.told != successor.told[-1:]:
            wrong = f"the start goes on from {[word[1] for word in started.told]}: {started.kind} {started.value}"
        return f"{taker}: {wrong}" if wrong else ""


def _start(case: Path, world_size: int, control: Control, until: int, tell: Tell) -> None:
    job = Job(case / "save", world_size, tag=22)
    with control.armed(Mode.STOP, until):
        digests = job.start(take_over=True)
    Stage(job.save_dir, tell).did(str(job.position), digests)


@dataclass(frozen=True)
class Late:
    """A job that everybody takes for dead saves twice, and prunes, at call `until` of the next one's start, which then
    saves, or ends before it can."""

    scenario: Scenario
    until: int
    saves: bool

    def __str__(self) -> str:
        end = "" if self.saves else ", which ends there"
        return f"{self.scenario}: a job that is not dead saves twice at call {self.until} of the start after it{end}"


def late(scenarios: Iterable[Scenario]) -> Iterator[Late]:
    for scenario in scenarios:
        starts, _ = cases.calls(named("going back", scenario.world_size))
        yield from (Late(scenario, until, saves) for until in range(1, starts + 1) for saves in (True, False))


def check_late(case: Late) -> str:
    """What is wrong afterwards; empty when one of the two gives way, and what the other one saved is found."""
    world_size = case.scenario.world_size
    _, expected = cases.prepared(case.scenario)
    with cases.fresh(case.scenario) as place, _two(place) as (_, new):
        first = Child(lambda tell: _saves_twice(Stage(place / "save", tell, expected), world_size))
        first.stops()
        successor = Child(lambda tell: _succeed(place, world_size, new, Mode.STOP, case.until, tell, saves=case.saves))
        successor.stops()
        first.go_on()
        end = first.wait()
        successor.go_on()
        wrong = _wrong(place, world_size, expected, end, successor.wait())
        return f"{case}: {wrong}" if wrong else ""


def _saves_twice(stage: Stage, world_size: int) -> str:
    job = Job(stage.save, world_size, tag=7)
    job.start()
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        for step in (6, 8):
            stage.saves(job, step, job.train())
    except MsResumeError as error:
        return type(error).__name__
    return ""


@dataclass(frozen=True)
class SlowRank:
    """Of two ranks, the last one is stopped before call `at` of its save while rank 0 saves, prunes, and saves again;
    then it finishes that save, and the next one too, or is killed after it, or at once."""

    scenario: Scenario
    at: int
    finishes: int

    def __str__(self) -> str:
        end = ("is killed", "is killed after it", "goes on")[self.finishes]
        return f"{self.scenario}: the last rank stopped before call {self.at} of its save while rank 0 prunes, {end}"


def slow_ranks(scenarios: Iterable[Scenario], calls: int) -> Iterator[SlowRank]:
    for scenario in scenarios:
        for at in range(1, calls + 1):
            yield from (SlowRank(scenario, at, finishes) for finishes in (2, 1, 0))


def check_slow(case: SlowRank) -> str:
    """What is wrong afterwards; empty when rank 0 could not finish a checkpoint alone, nor prune the last whole one."""
    _, expected = cases.prepared(case.scenario)
    with cases.fresh(case.scenario) as place, cases.steered(place) as control:
        end = in_child(lambda tell: _apart(case, Stage(place / "save", tell), control))
        if end.kind != "returned":
            return f"{case}: {end.kind}: {end.value}"
        wrong = judge.look(place / "save", case.scenario.world_size, expected.hear(*end.told))
        return f"{case}: {wrong}" if wrong else ""


def _apart(case: SlowRank, stage: Stage, control: Control) -> None:
    """This process is rank 0 (and those between); a copy of it is the last rank."""
    job = Job(stage.save, case.scenario.world_size, tag=7)
    job.start()
    first = job.train()
    *quick, slow = job.ranks
    at = job.position.step + 2
    worker = Child(lambda tell: _slow(slow, at, control, case))
    stage.will(f"0_{at}", first)
    if not worker.stops():
        raise AssertionError("the call was not reached")
    for rank in quick:
        rank.save(at)
    second = job.train()
    for rank in quick:
        rank.save(at + 2)
        rank.checkpointer._saver.tidy()
    if not case.finishes:
        worker.kill()
        return
    stage.did(f"0_{at}", first)
    stage.will(f"0_{at + 2}", second)
    worker.go_on()
    end = worker.wait()
    if end.kind != "returned":
        raise AssertionError(f"the slow rank {end.kind}: {end.value}")
    if case.finishes == 2:
        stage.did(f"0_{at + 2}", second)
        job.tidy()


def _slow(me: Rank, at: int, control: Control, case: SlowRank) -> None:
    with control.armed(Mode.STOP, case.at):
        me.save(at)
    if case.finishes == 2:
        me.train_one_step(7, new_reference=False)
        me.save(at + 2)
