"""Iteration models: the four ways to start with and without them, what each says and restores, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
from conformance.trees import write
from runs import TinyRank, tiny_run
from start_flags import banner, job, mode_of, trains
from test_resume import error_of
from test_start_ways import as_of
from test_warm_start import changed, held

import ms_resume
from ms_resume.ondisk import attempts, names
from ms_resume.records import Position

P = Position.parse
CONFIG = {"width": 4, "layers": 1}


def model(save: Path, name: str, value: float, config: dict[str, Any] | None = CONFIG) -> Path:
    """What a round of training ended with, as `save_pretrained` writes it."""
    directory = save / name
    directory.mkdir(parents=True)
    weights = {"w": np.full((3, 4), value, np.float32), "bias": np.full(3, value, np.float16)}
    write(directory / "model.safetensors", weights)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("trained") / "save"
    tiny_run(save).ok()
    return save


@pytest.fixture
def save(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint at 0_5 and 1_0; iteration models 0 and 2, 2 the newer one."""
    save = Path(shutil.copytree(trained, tmp_path / "save", symlinks=True))
    model(save, "iter_0", 10.0)
    model(save, "iter_2", 12.0)
    return save


def start(save: Path, *flags: str, **more: Any) -> Any:
    return job(save, *flags, model_config=CONFIG, **more)


def weights(me: TinyRank) -> float:
    found = {float(value) for value in [*me.policy["w"].ravel(), *me.policy["bias"]]}
    return found.pop() if len(found) == 1 else float("nan")


BOTH = ["--resume_from", "auto", "--resume_from_iteration", "auto"]


def test_both(save: Path) -> None:
    """Weights of the model, everything else of the checkpoint."""
    before = as_of(save, "1_0", 1)
    ranks = start(save, *BOTH).ok()

    assert banner(ranks, save=save) == [
        "ms_resume: RESUMING at 1_0 from SAVE (ours, layout ms_resume, attempt 000001)",
        "  attempt 000002 writes to SAVE",
        "  asked for: --resume_from auto --resume_from_iteration auto",
        "  strategy: BOTH found: weights of the iteration model, training state of the checkpoint",
        "    model weights from: iter_2, SAVE/iter_2 (weights only, no optimizer)",
        "    training state from: SAVE at 1_0 (weights, optimizer, position, components)",
        "  restored and verified (MIB in S): policy, optimizer, ref, randomness, scale",
        "  weights alone (MIB in S): 2 tensors of the policy, from SAVE/iter_2 (Hugging Face), in the place of the "
        "checkpoint's",
    ]
    assert weights(ranks[1]) == 12.0
    now = held(ranks[1])
    assert {name for name in now if now[name] != before[name]} == {
        "policy w", "policy bias", "optimizer w", "optimizer bias",
    }  # fmt: skip


def test_the_checkpoint_alone(save: Path) -> None:
    """Without the flag for models they are left alone."""
    ranks = start(save, "--resume_from", "auto", "--resume_from_iteration", "none").ok()

    assert held(ranks[1]) == as_of(save, "1_0", 1)
    assert "iter_" not in ranks[0].said[0].partition("from_iteration none")[2]


def test_the_checkpoint_alone_where_there_is_no_model(trained: Path, tmp_path: Path) -> None:
    """`auto` finds none, and says so."""
    save = Path(shutil.copytree(trained, tmp_path / "save", symlinks=True))
    ranks = start(save, *BOTH).ok()

    assert banner(ranks, save=save)[3:5] == [
        "  strategy: CHECKPOINT only: no whole iteration model",
        "    everything from: SAVE at 1_0 (weights, optimizer, position, components)",
    ]
    assert held(ranks[1]) == as_of(save, "1_0", 1)


@pytest.mark.parametrize("flags", [BOTH, ["--resume_from", "none", "--resume_from_iteration", "auto"]])
def test_the_model_alone(tmp_path: Path, flags: list[str]) -> None:
    """A new run from its weights, in the directory that holds it."""
    model(tmp_path, "iter_2", 12.0)
    ranks = start(tmp_path, *flags).ok()

    assert banner(ranks, save=tmp_path) == [
        "ms_resume: WARM START from SAVE/iter_2 (Hugging Face)",
        "  attempt 000001 writes to SAVE",
        f"  asked for: {' '.join(flags)}",
        "  strategy: ITERATION MODEL only: its weights, and a training state that starts anew",
        "    model weights from: iter_2, SAVE/iter_2 (weights only, no optimizer)",
        "  weights alone (MIB in S): 2 tensors of the policy",
        "  untouched, as the trainer built it: optimizer, position, random state",
    ]
    assert weights(ranks[1]) == 12.0
    assert changed(ranks[1]) == {"policy w", "policy bias", "optimizer w", "optimizer bias"}
    assert ranks[1].start == P("0_0")


