"""The exactness campaign at its smallest: a twentieth of it, drawn anew by the date; and that it can say no."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import time
from pathlib import Path

import pytest
from exact import campaign, settings
from exact.campaign import Wanted
from exact.launches import Server
from exact.settings import Setting

from grpo_arithmetic import compare

needs_mindspore = pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed")

KILLS = 20
SEED = int(os.environ.get("EXACT_SEED", time.strftime("%Y%m%d")))


def test_every_pair_of_values_stands_together_in_some_setting() -> None:
    """And no setting is there twice."""
    chosen = settings.pairwise()
    for first, second in itertools.combinations(("mode", "optimizer", "format", "rate"), 2):
        pairs = {(getattr(setting, first), getattr(setting, second)) for setting in chosen}
        values = [{getattr(setting, factor) for setting in chosen} for factor in (first, second)]
        assert len(pairs) == len(values[0]) * len(values[1])

    assert len(set(chosen)) == len(chosen) <= 20
    assert Setting.parse(str(chosen[0])) == chosen[0]


@needs_mindspore
def test_a_twentieth_of_the_campaign(trainers: tuple[Server, Path], tmp_path: Path) -> None:
    """Twenty kills in two settings: each run ends bit for bit as the undisturbed one of its setting, not as another."""
    print(f"EXACT_SEED={SEED}")
    drawn = tuple(random.Random(SEED).sample(settings.pairwise(), 2))
    starts, here = trainers
    wanted = Wanted(KILLS, SEED, drawn, here, tmp_path / "results.jsonl", most=KILLS // 2)
    done = campaign.singles(wanted, starts=starts)

    assert [one.equal for one in done] == [True] * len(done), "\n".join(map(str, done))
    assert sum(one.struck.total() for one in done) >= KILLS
    # A kill between the end of a generation and its record on the disk costs that one.
    assert all(one.generated_again <= one.struck.total() for one in done)
    assert [line["equal"] for line in campaign.read(tmp_path / "results.jsonl")] == [True] * len(done)
    others = [here / str(setting).replace("/", "-") / "undisturbed" for setting in drawn]
    assert not compare.runs(*others).equal, "the comparison cannot tell one setting from another"


def test_figures_add_up(tmp_path: Path) -> None:
    """Over all runs that wrote into the file."""
    results = tmp_path / "exact.jsonl"
    for kind, kills, equal in (("single", 30, True), ("single", 12, False), ("msrun", 10, True)):
        campaign.record(results, {"kind": kind, "kills": kills, "equal": equal})

    assert len(results.read_text().splitlines()) == 3
    assert campaign.summary(map(json.loads, results.read_text().splitlines())) == (
        "single: 30 of 42 kills bit-identical, 2 chains\nmsrun: 10 of 10 kills bit-identical, 1 chains"
    )
