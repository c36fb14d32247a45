"""The flags of a start: what each one means, which contradict each other, and what they put above a configuration."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import pytest
from start_flags import mode_of

import ms_resume
from ms_resume.errors import UsageError
from ms_resume.resume.start_mode import StartMode

NEWEST = (["--resume_training"], ["--auto_resume"], ["--resume_from", "auto"])
STEP = ["--resume_from", "100"]
GIVEN = ["--resume", "--checkpoint_path", "old"]
PRETRAINED = ["--pretrained_checkpoint", "base"]
NO_STEP = ["--resume_from", "none"]
ITERATION = ["--resume_from_iteration", "auto"]

TOGETHER: list[tuple[list[str], list[str], tuple[str, str]]] = [
    *((PRETRAINED, other, ("--pretrained_checkpoint base", " ".join(other))) for other in (*NEWEST, STEP, ITERATION)),
    (PRETRAINED, GIVEN, ("--pretrained_checkpoint base", "--resume")),
    (PRETRAINED, ["--resume_from_iteration", "iter_3"], ("--pretrained_checkpoint", "--resume_from_iteration iter_3")),
    *((GIVEN, other, ("--resume", " ".join(other))) for other in (*NEWEST, STEP)),
    (STEP, ["--auto_resume"], ("--resume_from 100", "--auto_resume")),
    *((NO_STEP, other, ("--resume_from none", other[0])) for other in (*NEWEST[:2], GIVEN)),
]


@pytest.mark.parametrize(("one", "other", "named"), TOGETHER)
def test_each_contradicting_pair_is_refused(one: list[str], other: list[str], named: tuple[str, str]) -> None:
    """In either order; both are in the message, as they were given."""
    for flags in ([*one, *other], [*other, *one]):
        with pytest.raises(UsageError, match="contradict each other") as caught:
            mode_of(*flags)

        assert [name in caught.value.message for name in named] == [True, True], caught.value.message
        assert caught.value.exit_code == 2


AGREE = [
    (["--resume_training"], ["--auto_resume"]),
    (["--resume_training"], STEP),
    (["--resume_training"], ["--resume_from", "auto"]),
    (["--auto_resume"], ITERATION),
    (["--resume_training"], ITERATION),
    (STEP, ITERATION),
    (STEP, ["--resume_from_iteration", "iter_2"]),
    (GIVEN, ITERATION),
    (NO_STEP, ITERATION),
    (NO_STEP, PRETRAINED),
    (["--resume_from_iteration", "none"], PRETRAINED),
]


@pytest.mark.parametrize(("one", "other"), AGREE)
def test_these_two_say_one_thing(one: list[str], other: list[str]) -> None:
    """The same twice, or each something of its own."""
    mode = mode_of(*one, *other)

    assert len(mode.said) == len({*mode.said}) >= 2


def test_no_pair_is_left_out() -> None:
    """Of all ways to start, two at a time."""
    ways = [*NEWEST[:2], STEP, GIVEN, PRETRAINED, NO_STEP, ITERATION]
    known = {frozenset((*a[:2], *b[:2])) for a, b in [*((a, b) for a, b, _ in TOGETHER), *AGREE]}
    pairs = ((a, b) for a, b in itertools.combinations(ways, 2) if a[0] != b[0])

    assert [pair for pair in pairs if frozenset((*pair[0][:2], *pair[1][:2])) not in known] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume"], "--resume without --checkpoint_path"),
        (["--checkpoint_path", "old"], "--checkpoint_path old without --resume"),
        (["--name_map", "names.yaml"], "--name_map names.yaml in a start that loads nothing"),
        (["--auto_resume", "--override", "lr=mine"], "'mine', expected 'checkpoint' or 'config'"),
        (["--auto_resume", "--override", "lr=config", "--override", "lr=checkpoint"], "from both sides"),
    ],
)
def test_halves(flags: list[str], said: str) -> None:
    """A flag that means nothing alone is no start."""
    with pytest.raises(UsageError) as caught:
        mode_of(*flags)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume_from", "newest"], "expected auto, none, or a global step"),
        (["--resume_from", "-3"], "argument"),
        (["--resume_from_iteration", "2"], "expected auto, none, or iter_N"),
        (["--resume_from_iteration", "iter_02"], "expected auto, none, or iter_N"),
        (["--checkpoint_interval", "0"], "expected at least 1"),
        (["--keep_last_n_checkpoints", "0"], "expected -1 for all, or at least 1"),
        (["--keep_last_n_checkpoints", "-2"], "expected -1 for all, or at least 1"),
        (["--max_rollback", "-1"], "expected at least 0"),
        (["--allow_world_size", "any"], "data_parallel"),
        (["--checkpoint_path", ""], "an empty path"),
    ],
)
def test_values_that_cannot_be_meant(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse ends the process with 2, naming the flag."""
    with pytest.raises(SystemExit) as ended:
        mode_of(*flags)

    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert flags[0] in told
    assert said in told


