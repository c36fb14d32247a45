"""Each node has a disk of its own, ranks 0 and 1 share one: SIGKILL before every call of a start or save, on any disk.

All ranks die at once. What is left is whole on all disks together, or was left behind on all: a start of all ranks goes
on from what was acknowledged, or was being made, to the last bit, whichever disk was ahead of the other.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from faults import cases, judge
from faults.dying import Point
from faults.job import Job, disk_of
from faults.processes import in_child
from faults.scenarios import Expected, Scenario, Stage, first_save, in_order, nothing, run, save_next, start_at
from faults.shim import Mode
from ms_resume.errors import MsResumeError
from ms_resume.ondisk import attempts, names
from ms_resume.records import Position

_RANKS = 3


@lru_cache
def scenarios() -> list[Scenario]:
    n = _RANKS
    plain, three = run(n, 2, 4, local=True), run(n, 2, 4, 6, local=True)
    return [
        Scenario("the first save of all, on disks of nodes", n, nothing, first_save(n, local=True)),
        Scenario("a save, with retention, on disks of nodes", n, plain, save_next(n, 6, local=True)),
        Scenario("a start, on disks of nodes", n, in_order(three, _lose_a_part), start_at(n, "0_4", local=True)),
        Scenario("going back, on disks of nodes", n, three, start_at(n, "0_2", local=True)),
    ]


def check(point: Point) -> str:
    """What is wrong after that death; empty when nothing is."""
    _, expected = cases.prepared(point.scenario)
    with cases.fresh(point.scenario) as case, cases.steered(case) as control:
        mode = Mode.KILL_HALF if point.half else Mode.KILL
        end, expected = cases.act(point.scenario.act, case, expected, control, mode, point.at)
        if control.hit != 1 and point.at <= cases.calls(point.scenario)[0]:
            return f"{point}: the call was not reached: {end.kind} {end.value}"
        looked = in_child(lambda tell: _look(case / "save", expected))
        wrong = str(looked.value) if looked.kind == "returned" else f"the judge {looked.kind}: {looked.value}"
        return f"{point}: {wrong}" if wrong else ""


def _lose_a_part(stage: Stage) -> None:
    """The second node has lost a payload of the newest, and a killed attempt left temp files on both disks."""
    names.payload(disk_of(stage.save, 2), "state", 2, Position(0, 6)).unlink()
    for rank in range(_RANKS):
        final = names.payload(disk_of(stage.save, rank), "policy", rank, Position(0, 8))
        names.part(final, "000000-0123456789abcdef").write_bytes(b"torn")
    stage.did("0_4", stage.expected.known["0_4"])


def _look(save: Path, expected: Expected) -> str:
    """As a user does: goes on, saves, and goes on from that."""
    job = Job(save, _RANKS, tag=3, local=True)
    try:
        restored = job.start()
    except MsResumeError as error:
        return f"a start fails: {type(error).__name__}: {error}"
    at = str(job.position) if job.position != Position(0, 0) else ""
    if not judge.may_be((at, restored if at else ()), expected.candidates):
        allowed = ", ".join(position or "nothing" for position, _ in expected.candidates)
        return f"found {at or 'nothing'}, which is not as it was saved; allowed: {allowed}; {job.said[0]}"
    trained, step = job.train(), job.position.step + 2
    job.save(step)
    if warnings := [text for text in job.said[1:] if "warning" in text]:
        return f"the save after it warns: {warnings[0]}"
    if left := sorted((*save.rglob("*.part"), *save.rglob("*.retired"))):
        return f"a temp file stays behind: {left[0].relative_to(save)}"
    again = Job(save, _RANKS, tag=4, local=True)
    if (again.start(), again.position.step) != (trained, step):
        return f"saved 0_{step} after it, and went on from {again.position}, or from something else"
    last = {attempts.read_all(disk_of(save, rank))[-1].attempt for rank in range(_RANKS)}
    return "" if len(last) == 1 else f"the disks have records of different attempts: {last}"
