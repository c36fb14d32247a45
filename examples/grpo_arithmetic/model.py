"""A character-level decoder-only transformer, without dropout: its random state cannot be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from grpo_arithmetic.settings import ModelConfig
from grpo_arithmetic.task import CHARACTERS

MASKED = -1.0e9


class Attention(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float((width // heads) ** -0.5)
        self.inputs = _dense(width, 3 * width)
        self.output = _dense(width, width)
        self.mask = Tensor(np.triu(np.full((length, length), MASKED, np.float32), k=1))

    def construct(self, x: Any) -> Any:
        rows, length, width = x.shape
        split = self.inputs(x).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.transpose(2, 0, 3, 1, 4)
        scores = ops.matmul(query, key.transpose(0, 1, 3, 2)) * self.scale + self.mask
        mixed = ops.matmul(ops.softmax(scores, axis=-1), value)
        return self.output(mixed.transpose(0, 2, 1, 3).reshape(rows, length, width))


class Block(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm((width,))
        self.attention = Attention(width, heads, length)
        self.feed_norm = nn.LayerNorm((width,))
        self.feed_in = _dense(width, 4 * width)
        self.feed_out = _dense(4 * width, width)

    def construct(self, x: Any) -> Any:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_out(ops.relu(self.feed_in(self.feed_norm(x))))


class Decoder(nn.Cell):  # type: ignore[misc]  # MindSpore ships no types
    """Tokens (rows, length) to logits (rows, length, characters); a fixed `length` compiles once."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        # One-hot lookup: its gradient is a matrix product, where a gather's is a scatter-add whose order may
        # vary.
        self.tokens = nn.Embedding(len(CHARACTERS), config.width, True, Normal(0.02))
        self.positions = nn.Embedding(length, config.width, True, Normal(0.02))
        self.blocks = nn.CellList([Block(config.width, config.heads, length) for _ in range(config.layers)])
        self.norm = nn.LayerNorm((config.width,))
        self.head = _dense(config.width, len(CHARACTERS))
        self.places = Tensor(np.arange(length, dtype=np.int32))

    def construct(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions(self.places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _dense(inputs: int, outputs: int) -> Any:
    return nn.Dense(inputs, outputs, weight_init=Normal(inputs**-0.5), bias_init="zeros")
