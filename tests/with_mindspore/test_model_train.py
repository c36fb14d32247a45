"""`ResumeCallback` under `Model.train`: killed and resumed, it ends with the bits of a run that was not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from killed_runs import chained
from mindspore import nn, train

import ms_resume
from ms_resume.adapters.model_train import ResumeCallback
from ms_resume.errors import DirectoryNotEmpty, UsageError
from ms_resume.resume import leaving

HERE = Path(__file__).parent
STEPS, EPOCHS = 5, 3
SETTINGS = ms_resume.Settings(heartbeat_s=0)


class Kill(train.Callback):
    """Ends training in the middle of nowhere, and keeps what was trained on."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.after, self.seen = after, []

    def on_train_step_end(self, run_context: Any) -> None:
        batch = run_context.original_args().train_dataset_element[0]
        self.seen.append(hashlib.sha256(batch.asnumpy().tobytes()).hexdigest()[:8])
        if len(self.seen) == self.after:
            raise KeyboardInterrupt


def rows() -> Any:
    return ms.dataset.NumpySlicesDataset((np.ones((8, 6), np.float32), np.ones((8, 2), np.float32))).batch(4)


def trained(
    save: Path,
    kill: train.Callback,
    *others: train.Callback,
    call: dict[str, Any] | None = None,
    left: list[bool] | None = None,
    **given: Any,
) -> dict[str, bytes]:
    """A run whose callbacks may end it with an error; everything is built and seeded anew."""
    ms.set_seed(7)
    ms.dataset.config.set_seed(7)
    source = np.random.default_rng(7)
    data = source.normal(size=(STEPS * 4 + 3, 6)).astype(np.float32)
    dataset = ms.dataset.NumpySlicesDataset((data, data[:, :2] ** 2), shuffle=True).batch(4, drop_remainder=True)
    network = nn.Dense(6, 2, weight_init=ms.Tensor(source.normal(size=(2, 6)).astype(np.float32)))
    optimizer = nn.AdamWeightDecay(network.trainable_params(), learning_rate=nn.WarmUpLR(0.05, 4))
    model = train.Model(network, loss_fn=nn.MSELoss(), optimizer=optimizer)
    resume = ResumeCallback(save, network, optimizer, dataset, **{"save_every": 2, "settings": SETTINGS, **given})
    try:
        right = {"train_dataset": dataset, "initial_epoch": resume.initial_epoch}
        model.train(EPOCHS, callbacks=[kill, *others, resume], **{**right, **(call or {})})
    except KeyboardInterrupt:
        pass
    if left is not None:
        left.append(resume.left)
    return {parameter.name: parameter.asnumpy().tobytes() for parameter in optimizer.get_parameters()}


KILLS = [
    # where SIGKILL comes, and from where the next run may go on: what was being saved may have been whole by then
    ("sync:optimizer_rank_0-0_4.safetensors", {2}),
    ("sync:commits/0_4/.rank_0.json", {2}),
    ("step:5", {4, 6}),  # the seventh step: the save of the sixth may be under way
    ("sync:commits/2_0", {10}),  # its vote has its name, `meta.json` says the one before
    ("sync:train/rank_0/.meta.json", {10}),  # which that start would have mended
]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL between steps and in saves, one run after the other: each goes on at the exact batch with the draws, and
    the last one ends with the bits, of a run that nobody killed."""
    whole, starts = chained(HERE / "model_train_runs.py", tmp_path, KILLS)

    assert len(whole) == STEPS * EPOCHS + 1
    assert starts[-1] == 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """The batches of a run that nobody asked to leave, and what it ended with."""
    kill = Kill()
    end = trained(tmp_path_factory.mktemp("whole"), kill)
    return kill.seen, end


@pytest.fixture
def another_run() -> Iterator[None]:
    """This process goes on after a run that has left, as none does: nobody listens any more."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    if leaving._EAR is not None:
        leaving._EAR._who.clear()