def test_neither(tmp_path: Path) -> None:
    """From the start, said so."""
    ranks = start(tmp_path, *BOTH).ok()

    assert banner(ranks, save=tmp_path)[:4] == [
        "ms_resume: FRESH START: nothing here was ever a whole checkpoint",
        "  attempt 000001 writes to SAVE",
        "  asked for: --resume_from auto --resume_from_iteration auto",
        "  strategy: FROM THE START: neither a checkpoint nor a whole iteration model",
    ]
    assert changed(ranks[0]) == set()


def test_one_by_name_and_a_step(save: Path) -> None:
    """The second iteration's model with the training state of global step 5."""
    ranks = start(save, "--resume_from", "5", "--resume_from_iteration", "iter_0").ok()

    assert ranks[0].start == P("0_5")
    assert weights(ranks[0]) == 10.0
    assert ranks[0].optimizer["global_step"].tolist() == [5]


def test_with_a_checkpoint_that_is_given(save: Path) -> None:
    """The state from there."""
    path = f"{save}/commits/0_5"
    ranks = start(save, "--resume", "--checkpoint_path", path, "--resume_from_iteration", "auto").ok()

    assert ranks[0].start == P("0_5")
    assert weights(ranks[0]) == 12.0


def test_base_model_is_iteration_0(tmp_path: Path) -> None:
    """Where there is no `iter_0`."""
    model(tmp_path, "base_model", 9.0)
    ranks = start(tmp_path, "--resume_from_iteration", "iter_0").ok()

    assert weights(ranks[0]) == 9.0


# -- what was trained from a model goes on


@pytest.mark.parametrize("name", ["auto", "iter_2"])
def test_a_model_is_taken_once(save: Path, name: str) -> None:
    """The same command, started again: what was trained since is newer than the model it came from."""
    flags = ["--resume_from", "auto", "--resume_from_iteration", name]
    start(save, *flags, act=trains(epochs=2, save_every=5)).ok()
    ranks = start(save, *flags).ok()

    assert ranks[0].start == P("2_0")
    assert banner(ranks, save=save)[3:5] == [
        "  strategy: CHECKPOINT only: iter_2 is what its weights were trained from",
        "    everything from: SAVE at 2_0 (weights, optimizer, position, components)",
    ]
    assert held(ranks[1]) == as_of(save, "2_0", 1)

    start(save, *flags, act=trains(epochs=3, save_every=5)).ok()
    third = start(save, *flags).ok()

    assert third[0].start == P("3_0")
    assert held(third[1]) == as_of(save, "3_0", 1)

    model(save, "iter_3", 13.0)

    assert weights(start(save, "--resume_from", "auto", "--resume_from_iteration", "auto").ok()[0]) == 13.0


def test_a_start_that_died_before_its_first_save(save: Path) -> None:
    """Its weights are in no checkpoint: the model's are taken again."""
    start(save, *BOTH).ok()

    assert weights(start(save, *BOTH).ok()[0]) == 12.0


