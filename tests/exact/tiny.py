"""GRPO at the size of a toy, with everything that a resume restores: each component changes what a later step computes.

A policy of two layers says one of six tokens for each prompt; a table rewards it. Gradients are summed over three steps
before an update, under a loss scale that falls and rises; the weight of the KL and the mean of the rewards
move with what was seen. PyNative draws from Python, NumPy, and MindSpore are mixed into the rewards.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops
from mindspore.experimental import optim as experimental

import ms_resume
from exact.settings import Setting
from exact.tiny_sizes import ACCUMULATE, BATCH, EPOCHS, EVALUATE_EVERY, INPUTS, SAMPLES, SAVE_EVERY, SEED, TOKENS
from ms_resume.resume.leaving import Leaving

STEEP = 64.0
"""So that the loss scale overflows now and then: float32 ends at 2**128."""

Hear = Callable[[str, int], None]


class Policy(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dense(INPUTS, 8), nn.Dense(8, TOKENS)

    def construct(self, x: Any) -> Any:
        return self.second(ops.tanh(self.first(x)))


class AdaptiveKL:
    """The weight of the KL, moved towards a target."""

    def __init__(self) -> None:
        self.weight = 0.05

    def seen(self, kl: float) -> None:
        self.weight *= 1.0 + 0.1 * float(np.clip(kl / 0.02 - 1.0, -0.2, 0.2))


class RewardMoments:
    """Running mean and spread of rewards."""

    def __init__(self) -> None:
        self.mean, self.spread, self.count = np.zeros(2), np.float64(1.0), 0

    def normal(self, rewards: Any) -> Any:
        for reward in rewards:
            self.count += 1
            delta = float(reward) - self.mean[0]
            self.mean += delta / self.count
            self.spread = self.spread + (delta * (float(reward) - self.mean[0]) - self.spread) / self.count
        return ((rewards - self.mean[0]) / np.sqrt(abs(self.spread) + 1e-3)).astype(np.float32)


class Sums:
    """Gradients half way to an update."""

    def __init__(self, weights: Any) -> None:
        self.sums = ParameterTuple(
            [Parameter(Tensor(np.zeros(w.shape, np.float32)), name=f"sum.{w.name}") for w in weights]
        )
        self.held = 0


class Counters:
    """What the metrics count."""

    def __init__(self) -> None:
        self.step = self.right = self.skipped = self.updates = 0


class Rates(nn.learning_rate_schedule.LearningRateSchedule):  # type: ignore[misc]  # MindSpore ships no types
    """A function of the optimizer's `global_step`."""

    def construct(self, global_step: Any) -> Any:
        return 0.02 * ops.exp(-0.01 * ops.cast(global_step, ms.float32))


