"""A stand-in for `llamafactory-cli` on PATH: reads the YAML file, saves as the Trainer does, dies when told.

    fake: {steps: 40, save: 10, dies: {0: [25, 9], 20: [33, 1]}}

That one starts at 0 and is ended by signal 9 at step 25; the run that goes on from 20 ends with exit code 1 at step 33.
It goes on from `resume_from_checkpoint`, and fails as the Trainer does where that cannot be. Each step leaves a line in
`losses.jsonl` of its output directory. `leftover: true` starts a worker in a session of its own, which outlives it;
`hangs: 25` stands still at step 25. `says` is its last line where it dies; `once: [20]` has it die only the first
time that it starts from 20.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch_trees
import yaml

NAME = "llamafactory-cli"
_SIGNALS = (9, 11, 15)


def install(bin_dir: Path) -> None:
    """Puts it on a PATH."""
    bin_dir.mkdir(parents=True, exist_ok=True)
    (bin_dir / NAME).write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__])} "$@"\n')
    (bin_dir / NAME).chmod(0o755)


def main(argv: list[str]) -> int:
    assert argv[0] == "train", argv
    settings: dict[str, Any] = yaml.safe_load(Path(argv[1]).read_text(encoding="utf-8"))
    told = settings["fake"]
    print(f"training {argv[1]} on devices {os.environ.get('ASCEND_RT_VISIBLE_DEVICES', 'all')}", flush=True)
    begin, output_dir = _begin(settings), Path(settings["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    if told.get("leftover"):
        subprocess.Popen(["setsid", "sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last, code = told.get("dies", {}).get(begin, (None, 0))
    if begin in told.get("once", []):
        try:
            Path(f"started_from_{begin}").touch(exist_ok=False)
        except FileExistsError:
            last = None
    for step in range(begin + 1, told["steps"] + 1):
        with open(output_dir / "losses.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "from": begin}) + "\n")
        if step % told["save"] == 0:
            _save(output_dir, step, settings)
        if step == told.get("hangs"):
            print(f"step {step}", flush=True)
            time.sleep(300)
        if step == last:
            print(told.get("says", "RuntimeError: EI0002: the wait of HCCL timed out"), flush=True)
            if code in _SIGNALS:
                os.kill(os.getpid(), code)
            return int(code)
    return 0


def _begin(settings: dict[str, Any]) -> int:
    before = settings.get("resume_from_checkpoint")
    if not before:
        return 0
    state = json.loads((Path(before) / "trainer_state.json").read_text())
    step: int = state["global_step"]
    if settings.get("deepspeed") and not (Path(before) / f"global_step{step}").is_dir():
        print(f"ValueError: Can't find a valid checkpoint at {before}")
        sys.exit(1)
    return step


def _save(output_dir: Path, step: int, settings: dict[str, Any]) -> None:
    """Whole, or as a save leaves it that was interrupted."""
    (torch_trees.zero3 if settings.get("deepspeed") else torch_trees.hugging_face)(output_dir, step)
    if settings["fake"].get("torn") == step:
        (output_dir / f"checkpoint-{step}" / "trainer_state.json").unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
