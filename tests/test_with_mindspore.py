"""The tests that import MindSpore, in one process of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed")
def test_with_mindspore(tmp_path: Path):
    """tests/with_mindspore passes; what it printed is shown when it does not."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(tmp_path / "its"), str(HERE / "with_mindspore")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)

    assert run.returncode == 0, run.stdout + run.stderr
