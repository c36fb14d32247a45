"""The ways in which checkpoints lie on disk: one module each, read-only, free of pickle and of MindSpore.

A layout *claims* a position, then judges it. The first in `LAYOUTS` that claims it has the word: ours before stock,
because a position with our votes or our mark counts by its votes alone.
"""

from __future__ import annotations

from typing import Protocol

from ms_resume.layouts import mindrlhf, ours
from ms_resume.layouts.survey import Survey
from ms_resume.records import Checkpoint, Position, Rejection


class Layout(Protocol):
    NAME: str

    def claims(self, survey: Survey, position: Position) -> bool:
        """Whether `position` was written this way."""

    def judge(self, survey: Survey, position: Position) -> Checkpoint | Rejection:
        """Whether it is whole, by names, votes, and sizes; where these do not say, by what is inside."""


LAYOUTS: tuple[Layout, ...] = (ours, mindrlhf)


def judge(survey: Survey, position: Position) -> Checkpoint | Rejection:
    """The verdict of the layout that claims `position`."""
    layout = next(layout for layout in LAYOUTS if layout.claims(survey, position))
    return layout.judge(survey, position)
