"""Watches one attempt until it has ended, fails or hangs, and says what it saw. It ends nothing itself.

A rank is what has a pulse in the attempt's directory, or what msrun started there. A death is seen in `/proc`, within
one look; what the launcher ends with is only asked where no rank is known.
"""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, TextIO

from ms_resume.pulse import SCHEDULER_FAILED
from ms_resume.records import Position
from ms_resume.supervisor import files, host, processes, stacks
from ms_resume.supervisor.evidence import Evidence, RankEnd
from ms_resume.supervisor.limits import Learned
from ms_resume.supervisor.plan import Plan
from ms_resume.supervisor.processes import Process, Watched

LOOK_S = 0.5
"""Between two looks whether all live; a death is noticed within it, at once where the kernel has pidfds."""

_SCAN_OFTEN_S = 120.0
"""So long msrun's ranks are looked for among all processes each second, then rarely: nothing here costs more."""

_SCAN_RARELY_S = 30.0

_LAUNCHER_LINGERS_S = 15.0
_OTHERS_LEAVE_S = 30.0

_LAUNCH_LEAVES_S = 10.0
"""A rank that waits in MindSpore for the others hears no signal; nothing is lost with it."""


@dataclass
class Started:
    """An attempt that was started, by this supervisor or by one that died."""

    ordinal: int
    directory: Path
    launcher: Process
    child: subprocess.Popen[bytes] | None = None

    def launcher_code(self) -> int | None:
        """None while it runs, and where it is not our child."""
        return self.child.poll() if self.child else None

    def launcher_lives(self) -> bool:
        return self.child.poll() is None if self.child else processes.alive(self.launcher)


@dataclass
class _Rank:
    watched: Watched | None
    process: Process
    since: float
    pulse: dict[str, Any] = field(default_factory=dict)
    ended: RankEnd | None = None
    failed: bool = False
    """It said that it is about to exit for an error."""
    seen: set[str] = field(default_factory=set)

    @property
    def phase(self) -> str:
        return str(self.pulse.get("phase", "launch"))

    @property
    def position(self) -> Position | None:
        return files.position(self.pulse.get("position"))