class Trainer:
    """One process, from its start to the end of the run.

    Args:
        hear: Is told of each phase as it begins, with its global step.
        without: A component that is not handed over, by name: the comparison has to notice.
    """

    def __init__(self, save: Path, setting: Setting, hear: Hear, without: str = "", epochs: int = EPOCHS) -> None:
        ms.set_seed(SEED)
        random.seed(SEED)
        self._save, self._setting, self._hear, self._epochs = save, setting, hear, epochs
        tables = np.random.default_rng(5)
        self._inputs = tables.normal(size=(SAMPLES, INPUTS)).astype(np.float32)
        self._answers = tables.integers(0, TOKENS, SAMPLES)
        self._build_nets()
        self.cursor = ms_resume.Cursor(SAMPLES, batch=BATCH, seed=SEED, data={"inputs": self._inputs})
        self.draws = ms_resume.Draws(SEED)
        self.kl, self.moments, self.counters = AdaptiveKL(), RewardMoments(), Counters()
        self.scaler = amp.DynamicLossScaler(2.0**126, 2, 5)
        self.sums = Sums(self._weights)
        self.log = ms_resume.MetricsLog(save / "metrics" / "steps.jsonl", board=save / "metrics" / "board")
        self.components = [part for part in self._components() if part.name != without]

    def _build_nets(self) -> None:
        self.policy, self.ref = Policy(), Policy()
        for mine, other in zip(self.policy.get_parameters(), self.ref.get_parameters(), strict=True):
            other.copy_(mine.value())
        self.optimizer, self.scheduler = _optimizer(self._setting, self.policy)
        self._weights = self.optimizer.parameters
        self._logits = ms.jit(self.policy.construct) if self._setting.mode == "jit" else self.policy
        gradients = ms.value_and_grad(self._loss, None, self._weights, has_aux=True)
        self._gradients = ms.jit(gradients) if self._setting.mode == "jit" else gradients

    def _components(self) -> list[Any]:
        counters = ("step", "right", "skipped", "updates")
        return [
            ms_resume.Randomness(),
            self.cursor,
            ms_resume.Fields("loss_scale", self.scaler, "scale_value", "counter"),
            ms_resume.Fields("kl", self.kl, "weight"),
            ms_resume.Fields("reward_moments", self.moments, "mean", "spread", "count"),
            ms_resume.Fields("accumulation", self.sums, "sums", "held"),
            ms_resume.Fields("counters", self.counters, *counters),
            ms_resume.LearningRates(self.optimizer, self.scheduler),
            self.log,
            self.draws,
        ]

    def run(self, *, resume: bool, stop: int | None = None) -> bool:
        """Trains to the end, or until it is asked to leave: False. With `stop` it ends at the top of that step as a
        killed process would: without a save of its own."""
        leaving = Leaving()
        leaving.listen()
        self._hear("start", -1)
        checkpointer = ms_resume.Checkpointer(
            self._save,
            policy=self.policy,
            optimizer=self.optimizer,
            ref=self.ref,
            components=self.components,
            steps_per_epoch=self.cursor.steps_per_epoch,
            config={"example_config": self._setting.as_json()},
            settings=ms_resume.Settings(save_format=self._setting.format, heartbeat_s=0, keep_last=2),
            leaving=leaving,
            say=lambda text: None,
        )
        with checkpointer:
            position = checkpointer.start(resume=resume)
            self.rollouts = checkpointer.rollouts()
            metrics, wishes = {"reward": 0.0}, checkpointer.wishes
            for epoch in range(position.epoch, self._epochs):
                first = position.step if epoch == position.epoch else 0
                for step, indices in enumerate(self.cursor.epoch(), first):
                    if stop == self.counters.step:
                        checkpointer.wait()
                        return False
                    leaves = checkpointer.leaves(wishes)
                    if (leaves or step % SAVE_EVERY == 0) and checkpointer.begin(epoch, step, metrics):
                        self._hear("save", self.counters.step)
                    if leaves:
                        return False
                    metrics = self._step(checkpointer, indices)
                    if self.counters.step % EVALUATE_EVERY == 0:
                        self._evaluate()
                    wishes = checkpointer.wish()
            self._hear("save", self.counters.step)
            checkpointer.save(self._epochs, 0, metrics)
        self._hear("end", self.counters.step)
        return True

    def _step(self, checkpointer: ms_resume.Checkpointer, indices: Any) -> dict[str, float]:
        began, number = time.monotonic(), self.counters.step
        self._hear("rollout", number)
        rolled = self.rollouts.take(number, lambda: self._generate(number, indices), inputs={"indices": indices})
        rewards = rolled["rewards"] + self._chance()
        advantages = self.moments.normal(rewards)
        checkpointer.fence()
        self._hear("update", number)
        loss, kl = self._update(indices, rolled, advantages)
        self.kl.seen(kl)
        self.counters.right += int(rolled["rewards"].sum())
        self.log.write(
            {"step": number, "prompts": indices.tolist(), "reward": float(rewards.mean()), "right": self.counters.right,
             "loss": loss, "kl": kl, "lr": _rate(self.optimizer),
             "loss_scale": float(self.scaler.scale_value.asnumpy()),
             "skipped": self.counters.skipped, "seconds": round(time.monotonic() - began, 4)}
        )  # fmt: skip  # one line of the log
        self.counters.step += 1
        return {"reward": float(rewards.mean())}

    def _evaluate(self) -> None:
        """Over all samples, without chance: it changes nothing that a later step computes."""
        self._hear("evaluate", self.counters.step)
        found = self._logits(Tensor(self._inputs)).asnumpy().argmax(-1)
        self._hear("evaluated", int((found == self._answers).sum()))

    def _generate(self, number: int, indices: Any) -> dict[str, Any]:
        self._hear("generate", number)
        logits = self._logits(Tensor(self._inputs[indices])).asnumpy()
        noise = self.draws.generator(number, "sampling").gumbel(size=logits.shape)
        tokens = (logits + noise).argmax(-1).astype(np.int32)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return {
            "tokens": tokens,
            "old": np.take_along_axis(logs, tokens[:, None], 1)[:, 0].astype(np.float32),
            "rewards": (tokens == self._answers[indices]).astype(np.float32),
        }

    def _chance(self) -> Any:
        """From every source that can be set back."""
        drawn = random.random() + np.random.random() + float(ops.standard_normal((1,)).asnumpy()[0])
        return np.float32(0.01 * drawn)

    def _loss(self, inputs: Any, tokens: Any, old: Any, advantages: Any, ref: Any, weight: Any, scale: Any) -> Any:
        logs = ops.log_softmax(self.policy(inputs), -1)
        new = (logs * tokens).sum(-1)
        kl = (ops.exp(ref - new) - (ref - new) - 1.0).mean()
        plain = weight * kl - (ops.exp(new - old) * advantages).mean()
        return plain * scale * STEEP, plain, kl

    def _update(self, indices: Any, rolled: Any, advantages: Any) -> tuple[float, float]:
        inputs, tokens = Tensor(self._inputs[indices]), np.eye(TOKENS, dtype=np.float32)[rolled["tokens"]]
        ref = (ops.log_softmax(self.ref(inputs), -1) * Tensor(tokens)).sum(-1)
        scale = float(self.scaler.scale_value.asnumpy())
        arrays = (tokens, rolled["old"], advantages)
        numbers = (np.float32(self.kl.weight), np.float32(scale))
        (_, loss, kl), found = self._gradients(inputs, *map(Tensor, arrays), ref, *map(Tensor, numbers))
        gradients = [gradient.asnumpy() for gradient in found]
        finite = all(np.isfinite(gradient).all() for gradient in gradients)
        self.scaler.adjust(Tensor(finite))
        if finite:
            self._accumulate([gradient / np.float32(scale) / np.float32(STEEP) for gradient in gradients])
        else:
            self.counters.skipped += 1
        return float(loss.asnumpy()), float(kl.asnumpy())

    def _accumulate(self, gradients: list[Any]) -> None:
        for held, gradient in zip(self.sums.sums, gradients, strict=True):
            ops.assign_add(held, Tensor(gradient))
        self.sums.held += 1
        if self.sums.held == ACCUMULATE:
            self.optimizer(tuple(Tensor(held.asnumpy() / ACCUMULATE) for held in self.sums.sums))
            if self.scheduler is not None:
                self.scheduler.step()
            for held in self.sums.sums:
                ops.assign(held, Tensor(np.zeros(held.shape, np.float32)))
            self.sums.held = 0
            self.counters.updates += 1


