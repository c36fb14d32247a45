"""What of the example needs no MindSpore: configuration, rewards, the log, and how a start is asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from grpo_arithmetic import config, main, reward, task
from grpo_arithmetic.errors import ConfigError
from grpo_arithmetic.metrics import LINES, Metrics
from grpo_arithmetic.request import build
from grpo_arithmetic.settings import Config
from ms_resume.errors import LayoutMismatch, UsageError
from ms_resume.framework import version

EXAMPLE = Path(__file__).parents[1] / "examples/grpo_arithmetic"
CONFIGS = sorted(EXAMPLE.glob("config*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_sound(path):
    """Every key is known and has a meaning."""
    assert config.load(path).ignored == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rl_config: {save_ckpt_intervall: 5}", "nearest known is 'rl_config.save_ckpt_interval'"),
        ("rl_config: {epochs: two}", "rl_config.epochs: found 'two' (str), expected int"),
        ("rl_config: {tensorboard: 1}", "rl_config.tensorboard: found 1 (int), expected bool"),
        ("rl_config: {epochs: true}", "rl_config.epochs: found True (bool), expected int"),
        ("actor_config: {lr_schedule: {lr: 5e-7}}", "write 5.0e-7"),
        ("rl_config: {epochs: 0}", "rl_config.epochs: found 0, expected more than 0"),
        ("rl_config: {save_ckpt_format: pt}", "expected safetensors or ckpt"),
        ("rl_config: 3", "rl_config: found 3 (int), expected a section"),
        ("- 1", "found a list at the top"),
        ("rl_config: {", "not YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, said):
    """Found, expected, and the file."""
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_of_mindrlhf_without_meaning_here_is_accepted(tmp_path):
    """And named, so that one line can say so."""
    loaded = config.load(written(tmp_path, "rl_config: {enable_oldpolicy: true, epochs: 3}"))

    assert loaded.ignored == ("rl_config.enable_oldpolicy",)
    assert loaded.rl_config.epochs == 3


def test_overrides_win_and_are_named_as_the_command_line(tmp_path):
    """An error in an override does not blame the file."""
    path = written(tmp_path, "rl_config: {epochs: 3}")

    assert config.load(path, {"rl_config.epochs": 5}).rl_config.epochs == 5
    with pytest.raises(ConfigError, match=r"^command line: rl_config\.epochs"):
        config.load(path, dict([config.parse_override("rl_config.epochs=x")]))


@pytest.mark.parametrize("more", [["rl_config.seed=["], ["--verifier_weight", "1.0]"]])
def test_a_value_that_is_no_yaml_is_refused(tmp_path, capsys, more):
    """On the command line as in the file: one line, exit 2."""
    code = main.main(["--config", str(written(tmp_path, "")), "--save_checkpoint_dir", str(tmp_path), *more])

    assert code == 2
    assert "expected a YAML value" in capsys.readouterr().err


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """A checkpoint given as --config."""
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="not YAML"):
        config.load(tmp_path / "config.yaml")


def test_mindspore_that_is_missing_is_one_clear_error(tmp_path, capsys, monkeypatch):
    """Before anything imports it."""
    monkeypatch.setattr(version, "installed", lambda package: "")
    code = main.main(["--config", str(written(tmp_path, "")), "--save_checkpoint_dir", str(tmp_path)])

    assert code == 2
    assert "MindSpore is not installed" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [("24.", 42, 1.1), ("42.", 42, 0.1), ("24", 42, 0.0), ("24..", 42, 0.0), (".", 42, 0.0), ("7.", 7, 1.1)],
)
def test_rewards(completion, answer, expected):
    """Digits reversed and an end are right; digits and an end are form; anything else is nothing."""
    functions = reward.verifiers(Config().reward_config)
    found = reward.rewards([completion], np.array([answer], np.int32), functions)

    assert found[0] == pytest.approx(expected)


def test_held_out_prompts_are_never_trained_on():
    """Disjoint, together everything, and the same in every run."""
    train, held_out = task.split(40, 200)
    again = task.split(40, 200)[1]

    assert len(held_out) == 200
    assert sorted([*train.ids.tolist(), *held_out.ids.tolist()]) == list(range(1600))
    assert again.ids.tolist() == held_out.ids.tolist()


def test_a_resumed_log_goes_on_where_it_was(tmp_path):
    """Each global step stands there once, in order; what an abandoned future wrote from there on is gone."""
    for first, last in ((0, 4), (2, 6)):
        metrics = Metrics(tmp_path)
        metrics.global_step = first
        metrics.log.restore({"version": 1, "next": first})
        for step in range(first, last):
            metrics.record({"epoch": 0, "step": step}, samples=1, right=0)

    assert [json.loads(line)["step"] for line in (tmp_path / LINES).read_text().splitlines()] == list(range(6))


def asked(*, resume: bool = True, strategy: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(resume_training=resume, allow_fresh_start=False, take_over=False, strategy=strategy)


def loaded(tmp_path: Path, actor: str, save: str = "new") -> Config:
    return config.load(written(tmp_path, ""), {"actor_config.load": actor, "actor_config.save": str(tmp_path / save)})


def test_a_resume_goes_on_from_the_directory_above_train(tmp_path):
    """As MindRLHF has it, with another directory to save to."""
    (tmp_path / "old").mkdir()
    request = build(asked(), loaded(tmp_path, f"{tmp_path}/old/train/"), 2)

    assert request.source == tmp_path / "old"


@pytest.mark.parametrize(("actor", "said"), [("base.ckpt", "the `train` directory"), ("gone/train", "does not exist")])
def test_a_resume_from_something_else_is_refused(tmp_path, actor, said):
    """Before a process group is joined."""
    with pytest.raises(UsageError, match=said):
        build(asked(), loaded(tmp_path, f"{tmp_path}/{actor}"), 2)


def test_a_fresh_run_takes_the_paths_as_base_models(tmp_path):
    """The same flag means another thing without --resume_training."""
    request = build(asked(resume=False), loaded(tmp_path, "base"), 2)

    assert request.base_models == (Path("base"), Path("base"))
    assert request.parallel["world_size"] == 2


def test_a_strategy_for_another_number_of_workers_is_refused(tmp_path):
    """Both numbers are in the message."""
    with pytest.raises(LayoutMismatch, match="2") as caught:
        build(asked(resume=False, strategy="grpo_arithmetic_w2_dp2_tp1_pp1"), loaded(tmp_path, "base"), 4)
    assert "4" in str(caught.value)
