"""How long a phase may last before it counts as a hang: learned from this attempt, within limits for each phase."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ms_resume.supervisor.evidence import Limits

_REMEMBERED = 50


def limit_s(phase: str, lately_s: Sequence[float], limits: Limits) -> float:
    """A multiple of the longest of `lately_s`, neither below the floor nor above what the phase may take at most."""
    most = limits.phases.get(phase, limits.other)
    if len(lately_s) < limits.known_after:
        return most
    return min(max(limits.multiple * max(lately_s), limits.floor), most)


@dataclass
class Learned:
    """How long each phase took lately, over all ranks."""

    limits: Limits
    seconds: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_REMEMBERED)))

    def took(self, phase: str, seconds: float) -> None:
        self.seconds[phase].append(seconds)

    def limit_s(self, phase: str) -> float:
        return limit_s(phase, self.seconds[phase], self.limits)
