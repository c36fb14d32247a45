"""What a rank tells whoever supervises it: where it is, what all its threads are doing when asked, and how it ended.

    writes   rank_R.pulse, rank_R.stacks, rank_R.outcome, rank_R.jsonl in the directory that MS_RESUME_WATCH_DIR names;
             scheduler.failed where msrun's scheduler, which runs the same program, ends with an error

The directory is the supervisor's, never a save directory. No thread moves a pulse: it moves when training does, so one
that stands still is a rank that hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from ms_resume import settings
from ms_resume.errors import DiskError, ExitCode, MsResumeError
from ms_resume.ondisk import atomic
from ms_resume.records import Position

STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank write the Python stacks of all its threads, also while it waits inside a collective."""

SCHEDULER_FAILED = "scheduler.failed"
"""What the scheduler's error was."""

_BYTES = 512
_TRACEBACK_LINES = 40


class Pulse:
    """One rank's files. With no directory, which is when nobody supervises, nothing is written."""

    def __init__(self, directory: str, rank: int, job_id: str = "") -> None:
        self._directory = Path(directory) if directory else None
        self._job_id = job_id
        self.rank = rank
        self._at: dict[str, Any] = {"phase": "launch", "position": None}
        self._said: dict[str, Any] = {}
        self._stacks: IO[str] | None = None
        self._own = {"rank": rank, "pid": os.getpid(), "pid_start": _started(), "host": platform.node()}
        if self._directory is not None and self._directory.is_dir():
            self._listen(self._directory / f"rank_{rank}.stacks")
            self.beat("launch")
        else:
            self._directory = None  # gone: a process that outlived its supervisor's logs makes none anew

    def beat(self, phase: str, position: Position | None = None) -> None:
        """Says that `phase` begins, at `position` or at the last one that was told."""
        self._at = {"phase": phase, "position": position.to_json() if position else self._at["position"]}
        if not self._is_mine():
            return
        said = {**self._own, **self._at, "stacks": self._stacks is not None, "beat": time.monotonic_ns()}
        assert self._directory is not None
        # Padded, because what was there before is overwritten in place and may have been longer.
        content = json.dumps(said).ljust(_BYTES) + "\n"
        with contextlib.suppress(DiskError):  # a log disk that is full must not stop training
            atomic.scribble(self._directory / f"rank_{self.rank}.pulse", content.encode())

    def log(self, level: str, message: str) -> None:
        """A line for a log collector, with the fields that the supervisor's own log has."""
        if not self._is_mine():
            return
        assert self._directory is not None
        line = {
            "time": _now(),
            "level": level,
            "module": "rank",
            "message": message,
            "node": self._own["host"],
            "rank": self.rank,
            "attempt": int(self._directory.name.partition("-")[0]),
            "job_id": self._job_id,
            "position": self._at["position"],
        }
        with contextlib.suppress(OSError), open(self._directory / f"rank_{self.rank}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def ended(self, *, done: bool = False, left: bool = False, error: BaseException | None = None) -> None:
        """Training has ended: at its end, on request, or with an error. What is said later adds to it."""
        self._said |= {"done": done, "left": left}
        if error is None:
            self.beat("end")
        else:
            self._said["error"] = _described(error)
            self.log("ERROR", f"{type(error).__name__}: {error}")
        self._write()

    def exits(self, code: int, error: BaseException | None = None) -> None:
        """The process is about to exit with `code`."""
        self._said["exit_code"] = code
        self._said["done"] = code == 0 and bool(self._said.get("done", True))
        self._said["left"] = self._said.get("left", False) or code == ExitCode.LEFT_ON_REQUEST
        if error is not None:
            self._said["error"] = _described(error)
            self.log("ERROR", f"{type(error).__name__}: {error}")
        self._write()

    def _is_mine(self) -> bool:
        """False without a directory, and in a child that was forked from the rank."""
        return self._directory is not None and self._own["pid"] == os.getpid()

    def _write(self) -> None:
        if not self._is_mine():
            return
        assert self._directory is not None
        content = json.dumps({**self._own, **self._at, **self._said, "at": _now(), "at_ns": time.monotonic_ns()})
        attempt = self._directory.name
        with contextlib.suppress(DiskError):
            atomic.replace(self._directory / f"rank_{self.rank}.outcome", content.encode(), attempt)

    def _listen(self, path: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stacks = open(path, "a")  # noqa: SIM115  # open as long as the process lives: a signal may come
            faulthandler.register(STACKS_SIGNAL, file=self._stacks, all_threads=True)


def of(directory: str, rank: int, job_id: str = "") -> Pulse:
    """This process's pulse for `rank`: the one that `run` opened, or a new one."""
    if _OPENED and _OPENED[0].rank == rank:
        return _OPENED[0]
    return Pulse(directory, rank, job_id)


_OPENED: list[Pulse] = []


def run(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Calls a trainer's `main` and tells the supervisor how it ended, wherever that was.

    Without it a supervisor knows only what happens between `Checkpointer.start` and its end.
    """
    rank, here = _announced_rank(), settings.from_environment()
    if not here.watch_dir:
        return main(arguments)
    if rank is None:
        return _schedule(main, arguments, Path(here.watch_dir))
    pulse = Pulse(here.watch_dir, rank, here.label)
    _OPENED[:] = [pulse]
    try:
        code = main(arguments)
    except SystemExit as end:
        pulse.exits(_code_of(end))
        raise
    except BaseException as error:
        pulse.exits(1, error)
        raise
    pulse.exits(code)
    return code


def _schedule(main: Callable[[list[str]], int], arguments: list[str], directory: Path) -> int:
    """msrun asks its scheduler last, when all ranks have ended: who waits for a rendezvous that nobody holds, waits for
    MindSpore's timeouts, half an hour by default."""
    try:
        return main(arguments)
    except Exception as error:
        if directory.is_dir():
            with contextlib.suppress(DiskError):
                atomic.replace(directory / SCHEDULER_FAILED, json.dumps(_described(error)).encode(), directory.name)
        raise


def told(error: BaseException) -> None:
    """For a `main` that catches an error and returns its exit code: lets the supervisor know which error it was."""
    for pulse in _OPENED:
        pulse.ended(error=error)


def _announced_rank() -> int | None:
    """The rank that msrun gave this process; None in its scheduler, which runs the same program in another role."""
    if os.environ.get("MS_ROLE", "") == "MS_SCHED":
        return None
    rank = os.environ.get("RANK_ID", "0")
    return int(rank) if rank.isdecimal() else 0


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _started() -> int:
    """When this process did, in clock ticks since boot: its pid may be another's later."""
    try:
        return int(Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    return 1  # a text, which the interpreter prints


def _described(error: BaseException) -> dict[str, Any]:
    """Its class, message, and last lines; an error of ours with everything that it carries."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    tail = "".join(lines).splitlines()[-_TRACEBACK_LINES:]
    if isinstance(error, MsResumeError):
        return {**_plain(error.to_json()), "traceback": tail}
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind not in (object, BaseException, Exception)]
    return {"error": type(error).__name__, "kinds": kinds, "message": str(error)[:2000], "traceback": tail}


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(document, default=str))
    return plain
