"""What the campaign runs with: every pair of mode, optimizer, format, and kind of learning rate that can be built."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

MODES = ("pynative", "jit")
OPTIMIZERS = ("AdamWeightDecay", "Adam", "Momentum", "experimental.AdamW")
FORMATS = ("safetensors", "ckpt")
RATES = ("constant", "list", "schedule", "groups")
"""Of the experimental optimizer: a constant, and schedulers of three kinds."""


@dataclass(frozen=True, slots=True)
class Setting:
    mode: str
    optimizer: str
    format: str
    rate: str

    def __str__(self) -> str:
        return f"{self.mode}/{self.optimizer}/{self.format}/{self.rate}"

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def parse(cls, text: str) -> Setting:
        return cls(*text.split("/"))


def pairwise() -> list[Setting]:
    """Settings in which every two values of two factors stand together at least once, chosen greedily."""
    factors = (MODES, OPTIMIZERS, FORMATS, RATES)
    every = [tuple(values) for values in itertools.product(*factors)]
    missing = {pair for values in every for pair in _pairs(values)}
    chosen: list[Setting] = []
    while missing:
        best = max(every, key=lambda values: len(missing & _pairs(values)))
        missing -= _pairs(best)
        chosen.append(Setting(*best))
    return chosen


def _pairs(values: tuple[Any, ...]) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(enumerate(values), 2))
