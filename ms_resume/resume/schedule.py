"""When a run saves, decided alike on all ranks without a message of its own.

What only one rank knows (a clock, a signal, a file) is its *wish*. A trainer adds the wishes of all ranks in a
reduction that its step does anyway, and every rank decides by the same sum.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ms_resume.ondisk import atomic, names
from ms_resume.resume.leaving import Leaving

LEAVE = 65536.0
"""Added to a wish by a rank that was asked to leave: more than all ranks' other wishes together."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What brings a save about; 0 and False leave it out."""

    every_steps: int = 0
    every_s: float = 0.0
    each_epoch: bool = False

    def reason(self, epoch: int, step: int, *, wishes: float = 0.0) -> str:
        """Why the position (epoch, step) is to be saved; empty when it is not.

        Args:
            wishes: The sum of all ranks' `Wishes.now`.
        """
        if wishes > 0:
            return "asked for"
        if self.every_steps and step and step % self.every_steps == 0:
            return f"every {self.every_steps} steps"
        if self.each_epoch and epoch and step == 0:
            return "end of an epoch"
        return ""


@dataclass
class Wishes:
    """What one rank asks for: rank 0 when `every_s` seconds have passed, or `<save>/save_now` is there; any rank after
    a signal, or when it is to leave."""

    save: Path
    rank: int
    schedule: Schedule
    clock: Callable[[], float] = time.monotonic
    leaving: Leaving = field(default_factory=Leaving)
    signalled: bool = False
    last_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_s = self.clock()

    def listen(self, *signals: signal.Signals) -> None:
        """Takes each of these signals for a wish; only in the main thread. What handled them before is called, too."""
        for number in signals:
            before = signal.getsignal(number)
            signal.signal(number, lambda *arguments, then=before: self._hear(then, *arguments))

    def now(self) -> float:
        """1.0 when this rank wants a save, else 0.0: what goes into the reduction."""
        due = self.rank == 0 and 0 < self.schedule.every_s <= self.clock() - self.last_s
        wish = float(self.signalled or due or (self.rank == 0 and self._file.exists()))
        return wish + LEAVE if self.leaving.wanted() else wish

    def granted(self) -> None:
        """A save has begun: whoever wished has it."""
        self.signalled = False
        self.last_s = self.clock()
        if self.rank == 0 and self._file.exists():
            atomic.remove(self._file)

    @property
    def _file(self) -> Path:
        return self.save / names.SAVE_NOW

    def _hear(self, then: object, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if callable(then):
            then(number, frame)
