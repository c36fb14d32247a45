"""When standing still is a hang."""

from __future__ import annotations

import pytest

from ms_resume.supervisor.evidence import Limits
from ms_resume.supervisor.limits import Learned, limit_s

LIMITS = Limits(multiple=10, floor=60, known_after=3, phases={"save": 900, "launch": 1800}, other=3600)


@pytest.mark.parametrize(
    ("phase", "lately_s", "limit"),
    [
        ("rollout", [], 3600),  # may compile
        ("rollout", [300, 20], 3600),
        ("rollout", [20, 21, 20], 210),  # ten times the longest
        ("rollout", [0.1, 0.1, 0.1], 60),  # never sooner than the floor
        ("rollout", [300, 500, 400], 3600),  # never later than the phase may take
        ("save", [], 900),
        ("save", [100, 100, 100], 900),
        ("launch", [], 1800),
    ],
)
def test_limit(phase: str, lately_s: list[float], limit: float):
    """Each row: a phase, how long it took lately, and after how long it counts as a hang."""
    assert limit_s(phase, lately_s, LIMITS) == limit


def test_long_ago_is_forgotten():
    """A first step that compiled for half an hour does not set the limit for good."""
    learned = Learned(LIMITS)
    for seconds in (1800.0, *[20.0] * 50):
        learned.took("rollout", seconds)

    assert learned.limit_s("rollout") == 200
