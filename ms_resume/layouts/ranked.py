"""What foreign layouts have in common: one directory for each rank, and files that say their position in their names.

A position is whole when every rank has its file and each file is whole in itself. How many ranks there are the highest
rank directory says, of any position: what a crash or retention left behind shows as a rank that lacks its file.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts.mindrlhf import check_cut, some, tensors
from ms_resume.layouts.survey import MOST_LISTED
from ms_resume.ondisk import names, reading
from ms_resume.records import Checkpoint, Found, Position, Rejection, TensorInfo

Files = Mapping[tuple[str, int], Path]
Fitting = tuple[Path, re.Match[str]]
Inside = Callable[[Path, Mapping[str, TensorInfo]], None]
"""Raises Damaged where what a file holds shows that it is not whole, although it can be read to its end."""

MODEL = "model"
"""The role of a file that holds weights, and in most foreign layouts everything else as well."""


def _anything(path: Path, held: Mapping[str, TensorInfo]) -> None:
    pass


def _nothing_to_say(position: Position) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Ranked:
    """A `layouts.Holding`. `ranks` are those that have a directory."""

    NAME: str
    save: Path
    by_position: Mapping[Position, Files]
    ranks: tuple[int, ...]
    inside: Inside = _anything
    warnings: Callable[[Position], Iterable[str]] = _nothing_to_say

    @cached_property
    def positions(self) -> list[Position]:
        return sorted(self.by_position, reverse=True)

    def files(self, position: Position) -> Files:
        return self.by_position.get(position, {})

    def world_size(self, position: Position) -> int:
        return max(self.ranks, default=-1) + 1

    def judge(self, position: Position) -> Checkpoint | Rejection:
        files, world_size = self.files(position), self.world_size(position)
        if missing := tuple(rank for rank in range(world_size) if (MODEL, rank) not in files):
            return Rejection(position, "torn", self._say_missing(missing), missing[:MOST_LISTED])
        for (_, rank), path in sorted(files.items()):
            try:
                held = tensors(path)
                self.inside(path, held)
                check_cut(path, held.keys(), self._before(position, rank))
            except Damaged as error:
                return Rejection(position, "damaged", error.message, (rank,))
            except OSError as error:
                return Rejection(position, "torn", f"{path}: {error.strerror}", (rank,))
        found = tuple(Found(rank, role, path) for (role, rank), path in sorted(files.items()))
        return Checkpoint(self.save, self.NAME, position, world_size, found, warnings=tuple(self.warnings(position)))

    def _before(self, position: Position, rank: int) -> Path | None:
        held = self._held[rank]
        at = bisect_left(held, position)
        return self.by_position[held[at - 1]][MODEL, rank] if at else None

    def _say_missing(self, missing: tuple[int, ...]) -> str:
        return "; ".join(f"rank {rank} has {some(self._held.get(rank, ()))}" for rank in missing[:8])

    @cached_property
    def _held(self) -> dict[int, list[Position]]:
        """What each rank has, oldest first."""
        held: dict[int, list[Position]] = {}
        for position in reversed(self.positions):
            for _, rank in self.by_position[position]:
                held.setdefault(rank, []).append(position)
        return held


def rank_dirs(root: Path, *, given: bool = False) -> dict[int, Path]:
    """`rank_R` directories of `root`, by rank; none where there is no such directory.

    Args:
        given: A person gave `root`: it may be a symbolic link.

    Raises:
        Damaged: It is one all the same.
    """
    listed = reading.listed(root, follow=given)
    return dict(sorted((rank, root / name) for name in listed if (rank := names.parse_rank_dir(name)) is not None))


def files_like(directory: Path, pattern: re.Pattern[str], *, given: bool = False) -> Iterator[Fitting]:
    """Files of a directory whose whole name fits, in the order of their names. Arguments and errors as above."""
    listed = reading.listed(directory, follow=given)
    found = [(name, match) for name in listed if (match := pattern.fullmatch(name))]
    for name, match in sorted(found, key=lambda entry: entry[0]):
        yield directory / name, match


def first_in(directories: Iterable[Path], files: Callable[[Path], Iterable[Fitting]]) -> Path | None:
    """The first of the `files` of one of them. Behind a symbolic link nothing is looked for."""
    for directory in directories:
        with contextlib.suppress(Damaged):
            for path, _ in files(directory):
                return path
    return None
