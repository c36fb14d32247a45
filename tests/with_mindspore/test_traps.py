"""The traps of loading into MindSpore: stock code falls in, ours does not.

Each test holds MindSpore to its behaviour, too. One that says "mended" is good news: a release does it right now, and
what was done about it here can be looked at again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from mindspore import Parameter, Tensor, nn, ops
from test_nets import POSITION, Run, saved

from ms_resume import load
from ms_resume.errors import NamesMismatch
from ms_resume.framework.nets import Net
from ms_resume.load.source import Source
from ms_resume.ondisk import names
from ms_resume.state import HostTensor, from_array, read_all

MENDED = f"MindSpore {ms.__version__} has mended this trap"


def payload(save: Path, role: str) -> Path:
    return names.payload(save, role, 0, POSITION)


def stock_load(net: nn.Cell, path: Path) -> Any:
    values = ms.load_checkpoint(str(path), format="safetensors")
    for name in ("epoch_num", "step_num"):
        values.pop(name, None)
    return ms.load_param_into_net(net, values)


def stock_resume(run: Run, save: Path) -> None:
    stock_load(run.policy, payload(save, "policy"))
    stock_load(run.optimizer, payload(save, "optimizer"))


def our_resume(run: Run, save: Path) -> None:
    with run.checkpointer(save) as checkpointer:
        checkpointer.start(resume=True)


class PyNative(Run):
    """Without `ms.jit`: MindSpore compiles the optimizer all the same."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._gradient = ms.value_and_grad(self._loss, None, self.optimizer.parameters)


def trains_on(kind: type[Run], resume: Callable[[Run, Path], None], save: Path) -> bool:
    """Whether nets that have trained already, and are loaded into, train on as the run that was saved does."""
    trained, expected = kind(seed=7), kind()
    our_resume(expected, save)  # first: it lets everything in this process be compiled anew, which mends others, too
    for _ in range(3):
        trained.step()
    resume(trained, save)
    trained.noise.bit_generator.state = expected.noise.bit_generator.state
    for _ in range(2):
        trained.step()
        expected.step()
    return trained.weights() == expected.weights()


@pytest.mark.parametrize("kind", [Run, PyNative], ids=["ms.jit", "PyNative"])
def test_d1_nets_that_have_trained(tmp_path: Path, kind: type[Run]) -> None:
    """Stock loading detaches the parameters: they show what was loaded, and training uses the old values."""
    saved(tmp_path)

    assert trains_on(kind, our_resume, tmp_path)
    assert not trains_on(kind, stock_resume, tmp_path), MENDED


@pytest.mark.parametrize("kind", [Run, PyNative], ids=["ms.jit", "PyNative"])
@pytest.mark.parametrize("how", ["load_param_into_net", "set_data"])
def test_d1_nets_that_were_detached_before(tmp_path: Path, kind: type[Run], how: str) -> None:
    """By whoever had them before us: to write into their parameters is not enough then, nor to load once more."""
    saved(tmp_path)

    def detached_first(resume: Callable[[Run, Path], None]) -> Callable[[Run, Path], None]:
        def both(run: Run, save: Path) -> None:
            if how == "set_data":
                for parameter in run.policy.get_parameters():
                    parameter.set_data(ms.Tensor(parameter.asnumpy().copy()))
            else:
                stock_resume(run, save)
            resume(run, save)

        return both

    assert trains_on(kind, detached_first(our_resume), tmp_path)
    assert not trains_on(kind, detached_first(stock_resume), tmp_path), MENDED


def test_d2_policy_and_reference_from_one_file(tmp_path: Path) -> None:
    """Stock: one dict in two nets is one memory, so training the policy trains the reference."""
    saved(tmp_path)

    def reference_trained_along(fill: Callable[[Run], None]) -> bool:
        run = Run(seed=2)
        fill(run)
        reference, policy = (
            {name: bytes(v.data) for name, v in read_all(Net(n)).items()} for n in (run.ref, run.policy)
        )
        for _ in range(2):  # the first has a learning rate of 0
            run.step()
        assert policy != {name: bytes(value.data) for name, value in read_all(Net(run.policy)).items()}
        return reference != {name: bytes(value.data) for name, value in read_all(Net(run.ref)).items()}

    def ours(run: Run) -> None:
        one = Source(payload(tmp_path, "policy"))
        load.place({"policy": one, "ref": one}, {"policy": Net(run.policy), "ref": Net(run.ref)})

    def stock(run: Run) -> None:
        values = ms.load_checkpoint(str(payload(tmp_path, "policy")), format="safetensors")
        ms.load_param_into_net(run.policy, values)
        ms.load_param_into_net(run.ref, values)

    assert not reference_trained_along(ours)
    assert reference_trained_along(stock), MENDED


