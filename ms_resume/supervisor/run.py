"""Starts attempts one after the other until the run is done, was asked to leave, or cannot go on.

    writes   <LOG_DIR>/history.jsonl, supervisor.jsonl, attempts/NNNNNN-<token>/

Killed and started again it goes on from the history: it takes a running attempt over, or decides about a dead one.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from ms_resume import locate
from ms_resume.errors import DirectoryInUse, DiskError, MsResumeError, UsageError
from ms_resume.layouts import SaveDirectory, survey
from ms_resume.ondisk import atomic
from ms_resume.records import Checkpoint, Position
from ms_resume.settings import PREFIX
from ms_resume.supervisor import files, host, logs, processes, rules
from ms_resume.supervisor.decide import decide
from ms_resume.supervisor.evidence import Action, Ended, Evidence, Failure, RankEnd
from ms_resume.supervisor.files import History, Lock
from ms_resume.supervisor.nodes import Call, Nodes
from ms_resume.supervisor.plan import Plan
from ms_resume.supervisor.processes import Process
from ms_resume.supervisor.rules import Rule
from ms_resume.supervisor.watch import Started, Watch

RESUME_AT = f"{PREFIX}RESUME_AT"
LABEL = f"{PREFIX}LABEL"
STORAGE = f"{PREFIX}STORAGE"
_NAP_S = 0.2
_RETRY_S = 5.0
_TERMINATED = 128 + signal.SIGTERM
_ASKED_BETWEEN = Action("leave", "asked to end between two attempts", exit_code=_TERMINATED)
_ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended, for people and scripts."""

    save: Path
    log_dir: Path
    action: Action
    ends: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "save": str(self.save),
            "log_dir": str(self.log_dir),
            **files.action_json(self.action),
            "attempts": [dict(end) for end in self.ends],
        }


def supervise(plan: Plan, echo: TextIO | None = None) -> Summary:
    """Runs `plan` to its end; what its command prints goes to `echo`, standard output when left out.

    Raises:
        DirectoryInUse: Another supervisor has the run, or somebody's processes are on the NPUs.
        UsageError, DiskError: Found before a start: the command, a port, a setting, no room.
    """
    table = rules.read(plan.rules)
    _make_dirs(plan)
    lock = Lock(plan.log_dir)
    try:
        if plan.node == 0:  # others are its part
            lock.beside(plan.save)
            lock.also(plan.save)
        log = logs.open_log(plan.log_dir, plan.job_id)
        try:
            with _listening() as asked:
                run = _Run(plan, table, lock, log, asked, echo or sys.stdout)
                return run.to_its_end()
        finally:
            logs.close_log(log)
    finally:
        lock.release()


def replay(history: Path, plan: Plan) -> Iterator[tuple[Ended, Action]]:
    """What would be decided after each attempt in a history file, by the policy of `plan`. Nothing is started."""
    seen: list[Ended] = []
    for event in files.read_history(history)[0]:
        if event["event"] == "end":
            seen.append(files.ended(event))
            action = decide(seen, plan.policy, chance=0.5)
            yield seen[-1], action
            if action.what in files.FINAL:
                seen = []