MEANS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {"resume": False, "said": ()}),
    (["--resume_training"], {"resume": True, "said": ("--resume_training",)}),
    (["--auto_resume"], {"resume": True}),
    (["--resume_from", "auto"], {"resume": True, "from_step": None}),
    (STEP, {"resume": True, "from_step": 100, "said": ("--resume_from 100",)}),
    (NO_STEP, {"resume": False}),
    (GIVEN, {"resume": True, "checkpoint": Path("old")}),
    (PRETRAINED, {"resume": False, "pretrained": Path("base")}),
    (ITERATION, {"resume": False, "iteration": "auto"}),
    (["--resume_from_iteration", "iter_2"], {"resume": False, "iteration": "iter_2"}),
    (["--resume_from_iteration", "none"], {"resume": False, "iteration": ""}),
    (["--restarted"], {"resume": True, "restarted": True}),
    ([*PRETRAINED, "--restarted"], {"resume": False, "restarted": True}),
    (["--override", "lr=config"], {"override": {"lr": "config"}}),
]


@pytest.mark.parametrize(("flags", "means"), MEANS)
def test_what_each_flag_means(flags: list[str], means: dict[str, Any]) -> None:
    """Alone; the rest is as without flags."""
    mode = mode_of(*flags)

    assert {name: getattr(mode, name) for name in means} == means


def test_the_configuration_counts_where_no_flag_says_how_to_start() -> None:
    """A flag wins over the file, as everywhere."""
    assert mode_of(resume_training=True).resume
    assert not mode_of(*PRETRAINED, resume_training=True).resume
    assert not mode_of(*NO_STEP, resume_training=True).resume
    assert mode_of("--max_rollback", "3", resume_training=True).said == ("--resume_training, by the configuration",)


def test_a_parser_that_has_some_of_them() -> None:
    """MindRLHF's parser has its own --resume_training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume_training", action="store_true")
    StartMode.add_arguments(parser)

    assert StartMode.read(parser.parse_args(["--resume_training"])).resume


@pytest.mark.parametrize(
    ("flags", "configured", "keeps"),
    [
        ([], {}, -1),  # all, where nobody says a number
        ([], {"keep_last": 4}, 4),
        (["--keep_last_n_checkpoints", "3"], {"keep_last": 4}, 3),
        (["--keep_last_n_checkpoints", "-1"], {"keep_last": 4}, -1),
    ],
)
def test_flags_stand_above_the_configuration(flags: list[str], configured: dict[str, Any], keeps: int) -> None:
    """And nothing of the rest is changed."""
    assert mode_of(*flags).settings(**configured) == ms_resume.Settings(keep_last=keeps)


def test_max_rollback_is_a_setting_too() -> None:
    """0 is a number, and not nothing."""
    assert mode_of("--max_rollback", "0").settings().max_rollback == 0
