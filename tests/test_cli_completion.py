"""Pressing TAB: the script that `ms-resume --print-completion` prints, in a real bash on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shtab

from ms_resume import cli

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ms-resume.bash"
    words = [sys.executable, "-m", "ms_resume.cli", "--print-completion", "bash"]
    path.write_bytes(subprocess.run(words, capture_output=True, check=True).stdout)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "save" / "train").mkdir(parents=True)
    (tmp_path / "save.log").touch()
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def typed(script: Path, here: Path, keys: str, until: str) -> str:
    """What stands on the line after `keys` were typed in a shell of `here`, which shows its prompt."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "$ ", "HISTFILE": ""}
    words = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(
        words, cwd=here, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as shell:
        os.close(theirs)
        os.write(ours, f"bind 'set bell-style none'; source {script}; echo re''ady\n".encode())
        try:
            _shown(ours, "\nready\n$ ")
            os.write(ours, keys.encode())
            line = _shown(ours, until)
        finally:
            shell.kill()
    os.close(ours)
    return line


def _shown(fd: int, until: str) -> str:
    shown, deadline = "", time.monotonic() + 60
    while until not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([fd], [], [], 0.1)[0]:
            shown += os.read(fd, 65536).decode().replace("\r", "")
    return shown


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("ms-resume loc\t", "ms-resume locate "),
        ("ms-resume rest\tsa\t", "ms-resume restore save/"),  # not save.log: it is no directory
        ("ms-resume show mo\t", "ms-resume show model.safetensors "),
        ("ms-resume prune --ke\t", "ms-resume prune --keep-last "),
        ("ms-resume ls --ref-dir save/t\t", "ms-resume ls --ref-dir save/train/"),
        ("ms-resume --print-completion z\t", "ms-resume --print-completion zsh "),
    ],
)
def test_one_way_to_go_on(keys: str, line: str, script: Path, here: Path) -> None:
    """Commands, options, directories and files are typed to their end."""
    assert line in typed(script, here, keys, until=line)


def test_several_ways_to_go_on(script: Path, here: Path) -> None:
    """All commands are listed."""
    shown = typed(script, here, "ms-resume \t\t", until="\n$ ms-resume ")

    assert set(re.findall(r"\b[a-z]+\b", shown)) >= set(cli._COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_it_knows_every_command_and_option(shell: str, capsys: Capture) -> None:
    """Of both shells' scripts; zsh itself need not be there for that."""
    assert cli.main(["--print-completion", shell]) == 0
    printed = capsys.readouterr().out

    assert all(re.search(rf"\b{command}\b", printed) for command in cli._COMMANDS)
    assert all(flag in printed for flag in ("--deep", "--position", "--dry-run", "--keep-last", "--ref-dir", "--json"))
    assert ("#compdef ms-resume" in printed) == (shell == "zsh")


def test_without_shtab(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usage error with what to type, and the rest works."""
    assert shtab.__version__
    monkeypatch.setitem(sys.modules, "shtab", None)
    codes = (cli.main(["--print-completion", "bash"]), cli.main(["--version"]))
    printed = capsys.readouterr()

    assert codes == (2, 0)
    assert "--print-completion needs shtab, which is not installed\n  -> pip install shtab" in printed.err


def test_another_shell(capsys: Capture) -> None:
    """Two are offered."""
    assert cli.main(["--print-completion", "fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err
