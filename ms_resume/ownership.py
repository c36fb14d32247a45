"""Who owns a save directory: the newest attempt record, and whether the job behind it is alive.

    writes   commits/attempts/NNNNNN.json, once a start, and its heartbeat

Whoever is about to publish, vote, retract, or delete asks `assert_owner` first, so that a worker that survived its
launcher cannot harm its successor.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ms_resume.errors import DirectoryInUse, DiskError, Superseded
from ms_resume.layouts import ours
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import atomic, attempts, names
from ms_resume.records import Attempt, Checkpoint, DeadStock, Origin, Writer


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def open_attempt(surveyed: Survey, origin: Origin | None, world_size: int, label: str = "") -> Attempt:
    """Takes the directory over with a new record, durably. One rank of the job calls it.

    Raises:
        DirectoryInUse: Another job opened an attempt since `surveyed` was taken.
    """
    newest = surveyed.records[-1].ordinal if surveyed.records else 0
    attempt = Attempt(
        attempt=f"{newest + 1:06d}-{secrets.token_hex(8)}",
        origin=origin,
        world_size=world_size,
        created_at=now(),
        label=label,
        dead_stock=tuple(_passed_stock(surveyed, origin)),
        **_identity(),
    )
    atomic.make_dirs(names.attempts(surveyed.save))
    record = names.attempt_record(surveyed.save, attempt.ordinal)
    try:
        atomic.publish(record, [attempts.encode(attempt)], attempt.attempt)
    except FileExistsError:
        raise DirectoryInUse(
            f"{record}: another job has just started in this save directory",
            hint="wait for it to end, or save to another directory",
        ) from None
    atomic.sync_dir(names.commits(surveyed.save))
    atomic.sync_dir(surveyed.save)
    return attempt


def check_free(save: Path) -> None:
    """Raises DirectoryInUse while the owner of the directory is alive.

    On the same machine its process decides, at once. Elsewhere its heartbeat does: it is watched for two and a half
    beats on this machine's own clock, so that clocks need not agree.
    """
    records = attempts.read_all(save)
    if not records:
        return
    owner = records[-1]
    if (owner.boot_id, owner.pid_namespace) == (_boot_id(), _pid_namespace()):
        alive = owner.pid != os.getpid() and _start_of(owner.pid) == owner.pid_start
    else:
        alive = _heartbeat_moves(names.heartbeat(save, owner.ordinal))
    if alive:
        raise DirectoryInUse(
            f"{save}: attempt {owner.attempt} is running there (host {owner.host}, pid {owner.pid}, "
            f"since {owner.created_at})",
            hint="stop that job first, or save to another directory; --take-over starts nevertheless and stops it",
            owner=owner.attempt,
        )


def assert_owner(writer: Writer) -> None:
    """Raises Superseded when a newer attempt has taken the directory over."""
    newest = attempts.newest_ordinal(writer.save)
    if newest != writer.attempt.ordinal:
        raise Superseded(
            f"{writer.save}: attempt {writer.attempt.attempt} (this process, rank {writer.rank}) was superseded by "
            f"attempt number {newest}; nothing was written",
            hint="let this process end: the newer attempt goes on with the run",
        )


class Heartbeat:
    """Moves the owner's heartbeat from a thread until `stop`, which removes it: a job that ended does not look alive."""

    def __init__(self, writer: Writer, interval_s: float) -> None:
        self._path = names.heartbeat(writer.save, writer.attempt.ordinal)
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ms_resume heartbeat", daemon=True)
        self._beat(0)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(self._interval_s):
            beat += 1
            self._beat(beat)

    def _beat(self, beat: int) -> None:
        with contextlib.suppress(DiskError):  # a full disk is reported by the save, not from here
            atomic.replace_unsynced(self._path, f"{beat} {self._interval_s}\n".encode())


def origin_of(checkpoint: Checkpoint, save: Path) -> Origin:
    """How an attempt record that starts from `checkpoint` names it."""
    elsewhere = None if checkpoint.save.resolve() == save.resolve() else str(checkpoint.save.resolve())
    return Origin(checkpoint.position, checkpoint.attempt, elsewhere)


def _passed_stock(surveyed: Survey, origin: Origin | None) -> Iterable[DeadStock]:
    floor = origin.position if origin and origin.save is None else None
    for position in surveyed.positions:
        if (floor is None or position > floor) and not ours.claims(surveyed, position):
            policies = [path for (role, _), path in surveyed.payloads[position].items() if role == "policy"]
            yield DeadStock(position, tuple(_signature(surveyed.save, path) for path in sorted(policies)))


def _signature(save: Path, path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.relative_to(save).as_posix(), status.st_size, status.st_mtime_ns


def _identity() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "pid_start": _start_of(os.getpid()) or 0,
        "pid_namespace": _pid_namespace(),
    }


def _boot_id() -> str:
    return _read_proc("/proc/sys/kernel/random/boot_id").strip()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """The process's start time in clock ticks since boot; a reused pid has another. None when there is no such process."""
    fields = _read_proc(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _read_proc(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _heartbeat_moves(path: Path) -> bool:
    first = _read_proc(str(path))
    if not first:
        return False
    deadline = time.monotonic() + 2.5 * float(first.split()[1])
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if _read_proc(str(path)) not in (first, ""):
            return True
    return False
