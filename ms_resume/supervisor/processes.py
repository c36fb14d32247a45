"""Processes as Linux shows them. A pid alone is never believed: it may be somebody else's by now.

A process belongs to an attempt when its environment names the attempt's directory, or when it descends from one that
does, or shares a session with one: some programs overwrite their own environment.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ms_resume.settings import PREFIX

MARK = f"{PREFIX}WATCH_DIR"
_POLL_S = 0.02
_UNKILLABLE_S = 10.0
"""How long a process in an uninterruptible call is waited for after SIGKILL."""


@dataclass(frozen=True, slots=True)
class Process:
    """A pid and the clock tick since boot at which it started; together they name one process."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment. `status` is how it ended, as `os.wait` has it; it means something in state Z only."""

    state: str
    parent: int
    session: int
    start: int
    status: int

    @property
    def ended(self) -> bool:
        return self.state in "ZX"


class Watched:
    """A process that is looked at again and again: an open `/proc/PID/stat` is of this process for good."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is none."""
        try:
            self._fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(pid) from None
        self.handle: int | None = None
        self.process = Process(pid, 0)
        look = self.look()
        if look is None:
            self.close()
            raise ProcessLookupError(pid)
        self.process = Process(pid, look.start)
        self.handle = _handle(pid)  # on old kernels None
        if self.handle is not None and self.look() is None:  # it ended meanwhile: the handle may be of another
            os.close(self.handle)
            self.handle = None

    def look(self) -> Look | None:
        """None once its parent has taken its exit status."""
        try:
            return parse(os.pread(self._fd, 4096, 0).decode(errors="replace"))
        except ProcessLookupError:
            return None

    def close(self) -> None:
        for descriptor in (self._fd, self.handle):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._fd, self.handle = -1, None


def nap(watched: Iterable[Watched], seconds: float) -> None:
    """Sleeps until one of them ends, or so long. Whoever is awake then still sees how it ended: its parent has hardly
    taken its status yet."""
    poller = select.poll()
    for one in watched:
        if one.handle is not None:
            poller.register(one.handle, select.POLLIN)
    poller.poll(seconds * 1000)


def parse(stat: str) -> Look | None:
    """A line of `/proc/PID/stat`; a process's name may hold anything, also `) Z 1`."""
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 50:
        return None
    return Look(fields[0], int(fields[1]), int(fields[3]), int(fields[19]), int(fields[49]))


def look(pid: int) -> Look | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def exit_code(status: int) -> int:
    """A wait status as `subprocess` has it: negative for a signal."""
    return os.waitstatus_to_exitcode(status)


def environment(pid: int) -> bytes:
    """What the process was started with, each variable between two zero bytes; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + file.read() + b"\0"
    except OSError:
        return b""


def words(pid: int) -> list[bytes]:
    """The command with its arguments; one empty word where it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return [b""]


def marked(value: str, *, below: bool = False, mark: str = MARK) -> list[Process]:
    """The living processes of the attempt in the directory `value`; with `below`, of all attempts in it.

    This process and those above it never count, whatever their environment says.

    Args:
        mark: The variable that holds the value.
    """
    needle = os.fsencode(f"\0{mark}={value}{'/' if below else chr(0)}")
    seen = dict(_everything())
    own = _lineage(os.getpid(), seen)
    members = {pid for pid in seen if pid not in own and needle in environment(pid)}
    while True:
        sessions = {seen[pid].session for pid in members} & members
        more = {
            pid
            for pid, found in seen.items()
            if pid not in members and pid not in own and (found.parent in members or found.session in sessions)
        }
        if not more:
            return [Process(pid, seen[pid].start) for pid in sorted(members)]
        members |= more


def workers(directory: str) -> dict[int, Process]:
    """The ranks that msrun started in this attempt, by rank; what a rank itself started is left out, and the `tail -f`
    with which msrun shows a rank's log: it has the rank's environment, and is killed when all is done."""
    needle = f"\0{MARK}={directory}\0".encode()
    found: dict[int, Process] = {}
    for pid, its in dict(_everything()).items():
        variables = environment(pid)
        if needle in variables and b"\0MS_ROLE=MS_WORKER\0" in variables:
            rank = variables.partition(b"\0RANK_ID=")[2].partition(b"\0")[0]
            parent_is_one = b"\0MS_ROLE=MS_WORKER\0" in environment(its.parent)
            if rank.isdigit() and not parent_is_one and os.path.basename(words(pid)[0]) != b"tail":
                found[int(rank)] = Process(pid, its.start)
    return found


def _handle(pid: int) -> int | None:
    """A descriptor of the process itself; None where it is gone, and on kernels before 5.3, which many hosts have."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


def alive(process: Process) -> bool:
    found = look(process.pid)
    return found is not None and found.start == process.start and not found.ended


def send(process: Process, number: signal.Signals) -> bool:
    """Signals this process and no other; False when it is gone."""
    handle = _handle(process.pid)  # where there are none, the moment between look and signal is accepted
    try:
        if not alive(process):
            return False
        if handle is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        if handle is not None:
            os.close(handle)


def end(
    find: Callable[[], list[Process]],
    *,
    gently_s: float,
    clock: Callable[[], float] = time.monotonic,
    tick: Callable[[], object] = lambda: None,
) -> list[Process]:
    """Ends all that `find` finds: SIGTERM, and SIGKILL to what is there after `gently_s`.

    Args:
        find: Asked again until it finds nothing, because what is ended may have started more meanwhile.
        tick: Called in between: reaps children.

    Returns:
        What could not be ended: it hangs in the kernel.
    """
    victims = find()
    for process in victims:
        send(process, signal.SIGTERM)
        send(process, signal.SIGCONT)  # a stopped one would hear of it too late
    _wait(victims, clock() + gently_s, clock, tick)
    deadline = clock() + _UNKILLABLE_S
    while (left := find()) and clock() < deadline:
        for process in left:
            send(process, signal.SIGKILL)
        _wait(left, deadline, clock, tick)
    return left


def _wait(victims: Iterable[Process], deadline: float, clock: Callable[[], float], tick: Callable[[], object]) -> None:
    left = list(victims)
    while left and clock() < deadline:
        tick()
        left = [process for process in left if alive(process)]
        if left:
            time.sleep(_POLL_S)


def _everything() -> Iterable[tuple[int, Look]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = look(int(name))
            if found is not None and not found.ended:
                yield int(name), found


def _lineage(pid: int, seen: dict[int, Look]) -> set[int]:
    found = set()
    while pid in seen and pid not in found:
        found.add(pid)
        pid = seen[pid].parent
    return found
