"""Sampling by Gumbel noise that the caller draws and passes in, so samples are a function of saved state.

MindSpore's own random operators keep their state inside compiled graphs, where nothing can save it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindspore import Tensor, ops

from grpo_arithmetic.task import CHARACTERS, END, PAD, Ints

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rollout:
    """`tokens` (rows, length); `mask` (rows, completion) is 1 up to and including the end token."""

    tokens: Ints
    mask: Floats

    @property
    def completions(self) -> Ints:
        return self.tokens[:, -self.mask.shape[1] :]


def noise(generator: np.random.Generator, rows: int, max_tokens: int, temperature: float = 1.0) -> Floats:
    """Gumbel noise for `rows` completions, (max_tokens, rows, characters); advances `generator`."""
    standard = generator.gumbel(size=(max_tokens, rows, len(CHARACTERS)))
    return (standard * temperature).astype(np.float32)


def no_noise(rows: int, max_tokens: int) -> Floats:
    """Noise of greedy decoding."""
    return np.zeros((max_tokens, rows, len(CHARACTERS)), np.float32)


class Sampler:
    """Completes prompts with a net; one compiled graph for every position."""

    def __init__(self, net: Any) -> None:
        def next_token(tokens: Any, position: Any, gumbel: Any) -> Any:
            logits = ops.gather(net(tokens), position, 1)
            return ops.argmax(logits + gumbel, -1)

        self._next_token = ms.jit(next_token)

    def complete(self, prompts: Ints, gumbel: Floats) -> Rollout:
        """Completes each row of `prompts` (rows, prompt length) with the noise of `noise`."""
        max_tokens, rows, _ = gumbel.shape
        start = prompts.shape[1]
        tokens = np.full((rows, start + max_tokens), PAD, np.int32)
        tokens[:, :start] = prompts
        for t in range(max_tokens):
            position = Tensor(np.int32(start + t - 1))
            chosen = self._next_token(Tensor(tokens), position, Tensor(gumbel[t]))
            tokens[:, start + t] = chosen.asnumpy()
        return _cut(tokens, start)


def _cut(tokens: Ints, start: int) -> Rollout:
    ended = np.cumsum(tokens[:, start:] == END, axis=1)
    behind = np.concatenate([np.zeros((len(tokens), 1), ended.dtype), ended[:, :-1]], axis=1) > 0
    tokens[:, start:][behind] = PAD
    return Rollout(tokens, (~behind).astype(np.float32))
