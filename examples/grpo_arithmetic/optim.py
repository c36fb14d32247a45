"""From a loss to an update that every rank makes alike, or none makes.

The loss scale is built by hand: MindSpore's own cell for it reads an overflow register that a CPU does not
have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from grpo_arithmetic.grpo import Experience
from grpo_arithmetic.settings import LRScheduleConfig, OptimizerConfig
from grpo_arithmetic.world import World


class WarmUpThenDecay(LearningRateSchedule):  # type: ignore[misc]  # MindSpore ships no types
    """A function of the optimizer's `global_step` alone, so it needs no state of its own.

    The first update already has `lr / warmup_step`. Without a warm-up, `AdamWeightDecay`, which corrects no
    bias, makes first steps of about three times the rate and throws the base model away.
    """

    def __init__(self, config: LRScheduleConfig) -> None:
        super().__init__()
        self.peak, self.floor = config.lr, config.min_lr
        self.warm_up, self.decay = float(max(config.warmup_step, 1)), float(config.decay_steps)
        self.style = config.lr_decay_style

    def construct(self, global_step: Any) -> Any:
        step = ops.cast(global_step, ms.float32)
        rise = ops.clamp((step + 1.0) / self.warm_up, 0.0, 1.0)
        progress = ops.clamp((step - self.warm_up) / self.decay, 0.0, 1.0)
        return rise * (self.floor + (self.peak - self.floor) * self.share(progress))

    def share(self, progress: Any) -> Any:
        if self.style == "cosine":
            return 0.5 * (1.0 + ops.cos(progress * math.pi))
        if self.style == "linear":
            return 1.0 - progress
        return ops.ones_like(progress)


def adamw(net: Any, schedule: LearningRateSchedule, config: OptimizerConfig) -> Any:
    return nn.AdamWeightDecay(
        net.trainable_params(),
        learning_rate=schedule,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


class LossScaler:
    """Doubles after `window` good updates, halves at an overflow and never falls below 1."""

    def __init__(self, scale: float, window: int) -> None:
        self.scale = scale
        self.good_steps = 0
        self._window = window

    def after_update(self, *, overflow: bool) -> None:
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.scale = max(self.scale / 2.0, 1.0)
        elif self.good_steps == self._window:
            self.scale, self.good_steps = self.scale * 2.0, 0


class GradientSum(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
    """Averages gradients over the ranks in one message, takes the scale off, and says whether all is finite.

    One rank's overflow makes the sum infinite or NaN on every rank, so all ranks give the same answer.
    """

    def __init__(self, shapes: list[tuple[int, ...]], num_ranks: int) -> None:
        super().__init__()
        self.shapes = shapes
        self.bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
        self.num_ranks = float(num_ranks)
        self.reduce = ops.AllReduce() if num_ranks > 1 else ops.Identity()

    def construct(self, gradients: Any, scale: Any) -> Any:
        parts: Any = ()
        for gradient in gradients:
            parts += (gradient.reshape(-1),)
        total = self.reduce(ops.concat(parts))
        finite = ops.isfinite(total).all()
        total = total / scale / self.num_ranks
        mean: Any = ()
        for i, shape in enumerate(self.shapes):
            mean += (total[self.bounds[i] : self.bounds[i + 1]].reshape(shape),)
        return mean, finite


@dataclass(frozen=True, slots=True)
class Update:
    """This rank's numbers of one update, and what all ranks share of it."""

    loss: float
    kl: float
    lr: float
    overflow: bool


class Learner:
    """Takes one update step at a time on a net that it changes in place."""

    def __init__(self, loss: Callable[..., Any], optimizer: Any, scaler: LossScaler, world: World) -> None:
        # Differentiated for the optimizer's own list: its order is the one that the update pairs gradients
        # with.
        weights = optimizer.parameters
        self._gradients = ms.value_and_grad(loss, None, weights, has_aux=True)
        self._sum = GradientSum([tuple(w.shape) for w in weights], world.size)
        self._optimizer, self._scaler = optimizer, scaler
        self._compiled = ms.jit(self._forward_and_back)

    def step(self, experience: Experience) -> Update:
        """One update; an overflow on any rank skips it on all."""
        e = experience
        scale = Tensor(self._scaler.scale, ms.float32)
        lr = float(self._optimizer.get_lr().asnumpy())
        loss, kl, gradients, finite = self._compiled(
            e.tokens, e.mask, e.advantages, e.old_log_probs, e.ref_log_probs, scale
        )
        overflow = not bool(finite.asnumpy())
        if not overflow:
            self._optimizer(gradients)
        self._scaler.after_update(overflow=overflow)
        return Update(float(loss.asnumpy()), float(kl.asnumpy()), lr, overflow)

    def _forward_and_back(self, tokens: Any, mask: Any, gain: Any, old: Any, ref: Any, scale: Any) -> Any:
        (_, loss, kl), gradients = self._gradients(tokens, mask, gain, old, ref, scale)
        mean, finite = self._sum(gradients, scale)
        return loss, kl, mean, finite
