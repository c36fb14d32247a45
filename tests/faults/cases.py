"""A case has a directory of its own, as its scenario left it; what the parts count is a `Tally`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from faults.processes import End, Tell, in_child
from faults.scenarios import Expected, Scenario, Stage
from faults.shim import Call, Control, Mode


@dataclass
class Tally:
    """What one part of the campaign did. A part that cannot run here says why in `skipped` and passes nothing."""

    part: str
    unit: str
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, failure: str) -> None:
        self.cases += 1
        if failure:
            self.failures.append(failure)

    def merge(self, other: Tally) -> None:
        self.cases += other.cases
        self.failures += other.failures
        for key, count in other.notes.items():
            self.notes[key] = self.notes.get(key, 0) + count


@lru_cache(maxsize=1)
def _base() -> Path:
    """In memory where that is possible, because a disk syncs every save."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ms_resume_faults_", dir=memory if os.access(memory, os.W_OK) else None))


def room() -> Path:
    """This process's own directory for cases, below one that all processes forked after `open_room` share."""
    own = _base() / str(os.getpid())
    own.mkdir(exist_ok=True)
    return own


@contextlib.contextmanager
def open_room() -> Iterator[None]:
    _base()
    try:
        yield
    finally:
        shutil.rmtree(_base(), ignore_errors=True)
        _base.cache_clear()


@lru_cache(maxsize=96)
def prepared(scenario: Scenario) -> tuple[Path, Expected]:
    """A pristine directory, and what is acknowledged in it. Made once for each process."""
    pristine = Path(tempfile.mkdtemp(prefix="pristine_", dir=room()))
    end = in_child(lambda tell: scenario.prepare(Stage(pristine / "save", tell)))
    if end.kind != "returned":
        raise AssertionError(f"{scenario}: cannot be prepared: {end.value}")
    return pristine, Expected().hear(*end.told)


@contextlib.contextmanager
def fresh(scenario: Scenario, name: str = "case") -> Iterator[Path]:
    """A copy of the prepared directory, for one case; `<it>/save` is the save directory."""
    pristine, _ = prepared(scenario)
    case = room() / name
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(pristine, case, symlinks=True)
    try:
        yield case
    finally:
        shutil.rmtree(case, ignore_errors=True)


def act(
    what: Callable[[Stage], None], case: Path, expected: Expected, control: Control, mode: Mode, at: int, code: int = 0
) -> tuple[End, Expected]:
    """Lets a scenario act in a child, disturbed at call `at`; and what may be found afterwards."""

    def work(tell: Tell) -> None:
        what(Stage(case / "save", tell, expected, lambda: control.armed(mode, at, code=code)))

    end = in_child(work)
    return end, expected.hear(*end.told)


@contextlib.contextmanager
def steered(case: Path, *, recorded: bool = False, name: str = "control") -> Iterator[Control]:
    """A control file for the processes that work in `case`."""
    control = Control(case.with_name(f"{case.name}.{name}"), case, room() / "record" if recorded else None)
    try:
        yield control
    finally:
        control.close()


def calls(scenario: Scenario) -> tuple[int, frozenset[int]]:
    """How many calls the scenario makes, and the numbers of those that write bytes."""
    seen, recorded = undisturbed(scenario)
    return seen, frozenset(call.number for call in recorded if len(call.data) > 1)


@lru_cache(maxsize=96)
def undisturbed(scenario: Scenario) -> tuple[int, tuple[Call, ...]]:
    """How many calls the scenario makes, and those that succeed."""
    _, expected = prepared(scenario)
    with fresh(scenario) as case, steered(case, recorded=True) as control:
        end, _ = act(scenario.act, case, expected, control, Mode.COUNT, 0)
        if end.kind != "returned":
            raise AssertionError(f"{scenario}: fails undisturbed: {end.value}")
        return control.seen, tuple(control.calls())
