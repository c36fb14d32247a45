"""Who owns a save directory: the newest attempt record, and whether the job behind it is alive.

    writes   commits/attempts/NNNNNN.json, once a start, and its heartbeat

Whoever is about to publish, vote, retract, or delete asks `assert_owner` first, so that a worker that survived its
launcher cannot harm its successor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged, DirectoryInUse, DiskError, Superseded
from ms_resume.layouts import ours
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import atomic, attempts, names, reading
from ms_resume.records import Attempt, DeadStock, Origin, Writer

_USUAL_BEAT_S = 5.0
_SLOWEST_BEAT_S = 3600.0
_LONGEST_BEAT = 4096


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def open_attempt(
    surveyed: Survey,
    origin: Origin | None,
    world_size: int,
    *,
    after: int,
    label: str = "",
    attempt: str = "",
    weights: str = "",
) -> Attempt:
    """Takes the directory over with a new record, durably. One rank of the job calls it, or one of each disk.

    Args:
        after: The newest ordinal when the directory was found free, before anything was chosen or loaded.
        attempt: The name that the first disk's record has.
        weights: The iteration model that the weights came from.

    Raises:
        DirectoryInUse: Another job opened an attempt since then.
    """
    opened = Attempt(
        attempt=attempt or f"{after + 1:06d}-{secrets.token_hex(8)}",
        origin=origin,
        world_size=world_size,
        created_at=now(),
        label=label,
        weights=weights,
        dead_stock=tuple(passed_stock(surveyed, origin)),
        **_identity(),
    )
    for directory in (names.commits(surveyed.save), names.attempts(surveyed.save)):
        atomic.make_dirs(directory)  # both names, whoever made them
    record = names.attempt_record(surveyed.save, opened.ordinal)
    try:
        if attempts.newest_ordinal(surveyed.save) > after:
            raise FileExistsError
        atomic.publish(record, [attempts.encode(opened)], opened.attempt)
    except (FileExistsError, DiskError) as error:
        if isinstance(error, DiskError) and error.fields["errno"] != errno.ENOENT:
            raise  # the disk failed; without ENOENT: the winner of a race sweeps the loser's temp file
        raise DirectoryInUse(
            f"{record}: another job has just started in this save directory",
            hint="wait for it to end, or save to another directory",
        ) from error
    return opened


def machine() -> str:
    """This one, until it boots again."""
    return f"{platform.node()} {_boot_id()}"


def check_free(save: Path) -> int:
    """The ordinal of the newest attempt, whose job has ended; 0 without one. `open_attempt` wants it.

    Raises DirectoryInUse while the owner of the directory is alive.

    On the same machine its process decides, at once. Elsewhere its heartbeat does: it is watched for two and a half
    beats on this machine's own clock, so that clocks need not agree.
    """
    records = attempts.read_all(save)
    if not records:
        return 0
    owner = records[-1]
    here = (owner.boot_id, owner.pid_namespace) == (_boot_id(), _pid_namespace())
    if here and _sees_processes():
        alive = owner.pid != os.getpid() and _start_of(owner.pid) == owner.pid_start
    else:
        alive = _heartbeat_moves(names.heartbeat(save, owner.ordinal))
    if alive:
        raise DirectoryInUse(
            f"{save}: attempt {owner.attempt} is running there (host {owner.host}, pid {owner.pid}, "
            f"since {owner.created_at})",
            hint="stop that job first, or save to another directory; --take_over starts nevertheless and stops it",
            owner=owner.attempt,
        )
    return owner.ordinal


def assert_owner(writer: Writer) -> None:
    """Raises Superseded when a newer attempt has taken the directory over, or its own record is gone."""
    newest = attempts.newest_ordinal(writer.save)
    if newest < writer.attempt.ordinal:
        record = names.attempt_record(writer.save, writer.attempt.ordinal)
        if record.exists():
            return  # a network file system's cached listing, older than the record that rank 0 made
        raise Superseded(
            f"{record}: gone, so this process (rank {writer.rank}) owns the directory no longer; nothing was written",
            hint="was the save directory moved, emptied, or unmounted? put it back, then start with --resume_training",
        )
    if newest != writer.attempt.ordinal:
        raise Superseded(
            f"{writer.save}: attempt {writer.attempt.attempt} (this process, rank {writer.rank}) was superseded by "
            f"attempt number {newest}; nothing was written",
            hint="let this process end: the newer attempt goes on with the run",
        )


class Heartbeat:
    """Moves an owner's heartbeat until `stop`, which removes it: a job that ended does not look alive.

    It begins before the record is there, so that no other machine finds an owner that does not beat yet.
    """

    def __init__(self, save: Path, ordinal: int, interval_s: float) -> None:
        self._path = names.heartbeat(save, ordinal)
        self._interval_s = interval_s
        atomic.make_dirs(self._path.parent)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ms_resume heartbeat", daemon=True)
        self._beat(0)
        self._thread.start()

    def stop(self, *, remove: bool = True) -> None:
        """`remove=False` where another job won the race for this ordinal: the file is now that one's."""
        self._stopped.set()
        self._thread.join()
        if not remove:
            return
        with contextlib.suppress(DiskError):  # a heartbeat left behind does not move
            atomic.remove(self._path)

    def _run(self) -> None:
        beat = 0
        while not self._stops_within(self._interval_s):
            beat += 1
            self._beat(beat)

    def _stops_within(self, seconds: float) -> bool:
        """In small sleeps: before Python 3.11 a wait of `threading` stands still when the clock is set back."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stopped.is_set():
            time.sleep(min(0.1, seconds))
        return self._stopped.is_set()

    def _beat(self, beat: int) -> None:
        with contextlib.suppress(DiskError):  # a full disk is reported by the save, not from here
            atomic.scribble(self._path, f"{beat:<12} {self._interval_s}\n".encode())


def _interval_s(beat: str) -> float:
    """What a heartbeat says of its own pace; what a power cut or a full disk left of one says nothing."""
    try:
        said = float(beat.split()[1])
    except (IndexError, ValueError):
        said = 0.0
    return said if 0 < said <= _SLOWEST_BEAT_S else _USUAL_BEAT_S


def passed_stock(surveyed: Survey, origin: Origin | None) -> Iterable[DeadStock]:
    """The stock positions that a start from `origin` goes back past."""
    floor, known = origin.position if origin and origin.save is None else None, surveyed.steps_per_epoch
    for position in surveyed.positions:
        newer = floor is None or position.normal(known) > floor.normal(known)
        if newer and not ours.claims(surveyed, position):
            policies = [path for (role, _), path in surveyed.payloads[position].items() if role == "policy"]
            signatures = tuple(filter(None, (_signature(surveyed.save, path) for path in sorted(policies))))
            if signatures:  # without a policy it is torn, and nothing would say when it changes
                yield DeadStock(position, signatures)


def _signature(save: Path, path: Path) -> tuple[str, int, int] | None:
    """None where it is gone: a worker that is slow to die prunes after the survey."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return path.relative_to(save).as_posix(), status.st_size, status.st_mtime_ns


def _identity() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "pid_start": _start_of(os.getpid()) or 0,
        "pid_namespace": _pid_namespace(),
    }


def _sees_processes() -> bool:
    """Whether `/proc` tells of other processes, by the numbers that this one knows: not with hidepid, nor where a
    container has another's `/proc`."""
    try:
        return os.readlink("/proc/self") == str(os.getpid()) and _start_of(1) is not None
    except OSError:
        return False


def _boot_id() -> str:
    return _read_proc("/proc/sys/kernel/random/boot_id").strip()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """The process's start in clock ticks since boot; a reused pid has another. None when there is no such process."""
    fields = _read_proc(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _read_proc(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")  # a process's name may be cut in the middle of a character
    except OSError:
        return ""


def _heartbeat_moves(path: Path) -> bool:
    try:
        if reading.size(path) > _LONGEST_BEAT:
            return False
    except (FileNotFoundError, Damaged):
        return False
    first = _read_proc(str(path))
    deadline = time.monotonic() + 2.5 * _interval_s(first)
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if _read_proc(str(path)) not in (first, ""):
            return True
    return False
