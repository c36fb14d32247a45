"""Ends what is left of a training: the processes that carry its mark in their environment, and no others.

    python -m ms_resume.recover.leftovers [--dry-run] TRAINING.yaml ...

The mark is the path of the YAML file. What a training starts inherits it: torchrun's workers, data loaders, processes
in sessions of their own. Exit code 0 when nothing is left, 40 when something cannot be ended, 61 when --dry-run finds
some.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import ExitCode

VARIABLE = "TRAINING_YAML"
GENTLY_S = 10.0
_HARD_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command[:60]})"


@dataclass(frozen=True, slots=True)
class Ended:
    """Which processes were there; `killed` did not end by themselves, `left` hang in the kernel."""

    found: tuple[Process, ...]
    killed: tuple[Process, ...] = ()
    left: tuple[Process, ...] = ()


def mark(yaml: Path) -> str:
    """The entry in the environment of everything that the training of that file starts."""
    return f"{VARIABLE}={os.path.realpath(yaml)}"


def end(yaml: Path, *, gently_s: float = GENTLY_S, clock: Callable[[], float] = time.monotonic) -> Ended:
    """SIGTERM to all that carry the mark, SIGKILL to those that are there `gently_s` later. They are looked for until
    none is there, because one that ends may have started another."""
    found = find(yaml)
    deadline = clock() + gently_s
    _send(yaml, found, signal.SIGTERM)
    while (rest := find(yaml)) and clock() < deadline:
        time.sleep(_POLL_S)
    killed, deadline = rest, clock() + _HARD_S
    while rest and clock() < deadline:
        _send(yaml, rest, signal.SIGKILL)
        time.sleep(_POLL_S)
        rest = find(yaml)
    return Ended(tuple(found), tuple(killed), tuple(rest))


def find(yaml: Path) -> list[Process]:
    """The living processes that carry the mark, but this one and those above it."""
    above = _above(os.getpid())
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in above]
    return [Process(pid, _command(pid)) for pid in sorted(pids) if _has(pid, mark(yaml))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="leftovers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("yaml", nargs="+", metavar="TRAINING.yaml", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="name them, end none")
    args = parser.parse_args(argv)
    code = ExitCode.OK
    for yaml in args.yaml:
        if args.dry_run:
            found = find(yaml)
            _say(yaml, "would end", found)
            code = ExitCode.IN_USE if found else code
            continue
        ended = end(yaml)
        _say(yaml, "ended", ended.found)
        if ended.killed:
            _say(yaml, f"had to kill, after {GENTLY_S:g} s,", ended.killed)
        if ended.left:
            _say(yaml, "cannot end", ended.left)
            print(
                "  -> they hang in the kernel, often in a device's driver: reset the device, or the host",
                file=sys.stderr,
            )
            code = ExitCode.DISK
    return int(code)


def _say(yaml: Path, what: str, processes: Sequence[Process]) -> None:
    listed = ", ".join(map(str, processes)) or "nothing"
    print(f"leftovers: {yaml}: {what} {listed}", file=sys.stderr)


def _send(yaml: Path, processes: Sequence[Process], number: signal.Signals) -> None:
    for process in processes:
        if _has(process.pid, mark(yaml)):  # looked at again: a pid alone may be somebody else's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)
                os.kill(process.pid, signal.SIGCONT)  # a stopped one would hear of it too late


def _has(pid: int, entry: str) -> bool:
    """False of a zombie, which has no environment any more, and of other users' processes."""
    return os.fsencode(entry) in _read(pid, "environ").split(b"\0")


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _above(pid: int) -> set[int]:
    found = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