class Ask(train.Callback):
    """Sends the signal in the middle of a step, as a scheduler does."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, []

    def on_train_step_begin(self, run_context: Any) -> None:
        batch = run_context.original_args().train_dataset_element[0]
        self.seen.append(hashlib.sha256(batch.asnumpy().tobytes()).hexdigest()[:8])
        if len(self.seen) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)


@pytest.mark.usefixtures("another_run")
@pytest.mark.parametrize("at", [3, 8])
def test_asked_to_leave(at: int, whole: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    """The step is done and saved, whatever `save_every` says; the next start goes on with the next batch. MindSpore's
    OnRequestExit, which puts its own handler over ours, takes nothing away."""
    batches, end = whole
    asked, resumed = Ask(at), Kill()
    swallows = train.OnRequestExit(save_ckpt=False, save_mindir=False)
    left: list[bool] = []
    trained(tmp_path, asked, swallows, left=left, save_every=100, leave_on=[signal.SIGTERM])
    again = trained(tmp_path, resumed, left=left)

    assert asked.seen == batches[:at]
    assert left == [True, False]
    assert resumed.seen == batches[at:]
    assert again == end


@pytest.mark.usefixtures("another_run")
def test_on_request_exit_swallows_the_signal(whole: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    """What MindSpore does alone, with no MS_ENABLE_GRACEFUL_EXIT: it trains to the end. Should that change, docs do."""
    asked = Ask(3)
    trained(tmp_path, asked, train.OnRequestExit(save_ckpt=False, save_mindir=False))

    assert asked.seen == whole[0]


def test_what_loads_over_a_resume_is_refused(tmp_path: Path) -> None:
    """OnRequestExit would put its own file over the weights that were resumed."""
    other = train.OnRequestExit(save_mindir=False, directory=str(tmp_path / "other"))

    with pytest.raises(UsageError, match="over what was resumed"):
        trained(tmp_path / "save", Kill(), other)


def test_a_fresh_start_is_asked_for(tmp_path: Path) -> None:
    """`resume=False` where there are checkpoints is refused, and with the word for it begins anew."""
    trained(tmp_path, Kill(5))

    with pytest.raises(DirectoryNotEmpty):
        trained(tmp_path, Kill(), resume=False)
    anew = Kill(2)
    trained(tmp_path, anew, resume=False, allow_fresh_start=True)
    assert len(anew.seen) == 2


def test_never_saving_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="saved every 0"):
        trained(tmp_path, Kill(), save_every=0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: {"initial_epoch": 0}, "begins with epoch 0, and the data goes on in epoch 1"),
        (lambda: {"train_dataset": rows()}, "was given another data set"),
    ],
)
def test_a_call_that_does_not_fit(call: Any, said: str, tmp_path: Path) -> None:
    """The second of the two lines is easily half forgotten: said before the first step, and nothing saved is lost."""
    trained(tmp_path, Kill(8))
    wrong, right = Kill(), Kill()
    with pytest.raises(UsageError, match=said):
        trained(tmp_path, wrong, call=call())
    trained(tmp_path, right)

    assert wrong.seen == []
    assert len(right.seen) == STEPS * EPOCHS - 6


def test_sink_mode_is_refused(tmp_path: Path) -> None:
    """There `Model.train` counts in epochs what else it counts in steps. It has none on a CPU."""
    network, data = nn.Dense(6, 2), rows()
    optimizer = nn.SGD(network.trainable_params())
    resume = ResumeCallback(tmp_path, network, optimizer, data, save_every=1, settings=SETTINGS)
    given = SimpleNamespace(train_dataset=data, dataset_sink_mode=True, list_callback=[])

    with pytest.raises(UsageError, match="dataset_sink_mode=True"):
        resume.on_train_begin(SimpleNamespace(original_args=lambda: given))


def test_a_supervisor_hears_of_the_end(tmp_path: Path) -> None:
    """Without its word a run that came to its end would be started again."""
    (tmp_path / "000001-0").mkdir()
    trained(tmp_path / "save", Kill(), settings=ms_resume.Settings(heartbeat_s=0, watch_dir=str(tmp_path / "000001-0")))

    assert json.loads((tmp_path / "000001-0" / "rank_0.outcome").read_text())["done"] is True
