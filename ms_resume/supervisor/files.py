"""The supervisor's own files, all in its log directory: the history, the lock, the launcher's output.

<LOG_DIR>/history.jsonl                       one JSON object a line: start, end, decision
<LOG_DIR>/supervisor.lock                     held while a supervisor lives
<LOG_DIR>/attempts/NNNNNN-<token>/            one start: launcher.log, rank_R.pulse, rank_R.stacks, rank_R.outcome
<save>.supervisor.lock                        the same beside the save directory, which may not be there yet
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ms_resume.errors import DirectoryInUse, DiskError, UsageError
from ms_resume.ondisk import atomic
from ms_resume.records import Position
from ms_resume.supervisor.evidence import Action, Ended

HISTORY = "history.jsonl"
LOCK = "supervisor.lock"
LAUNCHER_LOG = "launcher.log"
FINAL = ("done", "stop", "leave")
_TAIL_BYTES = 65536
_TAIL_LINES = 400


class Lock:
    """One supervisor a log directory, and one a save directory. The kernel lets go of it when the process dies."""

    def __init__(self, log_dir: Path) -> None:
        """Raises DirectoryInUse where another supervisor has it."""
        self._held: dict[Path, int] = {}
        try:
            descriptor = os.open(log_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DiskError(f"{log_dir}: cannot be written: {error.strerror}", hint="give another --log-dir") from None
        self._take(descriptor, log_dir / LOCK, log_dir)

    def beside(self, save: Path) -> None:
        """Locks the save directory's name, before there is one: another supervisor may log elsewhere."""
        there = save.resolve()
        lock = there.with_name(f"{there.name}.{LOCK}")
        try:
            atomic.make_dirs(lock.parent)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (OSError, DiskError):
            return  # then no rank can make the save directory there either
        self._take(descriptor, lock, save)

    def also(self, save: Path) -> None:
        """Locks the save directory itself, once there is one: it may be mounted under another name, too."""
        if save not in self._held and save.is_dir():
            self._take(os.open(save, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), save, save)

    def release(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _take(self, descriptor: int, what: Path, where: Path) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise DirectoryInUse(
                f"{where}: another supervisor is at work there{f' (pid {holder})' if holder else ''}",
                hint="let it go on; or end it with SIGTERM, which saves first",
            ) from None
        except OSError:
            pass  # a network file system that has no locks; ranks ask for the save directory's owner anyway
        self._held[what] = descriptor


def _holder(descriptor: int) -> int | None:
    """Who holds the lock on a file, as the kernel lists it."""
    inode = os.fstat(descriptor).st_ino
    try:
        listed = Path("/proc/locks").read_text()
    except OSError:
        return None
    match = re.search(rf"FLOCK +\S+ +WRITE +(\d+) +\w+:\w+:{inode} ", listed)
    return int(match[1]) if match else None


class History:
    """What happened, one line an event. Appended and synced; a line that a crash cut short is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events, self.cut = read_history(path) if path.exists() else ([], 0)

    def append(self, event: str, **values: Any) -> None:
        """Raises DiskError where the log directory cannot be written."""
        entry = {"event": event, **values}
        try:
            with open(self.path, "ab+") as file:
                file.seek(-1, os.SEEK_END) if file.tell() else None
                start = b"\n" if file.read(1) not in (b"\n", b"") else b""
                file.write(start + json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be written: {error.strerror}", hint="free space there") from None
        self.events.append(entry)

    @property
    def current(self) -> list[dict[str, Any]]:
        """The events since the run was last finished, left, or given up."""
        finals = [n for n, e in enumerate(self.events) if e["event"] == "decision" and e.get("what") in FINAL]
        return self.events[finals[-1] + 1 :] if finals else self.events

    @property
    def ordinal(self) -> int:
        """Of the last start."""
        return max((int(e.get("ordinal", 0)) for e in self.events), default=0)


def read_history(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events of a history file, and how many lines could not be read.

    Raises:
        UsageError: It cannot be opened, or nothing in it is an event.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="name a history.jsonl") from None
    events = [event for line in lines if (event := _event(line)) is not None]
    written = [line for line in lines if line.strip()]
    if written and not events:
        raise UsageError(f"{path}: not a history: no line of it is an event", hint="name a history.jsonl")
    return events, len(written) - len(events)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    known = isinstance(event, dict) and event.get("event") in ("start", "end", "decision")
    return event if known else None


def ended(event: Mapping[str, Any]) -> Ended:
    """The part of an `end` that a decision depends on. Raises UsageError where it is not one."""
    try:
        return Ended(
            ordinal=int(event["ordinal"]),
            kind=str(event["class"]),
            then=str(event["then"]),
            detail=str(event.get("detail", "")),
            exit_code=event.get("exit_code"),
            **{name: position(event.get(name)) for name in ("reached", "before", "checkpoint", "older", "back")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not an event of a history: {event!r:.120} ({error})", hint="was it edited?") from None


def position(value: Sequence[int] | None) -> Position | None:
    return None if value is None else Position(int(value[0]), int(value[1]))


def action_json(action: Action) -> dict[str, Any]:
    return {
        "what": action.what,
        "reason": action.reason,
        "delay_s": round(action.delay_s, 3),
        "back": action.back.to_json() if action.back else None,
        "exit_code": action.exit_code,
    }


def launcher_log(directory: Path) -> BinaryIO:
    """Where the launcher's output goes: a file, so that it outlives this supervisor."""
    return open(directory / LAUNCHER_LOG, "ab")


def tail(path: Path, begin: int = 0) -> tuple[str, ...]:
    """The last lines of a log, none of them from before its byte `begin`; none where there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, begin, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ()
    return tuple(line.rstrip() for line in text.splitlines()[-_TAIL_LINES:])


def document(path: Path) -> dict[str, Any] | None:
    """A pulse or an outcome; None while there is none, or only a part of one."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_TAIL_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
