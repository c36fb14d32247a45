"""Calls `ms-resume` as a user does, in process, and holds it to its word that looking changes nothing."""

from __future__ import annotations

import json
import os
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
    before = tree(Path(save))
    code = cli.main([command, str(save), *words])
    assert tree(Path(save)) == before, "an inspection changed the save directory"
    printed = capsys.readouterr()
    return Called(code, printed.out, printed.err)


def tree(directory: Path) -> Tree:
    """Every name below `directory`, and its size, mode, inode, and time of change."""
    found: Tree = {}
    for here, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(here, name)
            status = os.lstat(path)
            found[path] = (status.st_size, status.st_mode, status.st_ino, status.st_mtime_ns)
    return found
