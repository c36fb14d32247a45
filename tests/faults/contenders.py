"""Jobs that want the same save directory, each a process of its own that goes on only when it is told to.

A `Scene` has the directory and all of them; it asks who is refused, in what time, and whether anything was changed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults import cases, judge
from faults.job import Job
from faults.processes import HUNG_AFTER_S, Child, Tell
from faults.scenarios import Expected, Stage, named
from faults.shim import Control, Mode
from ms_resume import repair
from ms_resume.errors import MsResumeError
from ms_resume.ondisk import attempts, names
from ms_resume.records import Position

LONG_BEAT_S = 5.0
"""Where nothing may be decided by heartbeat: who waits for it waits for twelve seconds."""
AT_ONCE_S = 5.0
"""Far less than that, and more than any machine makes a process wait for a core."""
LET_IN_S = 8.0
"""For a start, a save, and a look at every byte: the judge."""
BEAT_S = 1.5
WATCHED_S = 2.5 * BEAT_S
"""A beat that comes two seconds late is still in time."""

LEFT = {
    "no directory": "the first save of all",
    "two checkpoints": "a save, with retention",
    "an abandoned future": "restore",
    "broken meta.json": "repair",
    "files aside": "a start where files lie aside",
}
"""What lies there, and the scenario that prepares it."""

Part = Callable[[Tell], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """How one part of a job's work ended; `ahead_s` is how far its clock was off."""

    error: str = ""
    exit_code: int = 0
    message: str = ""
    seconds: float = 0.0
    ahead_s: int = 0


class Worker(Child):
    """A job in a process of its own. After each part of its work it stops itself; then it lives until told to go on."""

    def __init__(self, control: Control, *parts: Part) -> None:
        self.control = control
        self.answers: list[Answer] = []
        self.told: list[Any] = []
        self.reaped = False
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(lambda tell: self._work(parts))
        self._theirs.close()

    def stops(self) -> bool:
        """As a child's, but one that hangs is killed."""
        deadline = time.monotonic() + HUNG_AFTER_S
        while time.monotonic() < deadline:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                return super().stops()
            time.sleep(0.0003)
        os.kill(self.pid, signal.SIGKILL)
        return False

    def reaches(self) -> bool:
        """Waits until it is stopped or held up at the call that it was armed for; False when it never came there."""
        deadline = time.monotonic() + HUNG_AFTER_S
        while not self.control.hit and time.monotonic() < deadline:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT | os.WNOHANG):
                break
            time.sleep(0.0003)
        return self.control.hit > 0

    def stops_at_its_call(self) -> bool:
        """Whether it stops where it was told to, and not behind its work."""
        return self.stops() and self.control.hit > 0

    def is_held_up(self) -> bool:
        """Waits until its call takes long; False when it never comes there."""
        deadline = time.monotonic() + HUNG_AFTER_S
        while not self.control.hit and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.control.hit > 0

    def does(self, parts: int) -> bool:
        """Goes through all stops until so many parts are done; False when it ended before, or one failed."""
        while True:
            stopped = self.stops()
            self.hear()
            if len(self.answers) >= parts or not stopped:
                return len(self.answers) >= parts and not self.answers[-1].error
            self.go_on()

    def hear(self) -> None:
        while select.select([self._ours], [], [], 0)[0] and (said := self._ours.recv(1 << 16)):
            word = pickle.loads(said)
            (self.answers if isinstance(word, Answer) else self.told).append(word)

    def order(self, mode: Mode = Mode.COUNT, at: int = 0) -> None:
        """The next part, disturbed at call `at`; the end after the last one."""
        self.control.arm(mode, at)
        self._ours.send(b".")
        self.go_on()

    def dies(self) -> None:
        """SIGKILL. It is not reaped: until the scene is over it stays in the process table."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.hear()

    def reap(self) -> None:
        """Dead and gone: its pid is free."""
        if not self.reaped:
            self.dies()
            self.wait()
            self.reaped = True

    def leave(self) -> None:
        """Whatever it is doing."""
        self.reap()
        self._ours.close()

    def _work(self, parts: tuple[Part, ...]) -> None:
        self._ours.close()
        self.control.attach()
        for part in parts:
            answer = _answer(part, lambda word: self._say(word))
            self._say(answer)
            if answer.error:
                return
            os.kill(os.getpid(), signal.SIGSTOP)
            if not self._theirs.recv(1):
                return  # the campaign is gone

    def _say(self, word: object) -> None:
        self._theirs.send(pickle.dumps(word))


def _answer(part: Part, tell: Tell) -> Answer:
    began = time.monotonic()
    kind, code, message = "", 0, ""
    try:
        part(tell)
    except MsResumeError as error:
        kind, code, message = type(error).__name__, int(error.exit_code), error.message
    except Exception as error:  # noqa: BLE001  # whatever it is, the campaign has to hear of it
        kind, message = type(error).__name__, str(error)
    return Answer(kind, code, message, time.monotonic() - began, _ahead_s())


def _ahead_s() -> int:
    """Of Python's clock before the coarse one, which the shim leaves alone."""
    clock_realtime_coarse = 5
    return round(time.time() - time.clock_gettime(clock_realtime_coarse))


