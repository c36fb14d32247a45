"""`python standin_runs.py ROOT [PLAN ...]`: runs of the stand-in for MindRLHF that SIGKILL ends; see `killed_runs`."""

from __future__ import annotations

import importlib
import os
import random
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import killed_runs
from test_mindrlhf import ours
from test_standin import first, made

BRANCH = os.environ.get("STANDIN_BRANCH", "master")
WHOLE = {
    "rl_config__prompts": 10,
    "rl_config__num_rollouts": 3,
    "rl_config__epochs": 3,
    "rl_config__save_ckpt_interval": int(os.environ.get("STANDIN_INTERVAL", "1")),
}
"""Three steps an epoch, and a batch left for the next."""


def run(save: Path, told: killed_runs.Told) -> None:
    random.seed(7)

    def watch() -> None:
        maker: Any = importlib.import_module("mindrlhf.trainer.spmd.grpo_experience_maker").GRPOExperienceMaker
        make = maker.make_experience

        @wraps(make)
        def make_experience(self: Any, *given: Any, **named: Any) -> None:
            make(self, *given, **named)
            told.step({"prompts": self.prompts, "metrics": self.tensor_writer[-1], "drawn": random.random()})

        maker.make_experience = make_experience

    job = replace(ours(made(save)), branch=BRANCH)
    ran = first(job.run(before=watch, resume=(save / "save").exists(), **WHOLE))
    if ran.error is not None:
        raise ran.error
    told.say({"end": ran.end(), "drawn": random.random()})


if __name__ == "__main__":
    killed_runs.forked(Path(sys.argv[1]), run, sys.argv[2:])
