"""The task: add two numbers, one character a token, the answer's digits reversed, then an end token.

    07+35=24.      (42, reversed; "." ends it)

Reversed digits let a small decoder carry from left to right; plain order did not get off the ground at this
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHARACTERS = "0123456789+=._"
END = CHARACTERS.index(".")
PAD = CHARACTERS.index("_")
HELD_OUT_SEED = 20250101

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Aligned rows: `ids` (n,), `tokens` (n, prompt length), `answers` (n,), the sums."""

    ids: Ints
    tokens: Ints
    answers: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: npt.NDArray[np.int64]) -> Prompts:
        return Prompts(self.ids[index], self.tokens[index], self.answers[index])

    def repeated(self, times: int) -> Prompts:
        """Each row `times` times, neighbours together, so that a group is a run of rows."""
        return self.rows(np.repeat(np.arange(len(self)), times))


def all_prompts(numbers: int) -> Prompts:
    """Every ordered pair of numbers below `numbers`; the id of `a+b` is `a * numbers + b`."""
    width = len(str(numbers - 1))
    pairs = [(a, b) for a in range(numbers) for b in range(numbers)]
    tokens = [encode(f"{a:0{width}d}+{b:0{width}d}=") for a, b in pairs]
    return Prompts(
        np.arange(len(pairs), dtype=np.int32),
        np.array(tokens, np.int32),
        np.array([a + b for a, b in pairs], np.int32),
    )


def split(numbers: int, held_out: int) -> tuple[Prompts, Prompts]:
    """(train, held out): disjoint, and a function of the two sizes alone, so all runs hold out the same."""
    prompts = all_prompts(numbers)
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(prompts))
    return prompts.rows(np.sort(order[held_out:])), prompts.rows(np.sort(order[:held_out]))


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def answer_text(answer: int) -> str:
    return str(answer)[::-1] + "."


def answer_tokens(answers: Ints, length: int) -> Ints:
    """Right completions, (n, length), padded behind the end token."""
    rows = [encode(answer_text(int(answer)).ljust(length, "_")) for answer in answers]
    return np.array(rows, np.int32)
