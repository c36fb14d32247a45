"""One row of the table: a tool's save is killed at every point, and a process that knows nothing reads what is left.

`python -m faults.peer_points ROW ROOM shoot` runs with the shim in it, imports the tool, and forks: the save that is
killed and the reader are children of a process that has done nothing with the tool but import it. It forks only while
it has one thread, because what another thread holds at a fork stays held in the child for ever.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from faults import peer_savers, peer_syncs
from faults.peer_savers import State, Target
from faults.processes import End, Tell, in_child
from faults.shim import Call, Control, Mode

SHOOT, COUNT = "shoot", "count"
OLD, NEW, UNUSABLE, WRONG = "old", "new", "unusable", "wrong"
BEGIN, END = "/ms_resume_faults_begins", "/ms_resume_faults_ends"
"""Links that do not exist and are removed, where strace is to begin and to end."""
_RUNS_COUNTED = 3
"""A tool with threads does not always make the same calls; the run with the most gives the points."""


@dataclass
class Row:
    """What happened to one target. `skipped` says why it did not run; then nothing else counts.

    `made` are the calls of one save by kind, without those that failed. `traced` are those that strace saw of another
    save, None where it did not look, and `traced_made` those that the shim saw of that one.
    """

    name: str
    skipped: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    newest: str = ""
    calls: int = 0
    points: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((OLD, NEW, UNUSABLE, WRONG), 0))
    not_reached: int = 0
    syncs: peer_syncs.Syncs = field(default_factory=peer_syncs.Syncs)
    made: dict[str, int] = field(default_factory=dict)
    traced: dict[str, int] | None = None
    traced_made: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Unusual(Exception):
    """The tool does not do undisturbed what the row needs."""


class Range:
    """The directory that is shot at: a copy of the old state for each case."""

    def __init__(self, target: Target, room: Path) -> None:
        self.target = target
        self.case, self._old, self._files = room / "case", room / "old", room
        self.states: dict[str, State] = {OLD: peer_savers.state(1), NEW: peer_savers.state(2)}
        self._prepare()

    def count(self) -> tuple[int, list[Call]]:
        """Number of calls of a whole save, and its record; afterwards the new state is read."""
        control = Control(self._files / "counting", self.case, self._files / "record")
        end = self._save(control)
        if end.kind != "returned":
            raise Unusual(f"the undisturbed save {end.kind}: {_error(end)}")
        seen, calls = control.seen, control.calls()
        control.close()
        if (outcome := self.read())[0] != NEW:
            raise Unusual(f"after an undisturbed save the reader finds: {' '.join(outcome)}")
        return seen, calls

    def kill(self, mode: Mode, at: int) -> bool:
        """Whether the save got as far as that."""
        control = Control(self._files / "control", self.case)
        end = self._save(control, mode, at)
        hit = control.hit
        control.close()
        if end.kind not in ("killed", "returned"):
            raise Unusual(f"at call {at} the save {end.kind}: {_error(end)}")
        return bool(hit)

    def read(self) -> tuple[str, str]:
        """Which state a new process reads; with the reason where it is none."""
        end = in_child(lambda tell: self._judge())
        if end.kind == "returned":
            return str(end.value), ""
        return UNUSABLE, _error(end)

    def existing(self) -> list[str]:
        """What is there before the save, as the record calls it."""
        below = [path.relative_to(self._old) for path in self._old.rglob("*")]
        return [str(self.case), *(str(self.case / path) for path in below)]

    def _prepare(self) -> None:
        self.case.mkdir(parents=True)
        prepare = self.target.prepare or (lambda where, old: self.target.saver(where, old, 1)())
        end = in_child(lambda tell: prepare(self.case, self.states[OLD]) and None)
        if end.kind != "returned":
            raise Unusual(f"the first save {end.kind}: {_error(end)}")
        self.case.rename(self._old)

    def _save(self, control: Control, mode: Mode = Mode.COUNT, at: int = 0) -> End:
        shutil.rmtree(self.case, ignore_errors=True)
        shutil.copytree(self._old, self.case, symlinks=True)

        def work(tell: Tell) -> None:
            save = self.target.saver(self.case, self.states[NEW], 2)
            _mark(BEGIN)
            with control.armed(mode, at):
                save()
            _mark(END)

        return in_child(work)

    def _judge(self) -> str:
        found = self.target.reader(self.case)
        return next((name for name, state in self.states.items() if _equal(found, state)), WRONG)


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _mark(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _error(end: End) -> str:
    """The error's own line of a traceback; a hint may stand below it."""
    lines = re.findall(r"^[\w.]+(?:: .*)?$", str(end.value), re.MULTILINE)
    return lines[-1][:200] if lines else str(end.value)[-200:]


def points(calls: int, writes: set[int]) -> Iterator[tuple[Mode, int]]:
    """Before each call, and half way through each that writes more than one byte."""
    for at in range(1, calls + 1):
        yield Mode.KILL, at
        if at in writes:
            yield Mode.KILL_HALF, at


def shoot(target: Target, room: Path, row: Row) -> None:
    place = Range(target, room)
    counted = [place.count() for _ in range(_RUNS_COUNTED)]
    row.calls, calls = max(counted, key=lambda pair: pair[0])
    row.made = _by_kind(calls)
    row.syncs = peer_syncs.of(calls, place.existing(), target.counts_by)
    reasons: Counter[str] = Counter()
    for mode, at in points(row.calls, {call.number for call in calls if len(call.data) > 1}):
        if not place.kill(mode, at):
            row.not_reached += 1
            continue
        outcome, reason = place.read()
        row.points += 1
        row.outcomes[outcome] += 1
        reasons.update([reason.replace(str(place.case), "")] if reason else [])
    row.reasons = dict(reasons.most_common(4))


def count_once(target: Target, room: Path, row: Row) -> None:
    """One save, for strace to look at."""
    row.calls, calls = Range(target, room).count()
    row.made = _by_kind(calls)


def _by_kind(calls: list[Call]) -> dict[str, int]:
    return dict(Counter(call.kind.name for call in calls))


def main(number: int, room: Path, work: str) -> None:
    """Does the row of that number, and leaves it as JSON."""
    began = time.monotonic()
    target = peer_savers.targets()[number]
    row = Row(target.name, newest=target.newest)
    warnings.simplefilter("ignore")
    for module in target.imports:
        import_module(module)
    if len(os.listdir("/proc/self/task")) > 1:
        row.skipped = f"importing {', '.join(target.imports)} starts threads: it cannot be forked safely"
    else:
        try:
            (shoot if work == SHOOT else count_once)(target, room, row)
        except Unusual as unusual:
            row.skipped = str(unusual)
    row.seconds = round(time.monotonic() - began, 1)
    (room / f"{work}.json").write_text(json.dumps(asdict(row)))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
