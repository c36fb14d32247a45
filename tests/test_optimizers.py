"""Optimizers told apart by the names of their state, and values that checkpoint and configuration both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ms_resume.errors import LayoutMismatch, NamesMismatch, UsageError
from ms_resume.load import optimizers, overrides
from ms_resume.load.overrides import Difference
from ms_resume.records import TensorInfo
from ms_resume.state import Arrays, HostTensor

WEIGHTS = ("model.w", "model.norm.gamma")


def names(prefixes: str, *more: str, weights: tuple[str, ...] = WEIGHTS) -> set[str]:
    """`adam_m. adam_v.` before each weight, the weights themselves, and a counter."""
    return {f"{prefix}{weight}" for prefix in prefixes.split() for weight in weights} | {*weights, "global_step", *more}


@pytest.mark.parametrize(
    ("prefixes", "kind"),
    [
        ("adam_m. adam_v.", "nn.AdamWeightDecay (adam_m, adam_v of 2 weights, such as adam_m.model.norm.gamma)"),
        ("moment1. moment2.", "nn.Adam ("),
        ("moment1. moment2. vhat.", "nn.Adam with amsgrad ("),
        ("lamb_m. lamb_v.", "nn.Lamb ("),
        ("moments.", "nn.Momentum ("),
        ("moments. linear.", "nn.FTRL ("),
        ("accum. stat.", "nn.SGD ("),
        ("accum.", "nn.Adagrad ("),
        ("exp_avg. exp_avg_sq.", "mint.optim.AdamW ("),
        ("exp_avg. exp_avg_sq. max_exp_avg_sq.", "experimental.optim.AdamW ("),
        ("exp_avg. exp_avg_sq_ exp_avg_sq_row_ exp_avg_sq_col_", "nn.AdaFactor ("),
        ("ax_. mu_ eta_", "nn.ASGD ("),
        ("mine_m. mine_v.", "an optimizer not known by name (mine_m, mine_v of 2 weights"),
        ("", "no moments"),
    ],
)
def test_kinds(prefixes: str, kind: str) -> None:
    """The prefixes as MindSpore 2.10.0 names the state of each."""
    assert str(optimizers.state(names(prefixes), WEIGHTS)).startswith(kind)


def test_a_weight_that_ends_like_a_prefix() -> None:
    """`adam_m.w` is the moment of `w`, although there is a weight `m.w`."""
    found = optimizers.state({"adam_m.w", "adam_m.m.w"}, ("w", "m.w"))

    assert found.moments == {"adam_m.w": ("adam_m", "w"), "adam_m.m.w": ("adam_m", "m.w")}


ADAMW = names("adam_m. adam_v.", "learning_rate")
GROUPED = names("adam_m. adam_v.", "learning_rate_group_0", "learning_rate_group_1")


@pytest.mark.parametrize(
    ("saved", "now", "said"),
    [
        (ADAMW, ADAMW, ""),
        (ADAMW, names("lamb_m. lamb_v."), r"another one: the file holds nn\.AdamWeightDecay .* has nn\.Lamb \(lamb_m"),
        (names("moments."), names("accum. stat."), r"nn\.Momentum .* has nn\.SGD"),
        (names("moment1. moment2. vhat."), names("moment1. moment2."), "amsgrad .* has nn.Adam"),
        (
            ADAMW,
            GROUPED,
            "groups are others: .* learning_rate; this job has learning_rate_group_0, learning_rate_group_1",
        ),
        (ADAMW, names("adam_m. adam_v."), ""),  # constant, and now a schedule: that is one of the values
        (
            ADAMW,
            names("adam_m. adam_v.", *WEIGHTS, "learning_rate", weights=WEIGHTS[:1]),
            r"updates other weights, no longer model\.norm\.gamma: .* moments of 2 weights; .* moments of 1",
        ),
        (names("adam_m. adam_v.", weights=WEIGHTS[:1]), ADAMW, r"now model\.norm\.gamma as well"),
        (names("", weights=("other",)), ADAMW, ""),  # names alone do not show it: the report of all names does
    ],
)
def test_another_optimizer(saved: set[str], now: set[str], said: str) -> None:
    """Each row: the file's names, this job's, and what the refusal says of both."""
    before, after = optimizers.state(saved, WEIGHTS), optimizers.state(now, WEIGHTS)
    if not said:
        optimizers.check_same(Path("f"), before, after)
        return
    with pytest.raises(NamesMismatch, match=said) as caught:
        optimizers.check_same(Path("f"), before, after)

    assert "warm_start" in caught.value.hint


def test_rates_that_are_not_taken_are_no_groups() -> None:
    """`learning_rate*=config` goes on with other rates, and the same moments."""
    before, after = (optimizers.state(one, WEIGHTS) for one in (ADAMW, GROUPED))
    optimizers.check_same(Path("f"), before, after, kept=after.rates + before.rates)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("adam_m.model.w", True),
        ("moment1.model.norm.gamma", True),
        ("accu_grads.model.w", True),
        ("exp_avg_sq_row_model.w", True),
        ("global_step", True),
        ("learning_rate_group_12", True),
        ("loss_scale", True),
        ("beta1_power", True),
        ("model.w", False),
        ("adam_m.stranger", False),
        ("lora_a.model.w", False),  # no prefix of an optimizer's: a weight
        ("model.global_step", False),
        ("ema.model.w", False),
    ],
)
def test_what_of_a_file_is_not_weights(name: str, found: bool) -> None:
    """By known prefixes before a weight of the same file, and by whole names."""
    assert optimizers.is_state(name, {*WEIGHTS, name}) is found


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["learning_rate=config"], {"learning_rate": "config"}),
        (["a.b=checkpoint", "learning_rate*=config"], {"a.b": "checkpoint", "learning_rate*": "config"}),
        ([], {}),
        (["learning_rate=0.1"], None),
        (["learning_rate"], None),
        (["=config"], None),
        (["a=config", "a=checkpoint"], None),
    ],
)
def test_overrides_as_they_are_typed(texts: list[str], found: dict[str, str] | None) -> None:
    """None: an error."""
    if found is None:
        with pytest.raises(UsageError):
            overrides.parse(texts)
    else:
        assert overrides.parse(texts) == found


class File(Arrays):
    """Arrays as a source."""

    path, bytes, digests, values = Path("f"), 0, {}, {}  # type: ignore[var-annotated]  # a stand-in

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return self.infos()


def f32(*values: float) -> np.ndarray:
    return np.array(values if len(values) > 1 else values[0], np.float32)


@pytest.mark.parametrize(
    ("saved", "now", "said"),
    [
        (f32(1e-3), f32(1e-3), ""),
        (f32(1e-3), f32(5e-4), "learning_rate was 0.001, is 0.0005"),
        (f32(1e-3), np.nextafter(f32(1e-3), f32(1)), "learning_rate was 0.00100000005, is 0.00100000016"),
        (f32(1, 2, 3, 4, 5), f32(1, 2, 3), "was 5 values (1, 2, 3, 4, ...), is 3 values (1, 2, 3)"),
        (f32(1e-3), None, "was 0.001, is not constant"),
        (None, f32(1e-3), "was not constant, is 0.001"),
    ],
)
def test_rates_that_differ(saved: Any, now: Any, said: str) -> None:
    """In as few digits as tell them apart; moments and counters are never looked at."""
    moved = {"global_step": np.array([5], np.int32), "beta1_power": f32(0.5), "adam_m.w": f32(1, 2)}
    held = File({"learning_rate": saved, **moved} if saved is not None else moved)
    live = Arrays(
        {**({"learning_rate": now} if now is not None else {}), **{n: np.zeros_like(a) for n, a in moved.items()}}
    )
    found = overrides.in_tensors(held, live)

    assert "; ".join(map(str, found)).endswith(said)
    assert len(found) == bool(said)


RATE = Difference("learning_rate", "0.001", "0.0005", placeable=True)
GONE = Difference("learning_rate", "0.001", "")
LR, DECAY, SEED = "actor_config.optimizer.lr", "actor_config.optimizer.weight_decay", "rl_config.seed"


@pytest.mark.parametrize(
    ("tensors", "saved", "now", "override", "found"),
    [
        ([], {}, {}, {}, {}),
        ([], {SEED: 1}, {SEED: 2}, {}, {}),  # not what an optimizer is built from
        ([RATE], {}, {}, {}, "learning_rate was 0.001, is 0.0005"),
        ([RATE], {}, {}, {"learning_rate": "config"}, {"learning_rate": "config"}),
        ([RATE], {}, {}, {"learning_*": "checkpoint"}, {"learning_rate": "checkpoint"}),
        ([RATE], {LR: 1}, {LR: 1}, {}, {}),  # the configuration is the same: the trainer moved it
        ([RATE], {LR: 1}, {LR: 2}, {}, "learning_rate was"),  # asked once, not for the key as well
        ([RATE], {LR: 1}, {LR: 2}, {"learning_rate": "config"}, {"learning_rate": "config"}),
        ([RATE], {DECAY: 1}, {DECAY: 1}, {}, "learning_rate was"),  # that says nothing of the rate
        ([GONE], {LR: 1}, {LR: 1}, {}, "learning_rate was 0.001, is not constant"),
        ([GONE], {}, {}, {"learning_rate": "checkpoint"}, "only the trainer can build it"),
        ([], {LR: 1e-3}, {LR: 5e-4}, {}, f"{LR} was 0.001, is 0.0005"),
        ([], {LR: 1e-3}, {LR: 5e-4}, {"lr": "config"}, {LR: "config"}),
        ([], {DECAY: 0.1}, {DECAY: 0.0}, {}, f"{DECAY} was 0.1, is 0.0"),
        ([], {DECAY: 0.1}, {DECAY: 0.0}, {DECAY: "checkpoint"}, "only the trainer can build it"),
        ([RATE], {DECAY: 1}, {DECAY: 2}, {"learning_rate": "config"}, f"{DECAY} was 1, is 2"),
        ([], {}, {DECAY: 2}, {}, {}),  # said by one side alone
        ([], {}, {}, {"learning_rate": "config"}, {}),  # nothing differs any more
    ],
)
def test_who_counts(
    tensors: list[Difference], saved: dict[str, Any], now: dict[str, Any], override: dict[str, str], found: Any
) -> None:
    """Each row: what differs, what the configuration said and says, what was asked for, and what is decided; a text is
    the refusal, which lists both values."""
    if isinstance(found, dict):
        assert overrides.decide(tensors, saved, now, override) == found
        return
    with pytest.raises(LayoutMismatch, match=found):
        overrides.decide(tensors, saved, now, override)


def test_the_hint_is_what_to_type() -> None:
    """Every difference at once."""
    with pytest.raises(LayoutMismatch) as caught:
        overrides.decide([RATE], {DECAY: 1}, {DECAY: 2}, {})

    assert f"override={{'learning_rate': 'config', '{DECAY}': 'config'}}" in caught.value.hint
    assert caught.value.fields["differences"] == [["learning_rate", "0.001", "0.0005"], [DECAY, "1", "2"]]


def test_bfloat16_rates() -> None:
    """NumPy has none: its bytes are shown."""

    class Half(File):
        def read(self, name: str) -> HostTensor:
            return HostTensor("BF16", (), memoryview(b"\x80\x3f"))

        def infos(self) -> dict[str, TensorInfo]:
            return {"learning_rate": TensorInfo("BF16", ())}

    (found,) = overrides.in_tensors(Half(), Arrays(learning_rate=f32(1)))
    assert str(found) == "learning_rate was BF16[] 803f, is 1"
