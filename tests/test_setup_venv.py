"""scripts/setup_venv.sh, with Pythons that pretend: which one it takes, what counts as a finished .venv."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
Ended = subprocess.CompletedProcess[str]
Setup = Callable[..., Ended]

# Says a version; `-m venv DIR` puts a copy of itself there; `-m pip` logs, and fails where BREAK_PIP is set.
FAKE = """#!/usr/bin/env bash
case "$*" in
    "-c "*print*) [[ {version} != none ]] || exit 127; echo {version} ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "venv {version}" >>"${{LOG}}" ;;
    "-m pip "*--editable*) echo pip >>"${{LOG}}"; [[ -z "${{BREAK_PIP:-}}" ]] ;;
    *) exit 0 ;;
esac
"""


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    for folder in ("bin", "repo/scripts"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "scripts/setup_venv.sh"):
        (tmp_path / "repo" / name).write_text((TOP / name).read_text())
    for tool in ("bash", "dirname", "cat", "cksum", "rm", "mkdir", "mv", "head", "cp", "flock"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    put(tmp_path, "python3.11", "3.11")

    def setup(**knobs: str) -> Ended:
        env = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log"), **knobs}
        command = ["/usr/bin/bash", str(tmp_path / "repo" / "scripts" / "setup_venv.sh")]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)

    return setup


def put(tmp_path: Path, name: str, version: str) -> None:
    (tmp_path / "bin" / name).write_text(FAKE.format(version=version))
    (tmp_path / "bin" / name).chmod(0o755)


def did(tmp_path: Path) -> str:
    """What happened since the last call."""
    log = tmp_path / "log"
    done = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return " ".join(done.split())


def test_second_time_does_nothing(setup: Setup, tmp_path: Path):
    assert setup().returncode == 0
    assert did(tmp_path) == "venv 3.11 pip"

    second = setup()

    assert (second.returncode, second.stderr, did(tmp_path)) == (0, "", "")


def test_failed_install_is_not_taken_for_good(setup: Setup, tmp_path: Path):
    """What pip left half done imports, and fails later."""
    failed = setup(BREAK_PIP="1")
    assert failed.returncode == 2
    assert "pip failed" in failed.stderr
    (half_done := tmp_path / "repo" / ".venv" / "half_done").touch()
    did(tmp_path)

    assert setup().returncode == 0
    assert did(tmp_path) == "venv 3.11 pip"
    assert not half_done.exists()


def test_changed_metadata_installs_on_top(setup: Setup, tmp_path: Path):
    setup()
    did(tmp_path)
    (tmp_path / "repo" / "pyproject.toml").open("a").write("# changed\n")

    assert setup().returncode == 0
    assert did(tmp_path) == "pip"
    assert (setup().returncode, did(tmp_path)) == (0, "")


def test_failed_change_is_not_taken_for_good(setup: Setup, tmp_path: Path):
    """Also where the change is taken back."""
    setup()
    metadata = tmp_path / "repo" / "pyproject.toml"
    before = metadata.read_text()
    metadata.write_text(before + "# changed\n")
    assert setup(BREAK_PIP="1").returncode == 2
    metadata.write_text(before)
    did(tmp_path)

    assert setup().returncode == 0
    assert did(tmp_path) == "venv 3.11 pip"


def test_environment_whose_python_is_gone(setup: Setup, tmp_path: Path):
    setup()
    did(tmp_path)
    put(tmp_path, "python3.12", "3.12")
    (tmp_path / "repo" / ".venv" / "bin" / "python").unlink()

    assert setup().returncode == 0
    assert did(tmp_path) == "venv 3.12 pip"


def test_moved_repository_gets_a_new_one(setup: Setup, tmp_path: Path):
    """Scripts in an environment hold its absolute path."""
    setup()
    did(tmp_path)
    (tmp_path / "repo").rename(tmp_path / "moved")
    (tmp_path / "repo").symlink_to(tmp_path / "moved")

    assert setup().returncode == 0
    assert did(tmp_path) == "venv 3.11 pip"


def test_foreign_environment_is_left_alone(setup: Setup, tmp_path: Path):
    mine = tmp_path / "repo" / ".venv" / "mine"
    mine.parent.mkdir()
    mine.touch()

    refused = setup()

    assert refused.returncode == 2
    assert "was not made by this script" in refused.stderr
    assert mine.exists()


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        ("python3.12=3.12 python3.10=3.10", "3.12"),
        ("python3.12=none", "3.11"),  # a pyenv shim whose version is not active
        ("python3.11=none python3=3.10", "3.10"),
        ("python3.11=none python3=3.13 python=3.12", "3.12"),
    ],
)
def test_newest_python_that_runs(setup: Setup, tmp_path: Path, present: str, taken: str):
    """Each row: what is on PATH beside or in place of a Python 3.11."""
    for entry in present.split():
        put(tmp_path, *entry.split("="))

    assert setup().returncode == 0
    assert did(tmp_path) == f"venv {taken} pip"


def test_no_suitable_python(setup: Setup, tmp_path: Path):
    """The message names each that was found, and what was expected."""
    put(tmp_path, "python3.11", "none")
    put(tmp_path, "python3", "3.9")

    refused = setup()

    assert refused.returncode == 2
    assert "found python3.11 (does not run, or lacks venv) python3 (3.9)" in refused.stderr
    assert "expected Python 3.10, 3.11 or 3.12" in refused.stderr
    assert not (tmp_path / "repo" / ".venv").exists()


def test_named_python_is_the_only_one_tried(setup: Setup, tmp_path: Path):
    put(tmp_path, "old", "3.9")

    refused = setup(PYTHON="old")

    assert refused.returncode == 2
    assert "found old (3.9)" in refused.stderr


def test_active_environment_does_not_make_its_successor(setup: Setup, tmp_path: Path):
    """With .venv activated its own python is first on PATH, and is removed before the new one is made."""
    setup(BREAK_PIP="1")
    venv_bin = tmp_path / "repo" / ".venv" / "bin"
    (venv_bin / "python3.12").write_text(FAKE.format(version="3.12"))
    (venv_bin / "python3.12").chmod(0o755)
    did(tmp_path)

    assert setup(PATH=f"{venv_bin}:{tmp_path / 'bin'}").returncode == 0
    assert did(tmp_path) == "venv 3.11 pip"
