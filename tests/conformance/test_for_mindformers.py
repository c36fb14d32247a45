"""`ms-resume locate` on what MindFormers 1.0 saved: what to pass to MindFormers, and what that leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import call
from trees import TREES, write


@pytest.mark.parametrize(
    ("tree", "ending"), [("MindFormers 1.0", "ckpt"), ("MindFormers 1.0, safetensors", "safetensors")]
)
def test_what_to_pass_and_what_is_lost(
    tree: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0's file of the position that is whole on all ranks, not of the newest that one has."""
    TREES[tree].build(tmp_path)
    TREES[tree].file(tmp_path, 3, 1).unlink()
    shown = call(capsys, "locate", tmp_path).out
    said = call(capsys, "locate", tmp_path, "--json").json["mindformers"]

    assert said["load_checkpoint"] == str(tmp_path / "checkpoint")
    assert said["resume_training"] == f"my-llama_rank_0-2_2.{ending}"
    assert said["load_ckpt_format"] == ending
    assert said["not_restored"] == [
        "random state",
        "counters of metrics",
        "the learning rate's step (the file has no global_step)",
        "the loss scale (the file has no loss_scale)",
        "the batch size by which steps are scaled (the file has no global_batch_size)",
    ]
    assert "resume_training   my-llama_rank_0-2_2" in shown
    assert "not restored" in shown


def test_what_the_file_has_is_not_called_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file as MindFormers writes it."""
    numbers = {"epoch_num": 1, "step_num": 2, "global_step": 2, "loss_scale": 1, "global_batch_size": 8}
    held = {"w": np.ones(2, np.float32)} | {name: np.array(value, np.int64) for name, value in numbers.items()}
    write(tmp_path / "checkpoint" / "rank_0" / "llama_rank_0-1_2.safetensors", held)

    assert call(capsys, "locate", tmp_path, "--json").json["mindformers"]["not_restored"] == [
        "random state",
        "counters of metrics",
    ]


def test_other_layouts_have_none_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TREES["MindRLHF"].build(tmp_path)

    assert "mindformers" not in call(capsys, "locate", tmp_path, "--json").json


@pytest.mark.parametrize(("is_health", "warned"), [(0, 0), (1, 1)])
def test_weights_that_were_not_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_health: int, warned: int
) -> None:
    """1 stands for an embedding whose norm was too large."""
    TREES["MindFormers 1.0"].build(tmp_path)
    name = TREES["MindFormers 1.0"].file(tmp_path, 3, 0).name
    (tmp_path / "health_ckpts.json").write_text(json.dumps([{"is_health": is_health, "ckpt_name": name}]))

    said = call(capsys, "locate", tmp_path, "--json").json["warnings"]
    assert [text.endswith("its weights were not healthy") for text in said] == [True] * warned
