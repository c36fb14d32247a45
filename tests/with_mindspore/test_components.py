"""Components on MindSpore's own objects: every form of learning rate, loss scales, half summed gradients, pipelines."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn
from mindspore.experimental import optim as experimental
from mindspore.experimental.optim import lr_scheduler as schedulers

import ms_resume
from ms_resume.errors import LayoutMismatch, NamesMismatch, UsageError
from ms_resume.framework import inexact
from ms_resume.framework.nets import Net
from ms_resume.resume import unsaved
from ms_resume.state import pack, unpack


def through_disk(component: Any) -> dict[str, Any]:
    tensors, values = pack({component.name: component})
    return unpack(tensors, json.loads(json.dumps(values)))[component.name]


def weights(count: int = 2) -> list[Parameter]:
    return [Parameter(Tensor(np.ones(2, np.float32)), name=f"w{number}") for number in range(count)]


def two_rates(kind: Callable[..., Any] = experimental.AdamW) -> Any:
    first, second = weights()
    return kind([{"params": [first], "lr": 0.01}, {"params": [second]}], lr=0.02)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.5, total_iters=4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 9, power=2.0),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [_halved, _halved]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, [_halved, _halved]),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.1),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.25, 4),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, "min", factor=0.5, patience=1, cooldown=1),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.05, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3, 2),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=6, eta_min=0.0),
}


def _halved(epoch: Any) -> Any:
    return 0.5 ** (epoch % 3)


def step(name: str, scheduler: Any, number: int) -> None:
    if name == "ReduceLROnPlateau":
        scheduler.step([5.0, 4.0, 4.5, 4.6, 4.7, 4.8, 4.9, 3.0, 4.0, 4.1, 4.2, 4.3][number])
    else:
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("at", [1, 4])
def test_every_scheduler_goes_on_where_it_was(name: str, at: int) -> None:
    """Of `experimental.optim.lr_scheduler`, which has no `state_dict`: the rates of both groups at each later step."""
    optimizer = two_rates()
    scheduler = SCHEDULERS[name](optimizer)
    held = ms_resume.LearningRates(optimizer, scheduler)
    state, expected = None, []
    for number in range(11):
        if number == at:
            state = through_disk(held)
        step(name, scheduler, number)
        expected.append([float(rate.asnumpy()) for rate in optimizer.lrs])
    resumed = two_rates()
    again = SCHEDULERS[name](resumed)
    component = ms_resume.LearningRates(resumed, again)
    assert state is not None
    component.restore(state)
    found = []
    for number in range(at, 11):
        step(name, again, number)
        found.append([float(rate.asnumpy()) for rate in resumed.lrs])

    assert found == expected[at:]
    assert component.notes() == []


def test_a_scheduler_of_another_kind_is_refused() -> None:
    """Before anything is changed; with both lists."""
    optimizer = two_rates()
    state = through_disk(ms_resume.LearningRates(optimizer, SCHEDULERS["CosineAnnealingWarmRestarts"](optimizer)))
    other = two_rates()
    with pytest.raises(NamesMismatch, match="schedule_T_cur"):
        ms_resume.LearningRates(other, SCHEDULERS["StepLR"](other)).restore(state)


class Falling(nn.learning_rate_schedule.LearningRateSchedule):  # type: ignore[misc]  # MindSpore ships no types
    def construct(self, global_step: Any) -> Any:
        return 0.1 / (1.0 + global_step)


@pytest.mark.parametrize(
    ("rate", "registered"), [(0.02, 1), ([0.03, 0.02, 0.01], 0), (Falling(), 0)], ids=["constant", "list", "schedule"]
)
def test_rates_of_an_nn_optimizer_are_in_its_own_payload(rate: Any, registered: int) -> None:
    """A constant is the component's too; a list is registered in a cell of its own; a schedule is no parameter."""
    optimizer = nn.Momentum(weights(), learning_rate=rate, momentum=0.9)
    held = through_disk(ms_resume.LearningRates(optimizer))

    assert sum(key.startswith("rate_") for key in held) == registered
    names = Net(optimizer).infos()
    assert ("learning_rate" in names) == (not isinstance(rate, Falling))
    assert "global_step" in names
    assert unsaved.components({"optimizer": Net(optimizer)}, {"randomness": ms_resume.Randomness()}) == []


def test_groups_of_an_nn_optimizer() -> None:
    """Each has its rate under its own name."""
    first, second = weights()
    groups = [{"params": [first], "lr": 0.01}, {"params": [second]}]
    optimizer = nn.Adam(groups, learning_rate=0.02)
    held = through_disk(ms_resume.LearningRates(optimizer))

    assert [round(float(held[f"rate_{n}"]), 4) for n in (0, 1)] == [0.01, 0.02]
    assert {"learning_rate_group_0", "learning_rate"} <= Net(optimizer).infos().keys()


