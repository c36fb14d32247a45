"""The adapter under the real msrun: two ranks that meet by MindSpore's own collectives, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import msrun_demo
import pytest
import yaml
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


ASKED = """
import os
import signal

from mindrlhf.worker.train_worker import TrainWorker

train = TrainWorker.train


def and_ask(self):
    train(self)
    if os.environ["RANK_ID"] == "1" and self.global_training_step == 5:
        os.kill(os.getpid(), signal.SIGTERM)


TrainWorker.train = and_ask
"""


def test_two_ranks_resume_and_one_is_asked_under_msrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the launch script, from where two ranks were killed, with the moments and the reference. One is asked to leave
    in the next step: both save behind it, where stock code would not, and leave with 50."""
    monkeypatch.setenv("MS_RESUME_HEARTBEAT_S", "0")
    replace(ours(tmp_path), world_size=2).run(stop=(0, 5))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["rl_config"]["save_ckpt_interval"] = 100
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "main.py").write_text(MAIN.replace("main_master.build", f"{ASKED}\nmain_master.build"))
    told = tmp_path / "000001-0"
    told.mkdir()
    knobs = {"MAIN": "main.py", "CONFIG": "config.yaml", "SAVE_DIR": "save", "WORKERS": "2"}
    path = os.pathsep.join([str(TOP), str(HERE)])
    environ = msrun_demo.environment(**knobs, PYTHONPATH=path, MS_RESUME_WATCH_DIR=str(told))
    # This process, which was the job, is alive.
    script = [TOP / "launch" / "run_mindrlhf.sh", "--resume_training", "--take_over"]
    ended = subprocess.run(script, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
    logs = "".join(log.read_text() for log in tmp_path.glob("save.logs/*/worker_*.log"))
    outcomes = [json.loads((told / f"rank_{rank}.outcome").read_text()) for rank in range(2)]
    found = locate.latest(tmp_path / "save").checkpoint

    assert ended.returncode == 1, ended.stderr + logs  # msrun's own
    assert [(outcome["exit_code"], outcome["left"]) for outcome in outcomes] == [(50, True)] * 2, logs
    assert "RESUMING at 0_4" in logs
    assert "restored and verified" in logs
    assert found is not None
    assert (str(found.position), found.world_size) == ("0_5", 2)
    assert {vote.global_step for vote in found.votes} == {5}
