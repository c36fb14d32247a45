"""Randomness that is a function of seed, rank, step, and purpose: nothing to save, and any step can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ms_resume.resume.components import identity

if TYPE_CHECKING:
    import numpy as np

VERSION = 1


class Draws:
    """A source for what no framework can set back: noise for sampling in compiled graphs, dropout masks, shuffles.

    A generator of its own for each question, so neither the order of questions nor a step that was left out matters:
    a step is drawn alike whether or not those before it were run. Where rollouts are given back instead of generated
    anew (`Checkpointer.rollouts`) that is what keeps the next ones the same.

    Example:
        noise = draws.generator(global_step, "sampling", part).gumbel(size=shape)
    """

    name = "draws"

    def __init__(self, seed: int, rank: int = 0) -> None:
        self._seed, self._rank = seed, rank

    def generator(self, step: int, purpose: str, *more: int) -> np.random.Generator:
        """Philox under a key of its own: the same arguments give the same numbers, in any process and order."""
        import numpy as np

        question = repr((int(self._seed), int(self._rank), int(step), str(purpose), *map(int, more))).encode()
        key = np.frombuffer(hashlib.blake2b(question, digest_size=16).digest(), "<u8")
        return np.random.Generator(np.random.Philox(key=key))

    def state(self) -> dict[str, Any]:
        return {"version": VERSION, "seed": self._seed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises LayoutMismatch where the run was saved with another seed: its next step would be another one."""
        identity.check_version(self.name, state, VERSION)
        hint = "give this run the seed that it was saved with"
        identity.check(f"component {self.name}", {"seed": state["seed"]}, {"seed": self._seed}, hint)