@dataclass
class Scene:
    """A save directory, and the jobs that want it. When it is over all of them are gone."""

    case: Path
    world_size: int
    expected: Expected
    stack: contextlib.ExitStack
    number: Iterator[int] = field(default_factory=itertools.count)

    @property
    def save(self) -> Path:
        return self.case / "save"

    def worker(
        self,
        what: str = "start",
        mode: Mode = Mode.COUNT,
        at: int = 0,
        *,
        beat_s: float = LONG_BEAT_S,
        clock_s: int = 0,
        stall_ms: int = 0,
        before: Callable[[], None] | None = None,
        **how: Any,
    ) -> Worker:
        """A job that does `what`, disturbed at call `at`, and then saves. `before` is where it finds itself."""
        number = next(self.number)
        control = self.stack.enter_context(cases.steered(self.case, name=f"control_{number}"))
        control.jump_clock(clock_s)
        control.arm(mode, at, stall_ms=stall_ms)
        job = Job(self.save, self.world_size, tag=30 + number, keep_last=0)
        job.settings = replace(job.settings, heartbeat_s=beat_s)

        def begin(tell: Tell) -> None:
            if before:
                before()
            WORK[what](job, Stage(self.save, tell, self.expected), how)

        worker = Worker(control, begin, *[lambda tell: _save(job, Stage(self.save, tell))] * 2)
        self.stack.callback(worker.leave)
        return worker

    def owner(self, **how: Any) -> Worker:
        """A job that has started, and is stopped."""
        worker = self.worker(**how)
        if not worker.does(1):
            raise AssertionError(f"the first job does not start: {worker.answers}")
        return worker

    def refused(self, what: str = "start", within_s: float = AT_ONCE_S, **how: Any) -> str:
        """Another job does `what` now: error 61 in time, not one call that changes anything, and nothing changed."""
        standing = _everything(self.case)
        other = self.worker(what, **how)
        other.does(1)
        answer = other.answers[0]
        if (answer.error, answer.exit_code) != ("DirectoryInUse", 61):
            return f"{what} beside it is not refused: {answer.error or 'it works'} {answer.message}"
        if answer.seconds > within_s:
            return f"{what} beside it is refused after {answer.seconds:.2f} s"
        if other.control.seen:
            return f"{what} beside it is refused after {other.control.seen} calls, the last on {other.control.hit_path}"
        if changed := _difference(standing, _everything(self.case)):
            return f"{what} beside it changed {changed}"
        return "" if answer.ahead_s == how.get("clock_s", 0) else "the second job's clock has not moved"

    def let_in(self, at_least_s: float = 0.0, within_s: float = AT_ONCE_S, **how: Any) -> tuple[Worker, str]:
        """Another job starts now: it becomes the owner, in that time."""
        other = self.worker(**how)
        if not other.does(1):
            return other, f"a start is refused: {other.answers}"
        if not at_least_s <= (took := other.answers[0].seconds) <= at_least_s + within_s:
            return other, f"a start is let in after {took:.2f} s, expected {at_least_s:.2f} s"
        return other, ""

    def superseded(self, worker: Worker) -> str:
        """It goes on, to its next save: that ends with 61 and changes nothing."""
        standing = _everything(self.case)
        worker.order()
        worker.does(2)
        answer = worker.answers[-1]
        if (answer.error, answer.exit_code) != ("Superseded", 61):
            return f"the first job saves after another one has taken over: {answer}"
        changed = _difference(standing, _everything(self.case))
        return f"a superseded job changed {changed}" if changed else ""

    def saves(self, worker: Worker) -> str:
        """It is the owner: it can save. Then it ends."""
        done = len(worker.answers)
        worker.order()
        if not worker.does(done + 1):
            return f"the owner cannot save: {worker.answers[-1]}"
        worker.dies()
        return ""

    def beats(self) -> bool:
        """Whether the newest attempt has a heartbeat."""
        return names.heartbeat(self.save, attempts.newest_ordinal(self.save)).exists()

    def judged(self, *workers: Worker, within_s: float = LET_IN_S) -> str:
        """What a new job finds after all that these said, in this order."""
        for worker in workers:
            worker.hear()
            self.expected = self.expected.hear(*worker.told)
        began = time.monotonic()
        wrong = judge.look(self.save, self.world_size, self.expected)
        took = time.monotonic() - began
        return wrong or (f"the next job was let in after {took:.1f} s" if took > within_s else "")


@contextlib.contextmanager
def set_up(world_size: int, left: str = "two checkpoints", name: str = "two") -> Iterator[Scene]:
    scenario = named(LEFT[left], world_size)
    _, expected = cases.prepared(scenario)
    with cases.fresh(scenario, name) as case, contextlib.ExitStack() as stack:
        yield Scene(case, world_size, expected, stack)


def _start(job: Job, stage: Stage, how: dict[str, Any]) -> None:
    job.start(**{"resume": stage.save.is_dir(), **how})


def _restore(job: Job, stage: Stage, how: dict[str, Any]) -> None:
    position = max(stage.expected.known, key=Position.parse)
    stage.will(position, stage.expected.known[position])
    repair.restore(stage.save, Position.parse(position))
    stage.did(position, stage.expected.known[position])


def _repair(job: Job, stage: Stage, how: dict[str, Any]) -> None:
    repair.repair(stage.save)


def _save(job: Job, stage: Stage) -> None:
    step = max(2, *(Position.parse(name).step + 2 for name in _standing_votes(stage.save)), 0)
    stage.saves(job, step, job.train())


def _standing_votes(save: Path) -> list[str]:
    found = names.commits(save).iterdir() if names.commits(save).is_dir() else ()
    return [path.name for path in found if names.parse_vote_dir(path.name)]


WORK: dict[str, Callable[[Job, Stage, dict[str, Any]], None]] = {
    "start": _start,
    "restore": _restore,
    "repair": _repair,
}


def _everything(case: Path) -> dict[str, tuple[object, ...]]:
    """All that a `stat` shows, and every byte; of a heartbeat only that it is there."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(case.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        seen = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)
        found[path.relative_to(case).as_posix()] = () if path.suffix == ".heartbeat" else seen
    return found


def _difference(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> str:
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))[:3])