def test_after_a_new_run_from_a_model(tmp_path: Path) -> None:
    """Started again by a supervisor it goes on, whatever said how the first start was made."""
    model(tmp_path, "iter_2", 12.0)
    flags = ["--resume_from", "none", "--resume_from_iteration", "auto"]

    def save_once(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        me.train_one_step()
        checkpointer.save(0, 1)

    first = start(tmp_path, *flags, act=save_once).ok()
    again = start(tmp_path, *flags, "--restarted").ok()

    assert [record.weights for record in attempts.read_all(tmp_path)] == ["iter_2", ""]
    assert again[1].start == P("0_1")
    assert held(again[1]) == held(first[1])


# -- falling back, and what is refused


def test_the_next_older_model(save: Path) -> None:
    """A newer one that is not whole is passed over, with the reason."""
    (save / "iter_2/model.safetensors").write_bytes(b"cut")
    model(save, "iter_5", 15.0)
    (save / "iter_5/model.safetensors").unlink()
    ranks = start(save, *BOTH).ok()
    said = banner(ranks, save=save)

    assert weights(ranks[0]) == 10.0
    assert said[3].startswith("  passed over iter_5: torn: ")
    assert said[4].startswith("  passed over iter_2: damaged: ")


def test_no_whole_model(save: Path) -> None:
    """Then the checkpoint, alone."""
    for name in ("iter_0", "iter_2"):
        (save / name / "model.safetensors").write_bytes(b"cut")
    ranks = start(save, *BOTH).ok()

    assert "strategy: CHECKPOINT only: no whole iteration model" in ranks[0].said[0]
    assert held(ranks[1]) == as_of(save, "1_0", 1)


def test_no_whole_checkpoint(save: Path) -> None:
    """A new run from the model's weights would leave what is there behind: only where that was allowed."""
    for position in ("0_5", "1_0"):
        own_trees.payload_path(save, position, 1, "state").unlink()
    error = error_of(start(save, *BOTH))
    ranks = start(save, *BOTH, "--allow_fresh_start").ok()

    assert (int(error.exit_code), "--allow_fresh_start" in error.hint) == (10, True)
    assert "WARM START" in ranks[0].said[0]
    assert weights(ranks[0]) == 12.0


def test_beside_checkpoints(save: Path) -> None:
    """A new run is refused as any other, and nothing is changed."""
    before = savers.files(save)
    error = error_of(start(save, "--resume_from_iteration", "iter_2"))

    assert error.exit_code == 62
    assert savers.files(save) == before


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("iter_1", "no iteration model iter_1, the nearest are iter_0, iter_2, iter_4", 10),
        ("iter_4", "4_0 is torn", 20),
    ],
)
def test_a_model_that_cannot_be_had(save: Path, name: str, said: str, code: int) -> None:
    """No other one is taken instead."""
    (save / "iter_4").mkdir()
    before = savers.files(save)
    error = error_of(start(save, "--resume_from", "auto", "--resume_from_iteration", name))

    assert (int(error.exit_code), said in error.message) == (code, True), error
    assert savers.files(save) == before


def test_a_model_of_another_shape(save: Path) -> None:
    """Names and shapes decide, before anything is changed; no fallback hides it."""
    shutil.rmtree(save / "iter_2")
    write(save / "iter_2" / "model.safetensors", {"w": np.zeros((2, 2), np.float32), "bias": np.zeros(3, np.float16)})
    error = error_of(start(save, *BOTH))

    assert error.exit_code == 30


# -- config.json


def test_a_missing_configuration_is_written(save: Path) -> None:
    """From the job's own model; what is there stays."""
    (save / "iter_2/config.json").unlink()
    (save / "iter_0/config.json").write_text('{"kept": true}')
    ranks = start(save, *BOTH).ok()

    assert json.loads((save / "iter_2/config.json").read_text()) == CONFIG
    assert (save / "iter_0/config.json").read_text() == '{"kept": true}'
    assert "  iter_2: config.json was missing, and is written from this job's model" in banner(ranks, save=save)
    assert "config.json was missing" not in start(save, *BOTH).ok()[0].said[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"width": 8, "layers": 1}', "width is 8, this job's model has 4"),
        ("{", "no JSON: "),
        ("[1]", "no JSON object"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(save: Path, text: str, said: str) -> None:
    """One error, and nothing is changed."""
    (save / "iter_2/config.json").write_text(text)
    before = savers.files(save)
    error = error_of(start(save, *BOTH))

    assert (
        int(error.exit_code),
        f"iter_2/config.json: contradicts the weights beside it: {said}" in error.message,
    ) == (
        31,
        True,
    ), error
    assert savers.files(save) == before


def test_a_configuration_with_more_in_it(save: Path) -> None:
    """Only what both say is compared."""
    (save / "iter_2/config.json").write_text(json.dumps({**CONFIG, "model_type": "qwen2"}))

    assert start(save, *BOTH).ok()[0].start == P("1_0")


def test_iteration_models_are_no_strangers(tmp_path: Path) -> None:
    """A run saves beside them."""
    model(tmp_path, "iter_0", 10.0)

    assert job(tmp_path).ok()[0].start == P("0_0")
    assert names.commits(tmp_path).is_dir()
    assert mode_of().iteration == ""
