"""The demo under the real msrun at its smallest size, and what every launch of a test has in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from grpo_arithmetic import launching

TOP = Path(__file__).parents[1]
EXAMPLE = TOP / "examples/grpo_arithmetic"
CONFIG = EXAMPLE / "config_test.yaml"


def environment(**more: str) -> dict[str, str]:
    """Quick to notice a dead rank, quiet, and on a port of its own."""
    venv, port = str(Path(sys.executable).parents[1]), str(launching.free_port())
    fixed = {"VENV": venv, "CONFIG": str(CONFIG), "MASTER_PORT": port, "MS_NODE_TIMEOUT": "5", "GLOG_v": "3"}
    return {**os.environ, **fixed, **more}


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two kills: rank 1 in the save of 0_6, rank 0 in step 1_2."""
    kills = ["--kill_save", "0_6", "--kill_step", "1_2"]
    command = [sys.executable, str(EXAMPLE / "demo.py"), "--config", str(CONFIG), "--output", str(output)]
    return subprocess.run(
        [*command, *kills, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
