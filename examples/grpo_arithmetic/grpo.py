"""GRPO: group-normalised advantages, a ratio clipped near the sampling policy, a k3 KL to a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindspore import Tensor, ops

from grpo_arithmetic.settings import RLConfig
from grpo_arithmetic.task import CHARACTERS, Ints

Floats = npt.NDArray[np.float32]
STD_FLOOR = 1.0e-4


@dataclass(frozen=True, slots=True)
class Experience:
    """What every update on one rollout reads. `advantages` is (rows, 1), the others (rows, completion)
    but for `tokens` (rows, length).
    """

    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor


def advantages(rewards: Floats, group: int) -> Floats:
    """Rewards (rows,) less their group's mean, over its deviation; a group is `group` rows on end."""
    groups = rewards.reshape(-1, group)
    centred = groups - groups.mean(axis=1, keepdims=True)
    normal: Floats = centred / (groups.std(axis=1, keepdims=True) + np.float32(STD_FLOOR))
    return normal.reshape(-1).astype(np.float32)


def log_prob_function(net: Any, start: int, temperature: float) -> Callable[[Any], Any]:
    """A function of tokens (rows, length) to log-probabilities (rows, length - start) of the completion."""

    def log_probs(tokens: Any) -> Any:
        logits = net(tokens)[:, start - 1 : -1] / temperature
        chosen = ops.one_hot(tokens[:, start:], len(CHARACTERS), Tensor(1.0), Tensor(0.0))
        return (ops.log_softmax(logits, -1) * chosen).sum(-1)

    return log_probs


class Scorer:
    """Both nets' log-probabilities of a rollout's completions, compiled."""

    def __init__(self, policy: Any, ref: Any, start: int, temperature: float) -> None:
        self._policy_log_probs = ms.jit(log_prob_function(policy, start, temperature))
        self._ref_log_probs = ms.jit(log_prob_function(ref, start, temperature))

    def score(self, tokens: Ints) -> tuple[Floats, Floats]:
        """Of the policy and of the reference, each (rows, completion)."""
        rows = Tensor(tokens)
        return self._policy_log_probs(rows).asnumpy(), self._ref_log_probs(rows).asnumpy()


def loss_function(log_probs: Callable[[Any], Any], config: RLConfig) -> Callable[..., Any]:
    """The scaled loss to differentiate, with the plain loss and the KL beside it."""
    low, high, beta = 1.0 - config.epsilon_low, 1.0 + config.epsilon_high, config.beta

    def loss(tokens: Any, mask: Any, advantage: Any, old: Any, ref: Any, scale: Any) -> Any:
        new = log_probs(tokens)
        ratio = ops.exp(new - old)
        gain = ops.minimum(ratio * advantage, ops.clamp(ratio, low, high) * advantage)
        kl = ops.exp(ref - new) - (ref - new) - 1.0
        lengths = mask.sum(-1)
        plain = (((beta * kl - gain) * mask).sum(-1) / lengths).mean()
        mean_kl = ((kl * mask).sum(-1) / lengths).mean()
        return plain * scale, plain, mean_kl

    return loss
