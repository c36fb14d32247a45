"""What of the example needs no MindSpore: configuration, rewards, the log, and how a start is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from start_flags import mode_of

from grpo_arithmetic import config, main, reward, task
from grpo_arithmetic.errors import ConfigError
from grpo_arithmetic.metrics import LINES, Metrics, due
from grpo_arithmetic.request import build
from grpo_arithmetic.settings import Config
from ms_resume import StartMode
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
        ("example_config: {eval_interval: -1}", "example_config.eval_interval: found -1, expected 0 or more"),
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


RESUME = mode_of("--resume_training")


def loaded(tmp_path: Path, actor: str, save: str = "new") -> Config:
    return config.load(written(tmp_path, ""), {"actor_config.load": actor, "actor_config.save": str(tmp_path / save)})


def test_a_resume_goes_on_from_the_directory_above_train(tmp_path):
    """As MindRLHF has it, with another directory to save to."""
    (tmp_path / "old").mkdir()
    request = build(None, RESUME, loaded(tmp_path, f"{tmp_path}/old/train/"), 2)

    assert request.source == tmp_path / "old"


@pytest.mark.parametrize(("actor", "said"), [("base.ckpt", "the `train` directory"), ("gone/train", "does not exist")])
def test_a_resume_from_something_else_is_refused(tmp_path, actor, said):
    """Before a process group is joined."""
    with pytest.raises(UsageError, match=said):
        build(None, RESUME, loaded(tmp_path, f"{tmp_path}/{actor}"), 2)


def test_a_fresh_run_takes_the_paths_as_base_models(tmp_path):
    """The same flag means another thing without --resume_training."""
    request = build(None, mode_of(), loaded(tmp_path, "base"), 2)

    assert request.base_models == (Path("base"), Path("base"))
    assert request.parallel["world_size"] == 2


@pytest.mark.parametrize("flag", ["--auto_resume", "--restarted", "--resume_from 30"])
def test_other_flags_leave_the_paths_the_base_models(tmp_path, flag):
    """Only MindRLHF's own flag gives its path another meaning: else a first start by --auto_resume had no model."""
    request = build(None, mode_of(*flag.split()), loaded(tmp_path, "base"), 2)

    assert request.mode.resume
    assert (request.source, request.ref_dir) == (None, None)
    assert request.base_models == (Path("base"), Path("base"))


def test_flags_that_contradict_each_other_are_answered_at_once(tmp_path, capsys):
    """Before MindSpore is imported or a process group is joined."""
    flags = ["--auto_resume", "--pretrained_checkpoint", "base"]
    code = main.main(["--config", str(written(tmp_path, "")), "--save_checkpoint_dir", str(tmp_path), *flags])

    assert code == 2
    assert "--pretrained_checkpoint base and --auto_resume contradict each other" in capsys.readouterr().err


def test_the_configurations_resume_gives_way_to_a_flag(tmp_path, capsys):
    """As every key does; and it counts where there is none."""
    text = "rl_config: {resume_training: true}"
    arguments = ["--config", str(written(tmp_path, text)), "--save_checkpoint_dir", str(tmp_path)]
    read = [
        StartMode.read(main.parse([*arguments, *more]), resume_training=True)
        for more in ([], ["--resume_from", "none"])
    ]

    assert [mode.resume for mode in read] == [True, False]


@pytest.mark.parametrize(
    ("resumed_after", "interval", "looks"), [(0, 4, [4, 8]), (3, 4, [4, 8]), (4, 4, [8]), (5, 4, [8]), (0, 0, [])]
)
def test_the_place_in_a_cycle_is_the_global_steps(resumed_after, interval, looks):
    """So a resume in the middle of one keeps it, and looks twice at nothing."""
    assert [done for done in range(resumed_after + 1, 11) if due(done, interval)] == looks


def test_a_strategy_for_another_number_of_workers_is_refused(tmp_path):
    """Both numbers are in the message."""
    with pytest.raises(LayoutMismatch, match="2") as caught:
        build("grpo_arithmetic_w2_dp2_tp1_pp1", mode_of(), loaded(tmp_path, "base"), 4)
    assert "4" in str(caught.value)