class _Run:
    def __init__(
        self, plan: Plan, table: list[Rule], lock: Lock, log: logging.Logger, asked: Callable[[], bool], echo: TextIO
    ) -> None:
        self._plan, self._table, self._lock, self._log, self._asked = plan, table, lock, log, asked
        self._echo = echo
        self._history = History(plan.log_dir / files.HISTORY)
        self._first = len(self._history.events) - len(self._history.current)
        self._chance = random.Random(secrets.randbits(64))
        self._ended_at: float | None = None
        self._nodes: Nodes | None = None
        if plan.nodes > 1:
            shared = {**os.environ, **plan.environment}.get(STORAGE) != "local"
            self._nodes = Nodes(plan, shared=shared, asked=asked, say=log.info)
            self._asked = self._nodes.told
        if self._history.cut:
            log.warning(f"{self._history.path}: {self._history.cut} lines are cut short and were passed over")

    def to_its_end(self) -> Summary:
        started, action = self._taken_up()
        while True:
            if started is not None:
                action = self._attempt(started)
            if action is not None and action.what in files.FINAL:
                return self._summary(action)
            self._wait(action.delay_s if action else 0.0)
            started = None if self._asked() else self._start(action.back if action else None)
            if started is None:
                return self._summary(self._between())

    def _between(self) -> Action:
        """What to do where it is to end and nothing runs."""
        return replace(_ASKED_BETWEEN, reason=self._nodes.leave()) if self._nodes else _ASKED_BETWEEN

    def _taken_up(self) -> tuple[Started | None, Action | None]:
        """What a supervisor that died left: an attempt to watch, or one to decide about, or a decision to act on."""
        current = self._history.current
        last = current[-1] if current else None
        if last is None:
            return None, None
        if last["event"] == "start":
            directory = Path(last["directory"])
            started = Started(int(last["ordinal"]), directory, Process(int(last["pid"]), int(last["pid_start"])))
            self._log.info(f"taking attempt {started.ordinal} over from a supervisor that died", extra=_of(started))
            return started, None
        if last["event"] == "end":
            return None, self._decide()
        return None, Action(last["what"], last["reason"], back=files.position(last.get("back")))

    def _start(self, back: Position | None) -> Started | None:
        """None where it is to end instead."""
        plan = self._plan
        self._end(lambda: processes.marked(str(plan.attempts), below=True), "an earlier attempt")
        variables = {**os.environ, **plan.environment}
        if not self._until_ready(variables):
            return None
        call = self._agreed(back)
        if call is None:
            return None
        ordinal, back = int(call.name.partition("-")[0]), call.back
        directory = plan.attempts / call.name
        atomic.make_dirs(directory)
        again = call.again and plan.save.is_dir()
        more = () if set(plan.on_restart) <= set(plan.command) else plan.on_restart
        command = [*plan.command, *(more if again else ())]
        variables |= {processes.MARK: str(directory), RESUME_AT: str(back) if back else ""}
        variables.setdefault(LABEL, plan.job_id)
        newest, _ = self._checkpoints()
        child = self._launch(command, directory, variables)
        look = processes.look(child.pid)
        process = Process(child.pid, look.start if look else 0)
        self._history.append(
            "start",
            ordinal=ordinal,
            at=_now(),
            directory=str(directory),
            command=command,
            pid=process.pid,
            pid_start=process.start,
            before=newest.to_json() if newest else None,
            back=back.to_json() if back else None,
        )
        started = Started(ordinal, directory, process, child)
        since = f", {time.monotonic() - self._ended_at:.1f} s after the failure" if self._ended_at else ""
        told = f" told to go back to {back}" if back else ""
        self._log.info(f"attempt {ordinal} started (pid {child.pid}){told}{since}", extra=_of(started))
        return started

    def _agreed(self, back: Position | None) -> Call | None:
        again = any(event["event"] == "start" for event in self._history.current)
        call = Call(f"{self._history.ordinal + 1:06d}-{secrets.token_hex(8)}", back, again)
        if self._nodes is None:
            return call
        return self._nodes.agree(call, {name for e in self._history.events if (name := _name(e))})

    def _until_ready(self, variables: dict[str, str]) -> bool:
        """False where it is to end instead.

        Raises at once where the first start could not work; later ones wait for a while, because what is in the way may
        go: a port, a full disk, NPUs that are slow to be given back.
        """
        again = any(event["event"] == "start" for event in self._history.current)
        deadline = time.monotonic() + (self._plan.policy.longest_s if again else 0.0)
        if self._plan.strategy_dir:
            host.check_strategies(self._plan.strategy_dir, self._plan.ranks * self._plan.nodes)
        while True:
            try:
                host.check(self._plan.save, ports=self._plan.ports, free_gib=self._plan.free_gib, variables=variables)
                return True
            except MsResumeError as error:
                if time.monotonic() >= deadline:
                    raise
                self._log.warning(f"not started yet: {error.message}")
            self._wait(_RETRY_S)
            if self._asked():
                return False

    def _launch(self, command: list[str], directory: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with files.launcher_log(directory) as output:
            try:
                return subprocess.Popen(
                    command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise UsageError(
                    f"{command[0]}: cannot be run: {error.strerror}", hint="check the command; is it on PATH?"
                ) from None

    def _attempt(self, started: Started) -> Action:
        """Watches one attempt, ends what is left of it, says why, decides."""
        try:
            elsewhere = partial(self._nodes.failed_elsewhere, started.directory.name) if self._nodes else str
            watch = Watch(self._plan, started, self._echo, lost_others=self._lost_others, elsewhere=elsewhere)
            evidence = watch.until_it_ends(partial(self._still, started))
        except DirectoryInUse:
            self._end(lambda: processes.marked(str(started.directory)), f"attempt {started.ordinal}", started)
            raise
        self._ended_at = time.monotonic()
        failure = rules.classify(evidence, self._table)
        self._tell(started, evidence, failure)
        event: dict[str, Any] = {
            "ordinal": started.ordinal,
            "at": _now(),
            "class": failure.kind,
            "then": failure.then,
            "says": failure.says,
            "rank": failure.rank,
            "node": failure.node,
            "exit_code": failure.exit_code,
            "detail": failure.detail,
            "lines": list(failure.lines),
            "seconds": round(evidence.seconds, 3),
            "reached": evidence.reached.to_json() if evidence.reached else None,
        }
        if self._nodes:
            self._nodes.ended(started.directory.name, event)  # before the rest: others wait for it
        self._end(lambda: processes.marked(str(started.directory)), f"attempt {started.ordinal}", started)
        newest, older = self._checkpoints()
        begun = next(e for e in reversed(self._history.events) if e["event"] == "start")
        event |= {
            "before": begun.get("before"),
            "back": begun.get("back"),
            "checkpoint": newest.to_json() if newest else None,
            "older": older.to_json() if older else None,
        }
        if self._nodes:
            event = self._nodes.merged(started.directory.name, event)
        self._history.append("end", **event)
        return self._decide()

    def _lost_others(self, end: RankEnd) -> bool:
        return rules.classify(Evidence(end.host, end), self._table).kind == rules.LOST

    def _still(self, started: Started) -> bool:
        """Between two looks: whether to end. Raises DirectoryInUse where another supervisor has the save directory, now
        that there is one."""
        if self._plan.node == 0:
            self._lock.also(self._plan.save)
        asked = self._asked()
        return self._nodes.asked(started.directory.name, asked) if self._nodes else asked

    def _decide(self) -> Action:
        ends = [files.ended(event) for event in self._history.current if event["event"] == "end"]
        name = next(name for e in reversed(self._history.events) if (name := _name(e)))
        if self._nodes and not self._nodes.leads:
            action = self._nodes.decision(name) or self._between()
        else:
            action = decide(ends, self._plan.policy, self._chance.random())
        if self._nodes and self._nodes.leads:
            self._nodes.decided(name, action)
        self._history.append("decision", ordinal=ends[-1].ordinal, at=_now(), **files.action_json(action))
        level = self._log.error if action.what == "stop" else self._log.info
        wait = f", in {action.delay_s:.1f} s" if action.delay_s else ""
        level(f"decision: {action.what}{wait}: {action.reason}")
        return action

    def _tell(self, started: Started, evidence: Evidence, failure: Failure) -> None:
        if failure.then in ("done", "leave"):
            self._log.info(f"attempt {started.ordinal}: {failure.says}", extra=_of(started))
            return
        who = "no rank" if failure.rank is None else f"rank {failure.rank} on {failure.node}"
        code = "" if failure.exit_code is None else f", exit code {failure.exit_code}"
        said = {"rank": failure.rank, "node": failure.node, "class": failure.kind}
        extra = _of(started, position=evidence.reached.to_json() if evidence.reached else None, **said)
        why = f"{failure.kind} ({failure.says}); first: {who}{code}"
        self._log.error(f"attempt {started.ordinal} failed: {why}", extra=extra)
        for line in (*failure.lines, *(line for text in evidence.stacks for line in text.splitlines())):
            self._log.error(f"  {line}", extra=extra)

    def _end(self, find: Callable[[], list[Process]], whose: str, started: Started | None = None) -> None:
        """Ends what belongs to attempts of this run, and nothing else.

        Raises:
            DiskError: Something of it cannot be ended: a start beside it would share its devices.
        """
        reap = started.launcher_code if started else (lambda: None)
        found = find()
        if not found:
            reap()
            return
        self._log.info(f"ending {len(found)} processes of {whose}: pids {', '.join(str(p.pid) for p in found)}")
        left = processes.end(find, gently_s=self._plan.gently_s, tick=reap)
        reap()
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise DiskError(
                f"processes of {whose} cannot be ended: pids {pids} hang in the kernel",
                hint="look at `dmesg`: a device or a network file system does not answer; a reboot may be needed",
            )

    def _checkpoints(self) -> tuple[Position | None, Position | None]:
        """The newest whole checkpoint and the one before it, by names and sizes; none where nothing can be said."""
        if not self._plan.save.is_dir():
            return None, None
        whole: list[Position] = []
        try:
            holding = SaveDirectory(survey.take(self._plan.save))
            for verdict in locate.verdicts(holding):
                if isinstance(verdict, Checkpoint):
                    whole.append(verdict.position)
                if len(whole) == 2:
                    break
        except (MsResumeError, OSError) as error:
            self._log.warning(f"{self._plan.save}: cannot be looked through: {error}")
        return (*whole, None, None)[0], (*whole, None, None)[1]

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._asked():
            time.sleep(min(left, _NAP_S))

    def _summary(self, action: Action) -> Summary:
        ends = tuple(event for event in self._history.events[self._first :] if event["event"] == "end")
        return Summary(self._plan.save, self._plan.log_dir, action, ends)


def _of(started: Started, **more: Any) -> dict[str, Any]:
    return {"said": {"attempt": started.ordinal, **more}}


def _name(event: dict[str, Any]) -> str:
    """Of the attempt that a `start` tells of."""
    return Path(event["directory"]).name if event["event"] == "start" else ""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _make_dirs(plan: Plan) -> None:
    atomic.make_dirs(plan.attempts)
    if not atomic.writable(plan.log_dir):
        raise DiskError(f"{plan.log_dir}: cannot be written", hint="give another directory: --log-dir")


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGTERM, SIGINT or Slurm's SIGUSR1 came, while it lasts. A second one does not make the ranks
    hurry; a terminal that is closed is no reason to end."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:  # a handler, because what is ignored stays so in the ranks
            heard.append(number)

    before = {number: signal.signal(number, hear) for number in (*_ASK, signal.SIGHUP)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
