"""The example's trainer, as far as one process shows it; tests/test_msrun.py has the rest."""

from __future__ import annotations

from types import SimpleNamespace

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


def test_prompts_that_cannot_be_written_are_one_clear_error(tmp_path):
    """A save directory that is read-only, full, or a file."""
    (tmp_path / "save").touch()

    with pytest.raises(DiskError, match="cannot be made") as caught:
        data.make_files(tmp_path / "save" / "data" / "sums.mindrecord", TaskConfig(6, 8))

    assert caught.value.hint
