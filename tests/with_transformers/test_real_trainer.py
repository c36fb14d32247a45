"""Hugging Face's real Trainer, killed and recovered by the scripts, ends with the weights of a run that was left alone.

Run by `make recover-real`: it needs torch and transformers, which nothing else here does.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402  # comes with transformers

from ms_resume import layouts, locate, verify  # noqa: E402
from ms_resume.errors import Damaged  # noqa: E402
from ms_resume.ondisk import torchzip  # noqa: E402
from ms_resume.records import Position  # noqa: E402

TOP = Path(__file__).parents[2]
FILE = """\
### 训练 tiny
output_dir: {name}          # recovered ones go beside it
max_steps: 60
save_steps: 10
save_total_limit: 3
per_device_train_batch_size: 4
learning_rate: 1.0e-2
logging_steps: 5
seed: 7
use_cpu: true
report_to: none
disable_tqdm: true
resume_from_checkpoint: null
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both trainings, in order, by one call of the script."""
    here = tmp_path_factory.mktemp("runs")
    home = here / "train_yaml" / "me" / "202501150000"
    home.mkdir(parents=True)
    (home / "alone.yaml").write_text(FILE.format(name="alone"))
    dies = "die_at: {0: 27}\ndie_in_save: {20: 40}\n"
    (home / "killed.yaml").write_text(FILE.format(name="killed") + dies)
    command = here / "bin" / "llamafactory-cli"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nexec {shlex.join([sys.executable, str(Path(__file__).with_name("trainer_cli.py"))])} "$@"\n'
    )
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [str(TOP / "launch/scheduled_train.sh"), "--user", "me", "--date", "202501150000", "--auto-recovery"]
    ended = subprocess.run(
        words,
        cwd=here,
        env={**os.environ, "PATH": path, "VENV": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return here


def test_weights_are_those_of_a_run_that_was_left_alone(runs: Path) -> None:
    """Bit for bit, after two kills: in a step, and with the optimizer half written."""
    recovered = [
        yaml.safe_load(path.read_text()) for path in sorted((runs / "train_yaml").rglob("killed_recovery_*.yaml"))
    ]
    starts = [settings["resume_from_checkpoint"].rpartition("/")[2] for settings in recovered]
    alone, killed = (
        load_file(runs / "alone/model.safetensors"),
        load_file(runs / recovered[-1]["output_dir"] / "model.safetensors"),
    )

    assert starts == ["checkpoint-20", "checkpoint-30"]
    assert alone.keys() == killed.keys()
    assert all(torch.equal(alone[name], killed[name]) for name in alone)
    assert not torch.equal(alone["lm_head.weight"], torch.zeros_like(alone["lm_head.weight"]))


def test_its_checkpoints_are_whole(runs: Path) -> None:
    """As it writes them, by names, headers and CRCs; one more saved than is kept is rotated away."""
    holding = layouts.find(runs / "alone")
    found = list(locate.verdicts(holding))

    assert holding.NAME == "huggingface-trainer"
    assert [one.position for one in found] == [Position(0, step) for step in (60, 50, 40)]
    assert [verify.check(one, deep=True) for one in found] == [[], [], []]
    assert {file.role for file in found[0].files} == {"model", "optimizer", "scheduler", "random"}


def test_the_half_written_save_is_torn(runs: Path) -> None:
    """The Trainer itself would find it the newest."""
    (half,) = [path for path in runs.glob("killed_*/checkpoint-40") if not (path / "trainer_state.json").exists()]

    judged = layouts.find(half.parent).judge(Position(0, 40))

    assert getattr(judged, "kind", "whole") == "torn"
    with pytest.raises(Damaged, match="not a whole torch file"):
        torchzip.read(half / "optimizer.pt")
