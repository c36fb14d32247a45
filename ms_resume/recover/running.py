"""Runs the recovery of a training, and the recovery of that one, until it reaches its end or there is no use in it.

runs     llamafactory-cli train {name}_recovery_{timestamp}.yaml
writes   {name}_recovery_{timestamp}.log, what that prints

Whether a failure is tried again, from where, and when, the supervisor's `decide` says.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from ms_resume.errors import DiskError, GaveUp, UsageError
from ms_resume.recover import leftovers, plan, retry
from ms_resume.recover.plan import Plan
from ms_resume.supervisor.decide import decide
from ms_resume.supervisor.evidence import Action, Ended, Failure, Policy
from ms_resume.supervisor.rules import Rule

COMMAND = "llamafactory-cli"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ran:
    """One recovery that was run. `failure` is None where it reached its end."""

    made: Plan
    code: int
    failure: Failure | None

    def to_json(self) -> dict[str, Any]:
        return {"yaml": str(self.made.yaml), "code": self.code, "class": self.failure.kind if self.failure else "done"}


def until_done(
    first: Plan,
    table: Sequence[Rule],
    say: Say,
    *,
    failure: Failure | None = None,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> list[Ran]:
    """Runs a plan that was written; each one that fails is recovered in turn.

    Args:
        failure: Why the training that `first` recovers failed, where that is known: it counts as an attempt.

    Returns:
        What was run; the last reached its end.

    Raises:
        GaveUp: It failed in a way that does not go away, or again and again without progress.
        NothingToResume, UsageError, DiskError: As `plan` raises them.
    """
    ran: list[Ran] = []
    past: list[Ended] = []
    made, back = first, None
    if failure is not None:
        past.append(retry.ended(past, failure, plan.started_at(first.failed), plan.step_of(first.located), None))
        _or_give_up(decide(past, Policy(), chance()), first.yaml, first.failed.document.path.with_suffix(".log"), ran)
    with _ended_alike():
        while True:
            say(f"running {COMMAND} train {made.yaml} (from {made.checkpoint}; log {made.log})")
            code = retry.plain(_train(made))
            failure = retry.why(code, made.log, table) if code else None
            ran.append(Ran(made, code, failure))
            if failure is None:
                return ran
            say(f"{made.yaml}: {told(failure, code)}")
            failed, line = plan.read(made.yaml), [one.made.located for one in ran]
            located = plan.newest(failed, line=line)
            began, step = plan.step_of(made.located), plan.step_of(located)
            end = retry.ended(past, failure, began, step, plan.before(failed, line, step))
            past.append(replace(end, back=back))
            action = decide(past, Policy(), chance())
            _or_give_up(action, made.yaml, made.log, ran)
            if (back := action.back) is not None:
                located = plan.newest(failed, line=line, limit=back.step)
            say(f"{action.what}, {action.reason}" + (f": waiting {action.delay_s:.0f} s" if action.delay_s else ""))
            sleep(action.delay_s)
            made = plan.write(plan.make(failed, located, datetime.now()))


def check_command() -> None:
    """Raises UsageError where there is nothing to run."""
    if not any(os.access(os.path.join(directory, COMMAND), os.X_OK) for directory in os.get_exec_path()):
        raise UsageError(f"no {COMMAND} on PATH", hint="activate the environment in which LLaMA-Factory is installed")


def told(failure: Failure, code: int) -> str:
    """Why it failed, for people, with the lines that show it."""
    first = "" if failure.rank is None else f", first rank {failure.rank}, which {_how(failure.exit_code or 0)}"
    said = f"{COMMAND} {_how(code)}{first}: {failure.kind} ({failure.says})"
    return "\n    ".join([said, *failure.lines])


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _or_give_up(action: Action, yaml: Path, log: Path, ran: Sequence[Ran]) -> None:
    if action.what == "stop":
        raise GaveUp(
            f"{yaml}: not run again: {action.reason}",
            hint=f"see the end of {log}; correct the cause, then `{COMMAND} train {yaml}`",
            ran=[one.to_json() for one in ran],
        )


def _train(made: Plan) -> int:
    """Its exit code; what it left behind is ended."""
    with _log(made.log) as log:
        words = ["env", leftovers.mark(made.yaml), COMMAND, "train", str(made.yaml)]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as process:
            try:
                return process.wait()
            finally:
                leftovers.end(made.yaml)


@contextmanager
def _log(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DiskError(
            f"{path}: cannot write a log there: {error.strerror}", hint="make the directory writable"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _ended_alike() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs as Ctrl-C does: a training would go on alone. SIGINT is asked for, too, because
    what a shell starts in the background ignores it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
