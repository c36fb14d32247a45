"""A policy of two parameters, its reference, and the optimizers, under the names that MindRLHF's have."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn


class Weights(nn.Cell):
    def __init__(self, prefix: str, size: int, value: float) -> None:
        super().__init__(auto_prefix=False)
        self.w = Parameter(Tensor(np.full((size, 2), value, np.float32)), name=f"{prefix}model.w")
        self.b = Parameter(Tensor(np.zeros(size, np.float32)), name=f"{prefix}model.b")


class CausalLMHybrid(nn.Cell):
    def __init__(self, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.policy_model = Weights("grpo_model_train.policy_model.", size, 1.0)


class GRPOModelTrain(nn.Cell):
    def __init__(self, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.grpo_model_train = CausalLMHybrid(size)


class _Optimizer(nn.Cell):
    """Weights, two moments for each, and a count, as nn.Optimizer registers them."""

    moments = ("moments1", "moments2")

    def __init__(self, weights: list[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(weights)
        self.global_step = Parameter(Tensor(np.zeros(1, np.int32)), name="global_step", requires_grad=False)
        for attribute, prefix in zip(self.moments, ("adam_m", "adam_v"), strict=True):
            zeros = [Parameter(Tensor(np.zeros(w.shape, np.float32)), name=f"{prefix}.{w.name}") for w in weights]
            setattr(self, attribute, ParameterTuple(zeros))

    def update(self, gradient: float) -> None:
        first, second = (getattr(self, attribute) for attribute in self.moments)
        for weight, m, v in zip(self.parameters, first, second, strict=True):
            m.copy_(Tensor((0.9 * m.asnumpy() + np.float32(gradient)).astype(np.float32)))
            v.copy_(Tensor((0.99 * v.asnumpy() + np.float32(gradient) ** 2).astype(np.float32)))
            step = m.asnumpy() / (1 + np.sqrt(v.asnumpy()))
            weight.copy_(Tensor((weight.asnumpy() - np.float32(0.01) * step).astype(np.float32)))
        self.global_step.copy_(Tensor(self.global_step.asnumpy() + np.int32(1)))


class AdamW(_Optimizer):
    """MindFormers': its moments have the names by which MindRLHF offloads them."""

    moments = ("exp_avg", "exp_avg_sq")


class AdamWeightDecayOp(_Optimizer):
    """What `opt_offload` gives."""


class Lamb(_Optimizer):
    pass


OPTIMIZERS = {"adamw": AdamW, "lamb": Lamb}


class LossScaling(nn.Cell):
    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.current_iterator_step = _number("current_iterator_step", np.int32(0))
        self.last_overflow_iterator_step = _number("last_overflow_iterator_step", np.int32(0))


class TrainOneStepWithLossScaleGRPO(nn.Cell):
    """One update; every third good one doubles the loss scale, to which the gradient is added."""

    def __init__(self, network: GRPOModelTrain, optimizer: _Optimizer) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.optimizer = network, optimizer
        self.scale_sense = _number("scale_sense", np.float32(2.0))
        zeros = [Parameter(Tensor(0 * w.asnumpy()), name=f"accu_grads.{w.name}") for w in optimizer.parameters]
        self.accu_grads = ParameterTuple(zeros)
        self.loss_scaling_manager = LossScaling()

    def step(self, gradient: float) -> None:
        count = self.loss_scaling_manager.current_iterator_step
        self.optimizer.update(gradient + 1e-3 * float(self.scale_sense.asnumpy()))
        count.copy_(Tensor(count.asnumpy() + np.int32(1)))
        if int(count.asnumpy()) % 3 == 0:
            self.scale_sense.copy_(Tensor(self.scale_sense.asnumpy() * np.float32(2)))


def _number(name: str, value: np.generic) -> Parameter:
    return Parameter(Tensor(np.array(value)), name=name, requires_grad=False)
