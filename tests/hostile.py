"""Looks at a save directory that may be anybody's, with a hand on the time, the memory, and on what is opened."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ms_resume import cli
from ms_resume.errors import ExitCode

COMMANDS = (("ls",), ("locate",), ("verify", "--all", "--deep"))

_opened: list[str] | None = None
_READS = ("open", "os.listdir", "os.scandir")


def _note(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event in _READS and isinstance(args[0], (str, bytes)):
        path = os.fsdecode(args[0])
        follows = event != "open" or not args[2] & os.O_NOFOLLOW
        _opened.append(os.path.realpath(path) if follows else os.path.join(*_real(path)))


sys.addaudithook(_note)


def _real(path: str) -> tuple[str, str]:
    """A path that is not followed in its last part."""
    return os.path.realpath(os.path.dirname(path)), os.path.basename(path)


@contextmanager
def watched(save: Path, *, more: Sequence[Path] = (), seconds: float = 60, megabytes: int = 200) -> Iterator[None]:
    """Fails what takes longer on a processor, waits for ever, reserves more memory, or opens anything but `save`,
    `more`, and Python itself."""
    global _opened
    allowed = [
        os.path.realpath(path) for path in (save, *more, sys.prefix, sys.base_prefix, Path(cli.__file__).parents[2])
    ]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at it after {seconds} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, after_s in timers:
        signal.setitimer(timer, after_s)
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), limits[1]))
    _opened = seen = []
    try:
        yield
    finally:
        _opened = None
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    outside = [path for path in seen if not any(path == a or path.startswith(a + "/") for a in allowed)]
    assert not outside, f"opened outside the save directory: {outside}"


def look(capsys: pytest.CaptureFixture[str], save: Path, *words: str, **limits: Any) -> tuple[int, str]:
    """Runs one command as people and as scripts call it; its exit code, and all that it printed for people."""
    codes, said = [], ""
    for extra in ((), ("--json",)):
        capsys.readouterr()
        with watched(save, **limits):
            codes.append(cli.main([words[0], str(save), *words[1:], *extra]))
        printed = capsys.readouterr()
        assert codes[-1] != ExitCode.BUG, printed.err
        if extra:
            json.loads(printed.out)
        else:
            said = printed.out + printed.err
    assert codes[0] == codes[1]
    return codes[0], said


def in_a_process(*words: str) -> subprocess.CompletedProcess[bytes]:
    """As from a shell, where standard output takes no text that is not UTF-8."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run([sys.executable, "-m", "ms_resume.cli", *words], capture_output=True, env=environment)


def look_at_all(capsys: pytest.CaptureFixture[str], save: Path, **limits: Any) -> dict[str, tuple[int, str]]:
    """Every command that only looks."""
    return {" ".join(words): look(capsys, save, *words, **limits) for words in COMMANDS}


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "a FIFO, expected a file"),
    "directory": (Path.mkdir, "a directory, expected a file"),
    "socket": (make_socket, "a socket, expected a file"),
    "device": (make_device, "a device, expected a file"),
    "link out": (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link, expected a file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "a symbolic link, expected a file"),
    "link to itself": (lambda path: path.symlink_to(path), "a symbolic link, expected a file"),
}
"""What can have a file's name, and what is said of it."""

DOCUMENTS = {
    "empty": b"",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "huge": b"[" + b"[]," * (30 << 20),
    "no object": b"[]",
    "a number": b"3",
    "a number of many digits": b'{"epoch": ' + b"1" * 5000 + b"}",
    "not UTF-8": b'{"format": "\xff\xfe"}',
    "UTF-16": '{"format": "ms_resume/1"}'.encode("utf-16"),
    "a lone surrogate": b'{"format": "ms_resume/1", "attempt": "\\ud800"}',
    "a name twice": b'{"format": "ms_resume/1", "format": "ms_resume/1"}',
    "not a number": b'{"format": NaN}',
}
"""JSON that nobody wrote in earnest."""
