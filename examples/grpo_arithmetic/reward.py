"""Verifiable rewards: computed from the characters of a completion and the right answer, nothing learned.

`accuracy_reward` is 1 for exactly the right answer; `format_reward` is 1 for digits, then the end token, in
time.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from grpo_arithmetic.errors import ConfigError
from grpo_arithmetic.settings import RewardConfig
from grpo_arithmetic.task import CHARACTERS, Ints, answer_text

Floats = npt.NDArray[np.float32]
Verifier = Callable[[str, int], float]


def accuracy_reward(completion: str, answer: int) -> float:
    return float(completion == answer_text(answer))


def format_reward(completion: str, answer: int) -> float:
    return float(re.fullmatch(r"[0-9]+\.", completion) is not None)


VERIFIERS: dict[str, Verifier] = {"accuracy_reward": accuracy_reward, "format_reward": format_reward}


def verifiers(config: RewardConfig) -> list[tuple[Verifier, float]]:
    """The functions that the configuration names, with their weights.

    Raises:
        ConfigError: A name that is not in `VERIFIERS`.
    """
    unknown = [name for name in config.verifier_function if name not in VERIFIERS]
    if unknown:
        known = " or ".join(VERIFIERS)
        raise ConfigError(f"reward_config.verifier_function: found {unknown[0]!r}, expected {known}")
    return [(VERIFIERS[n], w) for n, w in zip(config.verifier_function, config.verifier_weight, strict=True)]


def rewards(completions: list[str], answers: Ints, functions: list[tuple[Verifier, float]]) -> Floats:
    """The weighted sum of the functions for each row, (n,)."""
    rows = zip(completions, answers.tolist(), strict=True)
    return np.array([sum(weight * verify(c, a) for verify, weight in functions) for c, a in rows], np.float32)


def right(completions: list[str], answers: Ints) -> npt.NDArray[np.bool_]:
    rows = zip(completions, answers.tolist(), strict=True)
    return np.array([accuracy_reward(c, a) == 1.0 for c, a in rows])


def texts(completions: Ints) -> list[str]:
    """Token rows as text, cut behind the padding."""
    return ["".join(CHARACTERS[token] for token in row).rstrip("_") for row in completions.tolist()]
