"""SIGKILL before every call that changes the directory, and in the middle of every write: what is left is whole.

A process that died is followed by a new one. Some of those are killed, too, before a third one looks: recovery must
survive what it recovers from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from faults import cases, hints, judge
from faults.job import Job
from faults.scenarios import NOTHING, Scenario, Stage
from faults.shim import Mode


@dataclass(frozen=True)
class Point:
    """Death at call `at` of a scenario, with `half` of its bytes written; `again` also kills the one that follows."""

    scenario: Scenario
    at: int
    half: bool = False
    again: int = 0

    def __str__(self) -> str:
        how = f"in the middle of call {self.at}" if self.half else f"before call {self.at}"
        return f"{self.scenario}: killed {how}" + (f", then before call {self.again}" if self.again else "")


def points(scenarios: Iterable[Scenario]) -> Iterator[Point]:
    """Every point of every scenario."""
    for scenario in scenarios:
        total, writes = cases.calls(scenario)
        for at in range(1, total + 2):  # the last one after its end
            yield Point(scenario, at)
            if at in writes:
                yield Point(scenario, at, half=True)


def pairs(scenarios: Iterable[Scenario], count: int, seed: int) -> list[Point]:
    """Points that are followed by a second death, drawn at random."""
    draw, single = random.Random(seed), list(points(scenarios))
    return [
        Point(point.scenario, point.at, point.half, again=draw.randint(1, 110))
        for point in draw.choices(single, k=count)
    ]


def check(point: Point) -> str:
    """What is wrong after that death; empty when nothing is."""
    world_size = point.scenario.world_size
    pristine, expected = cases.prepared(point.scenario)
    with cases.fresh(point.scenario) as case, cases.steered(case) as control:
        mode = Mode.KILL_HALF if point.half else Mode.KILL
        end, expected = cases.act(point.scenario.act, case, expected, control, mode, point.at)
        if control.hit != 1 and point.at <= cases.calls(point.scenario)[0]:
            return f"{point}: the call was not reached: {end.kind} {end.value}"
        if untrue := hints.wrong(pristine / "save", case / "save", world_size):
            return f"{point}: {untrue}"
        if point.again:
            before = expected.candidates
            end, expected = cases.act(follows(world_size), case, expected, control, Mode.KILL, point.again)
            if end.kind == "raised":
                return f"{point}: the start after it fails: {end.value}"
            if end.told and end.told[0][1:] not in before:
                return f"{point}: the start after it went on from {end.told[0][1]}, as it never was"
        wrong = judge.look(case / "save", world_size, expected)
        return f"{point}: {wrong}" if wrong else ""


def follows(world_size: int) -> Callable[[Stage], None]:
    """The run goes on as it would: a start, and the next save."""

    def act(stage: Stage) -> None:
        me = Job(stage.save, world_size, tag=11)
        with stage.under_test():
            digests = me.start(resume=stage.save.is_dir())
            stage.did(*((str(me.position), digests) if me.position.step else NOTHING))
            stage.saves(me, me.position.step + 2, me.train())

    return act