def test_a_rate_that_was_configured_anew_is_said() -> None:
    """The checkpoint's goes on, as MindSpore has it, but not in silence."""
    state = through_disk(ms_resume.LearningRates(experimental.AdamW(weights(), lr=0.5)))
    optimizer = experimental.AdamW(weights(), lr=0.25)
    component = ms_resume.LearningRates(optimizer)
    component.restore(state)

    assert float(optimizer.lrs[0].asnumpy()) == 0.5
    assert component.notes() == ["rate_0: 0.25 is configured, it was 0.5; the checkpoint's goes on"]


def test_rates_without_a_component_are_in_the_banner() -> None:
    """Those of `experimental.optim` are in no list of parameters."""
    roles: dict[str, Any] = {"optimizer": Net(two_rates())}
    randomness = {"randomness": ms_resume.Randomness()}

    assert unsaved.components(roles, randomness) == [
        "the optimizer's learning_rate_group_0, learning_rate_group_1 (LearningRates)"
    ]


def test_loss_scales_of_mindspore() -> None:
    """The scaler that is no Cell, and the cell that counts its steps."""
    scaler = amp.DynamicLossScaler(1024.0, 2, 3)
    update = nn.DynamicLossScaleUpdateCell(1024.0, 2, 3)
    counted = ("cur_iter", "last_overflow_iter") if hasattr(update, "cur_iter") else (
        "current_iterator_step", "last_overflow_iterator_step")  # fmt: skip  # the attributes; 2.10 calls them so
    held = [ms_resume.Fields("a", scaler, "scale_value", "counter"), ms_resume.Fields("b", update, *counted)]
    scaler.adjust(Tensor(True))
    scaler.adjust(Tensor(True))
    states = [through_disk(component) for component in held]
    before = scaler.scale_value
    scaler.adjust(Tensor(True))
    grown = float(scaler.scale_value.asnumpy())
    for component, state in zip(held, states, strict=True):
        component.restore(state)

    assert scaler.scale_value is before
    assert (float(scaler.scale_value.asnumpy()), int(scaler.counter.asnumpy())) == (1024.0, 2)
    scaler.adjust(Tensor(True))
    assert float(scaler.scale_value.asnumpy()) == grown == 2048.0


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16])
def test_gradients_half_summed(dtype: Any) -> None:
    """A tuple of parameters, in place; bfloat16 too."""

    class Owner:
        sums = ParameterTuple([Parameter(Tensor(np.full(3, 1.5), dtype), name=f"s{n}") for n in range(2)])

    held = ms_resume.Fields("sums", Owner, "sums")
    state = through_disk(held)
    for one in Owner.sums:
        one.copy_(Tensor(np.zeros(3), dtype))
    held.restore(state)

    assert [one.astype(ms.float32).asnumpy().tolist() for one in Owner.sums] == [[1.5] * 3] * 2
    with pytest.raises(NamesMismatch, match=r"sums\.0: the checkpoint has"):
        held.restore({**state, "sums.0": np.zeros(4, np.float32)})


def numbers(**more: Any) -> Any:
    return ds.NumpySlicesDataset(np.arange(24), column_names=["x"], **more)


class Indexed:
    def __getitem__(self, index: int) -> Any:
        return (np.array(index),)

    def __len__(self) -> int:
        return 24


def drawn() -> Any:
    yield from ((np.array(number),) for number in range(24))


