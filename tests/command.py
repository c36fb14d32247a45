"""Calls `ms-resume` as a user does, in process, and holds it to its word that looking changes nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ms_resume import cli

Tree = dict[str, tuple[int, int, int, int]]


@dataclass(frozen=True)
class Called:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as one JSON object: raises where there is anything else on it."""
        document: dict[str, Any] = json.loads(self.out)
        return document


def call(capsys: pytest.CaptureFixture[str], command: str, save: Path | str, *words: str) -> Called:
    """Runs `ms-resume COMMAND SAVE ...`; fails where that changed a name, size, mode, or time in SAVE."""
    looked_at = Path(save) if Path(save).is_dir() else Path(save).parent
    before = tree(looked_at)
    called = act(capsys, command, save, *words)
    assert tree(looked_at) == before, "an inspection changed the save directory"
    return called


def act(capsys: pytest.CaptureFixture[str], command: str, save: Path | str, *words: str) -> Called:
    """Runs `ms-resume COMMAND SAVE ...`, which may change something."""
    code = cli.main([command, str(save), *words])
    printed = capsys.readouterr()
    return Called(code, printed.out, printed.err)


def example(command: str) -> tuple[list[str], str]:
    """The first example in a command's help: its words, and a pattern of what it prints.

    `...` stands for what is long or differs.
    """
    lines = re.findall(r"^    (.*)$", getattr(cli, command).__doc__ or "", re.MULTILINE)
    words = lines[0].split()
    assert words[:3] == ["$", "ms-resume", command]
    return words[2:], "\n".join(re.escape(line).replace(r"\.\.\.", ".*") for line in lines[1:])


def in_terminal(words: list[str], cwd: Path, columns: int) -> str:
    """Everything that `words` prints on a terminal of this width, without its control sequences."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(words, cwd=cwd, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.returncode in (0, 20)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown.decode()).replace("\r", "")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # how Linux says that the other end of a terminal was closed
        return b""


def tree(directory: Path) -> Tree:
    """Every name below `directory`, and its size, mode, inode, and time of change."""
    found: Tree = {}
    for here, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(here, name)
            status = os.lstat(path)
            found[path] = (status.st_size, status.st_mode, status.st_ino, status.st_mtime_ns)
    return found
