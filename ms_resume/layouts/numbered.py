"""Numbered torch files, one for a whole job, written by rank 0; the position is (0, step).

    [log/]model_SSSSS.pt                 the step, with at least five digits
    [log/]latest_checkpoint.pt           a link to the newest, which may dangle or be stale

The newest is by number, never by time: a copy, a touch, or a clock that was set back changes times. The link is a hint,
and is not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL
from ms_resume.ondisk import torchzip
from ms_resume.records import Checkpoint, Found, Position, Rejection

NAME = "numbered"
LINK = "latest_checkpoint.pt"
_FILE = re.compile(r"model_(?P<step>\d{5}|[1-9]\d{5,17})\.pt", re.ASCII)
_BY_NUMBER = "the newest by number counts, not by time, which a copy changes"


@dataclass(frozen=True)
class Numbered:
    """A `layouts.Holding`."""

    NAME: str
    save: Path
    root: Path
    by_position: Mapping[Position, Path]

    @property
    def positions(self) -> list[Position]:
        return sorted(self.by_position, reverse=True)

    def files(self, position: Position) -> Mapping[tuple[str, int], Path]:
        return {(MODEL, 0): self.by_position[position]} if position in self.by_position else {}

    def judge(self, position: Position) -> Checkpoint | Rejection:
        path = self.by_position[position]
        try:
            torchzip.read(path)
        except Damaged as error:
            return Rejection(position, "damaged", error.message, (0,))
        except FileNotFoundError:
            named = f"{LINK} names it; {_BY_NUMBER}" if self._link() == path.name else "it was there a moment ago"
            return Rejection(position, "torn", f"{path}: missing, {named}", (0,))
        return Checkpoint(
            self.save, NAME, position, 1, (Found(0, MODEL, path),), warnings=tuple(self._warnings(position))
        )

    def _warnings(self, position: Position) -> Iterable[str]:
        link, name = self._link(), self.by_position[position].name
        if link != name:
            yield f"{LINK}: {'names ' + link if link else 'no link'}, the newest whole file is {name}; {_BY_NUMBER}"

    def _link(self) -> str | None:
        return _named_by(self.root / LINK)


def evidence(directory: Path) -> Path | None:
    return next((path for path, _ in _files(directory)), None)


def take(directory: Path) -> Numbered:
    found = {Position(0, int(match["step"])): path for path, match in _files(directory)}
    root = next((path.parent for path in found.values()), directory)
    if found and (named := _FILE.fullmatch(_named_by(root / LINK) or "")):
        found.setdefault(Position(0, int(named["step"])), root / named[0])  # gone, and not by itself: torn
    return Numbered(NAME, directory, root, found)


def _files(directory: Path) -> list[ranked.Fitting]:
    return list(ranked.files_like(directory / "log", _FILE)) or list(ranked.files_like(directory, _FILE, given=True))


def _named_by(link: Path) -> str | None:
    """What a link names, as a name in its own directory where it is one; None where there is no link."""
    try:
        target = Path(os.readlink(link))
    except OSError:
        return None
    beside = os.path.abspath(link.parent / target.parent) == os.path.abspath(link.parent)
    return target.name if beside else str(target)