class Noisy:
    """Draws from a generator of its own, seeded when the pipeline is built."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(3)

    def __call__(self, x: Any) -> Any:
        return x + self._generator.integers(1000)


PIPELINES: dict[str, tuple[Callable[[], Any], bool]] = {
    # name                   how it is built                                                      read again?
    "slices shuffled": (lambda: numbers(shuffle=True).batch(4), False),
    "slices in order": (lambda: numbers(shuffle=False).batch(4), False),
    "indexed": (lambda: ds.GeneratorDataset(Indexed(), ["x"], shuffle=True).batch(4), False),
    "sharded": (lambda: numbers(shuffle=True, num_shards=2, shard_id=1).batch(2), False),
    "generator": (lambda: ds.GeneratorDataset(drawn, ["x"], shuffle=False).batch(4), True),
    "shuffle buffer": (lambda: numbers(shuffle=False).shuffle(10).batch(4), True),
    "repeat": (lambda: numbers(shuffle=True).repeat(2).batch(8), True),
    "filter": (lambda: numbers(shuffle=False).filter(lambda x: x % 3 > 0).batch(4), True),
    "take and skip": (lambda: numbers(shuffle=True).skip(2).take(20).batch(4), True),
    "noisy map": (lambda: numbers(shuffle=True).map(Noisy(), ["x"], num_parallel_workers=1).batch(4), True),
}


def rows_of(cursor: Any, epochs: int) -> list[list[int]]:
    return [row["x"].tolist() for _ in range(epochs) for row in cursor.epoch()]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_goes_on_at_every_step(name: str) -> None:
    """Within and across epochs; the banner says where it has to be read again."""
    build, rereads = PIPELINES[name]
    whole = ms_resume.DatasetCursor(build, epochs=2, seed=3)
    states, rows = [], []
    for _ in range(2):
        for row in whole.epoch():
            states.append(through_disk(whole))
            rows.append(row["x"].tolist())

    assert len(rows) == 2 * whole.steps_per_epoch
    for number, state in enumerate(states):
        resumed = ms_resume.DatasetCursor(build, epochs=2, seed=3)
        resumed.restore(state)
        left = 2 - number // whole.steps_per_epoch
        assert rows_of(resumed, left) == rows[number:], number
        assert bool(resumed.notes()) == (rereads and number > 0)


def test_a_text_file_is_read_again(tmp_path: Path) -> None:
    """Shuffled by MindSpore."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{number}\n" for number in range(12)))

    def cursor() -> ms_resume.DatasetCursor:
        return ms_resume.DatasetCursor(lambda: ds.TextFileDataset(str(path), shuffle=True).batch(3), epochs=2, seed=3)

    def lines(held: ms_resume.DatasetCursor, epochs: int) -> list[list[str]]:
        return [row["text"].tolist() for _ in range(epochs) for row in held.epoch()]

    whole = lines(cursor(), 2)
    for number in range(8):
        resumed = cursor()
        resumed.seek(*divmod(number, 4))

        assert lines(resumed, 2 - number // 4) == whole[number:]
        assert bool(resumed.notes()) == (number > 0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: numbers(shuffle=True).map(Noisy(), ["x"], num_parallel_workers=2).batch(4), "in 2 workers"),
        (lambda: ds.zip((numbers(), numbers().rename(["x"], ["y"]))).batch(4), "cannot be put at a step"),
    ],
    ids=["many workers", "zip"],
)
def test_what_cannot_be_exact_is_refused(build: Any, said: str) -> None:
    """At once, not at the resume."""
    with pytest.raises(UsageError, match=said):
        ms_resume.DatasetCursor(build, epochs=2, seed=3)


def test_pure_functions_are_not_called_again() -> None:
    """Where the trainer says so: workers may be many, and nothing is read again."""
    build = lambda: numbers(shuffle=True).map(lambda x: x + 1, ["x"], num_parallel_workers=2).batch(4)  # noqa: E731  # a value
    whole = ms_resume.DatasetCursor(build, epochs=1, seed=3, pure=True)
    rows = rows_of(whole, 1)
    resumed = ms_resume.DatasetCursor(build, epochs=1, seed=3, pure=True)
    resumed.seek(0, 3)

    assert rows_of(resumed, 1) == rows[3:]
    assert resumed.notes() == []


def test_other_data_and_a_place_past_the_end_are_refused() -> None:
    """With what changed."""
    build = PIPELINES["slices shuffled"][0]
    state = through_disk(ms_resume.DatasetCursor(build, epochs=2, seed=3, data={"rows": np.arange(3)}))
    with pytest.raises(LayoutMismatch, match=r"rows was .* is"):
        ms_resume.DatasetCursor(build, epochs=2, seed=3, data={"rows": np.arange(4)}).restore(state)
    with pytest.raises(LayoutMismatch, match="seed was 3, is 4"):
        ms_resume.DatasetCursor(build, epochs=2, seed=4, data={"rows": np.arange(3)}).restore(state)
    with pytest.raises(LayoutMismatch, match="stands at step 13, this run has 2 epochs of 6"):
        ms_resume.DatasetCursor(build, epochs=2, seed=3, data={"rows": np.arange(3)}).restore({**state, "step": 13})


def test_a_pipeline_leaves_random_numbers_alone() -> None:
    """It is opened after a resume has restored what Python and NumPy draw next."""
    before = random.getstate(), np.random.get_state()[1].tolist()
    next(ms_resume.DatasetCursor(PIPELINES["slices shuffled"][0], epochs=1, seed=3).epoch())

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_dropout_is_seen(tmp_path: Path) -> None:
    """And said at the first save, once; one that is off is not."""

    class Leaky(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
        def __init__(self, p: float) -> None:
            super().__init__()
            self.layer, self.leak = nn.Dense(2, 2), nn.Dropout(p=p)

    assert inexact.cells(Leaky(0.1)) == ["leak"]
    assert inexact.cells(Leaky(0.0)) == []
    assert inexact.cells(nn.Dropout(keep_prob=0.5)) == ["Dropout"]
    said: list[str] = []
    policy = Leaky(0.1)
    with ms_resume.Checkpointer(
        tmp_path, policy=policy, optimizer=nn.Momentum(policy.trainable_params(), 0.1, 0.9), steps_per_epoch=9,
        settings=ms_resume.Settings(heartbeat_s=0), say=said.append,
    ) as checkpointer:  # fmt: skip  # one call
        checkpointer.start(resume=False)
        for number in (1, 2):
            checkpointer.save(0, number)

    assert sum("leak: dropout draws from a state inside its kernel" in line for line in said) == 1