def test_d3_a_name_that_is_not_there(tmp_path: Path) -> None:
    """Stock: a missing `weight` gets the moments of `adam_m.weight`, and is reported as loaded."""
    path = tmp_path / "moments.safetensors"
    moments = np.full((8, 4), 9, np.float32)
    safetensors.numpy.save_file({"adam_m.weight": moments, "bias": np.ones(8, np.float32)}, path)
    ours, stock = nn.Dense(4, 8), nn.Dense(4, 8)
    before = ours.weight.asnumpy().copy()

    with pytest.raises(NamesMismatch, match=r"missing weight(.|\n)*unexpected adam_m\.weight"):
        load.settle({"policy": Source(path)}, {"policy": Net(ours)})
    assert np.array_equal(ours.weight.asnumpy(), before)
    assert stock_load(stock, path)[0] == [], MENDED
    assert np.array_equal(stock.weight.asnumpy(), moments), MENDED


def test_d5_the_file_changes_after_the_load(tmp_path: Path) -> None:
    """Stock: parameters are a map of the file, so whoever writes it in place writes the weights."""

    def shows_the_file(fill: Callable[[nn.Cell, Path], object]) -> bool:
        net, path = nn.Dense(256, 256), tmp_path / "net.safetensors"
        path.unlink(missing_ok=True)
        ms.save_checkpoint(net, str(path), format="safetensors")
        fill(net, path)
        path.chmod(0o600)
        with open(path, "r+b") as file:
            file.seek(-1000 * 4, os.SEEK_END)
            file.write(np.full(1000, 123, np.float32).tobytes())
        return any((value.asnumpy() == 123).any() for value in net.get_parameters())

    def ours(net: nn.Cell, path: Path) -> None:
        load.place({"policy": Source(path)}, {"policy": Net(net)})

    assert not shows_the_file(ours)
    assert shows_the_file(stock_load), MENDED


def test_d6_what_is_not_contiguous(tmp_path: Path) -> None:
    """safetensors 0.8.0 writes the memory under a strided array as it lies; MindSpore hands it such arrays."""
    path, value = tmp_path / "a.safetensors", np.arange(64, dtype=np.float32).reshape(8, 8)[:, 2:5]
    safetensors.numpy.save_file({"w": value}, path)
    wrong = not np.array_equal(safetensors.numpy.load_file(path)["w"], value)
    known = {"0.8.0": True}.get(safetensors.__version__, False)
    net = nn.Cell()
    net.w = Parameter(Tensor(np.zeros((8, 3), np.float32)), name="w")
    Net(net).place("w", from_array(value))

    assert np.array_equal(net.w.asnumpy(), value)
    assert wrong == known, f"safetensors {safetensors.__version__}: written wrong is {wrong}"


# What placing in host memory stands on.


def test_the_memory_of_a_parameter_is_what_training_uses() -> None:
    """On a CPU each dtype's, also after compiled steps; what is written there is what is read and trained."""
    run = Run()
    for _ in range(2):
        run.step()
    for cell in (run.policy, run.optimizer, run.ref):
        net = Net(cell)
        for name, info in net.infos().items():
            memory = net.memory(name)
            assert memory is not None, name
            flipped = bytes(byte ^ 1 for byte in memory)
            memory[:] = flipped
            assert net.read(name) == HostTensor(info.dtype, info.shape, memoryview(flipped))
            memory[:] = bytes(byte ^ 1 for byte in flipped)


def net_of(parameter: Parameter) -> Net:
    cell = nn.Cell()
    cell.w = parameter
    return Net(cell)


def memory_of(net: Net) -> memoryview:
    memory = net.memory("w")
    assert memory is not None
    return memory


def test_to_ask_for_memory_waits_for_what_was_launched() -> None:
    """Else an operator that has not yet run would write over what is loaded there."""
    parameter = Parameter(Tensor(np.zeros(1 << 21, np.float32)), name="w")
    net, value = net_of(parameter), Tensor(np.ones(1 << 21, np.float32))
    for shift in range(3):
        for _ in range(4):
            value = ops.sin(ops.exp(value)) + shift
        parameter.copy_(value)
        asked = bytes(memory_of(net))

        assert asked == value.asnumpy().tobytes()


