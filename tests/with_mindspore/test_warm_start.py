"""Warm starts into real nets: from files that MindSpore wrote, bfloat16 included, and from a Hugging Face directory."""

from __future__ import annotations

import json
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from test_nets import POSITION, Model, Run, saved, stock_save

from ms_resume.errors import LayoutMismatch, NamesMismatch
from ms_resume.framework import nets
from ms_resume.framework.nets import Net
from ms_resume.load import optimizers, warm
from ms_resume.load.source import Source
from ms_resume.ondisk import names, payload
from ms_resume.records import Position
from ms_resume.state import read_all


def bytes_of(cell) -> dict[str, bytes]:
    return {name: bytes(value.data) for name, value in read_all(Net(cell)).items()}


def own(run: Run) -> dict[str, bytes]:
    """What the optimizer holds beside the weights."""
    return {name: value for name, value in bytes_of(run.optimizer).items() if name not in bytes_of(run.policy)}


def hugging_face(run: Run, directory) -> None:
    """Its policy in two shards and an index."""
    held, weight_map = read_all(Net(run.policy)), {}
    for number, part in enumerate((sorted(held)[:3], sorted(held)[3:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        tensors = payload.lay_out({name: (held[name].dtype, held[name].shape) for name in part})
        entries = {
            n: {"dtype": i.dtype, "shape": i.shape, "data_offsets": [i.begin, i.end]} for n, i in tensors.items()
        }
        block = json.dumps(entries).encode()
        directory.mkdir(exist_ok=True)
        data = b"".join(bytes(held[name].data) for name in sorted(part, key=lambda name: tensors[name].begin))
        (directory / file).write_bytes(len(block).to_bytes(8, "little") + block + data)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def written(run: Run, directory, kind: str):
    """The run's policy as something to start from, and its path."""
    if kind in ("ckpt", "safetensors"):
        path = directory / f"base.{kind}"
        ms.save_checkpoint(run.policy, str(path), format=kind)
        return path
    if kind == "Hugging Face":
        hugging_face(run, directory / "model")
        return directory / "model"
    stock_save(run, directory / "stock", "ckpt")
    return directory / "stock"


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "MindRLHF", "Hugging Face"])
def test_weights_alone_into_a_net_that_has_trained(tmp_path, kind):
    """Every weight bit for bit, a bfloat16 and a 0-d one, too; the optimizer is as it was; training goes on from what
    was loaded; policy and reference share no memory."""
    source, run, told = Run(seed=5), Run(), []
    source.step()
    path = written(source, tmp_path, kind)
    run.step()
    before, random = own(run), run.noise.bit_generator.state
    checkpointer = run.checkpointer(tmp_path / "new")
    checkpointer._say = told.append
    with checkpointer:
        assert checkpointer.warm_start(path, ref=True) == Position(0, 0)

        assert bytes_of(run.policy) == bytes_of(run.ref) == bytes_of(source.policy)
        assert own(run) == before
        assert run.noise.bit_generator.state == random
        nets.check_separate(Net(run.policy), Net(run.ref))
        loaded = run.policy.first.weight.asnumpy().copy()
        run.step()
    moved = np.abs(run.policy.first.weight.asnumpy() - loaded).max()

    assert 0 < moved < 0.5
    assert bytes_of(run.ref) == bytes_of(source.policy)
    assert "WARM START" in told[0]


def test_moments_of_another_run(tmp_path):
    """nn.AdamWeightDecay's `adam_m`, `adam_v`, and `global_step` of the one; the weights of the other, although weights
    lie in the optimizer's file as well."""
    trained = saved(tmp_path / "trained")
    base, run = Run(seed=5), Run(seed=8)
    ms.save_checkpoint(base.policy, str(tmp_path / "base.ckpt"))
    with run.checkpointer(tmp_path / "new") as checkpointer:
        checkpointer.warm_start(tmp_path / "base.ckpt", optimizer_from=tmp_path / "trained")

    assert bytes_of(run.policy) == bytes_of(base.policy) != bytes_of(trained.policy)
    assert own(run) == own(trained)
    assert run.optimizer.global_step.asnumpy().tolist() == [POSITION.step]


OPTIMIZERS = {
    "nn.AdamWeightDecay": lambda weights: nn.AdamWeightDecay(weights, 1e-3),
    "nn.Adam": lambda weights: nn.Adam(weights, 1e-3),
    "nn.Adam with amsgrad": lambda weights: nn.Adam(weights, 1e-3, use_amsgrad=True),
    "nn.Momentum": lambda weights: nn.Momentum(weights, 1e-3, 0.9),
    "nn.SGD": lambda weights: nn.SGD(weights, 1e-3, 0.9),
    "nn.Lamb": lambda weights: nn.Lamb(weights, 1e-3),
    "nn.RMSProp": lambda weights: nn.RMSProp(weights, 1e-3),
    "nn.Adagrad": lambda weights: nn.Adagrad(weights),
    "nn.FTRL": lambda weights: nn.FTRL(weights),
    "nn.ASGD": lambda weights: nn.ASGD(weights),
    "nn.Rprop": lambda weights: nn.Rprop(weights),
    "nn.AdaFactor": lambda weights: nn.AdaFactor(
        weights, learning_rate=1e-3, scale_parameter=False, relative_step=False
    ),
    "experimental.optim.AdamW": lambda weights: ms.experimental.optim.AdamW(weights, 1e-3),
    "mint.optim.AdamW": lambda weights: ms.mint.optim.AdamW(weights, 1e-3),
    "mint.optim.SGD": lambda weights: ms.mint.optim.SGD(weights, 1e-3, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_are_known_by_their_names(kind):
    """Of this MindSpore: every tensor is a moment of a weight, or one of the numbers that are known. A release that
    names them anew is seen here."""
    policy = Model(0)
    weights = [parameter.name for parameter in policy.trainable_params()]
    held = Net(OPTIMIZERS[kind](policy.trainable_params())).infos()
    found = optimizers.state(held, weights)

    assert str(found).startswith(f"{kind} (")
    assert found.updated == set(weights)
    assert [name for name in held if name not in weights and not optimizers.is_state(name, weights)] == []


class Constant(Run):
    """A constant rate, which MindSpore keeps in a tensor beside the moments."""

    def __init__(self, rate: float, groups: bool = False, kind=nn.Adam) -> None:
        super().__init__()
        weights = self.policy.trainable_params()
        given = [{"params": weights[:2], "lr": rate}, {"params": weights[2:]}] if groups else weights
        self.optimizer = kind(given, learning_rate=rate)
        self._gradient = ms.jit(ms.value_and_grad(self._loss, None, self.optimizer.parameters))


def test_a_constant_rate_on_a_resume(tmp_path):
    """Stock loading puts the old one in the place of the new without a word. beta1_power has moved, which is no
    difference; another kind and other groups are refused with both named."""
    run = Constant(1e-3)
    with run.checkpointer(tmp_path / "save") as checkpointer:
        checkpointer.start(resume=False)
        run.step()
        checkpointer.save(0, 1)
    stock = ms.load_checkpoint(
        str(names.payload(tmp_path / "save", "optimizer", 0, Position(0, 1))), format="safetensors"
    )
    silent = Constant(5e-4)
    ms.load_param_into_net(silent.optimizer, stock)
    assert float(silent.optimizer.learning_rate.asnumpy()) == np.float32(1e-3)

    def resumed(other: Run, **start) -> Run:
        with other.checkpointer(tmp_path / "save") as checkpointer:
            checkpointer.start(resume=True, **start)
        return other

    with pytest.raises(LayoutMismatch, match=r"learning_rate was 0\.001, is 0\.0005"):
        resumed(Constant(5e-4))
    with pytest.raises(
        NamesMismatch, match=r"nn\.Adam \(moment1, moment2 of .*; this job has nn\.RMSProp \(mean_square"
    ):
        resumed(Constant(1e-3, kind=nn.RMSProp))
    with pytest.raises(NamesMismatch, match="holds learning_rate; this job has learning_rate, learning_rate_group_0"):
        resumed(Constant(1e-3, groups=True))
    kept = resumed(Constant(5e-4), override={"learning_rate": "config"})

    assert float(kept.optimizer.learning_rate.asnumpy()) == np.float32(5e-4)
    assert float(kept.optimizer.beta1_power.asnumpy()) == float(run.optimizer.beta1_power.asnumpy()) != 1.0
    kept.step()


def test_what_is_counted_is_what_is_read(tmp_path):
    """The banner's size is that of the tensors."""
    run = Run()
    ms.save_checkpoint(run.policy, str(tmp_path / "base.ckpt"))
    source = Source(tmp_path / "base.ckpt")

    assert payload.total(source.tensors.values()) == sum(len(value) for value in bytes_of(run.policy).values())
    assert re.search("one file", str(warm.find(tmp_path / "base.ckpt", "policy", world_size=1)))
