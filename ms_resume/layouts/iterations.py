"""Iteration models: the weights that each round of an iterative training ended with; the position is (N, 0).

    iter_N/[base_model/]                 as `save_pretrained` writes them
    base_model/                          those of iteration 0, where there is no iter_0

They hold no optimizer: a run can start from them, not resume. In a save directory of ours or MindRLHF's they are no
second kind of checkpoints, so nobody has to say which is meant; `--layout iterations` shows them there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts import pretrained, ranked
from ms_resume.ondisk import names, reading
from ms_resume.records import Position, Rejection

NAME = "iterations"
BASE = "base_model"
_OF_A_SAVE_DIRECTORY = {"train", "commits"}
_ITERATION = re.compile(rf"iter_(?P<number>{names.NUMBER})", re.ASCII)


@dataclass(frozen=True)
class Iterations:
    """A `layouts.Holding`."""

    NAME: str
    save: Path
    directories: Mapping[Position, Path]

    @property
    def positions(self) -> list[Position]:
        return sorted(self.directories, reverse=True)

    def files(self, position: Position) -> ranked.Files:
        try:
            return _weights(self.directories[position]).files
        except (Damaged, OSError):
            return {}

    def judge(self, position: Position) -> Rejection:
        directory = self.directories[position]
        try:
            weights = _weights(directory)
            if weights.torn:
                return Rejection(position, "torn", weights.torn, weights.ranks)
            for (_, rank), path in sorted(weights.files.items()):
                try:
                    pretrained.check(path)
                except Damaged as error:
                    return Rejection(position, "damaged", error.message, (rank,))
            pretrained.check_index(weights)
        except Damaged as error:
            return Rejection(position, "damaged", error.message)
        except OSError as error:
            return Rejection(position, "torn", f"{error.filename}: {error.strerror}", (0,))
        home = next(iter(weights.files.values())).parent
        more = "" if (home / pretrained.CONFIG).is_file() else f", and without {pretrained.CONFIG}"
        reason = f"whole, and without optimizer{more}: a run can start from it, not resume"
        return Rejection(position, "weights only", reason)


def evidence(directory: Path) -> Path | None:
    if not _OF_A_SAVE_DIRECTORY.isdisjoint(reading.listed(directory, follow=True)):
        return None
    found = next((path for path, _ in ranked.files_like(directory, _ITERATION, given=True)), None)
    return found or next(iter(pretrained.find(directory / BASE).files.values()), None)


def take(directory: Path) -> Iterations:
    found = {
        Position(int(match["number"]), 0): path for path, match in ranked.files_like(directory, _ITERATION, given=True)
    }
    with contextlib.suppress(Damaged):  # a link to a model elsewhere
        if pretrained.find(directory / BASE).files:
            found.setdefault(Position(0, 0), directory / BASE)
    return Iterations(NAME, directory, found)


def _weights(directory: Path) -> pretrained.Weights:
    """In `iter_N/base_model` where that is, else in `iter_N` itself."""
    below = BASE in set(reading.listed(directory))
    return pretrained.find(directory / BASE if below else directory)