def prepare() -> None:
    """Once a process: kernels that try out block sizes would sum in an order that depends on the clock."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.device_context.cpu.op_tuning.threads_num(1)


def _optimizer(setting: Setting, policy: Any) -> tuple[Any, Any]:
    weights = policy.trainable_params()
    halves = [{"params": weights[:2], "lr": 0.01}, {"params": weights[2:]}]
    if setting.optimizer == "experimental.AdamW":
        optimizer = experimental.AdamW(halves if setting.rate == "groups" else weights, lr=0.02)
        return optimizer, _scheduler(setting.rate, optimizer)
    rate: Any = {"list": [0.02 / (1 + n) for n in range(200)], "schedule": Rates()}.get(setting.rate, 0.02)
    kind = getattr(nn, setting.optimizer)
    more = {"momentum": 0.9} if setting.optimizer == "Momentum" else {}
    return kind(halves if setting.rate == "groups" else weights, learning_rate=rate, **more), None


def _scheduler(rate: str, optimizer: Any) -> Any:
    schedulers = experimental.lr_scheduler
    if rate == "schedule":
        return schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=5)
    if rate == "list":
        return schedulers.SequentialLR(
            optimizer,
            [schedulers.ConstantLR(optimizer, factor=0.5, total_iters=4), schedulers.ExponentialLR(optimizer, 0.95)],
            milestones=[7],
        )
    return schedulers.StepLR(optimizer, 3, 0.8) if rate == "groups" else None


def _rate(optimizer: Any) -> float:
    if hasattr(optimizer, "lrs"):
        return float(optimizer.lrs[0].asnumpy())
    found = optimizer.get_lr()
    return float((found[0] if isinstance(found, (list, tuple)) else found).asnumpy())
