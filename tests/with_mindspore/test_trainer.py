"""The example's trainer, as far as one process shows it; tests/test_msrun.py has the rest."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

import ms_resume
from grpo_arithmetic import data
from grpo_arithmetic.settings import Config, RLConfig, TaskConfig
from grpo_arithmetic.trainer import GRPOTrainer
from ms_resume.errors import DiskError


@pytest.mark.parametrize("start", [(2, 0), (2, 3), (3, 0)])
def test_a_run_that_is_past_its_end_saves_nothing(start):
    """Resumed with fewer epochs than it has run: the end lies before the start, and saving there is an error."""
    saved = []
    trainer = SimpleNamespace(
        config=Config(rl_config=RLConfig(epochs=2)),
        world=SimpleNamespace(is_first=False),
        _save=lambda *at: saved.append(at),
    )
    GRPOTrainer._train(trainer, ms_resume.Position(*start))

    assert saved == []


def test_the_prompts_leave_random_numbers_alone(tmp_path):
    """They are opened after a resume has restored what Python and NumPy draw next."""
    file = tmp_path / "sums.mindrecord"
    data.make_files(file, TaskConfig(6, 8))
    before = random.getstate(), np.random.get_state()[1].tolist()
    stream = data.PromptStream(file, seed=0, prompts_per_step=2, epochs=1, shard=(0, 1))
    next(stream.epoch())

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_prompts_that_cannot_be_written_are_one_clear_error(tmp_path):
    """A save directory that is read-only, full, or a file."""
    (tmp_path / "save").touch()

    with pytest.raises(DiskError, match="cannot be made") as caught:
        data.make_files(tmp_path / "save" / "data" / "sums.mindrecord", TaskConfig(6, 8))

    assert caught.value.hint
