"""Every component counts: left out of a resume, the run ends as another one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from exact import tiny
from exact.settings import Setting
from exact.tiny import Trainer

from grpo_arithmetic import compare

EPOCHS, STOP = 2, 19
"""Behind a save in the middle of an epoch and of a sum of gradients."""

SETTING = Setting("pynative", "experimental.AdamW", "safetensors", "schedule")
COMPONENTS = [
    "randomness", "data", "loss_scale", "kl", "reward_moments", "accumulation", "counters", "learning_rates",
    "metrics_log",
]  # fmt: skip  # `draws` has no state: it only refuses another seed


def silent(phase: str, step: int) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """It can be set only once in a process."""
    tiny.prepare()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("exact") / "undisturbed"
    Trainer(save, SETTING, silent, epochs=EPOCHS).run(resume=False)
    return save


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended before step 19; its newest checkpoint is that of step 16."""
    save = tmp_path_factory.mktemp("exact") / "stopped"
    Trainer(save, SETTING, silent, epochs=EPOCHS).run(resume=False, stop=STOP)
    return save


def resumed(stopped: Path, save: Path, without: str = "") -> Trainer:
    shutil.copytree(stopped, save)
    trainer = Trainer(save, SETTING, silent, without, EPOCHS)
    trainer.run(resume=True)
    return trainer


def test_with_all_of_them_it_is_the_same_run(undisturbed: Path, stopped: Path, tmp_path: Path) -> None:
    """Every tensor, every value of state, every logged number; and nothing was generated twice."""
    trainer = resumed(stopped, tmp_path / "save")
    result = compare.runs(undisturbed, tmp_path / "save")

    assert result.equal, compare.table(result)
    assert (trainer.rollouts.given_back, trainer.rollouts.generated) == (STOP - 16, 32 - STOP)
    assert trainer.counters.skipped > 0, "the loss scale never overflowed, so its component was not put to the test"


@pytest.mark.parametrize("without", COMPONENTS)
def test_without_one_of_them_it_is_another_run(undisturbed: Path, stopped: Path, tmp_path: Path, without: str) -> None:
    """So each of them is needed, and the comparison sees that it is not there."""
    if without == "counters":
        with pytest.raises(ValueError, match="metrics of step 0 after those of step 15"):
            resumed(stopped, tmp_path / "save", without)
        return
    resumed(stopped, tmp_path / "save", without)

    assert differs_by(compare.runs(undisturbed, tmp_path / "save"))


def differs_by(result: Any) -> set[str]:
    """What differs beside the component that is missing in one of the two."""
    return {row.what for row in result.rows if row.differing and row.what != "components of state"}
