"""Runs the recovery of a training, and the recovery of that one, until it reaches its end or there is no use in it.

runs     llamafactory-cli train {name}_recovery_{timestamp}.yaml
writes   {name}_recovery_{timestamp}.log, what that prints
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

from ms_resume.errors import DiskError, GaveUp, MsResumeError, UsageError
from ms_resume.recover import leftovers, plan, retry
from ms_resume.recover.plan import Plan
from ms_resume.recover.retry import Tried

COMMAND = "llamafactory-cli"
_NOT_FOUND = 127
_TAIL_BYTES = 4096
_TAIL_LINES = 3

Say = Callable[[str], None]


def until_done(first: Plan, say: Say, *, sleep: Callable[[float], None] = time.sleep) -> list[tuple[Plan, int]]:
    """Runs a plan that was written; each one that fails is recovered in turn.

    Returns:
        What was run, with exit codes; the last is 0.

    Raises:
        GaveUp: It fails again and again without progress.
        NothingToResume, UsageError, DiskError: As `plan` raises them.
    """
    ran: list[tuple[Plan, int]] = []
    made = first
    with _ended_alike():
        while True:
            say(f"running {COMMAND} train {made.yaml} (from {made.checkpoint}; log {made.log})")
            code = _train(made)
            ran.append((made, code))
            if code == 0:
                return ran
            say(f"{made.yaml}: {COMMAND} {_how(code)}{_tail(made.log)}")
            made = _next(made, ran, say, sleep)


def check_command() -> None:
    """Raises UsageError where there is nothing to run."""
    if not any(os.access(os.path.join(directory, COMMAND), os.X_OK) for directory in os.get_exec_path()):
        raise UsageError(f"no {COMMAND} on PATH", hint="activate the environment in which LLaMA-Factory is installed")


def _next(failed: Plan, ran: list[tuple[Plan, int]], say: Say, sleep: Callable[[float], None]) -> Plan:
    again = plan.read(failed.yaml)
    located = plan.newest(again)
    history = [Tried(plan.step_of(made.located), code) for made, code in ran]
    action = retry.decide(history, plan.step_of(located))
    if action.name == "give up":
        raise _gave_up(failed, ran, action.reason)
    if action.name == "go back":
        try:
            located = plan.newest(again, back=True)
        except MsResumeError:
            raise _gave_up(failed, ran, f"{action.reason}, and there is no older checkpoint to go back to") from None
    say(f"{action.name}, {action.reason}" + (f": waiting {action.wait_s:g} s" if action.wait_s else ""))
    sleep(action.wait_s)
    return plan.write(plan.make(again, located, datetime.now()))


def _gave_up(failed: Plan, ran: list[tuple[Plan, int]], reason: str) -> GaveUp:
    return GaveUp(
        f"{failed.yaml}: gave up: {reason}",
        hint=f"see the end of {failed.log}; then `{COMMAND} train {failed.yaml}`, or recover from it again",
        ran=[{"yaml": str(made.yaml), "code": code} for made, code in ran],
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


def _how(code: int) -> str:
    if code == _NOT_FOUND:
        return "was not found (127)"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _tail(log: Path) -> str:
    """What it said last."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])