def test_memory_outlives_the_parameters_hold_of_it() -> None:
    """Somebody gives the parameter another tensor while threads read: what they write harms nobody."""
    parameter = Parameter(Tensor(np.full(1 << 20, 3, np.float32)), name="w")
    memory = memory_of(net_of(parameter))
    parameter.set_data(Tensor(np.full(1 << 20, 5, np.float32)))
    others = [Tensor(np.full(1 << 20, 9, np.float32)) for _ in range(8)]
    memory[:] = np.full(1 << 20, 7, np.float32).tobytes()

    assert {float(held.asnumpy().max()) for held in (parameter, *others)} == {5.0, 9.0}


def test_a_net_that_was_built_without_values(tmp_path: Path) -> None:
    """Its parameters have no memory until they are loaded."""
    path = tmp_path / "net.safetensors"
    values = {"weight": np.arange(12, dtype=np.float32).reshape(4, 3), "bias": np.full(4, 2, np.float32)}
    safetensors.numpy.save_file(values, path)
    with nn.no_init_parameters():
        net = nn.Dense(3, 4)
    assert net.weight.has_init
    load.place({"policy": Source(path)}, {"policy": Net(net)})

    assert all(np.array_equal(getattr(net, name).asnumpy(), value) for name, value in values.items())


def test_parameters_that_are_a_map_of_a_file(tmp_path: Path) -> None:
    """As stock loading leaves them: they are written in place all the same, and the file is not."""
    run, path, mapped = saved(tmp_path), tmp_path / "mapped.safetensors", Run(seed=4)
    ms.save_checkpoint(mapped.policy, str(path), format="safetensors")
    before = path.read_bytes()
    stock_load(mapped.policy, path)
    our_resume(mapped, tmp_path)
    for _ in range(2):
        run.step()
        mapped.step()

    assert mapped.weights() == run.weights()
    assert path.read_bytes() == before


def test_a_tensor_is_made_of_a_copy() -> None:
    """`Net.place` gives MindSpore memory that is somebody else's afterwards."""
    array = np.ones(1 << 16, np.float32)
    held = Tensor(array)
    array[...] = 2

    assert float(held.asnumpy().max()) == 1.0


@pytest.mark.parametrize("staged", [False, True])
def test_in_memory_and_by_copy_it_is_the_same(tmp_path: Path, staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of an Ascend device, where a CPU's is known."""
    run, other = saved(tmp_path), Run(seed=9)
    for _ in range(2):
        other.step()
    monkeypatch.setattr(Net, "memory", lambda self, name: None)
    placed: list[str] = []
    place = Net.place
    monkeypatch.setattr(Net, "place", lambda self, name, value: (placed.append(name), place(self, name, value)))
    with other.checkpointer(tmp_path, staged_load=staged) as checkpointer:
        checkpointer.start(resume=True)
    run.step()
    other.step()

    assert other.weights() == run.weights()
    assert len(placed) == len(Net(run.policy).infos()) * 2 + len(Net(run.optimizer).infos()) - len(
        Net(run.policy).infos().keys() & Net(run.optimizer).infos().keys()
    )


def test_parameters_larger_than_a_piece(tmp_path: Path) -> None:
    """bfloat16 and float32, in pieces and through a CRC that MindSpore wrote, in both formats."""
    random = np.random.default_rng(0)
    half = Tensor(random.standard_normal((700, 1111)).astype(np.float32)).astype(ms.bfloat16)
    values = {"half": half, "full": Tensor(random.standard_normal(700_001).astype(np.float32))}
    for ending, crc in (("safetensors", False), ("ckpt", True), ("ckpt", False)):
        path = tmp_path / f"{crc}.{ending}"
        held = [{"name": name, "data": value} for name, value in values.items()]
        ms.save_checkpoint(held, str(path), format=ending, crc_check=crc)
        net = nn.Cell()
        net.half = Parameter(Tensor(np.zeros((700, 1111), np.float32)).astype(ms.bfloat16), name="half")
        net.full = Parameter(Tensor(np.zeros(700_001, np.float32)), name="full")
        source = {"ref": Source(path)}
        load.settle(source, {"ref": Net(net)})
        load.place(source, {"ref": Net(net)})

        for name, value in values.items():
            assert bytes(Net(net).read(name).data) == bytes(from_array(value.asnumpy()).data), (ending, crc, name)
