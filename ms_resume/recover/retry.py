"""Whether a training that failed again is tried again, from where, and after how long: a pure function of its tries.

The supervisor's rules in small: no wait while there is progress, then waits that double; three tries without progress
go back one checkpoint, three more give up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TRIES = 3
_FIRST_WAIT_S = 10.0
_LONGEST_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One recovery that was run: the step of the checkpoint that it went on from, and how it ended."""

    step: int
    code: int


@dataclass(frozen=True, slots=True)
class Action:
    """`name`: go on, go back, or give up."""

    name: str
    reason: str
    wait_s: float = 0.0


def decide(history: Sequence[Tried], newest: int) -> Action:
    """What to do after the tries in `history`, oldest first.

    Args:
        newest: The step of the newest whole checkpoint now. A try made progress where it left a newer one than there
            was when it began.
    """
    known = next((count for count, tried in enumerate(history) if tried.step >= newest), len(history))
    fruitless = len(history) - known
    if fruitless == 0:
        return Action("go on", "after progress" if history else "the first try")
    wait_s = min(_FIRST_WAIT_S * 2 ** (fruitless - 2), _LONGEST_WAIT_S) if fruitless > 1 else 0.0
    if fruitless >= 2 * TRIES:
        return Action("give up", f"{fruitless} tries without progress, the last {TRIES} from one checkpoint back")
    if fruitless == TRIES:
        return Action("go back", f"{TRIES} tries from step {history[-1].step} without progress", wait_s)
    return Action("go on", f"try {fruitless + 1} without progress", wait_s)
