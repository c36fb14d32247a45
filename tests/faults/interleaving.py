"""A worker of an older attempt that goes on when its successor is at work, and other orders nobody planned.

A *zombie* stops (SIGSTOP) before one of its calls. Its successor starts, trains on other numbers, and saves at the same
position; the zombie goes on while the successor is at some call of its own, or after it. Contents differ from attempt
to attempt: what was mixed shows. The zombie may fail, clearly; the successor must not notice.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import cases, judge
from faults.job import Job, Rank
from faults.processes import Child, End, Tell, in_child
from faults.scenarios import NOTHING, Expected, Scenario, Stage
from faults.shim import Control, Kind, Mode
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
        takes = call.kind == Kind.RENAME and call.to.endswith(".retired")
        if call.number > at and (makes or takes) and call.path != zombie.hit_path:
            return f"it goes on with call {call.number}, {call.kind.name.lower()} {call.to or call.path}"
    return ""


@contextlib.contextmanager
def _two(case: Path) -> Iterator[tuple[Control, Control]]:
    with cases.steered(case, recorded=True) as old, cases.steered(case, name="successor") as new:
        yield old, new


def _work(zombie: Zombie, case: Path, expected: Expected, control: Control, tell: Tell) -> str:
    try:
        zombie.scenario.act(Stage(case / "save", tell, expected, lambda: control.armed(Mode.STOP, zombie.at)))
    except MsResumeError as error:
        return type(error).__name__
    return ""


def _succeed(case: Path, world_size: int, control: Control, mode: Mode, until: int, tell: Tell) -> bool:
    """One save, at the position where the zombie was at work: nothing newer hides what becomes of it."""
    stage = Stage(case / "save", tell)
    job = Job(stage.save, world_size, tag=21)
    with control.armed(mode, until):
        try:
            digests = job.start(resume=stage.save.is_dir(), take_over=True)
        except DirectoryInUse:
            return False
        stage.did(*((str(job.position), digests) if job.position.step else NOTHING))
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
class SlowRank:
    """Of two ranks, the last one is stopped before call `at` of its save while rank 0 saves, prunes, and saves again;
    then it goes on, or is killed."""

    scenario: Scenario
    at: int
    goes_on: bool

    def __str__(self) -> str:
        end = "goes on" if self.goes_on else "is killed"
        return f"{self.scenario}: the last rank stopped before call {self.at} of its save while rank 0 prunes, {end}"


def slow_ranks(scenarios: Iterable[Scenario], calls: int) -> Iterator[SlowRank]:
    for scenario in scenarios:
        for at in range(1, calls + 1):
            yield from (SlowRank(scenario, at, goes_on) for goes_on in (True, False))


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
    worker = Child(lambda tell: _slow(slow, at, control, case.at))
    stage.will(f"0_{at}", first)
    if not worker.stops():
        raise AssertionError("the call was not reached")
    for rank in quick:
        rank.checkpointer.save(0, at)
    second = job.train()
    for rank in quick:
        rank.checkpointer.save(0, at + 2)
        rank.checkpointer._try_to_tidy()
    if not case.goes_on:
        worker.kill()
        return
    stage.did(f"0_{at}", first)
    stage.will(f"0_{at + 2}", second)
    worker.go_on()
    end = worker.wait()
    if end.kind != "returned":
        raise AssertionError(f"the slow rank {end.kind}: {end.value}")
    stage.did(f"0_{at + 2}", second)
    job.tidy()


def _slow(me: Rank, at: int, control: Control, call: int) -> None:
    with control.armed(Mode.STOP, call):
        me.checkpointer.save(0, at)
    me.train_one_step(7, new_reference=False)
    me.checkpointer.save(0, at + 2)
