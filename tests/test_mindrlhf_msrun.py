"""The adapter under the real msrun: two ranks that meet by MindSpore's own collectives, on a CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import msrun_demo
import pytest
from standin_jobs import HERE
from test_mindrlhf import TOP, ours

from ms_resume import locate

pytestmark = [
    pytest.mark.msrun,
    pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"),
]

MAIN = """
import mindspore
from mindspore.communication import init

init()
import main_master

main_master.build().run_grpo_train()
"""


def test_two_ranks_resume_under_msrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where two ranks were killed to the end, by the launch script, with the moments and the reference."""
    monkeypatch.setenv("MS_RESUME_HEARTBEAT_S", "0")
    replace(ours(tmp_path), world_size=2).run(stop=(0, 5))
    (tmp_path / "main.py").write_text(MAIN)
    knobs = {"MAIN": "main.py", "CONFIG": "config.yaml", "SAVE_DIR": "save", "WORKERS": "2"}
    path = os.pathsep.join([str(TOP), str(HERE)])
    # This process, which was the job, is alive.
    script = [TOP / "launch" / "run_mindrlhf.sh", "--resume_training", "--take_over"]
    environ = msrun_demo.environment(**knobs, PYTHONPATH=path)
    ended = subprocess.run(script, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
    logs = "".join(log.read_text() for log in tmp_path.glob("save.logs/*/worker_*.log"))
    found = locate.latest(tmp_path / "save").checkpoint

    assert ended.returncode == 0, ended.stderr + logs
    assert "RESUMING at 0_4" in logs
    assert "restored and verified" in logs
    assert found is not None
    assert (str(found.position), found.world_size) == ("1_0", 2)
    assert {vote.global_step for vote in found.votes} == {6}
