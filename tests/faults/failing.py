"""Every call fails once, or everything that grows fails from there on, or is cut short, or takes half a minute.

A save then reports path and cause, or succeeds; the old checkpoint is untouched; no temp file stays; the same process
trains on and saves again; and nothing hangs.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import cases, judge
from faults.processes import Child, Tell
from faults.scenarios import Expected, Scenario, Stage
from faults.shim import Control, Kind, Mode
from ms_resume import errors
from ms_resume.ondisk import names, votes
from ms_resume.records import Position

ONCE = (errno.ENOSPC, errno.EIO)
IN_TURN = (errno.EDQUOT, errno.ESTALE, errno.EINTR)
"""One of them at each call."""

ON = (errno.ENOSPC,)
STALL_MS = 30_000
HUNG_AFTER_S = 60.0


@dataclass(frozen=True)
class Point:
    """What goes wrong at call `at`: `code` once, or for every growing call from there, or half a write."""

    scenario: Scenario
    at: int
    mode: Mode
    code: int = 0

    def __str__(self) -> str:
        what = {
            Mode.FAIL: f"fails with {errno.errorcode.get(self.code)}",
            Mode.FAIL_ON: f"and all that grow after it fail with {errno.errorcode.get(self.code)}",
            Mode.SHORT: "writes half",
            Mode.STALL: f"takes {STALL_MS / 1000:.0f} s",
        }
        return f"{self.scenario}: call {self.at} {what[self.mode]}"


def points(scenarios: Iterable[Scenario]) -> Iterator[Point]:
    """Every point of every scenario, but the stalls."""
    for scenario in scenarios:
        total, writes = cases.calls(scenario)
        for at in range(1, total + 1):
            codes = (*ONCE, IN_TURN[at % len(IN_TURN)])
            yield from (Point(scenario, at, Mode.FAIL, code) for code in codes)
            yield from (Point(scenario, at, Mode.FAIL_ON, code) for code in ON)
            if at in writes:
                yield Point(scenario, at, Mode.SHORT)


def check(point: Point) -> str:
    """What is wrong after that failure; empty when nothing is."""
    with cases.fresh(point.scenario) as case, cases.steered(case) as control:
        wrong = _judged(point, case, control, _begin(point, case, control))
        return f"{point}: {wrong}" if wrong else ""


def stalls(scenarios: Iterable[Scenario], every: int) -> Iterator[str]:
    """Each `every`-th call stalls, all of them at the same time; one answer for each, empty where nothing is wrong."""
    with contextlib.ExitStack() as stack:
        waiting = []
        for point in _stall_points(scenarios, every):
            case = stack.enter_context(cases.fresh(point.scenario, f"stalled_{len(waiting)}"))
            control = stack.enter_context(cases.steered(case))
            waiting.append((point, case, control, _begin(point, case, control)))
        for point, case, control, child in waiting:
            wrong = _judged(point, case, control, child)
            yield f"{point}: {wrong}" if wrong else ""


def _stall_points(scenarios: Iterable[Scenario], every: int) -> Iterator[Point]:
    for scenario in scenarios:
        total, _ = cases.calls(scenario)
        yield from (Point(scenario, at, Mode.STALL) for at in range(1, total + 1, every))


def _begin(point: Point, case: Path, control: Control) -> Child:
    _, expected = cases.prepared(point.scenario)

    def work(tell: Tell) -> str:
        said: list[str] = []
        stood_before: set[str] = set()

        def arm() -> contextlib.AbstractContextManager[None]:
            stood_before.update(stage.expected.known)
            return _failing(point, control, said)

        stage = Stage(case / "save", tell, expected, arm)
        before, parts, stood = (
            _standing(stage.save, expected),
            _parts(stage.save),
            _payloads(stage.save) | _named(stage.save),
        )
        point.scenario.act(stage)
        wrong = _counts(stage, stood_before, control) if said else judge.damaged(stage.save)
        return next(filter(None, said), wrong) or _wrong_inside(stage, before, parts, stood, control)

    return Child(work)


@contextlib.contextmanager
def _failing(point: Point, control: Control, said: list[str]) -> Iterator[None]:
    """The stretch under test: what it raises must be a DiskError that names path and cause."""
    with control.armed(point.mode, point.at, code=point.code, stall_ms=STALL_MS):
        try:
            yield
        except errors.DiskError as error:
            control.disarm()
            said.append("")
            if str(control.root) not in error.message or os.strerror(point.code) not in error.message:
                said[0] = f"the error names no path or no cause: {error.message}"


def _counts(stage: Stage, stood_before: set[str], control: Control) -> str:
    """A save that reports an error does not count; the vote has its name when only the end of it fails."""
    coming = [position for position, _ in stage.expected.coming if position not in stood_before]
    if stage.job and coming and control.hit_kind not in (Kind.SYNC, Kind.UNLINK):
        return f"{coming[0]} counts, although its save failed" if judge.found(stage.save) == coming[0] else ""
    return ""


def _wrong_inside(stage: Stage, before: dict[str, bytes], parts: set[Path], stood: set[Path], control: Control) -> str:
    """Looked at by the process that met the failure, which then trains on and saves again."""
    if changed := _changed(before):
        return f"the old checkpoint was changed: {changed}"
    if (left := sorted(_parts(stage.save) - parts)) and control.hit_kind != Kind.UNLINK:
        return f"a temp file stays behind: {left[0].relative_to(stage.save)}"
    in_its_way = (Kind.UNLINK, Kind.RENAME, Kind.SYNC)  # of what should be taken away, or after it had its name
    if stage.job and control.hit_kind not in in_its_way and (useless := _useless(stage.save, stood)):
        return f"a save that failed leaves {useless}"
    if hollow := _hollow(stage.save, stood):
        return f"a vote stands without its file: {hollow}"
    if stage.job is not None:
        stage.saves(stage.job, 50, stage.job.train())
        if judge.found(stage.save) != "0_50":
            return f"the next save of the same process is not found, but {judge.found(stage.save)}"
    return ""


def _judged(point: Point, case: Path, control: Control, child: Child) -> str:
    end = child.wait(HUNG_AFTER_S)
    if end.kind != "returned":
        return f"{end.kind}: {end.value}"
    if control.hit == 0:
        return "the call was not reached"
    _, expected = cases.prepared(point.scenario)
    return str(end.value) or judge.look(case / "save", point.scenario.world_size, expected.hear(*end.told))


def _standing(save: Path, expected: Expected) -> dict[str, bytes]:
    """Every byte of the acknowledged checkpoint, votes and payloads."""
    position = expected.floor[0]
    if not position:
        return {}
    found, _ = votes.read_all(names.vote_dir(save, Position.parse(position)))
    paths = [names.vote(save, Position.parse(position), rank) for rank in found]
    paths += [save / file.path for vote in found.values() for file in vote.files]
    return {str(path): path.read_bytes() for path in paths}


def _parts(save: Path) -> set[Path]:
    return {*save.rglob("*.part")} if save.is_dir() else set()


def _useless(save: Path, stood: set[Path]) -> str:
    """A payload that no vote names: a disk that is full stays full of it."""
    return next((str(path.relative_to(save)) for path in sorted(_payloads(save) - stood - _named(save))), "")


def _hollow(save: Path, stood: set[Path]) -> str:
    return next((str(path.relative_to(save)) for path in sorted(_named(save) - stood) if not path.exists()), "")


def _named(save: Path) -> set[Path]:
    """Every payload that a vote names."""
    voted = (votes.read_all(path)[0] for path in save.glob("commits/*_*") if names.parse_vote_dir(path.name))
    return {save / file.path for found in voted for vote in found.values() for file in vote.files}


def _payloads(save: Path) -> set[Path]:
    return {path for path in save.glob("*/rank_*/*") if names.parse_payload(path.name)}


def _changed(before: dict[str, bytes]) -> str:
    """The first file of the old checkpoint that is not as it was."""
    gone = (path for path, content in before.items() if not Path(path).exists() or Path(path).read_bytes() != content)
    return next(gone, "")
