"""The port to MindSpore on the CPU build: nets are read and placed exactly, and stock code reads what we write.

Run in a process of its own by tests/test_with_mindspore.py: the threads that stand for ranks elsewhere, and MindSpore's
operators in threads do not go together.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import ms_resume
from ms_resume.errors import MsResumeError, UsageError
from ms_resume.framework import nets, version
from ms_resume.framework.group import Solo
from ms_resume.framework.nets import Net
from ms_resume.ondisk import names, payload
from ms_resume.records import Position
from ms_resume.state import HostTensor, infos, read_all

POSITION = Position(0, 4)


class Model(nn.Cell):
    """Two dense layers, and one parameter of each further kind that a checkpoint may meet."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        source = np.random.default_rng(seed)
        self.first = nn.Dense(4, 8, weight_init=Tensor(source.normal(size=(8, 4)).astype(np.float32)))
        self.second = nn.Dense(8, 1, weight_init=Tensor(source.normal(size=(1, 8)).astype(np.float32)))
        half = Tensor(source.normal(size=(3,)).astype(np.float32)).astype(ms.bfloat16)
        self.half = Parameter(half, name="half", requires_grad=False)
        self.count = Parameter(Tensor(np.int64(seed)), name="count", requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.second(ops.tanh(self.first(x)))


class Run:
    """A policy in training: jit on the gradient, AdamWeightDecay, a reference, a stateful random source."""

    def __init__(self, seed: int = 0) -> None:
        self.policy, self.ref = Model(seed), Model(seed)
        self.optimizer = nn.AdamWeightDecay(self.policy.trainable_params(), learning_rate=nn.WarmUpLR(0.1, 5))
        self.noise = np.random.default_rng(seed)
        self._gradient = ms.jit(ms.value_and_grad(self._loss, None, self.optimizer.parameters))

    def _loss(self, x: Tensor) -> Tensor:
        return (self.policy(x) ** 2).mean()

    def step(self) -> None:
        x = Tensor(self.noise.normal(size=(16, 4)).astype(np.float32))
        _, gradients = self._gradient(x)
        self.optimizer(gradients)

    def weights(self) -> dict[str, bytes]:
        held = {**read_all(Net(self.policy)), **read_all(Net(self.optimizer))}
        return {name: bytes(value.data) for name, value in held.items()}

    def checkpointer(self, save: Path, **settings: object) -> ms_resume.Checkpointer:
        return ms_resume.Checkpointer(
            save,
            policy=self.policy,
            optimizer=self.optimizer,
            ref=self.ref,
            components=[ms_resume.Randomness(noise=self.noise)],
            steps_per_epoch=8,
            settings=ms_resume.Settings(heartbeat_s=0, **settings),  # type: ignore[arg-type]
            group=Solo(),
            say=lambda text: None,
        )


def saved(save: Path, **settings: object) -> Run:
    """A run that saved after four steps."""
    run = Run()
    with run.checkpointer(save, **settings) as checkpointer:
        checkpointer.start(resume=False)
        for _ in range(POSITION.step):
            run.step()
        checkpointer.save(*POSITION.to_json())
    return run


def stock_save(run: Run, save: Path, file_format: str) -> None:
    """What MindRLHF's own save_checkpoints writes."""
    nets_of = {"policy": run.policy, "optimizer": run.optimizer, "ref": run.ref}
    for role, net in nets_of.items():
        path = names.payload(save, role, 0, POSITION, file_format)
        path.parent.mkdir(parents=True)
        extra = {"epoch_num": POSITION.epoch, "step_num": POSITION.step} if role == "policy" else {}
        ms.save_checkpoint(net, str(path), append_dict=extra, integrated_save=False, format=file_format)
        meta = {"last_epoch": POSITION.epoch, "last_step": POSITION.step, "last_ckpt_file": path.name}
        (path.parent / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("compiled", [False, True], ids=["fresh", "after compiled steps"])
def test_training_goes_on_with_what_was_placed(compiled):
    """After compiled steps, stock loading shows the loaded values and trains the old ones; placing does not."""
    run, other = Run(0), Run(1)
    for _ in range(2 if compiled else 0):
        run.step()
    for name, value in read_all(Net(other.policy)).items():
        Net(run.policy).place(name, value)
    for name, value in read_all(Net(other.optimizer)).items():
        Net(run.optimizer).place(name, value)
    run.noise.bit_generator.state = other.noise.bit_generator.state

    for _ in range(2):
        run.step()
        other.step()

    assert run.weights() == other.weights()


def test_every_dtype_is_placed_bit_for_bit():
    """float32, bfloat16, and a 0-d int64, with bytes that a cast would change."""
    run = Run()
    held = read_all(Net(run.policy))
    for name, value in held.items():
        flipped = bytes(255 - byte if index % 5 == 0 else byte for index, byte in enumerate(value.data))
        Net(run.policy).place(name, HostTensor(value.dtype, value.shape, memoryview(flipped)))

        assert bytes(read_all(Net(run.policy))[name].data) == flipped


def test_dtypes_and_shapes_are_known_without_a_copy():
    """What MindSpore says of a parameter is what its bytes are saved as."""
    run = Run()

    for net in (Net(run.policy), Net(run.optimizer)):
        assert net.infos() == infos(read_all(net))


def test_a_value_that_does_not_fit_is_refused():
    """`copy_` alone would broadcast and cast it."""
    net = Net(Run().policy)
    small = HostTensor("F32", (1,), memoryview(np.ones(1, np.float32)).cast("B"))

    with pytest.raises(MsResumeError, match="does not fit"):
        net.place("first.weight", small)


def test_parameters_of_one_name_are_refused():
    """Only one of them could be saved."""
    cell = nn.CellList([nn.Dense(2, 2), nn.Dense(2, 2)])
    for dense in cell:
        dense.weight.name = "same"

    with pytest.raises(UsageError, match="'same'"):
        Net(cell)


class NotYetUsed:
    """A parameter of an Ascend job before its first operator: in host memory, whose address MindSpore 2.7 gives as 0.

    A stand-in, from MindSpore's source; nothing here runs on Ascend.
    """

    name, size, shape, dtype = "w", 3, (3,), ms.float32

    def __init__(self, address: int, device: str = "CPU") -> None:
        self.device, self._address, self._value = device, address, np.zeros(3, np.float32)

    def get_parameters(self):
        return [self]

    def asnumpy(self):
        return self._value

    def data_ptr(self):
        return self._address

    def copy_(self, value):
        self.device, self._address, self._value = "Ascend:0", 4096, value.asnumpy()


@pytest.mark.parametrize("address", [0, 512])
def test_a_parameter_may_move_to_its_device_as_it_is_placed(address):
    """Nothing was compiled for where it was."""
    net = Net(NotYetUsed(address))
    net.place("w", HostTensor("F32", (3,), memoryview(np.ones(3, np.float32)).cast("B")))

    assert bytes(read_all(net)["w"].data) == np.ones(3, np.float32).tobytes()


def test_a_parameter_that_moves_on_its_device_is_refused():
    """What was compiled goes on with the old place."""
    net = Net(NotYetUsed(512, "Ascend:0"))

    with pytest.raises(MsResumeError, match="moved"):
        net.place("w", HostTensor("F32", (3,), memoryview(np.ones(3, np.float32)).cast("B")))


def test_parameters_without_an_address_share_nothing():
    """Every start on Ascend would be refused."""
    nets.check_separate(Net(NotYetUsed(0)), Net(NotYetUsed(0)))


def test_a_reference_that_shares_memory_is_refused():
    """One dict loaded into two nets makes them share memory: training the policy would train the reference."""
    policy, ref = Model(0), Model(0)
    ref.first.weight.set_data(policy.first.weight.data)

    with pytest.raises(UsageError, match="share the memory of 1 parameters"):
        nets.check_separate(Net(policy), Net(ref))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """New nets in the place of the old, everything restored, and the same bits four steps later."""
    run = saved(tmp_path)
    for _ in range(4):
        run.step()

    resumed = Run(seed=7)
    with resumed.checkpointer(tmp_path) as checkpointer:
        position = checkpointer.start(resume=True)
        for _ in range(4):
            resumed.step()

    assert position == POSITION
    assert resumed.weights() == run.weights()


def test_stock_code_opens_every_payload(tmp_path):
    """`mindspore.load_checkpoint` gives every tensor of every role, and the position as 0-d tensors."""
    run = saved(tmp_path)

    loaded = {
        role: ms.load_checkpoint(str(names.payload(tmp_path, role, 0, POSITION)), format="safetensors")
        for role in names.DIRECTORIES
    }

    assert set(loaded["policy"]) == {*read_all(Net(run.policy)), "epoch_num", "step_num"}
    assert [int(loaded["policy"][name].asnumpy()) for name in ("epoch_num", "step_num")] == POSITION.to_json()
    assert set(loaded["optimizer"]) == set(read_all(Net(run.optimizer)))
    assert set(loaded["ref"]) == set(read_all(Net(run.ref)))
    assert "global_step" in loaded["state"]


def test_stock_loading_fills_every_parameter_right(tmp_path):
    """`load_param_into_net` as MindRLHF calls it: non-strict, policy first, then the optimizer with its weights."""
    run, stock = saved(tmp_path), Run(seed=5)
    for role, net in (("policy", stock.policy), ("optimizer", stock.optimizer)):
        values = ms.load_checkpoint(str(names.payload(tmp_path, role, 0, POSITION)), format="safetensors")
        for name in ("epoch_num", "step_num"):
            values.pop(name, None)

        assert ms.load_param_into_net(net, values) == ([], [])
    assert stock.weights() == run.weights()


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_a_stock_checkpoint_is_resumed(tmp_path, file_format):
    """What stock code saved fills nets and optimizer; random state is not in it, and the vote-less position says so."""
    run, told = Run(), []
    run.step()
    stock_save(run, tmp_path, file_format)
    resumed = Run(seed=3)
    checkpointer = resumed.checkpointer(tmp_path)
    checkpointer._say = told.append

    with checkpointer:
        position = checkpointer.start(resume=True)

    assert position == POSITION
    assert resumed.weights() == run.weights()
    assert "stock" in told[0]
    assert "starts anew" in told[0]
    assert "randomness" in told[0]


def test_ckpt_on_request(tmp_path):
    """Stock code reads it with its CRC check on, and we resume from it."""
    run = saved(tmp_path, save_format="ckpt")
    path = names.payload(tmp_path, "policy", 0, POSITION, "ckpt")
    values = ms.load_checkpoint(str(path), crc_check=True)
    resumed = Run(seed=2)
    with resumed.checkpointer(tmp_path, save_format="ckpt") as checkpointer:
        checkpointer.start(resume=True)

    assert set(values) == {*read_all(Net(run.policy)), "epoch_num", "step_num"}
    assert resumed.weights() == run.weights()


def test_a_flipped_bit_is_found_by_name(tmp_path):
    """MindSpore's own loading takes it without a word."""
    saved(tmp_path)
    path = names.payload(tmp_path, "optimizer", 0, POSITION)
    header = payload.read_header(path)
    damaged = bytearray(path.read_bytes())
    damaged[header.data_start + header.tensors["adam_m.first.weight"].begin] ^= 1
    path.write_bytes(damaged)
    resumed = Run(seed=2)

    assert "adam_m.first.weight" in ms.load_checkpoint(str(path), format="safetensors")
    with pytest.raises(MsResumeError, match=r"adam_m\.first\.weight"), resumed.checkpointer(tmp_path) as checkpointer:
        checkpointer.start(resume=True)


def test_random_sources_repeat():
    """Python, NumPy, a generator, and what PyNative operators draw."""

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(own.random()), float(ops.rand(3).asnumpy()[1])]

    ms.set_seed(3)  # without it operators draw from the clock
    own = np.random.default_rng(4)
    source = ms_resume.Randomness(own=own)
    draw()
    kept = json.loads(json.dumps({k: v for k, v in source.state().items() if not isinstance(v, np.ndarray)}))
    kept |= {k: v for k, v in source.state().items() if isinstance(v, np.ndarray)}
    first = draw()
    draw()
    source.restore(kept)

    assert draw() == first


@pytest.mark.parametrize(("found", "message"), [("", "not installed"), ("2.6.1", r"2\.6\.1 is installed")])
def test_missing_or_old_mindspore_is_one_clear_error(monkeypatch, found, message):
    """Before anything is imported or made."""
    monkeypatch.setattr(version, "installed", lambda package: found)

    with pytest.raises(UsageError, match=message):
        version.require()