class Watch:
    """One attempt's ranks, by number."""

    def __init__(
        self,
        plan: Plan,
        started: Started,
        echo: TextIO,
        *,
        lost_others: Callable[[RankEnd], bool] = lambda end: False,
        elsewhere: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            lost_others: Whether a rank's last words say that it lost another one.
            elsewhere: Which other node's part has failed; empty while none has.
        """
        self._plan, self._started, self._to, self._clock = plan, started, echo, clock
        self._lost_others, self._elsewhere = lost_others, elsewhere
        self._began = clock()
        self._ranks: dict[int, _Rank] = {}
        self._learned = Learned(plan.limits)
        self._reached: Position | None = None
        self._next_read = self._next_scan = 0.0
        self._asked_at: float | None = None
        self._told: set[Process] = set()
        self._first_end: float | None = None
        self._read_after_launcher = False
        self._counter: Path | None = None
        self._oom_before = 0
        self._echoed = 0

    def until_it_ends(self, asked: Callable[[], bool]) -> Evidence:
        """Returns when there is something to decide.

        Args:
            asked: Whether this supervisor was asked to end the run; the ranks are told, and may save.
        """
        while True:
            if asked() and self._asked_at is None:
                self._pass_on()
            if (evidence := self.look()) is not None:
                self._echo()
                return evidence
            living = [rank.watched for rank in self._ranks.values() if rank.ended is None and rank.watched]
            processes.nap(living, LOOK_S)

    def look(self) -> Evidence | None:
        """One look at everything; None while all is well."""
        now = self._clock()
        gone = self._launcher_gone()
        if now >= self._next_read or gone > self._read_after_launcher:
            self._read_after_launcher = gone  # what died before it was ever seen has left a pulse
            self._next_read = now + self._plan.read_s
            self._find(now)
            self._read(now)
            self._echo()
            if self._asked_at is not None:
                self._ask()
        died = [rank for rank in self._ranks if self._ranks[rank].ended is None and not self._lives(rank)]
        if died:
            self._read(now)  # its last pulse: where it died
            for rank in died:
                self._ranks[rank].ended = self._end_of(rank)
        evidence = self._verdict(now)
        if evidence is None and (elsewhere := self._elsewhere()):
            return self._evidence(now, elsewhere=elsewhere)
        return evidence

    # -- finding and reading

    def _find(self, now: float) -> None:
        directory, wanted = self._started.directory, self._plan.ranks
        for path in directory.glob("rank_*.pulse"):
            number = path.stem.removeprefix("rank_")
            pulse = files.document(path)
            if pulse and number.isdecimal() and pulse.get("host") == platform.node():
                process, held = Process(int(pulse["pid"]), int(pulse["pid_start"])), self._ranks.get(int(number))
                if held is None or (held.process != process and held.ended is None):  # held was a script around it
                    self._hold(int(number), process, now)
        missing = not wanted or len(self._ranks) < wanted
        if missing and now >= self._next_scan:
            self._next_scan = now + (0.0 if now - self._began < _SCAN_OFTEN_S else _SCAN_RARELY_S)
            for rank, process in processes.workers(str(directory)).items():
                if rank not in self._ranks:
                    self._hold(rank, process, now)

    def _hold(self, rank: int, process: Process, now: float) -> None:
        try:
            watched: Watched | None = Watched(process.pid)
        except ProcessLookupError:
            watched = None
        if watched is not None and watched.process.start != process.start:  # its pid is somebody else's by now
            watched.close()
            watched = None
        if rank in self._ranks and (before := self._ranks[rank].watched) is not None:
            before.close()
        self._ranks[rank] = _Rank(watched, process, now)
        if self._counter is None:
            self._counter = host.oom_counter(process)
            self._oom_before = host.oom_kills(self._counter)

    def _read(self, now: float) -> None:
        for number, rank in self._ranks.items():
            rank.failed = rank.failed or self._about_to_exit(number, rank)
            pulse = files.document(self._started.directory / f"rank_{number}.pulse")
            if pulse is None or pulse == rank.pulse:
                continue
            if rank.phase in rank.seen:  # the first time it may have compiled, which says nothing of the next time
                self._learned.took(rank.phase, now - rank.since)
            rank.seen.add(rank.phase)
            rank.pulse, rank.since = pulse, now
            if rank.position is not None:
                self._reached = max(rank.position, self._reached or rank.position)

    def _echo(self) -> None:
        """The launcher's output, for whoever watches; it goes to a file because it outlives this process."""
        try:
            with (self._started.directory / files.LAUNCHER_LOG).open("rb") as file:
                file.seek(self._echoed)
                said = file.read()
        except OSError:
            return
        self._echoed += len(said)
        try:
            self._to.write(said.decode(errors="replace"))
            self._to.flush()
        except OSError:
            pass  # a terminal that was closed, or a pipe: the file has it all

    # -- deaths

    def _lives(self, rank: int) -> bool:
        """False also where its last words are an error and an exit code: MindSpore may take seconds to exit then."""
        watched = self._ranks[rank].watched
        if self._ranks[rank].failed:
            return False
        look = watched.look() if watched else None
        return look is not None and not look.ended

    def _end_of(self, number: int) -> RankEnd:
        rank = self._ranks[number]
        look = rank.watched.look() if rank.watched else None
        code = processes.exit_code(look.status) if look is not None and look.ended else None
        if rank.watched is not None:
            rank.watched.close()
        return self._described(number, self._reported(rank.process.pid) if code is None else code)

    def _blamed(self) -> int | None:
        """The pid that msrun ended the others for."""
        lines = files.tail(self._started.directory / files.LAUNCHER_LOG)
        found = (re.search(r"Worker process (\d+) exit with exception", line) for line in lines)
        return next((int(match[1]) for match in found if match), None)

    def _reported(self, pid: int) -> int | None:
        """The exit code that msrun printed when it took it, before this process could look."""
        for line in reversed(files.tail(self._started.directory / files.LAUNCHER_LOG)):
            if match := re.search(rf"Worker process {pid} exit with exception\. Error code: (-?\d+)", line):
                return int(match[1])
        return None

    def _about_to_exit(self, number: int, rank: _Rank) -> bool:
        path = self._started.directory / f"rank_{number}.outcome"
        said = files.document(path) if path.exists() else None
        if said is None or said.get("pid") != rank.process.pid:
            return False
        return bool(said.get("error") and said.get("exit_code"))

    def _described(self, number: int, code: int | None) -> RankEnd:
        directory, rank = self._started.directory, self._ranks[number]
        outcome = files.document(directory / f"rank_{number}.outcome")
        if outcome is not None and outcome.get("pid") != rank.process.pid:
            outcome = None
        if outcome is not None and code in (None, -SIGKILL):
            # A thread that ends the process kills the others: /proc may show that of the first one, where `wait` gives
            # the real status. Seen at the end of MindSpore's processes. Who spoke its last words was not killed.
            code = outcome.get("exit_code")
        return RankEnd(
            rank=number,
            pid=rank.process.pid,
            host=platform.node(),
            exit_code=code,
            outcome=outcome,
            phase=rank.phase,
            position=rank.position,
            log=files.tail(directory / f"worker_{number}.log"),
        )

    # -- the verdict

    def _verdict(self, now: float) -> Evidence | None:
        ended = [rank.ended for rank in self._ranks.values() if rank.ended is not None]
        running = len(self._ranks) - len(ended)
        left = [end for end in ended if (end.outcome or {}).get("left")]
        if self._asked_at is not None:
            return self._after_asking(now, running, ended, bool(left))
        spoken = any(rank.pulse for rank in self._ranks.values())
        failed = [end for end in ended if end not in left and not _went_well(end, spoken)]
        if left and not any(end.error for end in failed):  # who dies without a word now was ended by msrun
            if running and self._since_first_end(now) < _OTHERS_LEAVE_S:
                return None  # the others are on their way
            return self._evidence(now, left=True)
        if failed:
            blamed = self._blamed()
            return self._evidence(now, first=min(failed, key=lambda end: _when(end, blamed, self._lost_others)))
        if spoken and running == 0 and (len(ended) >= self._plan.ranks if self._plan.ranks else self._launcher_gone()):
            if not self._launcher_gone() and self._since_first_end(now) < _LAUNCHER_LINGERS_S:
                return None
            return self._evidence(now, done=True)
        if not spoken and running == 0 and self._launcher_gone() and self._started.launcher_code() == 0:
            return self._evidence(now, done=True)  # a program that knows nothing of us: its word is all there is
        if self._launcher_gone() and (verdict := self._without_launcher(now, running)) is not None:
            return verdict
        if self._all_launch() and (self._started.directory / SCHEDULER_FAILED).exists():
            log = files.tail(self._started.directory / "scheduler.log")
            return replace(self._evidence(now), scheduler=True, launcher_log=log)
        return self._hang(now)

    def _without_launcher(self, now: float, running: int) -> Evidence | None:
        """It is gone before its ranks are; with 0 it may have left them on purpose."""
        code = self._started.launcher_code()
        if running and code == 0:
            return None
        return self._evidence(now)

    def _all_launch(self) -> bool:
        """They say so themselves: who knows nothing of us may be anywhere."""
        return bool(self._ranks) and all(rank.pulse and rank.phase == "launch" for rank in self._ranks.values())

    def _after_asking(self, now: float, running: int, ended: list[RankEnd], left: bool) -> Evidence | None:
        assert self._asked_at is not None
        if running == 0 and ended and all(_went_well(end, spoken=True) for end in ended):
            return self._evidence(now, done=True)  # it was at its end when it was asked
        gone = running == 0 and (bool(self._ranks) or self._launcher_gone())
        patience = min(self._plan.leave_s, _LAUNCH_LEAVES_S) if self._all_launch() else self._plan.leave_s
        if not gone and now - self._asked_at < patience:
            return None
        return self._evidence(now, asked=True, left=left)

    def _hang(self, now: float) -> Evidence | None:
        living = {number: rank for number, rank in self._ranks.items() if rank.ended is None}
        if not any(now - rank.since > self._learned.limit_s(rank.phase) for rank in living.values()):
            return None
        # Not who was noticed, who waits for it in a shorter phase perhaps, but who is furthest behind.
        number = _furthest_behind(living)
        rank = living[number]
        look = rank.watched.look() if rank.watched else None
        stopped = ", the process is stopped" if look is not None and look.state in "Tt" else ""
        said = (
            f"rank {number} (pid {rank.process.pid}) stands still in {rank.phase} at {rank.position} for "
            f"{now - rank.since:.1f} s, limit {self._learned.limit_s(rank.phase):.1f} s{stopped}"
        )
        return self._evidence(now, first=self._described(number, None), hang=said, stacks=self._stacks())

    def _stacks(self) -> tuple[str, ...]:
        """Where the stacks of all ranks that live were put."""
        living = {number: rank for number, rank in self._ranks.items() if rank.ended is None}
        listening = {number for number, rank in living.items() if rank.pulse.get("stacks")}
        its = {number: rank.process for number, rank in living.items()}
        found = stacks.collect(its, self._started.directory, listening=listening)
        return tuple(f"rank {number}:\n{text}" for number, text in sorted(found.items()))

    def _evidence(self, now: float, **what: Any) -> Evidence:
        return Evidence(
            node=platform.node(),
            launcher_code=self._started.launcher_code(),
            launcher_log=files.tail(self._started.directory / files.LAUNCHER_LOG),
            oom_kills=max(0, host.oom_kills(self._counter) - self._oom_before),
            reached=self._reached,
            seconds=now - self._began,
            **what,
        )

    def _launcher_gone(self) -> bool:
        return not self._started.launcher_lives()

    def _since_first_end(self, now: float) -> float:
        self._first_end = now if self._first_end is None else self._first_end
        return now - self._first_end

    def _pass_on(self) -> None:
        """SIGTERM to every rank, which msrun does not pass on; to the launcher where no rank is known."""
        self._asked_at = self._clock()
        self._find(self._asked_at)
        self._ask()
        if not self._told:
            processes.send(self._started.launcher, SIGTERM)

    def _ask(self) -> None:
        """Once each, also those that are found later."""
        living = {rank.process for rank in self._ranks.values() if rank.ended is None}
        for process in living - self._told:
            processes.send(process, SIGTERM)
        self._told |= living


def _went_well(end: RankEnd, spoken: bool) -> bool:
    """Only a rank that said that it is done, and did not end otherwise after that; where none ever spoke, any 0."""
    return end.exit_code in (0, None) and (not spoken or bool((end.outcome or {}).get("done")))


def _when(
    end: RankEnd, blamed: int | None, lost_others: Callable[[RankEnd], bool]
) -> tuple[bool, bool, bool, bool, int, int]:
    """Of several that died between two looks: who died by itself before who says that it lost another rank; in between
    comes who was killed without a word after msrun had another one to blame: by msrun, most likely. Then without a last
    word before with one, whom msrun ended the others for, and by the clock of the host."""
    spoke = end.outcome is not None
    ended_by_msrun = not spoke and end.exit_code in (None, -SIGKILL) and blamed not in (None, end.pid)
    lost = spoke and lost_others(end)
    at_ns = int((end.outcome or {}).get("at_ns", 0))
    return lost, ended_by_msrun, spoke, end.pid != blamed, at_ns, end.rank


def _furthest_behind(living: Mapping[int, _Rank]) -> int:
    """A stopped process; else by position, where all told one; else who has stood still the longest."""
    told = all(rank.position for rank in living.values())

    def behind(number: int) -> tuple[bool, Position, float, int]:
        rank = living[number]
        look = rank.watched.look() if rank.watched else None
        runs = look is None or look.state not in "Tt"
        return runs, rank.position if told and rank.position else Position(0, 0), rank.since, number

    return min(living, key=behind)
