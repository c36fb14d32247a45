"""What lies in a save directory, by name: read once, then shared by the layouts that judge it.

Only directories are listed here; no file is opened but the attempt records. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ms_resume.errors import UsageError
from ms_resume.ondisk import attempts, names, votes
from ms_resume.records import Attempt, Position

Files = Mapping[tuple[str, int], Path]
"""(role, rank) to the payload of one position."""


@dataclass(frozen=True)
class Survey:
    """`payloads` has every file with a payload's name; `voted` the positions that have a vote directory."""

    save: Path
    payloads: Mapping[Position, Files]
    ranks: Mapping[str, tuple[int, ...]]
    voted: frozenset[Position]
    deleted: frozenset[Position]
    records: tuple[Attempt, ...]
    has_commits: bool
    steps_per_epoch: int | None = None
    elsewhere: Collection[Position] | None = frozenset()
    """Positions whose votes that are not here are known to be on other nodes' disks; None for all of them."""

    def is_elsewhere(self, position: Position) -> bool:
        return self.elsewhere is None or position in self.elsewhere

    @cached_property
    def line(self) -> attempts.Line:
        return attempts.line_of(self.records)

    def _here(self, files: Files) -> bool:
        """A reference that is kept elsewhere is no position of this directory."""
        return any(path.is_relative_to(self.save) for path in files.values())

    @property
    def positions(self) -> list[Position]:
        """Newest first; stock code's final (epochs, steps per epoch) counts as (epochs, 0)."""
        found = {p for p, files in self.payloads.items() if self._here(files)} | self.voted

        def meant(position: Position) -> Position:
            return position if position in self.voted else position.normal(self.steps_per_epoch)

        return sorted(found, key=lambda p: (meant(p), p), reverse=True)


def take(save: Path, ref_dir: Path | None = None, steps_per_epoch: int | None = None) -> Survey:
    """Lists `save`.

    Args:
        ref_dir: Where a stock job keeps its reference, if not in `<save>/ref`.
        steps_per_epoch: For reading stock code's final position; looked up in the newest vote when not given.

    Raises:
        UsageError: `save` is not a directory.
        Damaged: An attempt record cannot be read.
    """
    if not save.is_dir():
        what = "is a file" if save.exists() else "does not exist"
        raise UsageError(f"{save}: {what}, expected a save directory", hint="check the path", path=str(save))
    payloads: dict[Position, dict[tuple[str, int], Path]] = {}
    ranks: dict[str, tuple[int, ...]] = {}
    for role, directory in names.DIRECTORIES.items():
        root = ref_dir if role == "ref" and ref_dir is not None else save / directory
        ranks[role] = _add_role(payloads, role, root)
    committed = _listing(names.commits(save))
    voted = frozenset(p for name in committed if (p := names.parse_vote_dir(name)))
    return Survey(
        save=save,
        payloads=payloads,
        ranks=ranks,
        voted=voted,
        deleted=frozenset(p for name in committed if (p := names.parse_deleted_dir(name))),
        records=tuple(attempts.read_all(save)),
        has_commits=bool(committed),
        steps_per_epoch=steps_per_epoch or _steps_per_epoch(save, voted),
    )


def _add_role(payloads: dict[Position, dict[tuple[str, int], Path]], role: str, root: Path) -> tuple[int, ...]:
    ranks = sorted(rank for name in _listing(root) if (rank := names.parse_rank_dir(name)) is not None)
    for rank in ranks:
        directory = root / f"rank_{rank}"
        for name in _listing(directory):
            parsed = names.parse_payload(name)
            if parsed and parsed.prefix == names.PREFIXES[role] and parsed.rank == rank:
                payloads.setdefault(parsed.position, {})[role, rank] = directory / name
    return tuple(ranks)


def _steps_per_epoch(save: Path, voted: frozenset[Position]) -> int | None:
    for position in sorted(voted, reverse=True):
        found, _ = votes.read_all(names.vote_dir(save, position), limit=1)
        if found:
            return next(iter(found.values())).steps_per_epoch
    return None


def _listing(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
