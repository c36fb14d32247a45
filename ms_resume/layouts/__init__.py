"""The ways in which checkpoints lie on disk: one module each, read-only, free of pickle and of MindSpore.

A layout knows a directory of its kind by sight (`evidence`) and opens it (`take`) as a `Holding`: positions, newest
first, the files of each, and a verdict. A new layout is a module and its place in `FOREIGN`.

A save directory is one kind, although ours and stock MindRLHF's positions may lie in it side by side: there the first
of `_OF_POSITIONS` that claims a position has the word, ours before stock, because a position with our votes or our mark
counts by its votes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ms_resume.errors import Damaged, UsageError
from ms_resume.layouts import (
    foreign,
    huggingface,
    iterations,
    mindformers,
    mindformers2,
    mindrlhf,
    mindrlhf_0_4,
    mindspeed,
    numbered,
    ours,
    survey,
    ttp,
)
from ms_resume.layouts.foreign import Foreign
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import abreast, names, votes
from ms_resume.records import Checkpoint, Position, Rejection


class Holding(Protocol):
    """The checkpoints of one kind in one directory, listed once."""

    @property
    def NAME(self) -> str:
        """Of its layout."""

    @property
    def save(self) -> Path:
        """The directory."""

    @property
    def positions(self) -> list[Position]:
        """Newest first."""

    def files(self, position: Position) -> Mapping[tuple[str, int], Path]:
        """(role, rank) to the file of one position, by names alone."""

    def judge(self, position: Position) -> Checkpoint | Rejection:
        """Whether it is whole, by names, votes, and sizes; where these do not say, by what is inside."""


class Layout(Protocol):
    NAME: str

    def evidence(self, directory: Path) -> Path | None:
        """Something in `directory` that shows this layout; by names alone."""

    def take(self, directory: Path) -> Holding:
        """Lists it."""


class SaveDirectory:
    """A `Holding` of our own positions and of stock MindRLHF's; what retention has deleted is on its way out."""

    NAME = mindrlhf.NAME

    def __init__(self, surveyed: Survey) -> None:
        self.surveyed = surveyed
        self.save = surveyed.save

    @cached_property
    def positions(self) -> list[Position]:
        return [position for position in self.surveyed.positions if not self._is_deleted(position)]

    def files(self, position: Position) -> Mapping[tuple[str, int], Path]:
        return self.surveyed.payloads.get(position, {})

    def judge(self, position: Position) -> Checkpoint | Rejection:
        return judge(self.surveyed, position)

    def _is_deleted(self, position: Position) -> bool:
        deleted = position in self.surveyed.deleted and position not in self.surveyed.voted
        return deleted and ours.claims(self.surveyed, position)


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a position besides its verdict."""

    layout: str
    attempt: str | None = None
    world_size: int | None = None


class OfPosition(Protocol):
    """One of the kinds that lie side by side in a save directory."""

    NAME: str

    def claims(self, survey: Survey, position: Position) -> bool:
        """Whether `position` was written this way."""

    def judge(self, survey: Survey, position: Position) -> Checkpoint | Rejection:
        """As in `Holding`."""


_OF_POSITIONS: tuple[OfPosition, ...] = (ours, mindrlhf)
RESUMED = tuple(layout.NAME for layout in _OF_POSITIONS)
"""Layouts whose checkpoints a resume takes."""

FOREIGN: tuple[Layout, ...] = (
    mindformers,
    mindformers2,
    mindspeed,
    mindrlhf_0_4,
    ttp,
    huggingface,
    numbered,
    iterations,
)
NAMES = (SaveDirectory.NAME, *(layout.NAME for layout in FOREIGN))


def find(save: Path, *, ref_dir: Path | None = None, layout: str | None = None, is_local: bool = False) -> Holding:
    """What `save` holds. A directory in which nothing is recognised is a save directory without positions.

    Args:
        ref_dir: Where a stock job keeps its reference, if not in `<save>/ref`.
        layout: One of `NAMES`, where looking is not enough.
        is_local: It is one node's own disk: what other ranks have is not here, and counts as whole.

    Raises:
        UsageError: It is no directory, or two layouts fit.
        Damaged: An attempt record cannot be read.
    """
    surveyed = survey.take(save, ref_dir, is_local=is_local)
    chosen = [other for other in FOREIGN if layout == other.NAME]
    if layout is not None:
        return chosen[0].take(save) if chosen else SaveDirectory(surveyed)
    seen = [(other, found) for other in FOREIGN if (found := _evidence(other, save)) is not None]
    fits = [other.NAME for other, _ in seen]
    if surveyed.positions:
        fits.insert(0, SaveDirectory.NAME)
    if len(fits) > 1:
        held = "; ".join(f"{other.NAME} ({found.relative_to(save)})" for other, found in seen)
        raise UsageError(
            f"{save}: holds more than one kind of checkpoints: {', '.join(fits)}: {held}",
            hint=f"choose one: {', or '.join(f'--layout {name}' for name in fits)}",
            path=str(save),
        )
    return SaveDirectory(surveyed) if surveyed.positions or not seen else seen[0][0].take(save)


def stranger(directory: Path) -> Foreign | None:
    """What `directory` holds that no resume takes, by names alone; None where nothing is known. Iteration models are
    nobody's checkpoints: a run saves beside them, and starts from one where it is asked to."""
    for layout in FOREIGN[: FOREIGN.index(iterations)]:
        if (found := _evidence(layout, directory)) is not None:
            return Foreign(f"{layout.NAME} checkpoints", found.relative_to(directory), _NOT_RESUMED)
    return foreign.recognise(directory)


_NOT_RESUMED = "`ms-resume ls` shows them; a resume takes MindRLHF's and our own: give that directory"


def _evidence(layout: Layout, directory: Path) -> Path | None:
    """What a symbolic link leads to is evidence of nothing."""
    try:
        return layout.evidence(directory)
    except Damaged:
        return None


@abreast.uncollected()
def judge(surveyed: Survey, position: Position) -> Checkpoint | Rejection:
    """The verdict of the layout that claims `position`."""
    layout = next(layout for layout in _OF_POSITIONS if layout.claims(surveyed, position))
    return layout.judge(surveyed, position)


def about(holding: Holding, position: Position) -> About:
    """For a position that is not whole: whose it is, as far as anything says so."""
    if not isinstance(holding, SaveDirectory):
        return About(holding.NAME)
    surveyed = holding.surveyed
    found, _ = votes.read_all(names.vote_dir(surveyed.save, position), limit=1)
    vote = next(iter(found.values()), None)
    name = next(layout.NAME for layout in _OF_POSITIONS if layout.claims(surveyed, position))
    return About(name, vote.attempt if vote else None, vote.world_size if vote else None)
