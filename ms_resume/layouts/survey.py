"""What lies in a save directory, by name: read once, then shared by the layouts that judge it.

Only directories are listed here; no file is opened but the attempt records. Nothing is written.

Each rank's directories are listed, because a newer position, torn or stock's, may lie in any of them. A checkpoint that
nobody asks about costs its names in these lists and no more: ranks that hold the same positions share one entry, and
paths are made for a position when somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ms_resume.errors import UsageError
from ms_resume.ondisk import abreast, attempts, meta, names, reading, votes
from ms_resume.ondisk.meta import Meta
from ms_resume.records import Attempt, Position

Files = Mapping[tuple[str, int], Path]
"""(role, rank) to the payload of one position."""

Endings = Mapping[Position, str]
"""What one rank has of one role: position to the end of the file's name, `0_5.safetensors`."""


class Payloads(Mapping[Position, Files]):
    """Every file with a payload's name, by position."""

    def __init__(self, roots: Mapping[str, Path], held: Mapping[tuple[str, int], Endings]) -> None:
        self._roots = roots
        self._held = held
        self._positions = _positions(held.values())
        self._looked_at: dict[Position, Files] = {}
        self._sorted: dict[int, tuple[Position, ...]] = {}
        self._alike: dict[tuple[Position, ...], tuple[Position, ...]] = {}
        self._everywhere: dict[tuple[str, tuple[int, ...]], list[Position]] = {}

    def __getitem__(self, position: Position) -> Files:
        if position not in self._positions:
            raise KeyError(position)
        if position not in self._looked_at:
            if len(self._looked_at) >= _LOOKED_AT:
                del self._looked_at[next(iter(self._looked_at))]
            self._looked_at[position] = {
                place: self._path(*place, endings[position])
                for place, endings in self._held.items()
                if position in endings
            }
        return self._looked_at[position]

    def __contains__(self, position: object) -> bool:
        return position in self._positions

    def __iter__(self) -> Iterator[Position]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def path(self, position: Position, role: str, rank: int) -> Path | None:
        """One file of `position`; None where there is none."""
        end = self._held.get((role, rank), _NOTHING).get(position)
        return None if end is None else self._path(role, rank, end)

    def without(self, position: Position, role: str, ranks: Iterable[int]) -> tuple[int, ...]:
        """Those of `ranks` that have no file of `position`."""
        return tuple(rank for rank in ranks if position not in self._held.get((role, rank), _NOTHING))

    def of(self, role: str, rank: int) -> tuple[Position, ...]:
        """The positions that one rank has a payload of, oldest first; one and the same tuple for all ranks that have
        the same ones."""
        endings = self._held.get((role, rank), _NOTHING)
        if id(endings) not in self._sorted:
            positions = tuple(sorted(endings))  # equal ones of other file formats are one, too
            self._sorted[id(endings)] = self._alike.setdefault(positions, positions)
        return self._sorted[id(endings)]

    def everywhere(self, role: str, ranks: Iterable[int]) -> list[Position]:
        """The positions that each of `ranks` has a payload of, oldest first."""
        key = role, tuple(ranks)
        if key not in self._everywhere:
            held = {id(self.of(role, rank)): self.of(role, rank) for rank in key[1]}
            self._everywhere[key] = sorted(set.intersection(*map(set, held.values()))) if held else []
        return self._everywhere[key]

    def ranks(self) -> frozenset[int]:
        """Those that have one."""
        return frozenset(rank for (_, rank), endings in self._held.items() if endings)

    def below(self, directory: Path) -> Collection[Position]:
        """The positions that have a payload below `directory`."""
        roles = {role for role, root in self._roots.items() if root.is_relative_to(directory)}
        return _positions(endings for (role, _), endings in self._held.items() if role in roles)

    def _path(self, role: str, rank: int, end: str) -> Path:
        return self._roots[role] / f"rank_{rank}" / (names.payload_start(role, rank) + end)


_NOTHING: Endings = {}
_LOOKED_AT = 4
"""Positions whose paths are kept: with all ranks of all positions there may be millions."""

MOST_LISTED = 1024
"""Missing ranks that a verdict lists: how many there are to be is what somebody's file says."""


@dataclass(frozen=True)
class Survey:
    """What was there when it was taken; `voted` are the positions that have a vote directory."""

    save: Path
    payloads: Payloads
    ranks: Mapping[str, tuple[int, ...]]
    voted: frozenset[Position]
    deleted: frozenset[Position]
    records: tuple[Attempt, ...]
    has_commits: bool
    steps_per_epoch: int | None = None
    elsewhere: Collection[Position] | None = frozenset()
    """Positions whose votes that are not here are known to be on other nodes' disks. None where nobody can tell: all
    votes of ranks that have no payload here count as cast."""

    _said: dict[tuple[str, int], Meta] = field(default_factory=dict, repr=False, compare=False)

    def said(self, role: str, rank: int) -> Meta:
        """What the `meta.json` of one rank says. It is read once, when somebody asks."""
        if (role, rank) not in self._said:
            self._said[role, rank] = meta.read(names.rank_dir(self.save, role, rank))
        return self._said[role, rank]

    def is_elsewhere(self, position: Position, rank: int) -> bool:
        """Whether the vote of a rank, which is not here, counts as cast on another node's disk."""
        return rank not in self.here if self.elsewhere is None else position in self.elsewhere

    @cached_property
    def here(self) -> frozenset[int]:
        """The ranks that have a payload, of whatever position."""
        return self.payloads.ranks()

    @cached_property
    def line(self) -> attempts.Line:
        return attempts.line_of(self.records)

    @cached_property
    def positions(self) -> list[Position]:
        """Newest first; stock code's final (epochs, steps per epoch) counts as (epochs, 0). A reference that is kept
        elsewhere is no position of this directory."""

        def age(position: Position) -> tuple[int, ...]:
            meant = position if position in self.voted else position.normal(self.steps_per_epoch)
            return meant.epoch, meant.step, position.epoch, position.step

        return sorted(self.voted.union(self.payloads.below(self.save)), key=age, reverse=True)


@abreast.uncollected()
def take(
    save: Path, ref_dir: Path | None = None, steps_per_epoch: int | None = None, *, is_local: bool = False
) -> Survey:
    """Lists `save`.

    Args:
        ref_dir: Where a stock job keeps its reference, if not in `<save>/ref`.
        steps_per_epoch: For reading stock code's final position; looked up in the newest vote when not given.
        is_local: It is one node's own disk, looked at without the others.

    Raises:
        UsageError: `save` is not a directory.
        Damaged: An attempt record cannot be read, or a directory is a symbolic link.
    """
    if not save.is_dir():
        what = "is a file" if save.exists() else "does not exist"
        raise UsageError(f"{save}: {what}, expected a save directory", hint="check the path", path=str(save))
    roots = {role: save / directory for role, directory in names.DIRECTORIES.items()}
    roots |= {"ref": ref_dir} if ref_dir is not None else {}
    ranks = {role: _ranks(root, follow=role == "ref" and root == ref_dir) for role, root in roots.items()}
    voted, deleted, has_commits = _committed(save)
    return Survey(
        save=save,
        payloads=Payloads(roots, _held(save, roots, ranks)),
        ranks=ranks,
        voted=voted,
        deleted=deleted,
        records=tuple(attempts.read_all(save)),
        has_commits=has_commits,
        steps_per_epoch=steps_per_epoch or _steps_per_epoch(save, voted),
        elsewhere=None if is_local else frozenset(),
    )


def _ranks(root: Path, *, follow: bool) -> tuple[int, ...]:
    listed = reading.listed(root, follow=follow)
    return tuple(sorted(rank for name in listed if (rank := names.parse_rank_dir(name)) is not None))


def _held(
    save: Path, roots: Mapping[str, Path], ranks: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], Endings]:
    """What each rank has of each role. Of two files at one position the safetensors counts."""

    tops = {role: str(root) for role, root in roots.items()}

    def ends_of(place: tuple[str, int]) -> frozenset[str]:
        role, rank = place
        return frozenset(reading.endings(f"{tops[role]}/rank_{rank}", names.payload_start(role, rank)))

    shared: dict[frozenset[str], Endings] = {}
    places = [(role, rank) for role in roots for rank in ranks[role]]
    held = {}
    for place, ends in zip(places, abreast.each(ends_of, places, save), strict=True):
        if ends not in shared:
            shared[ends] = {p: end for end in sorted(ends) if (p := names.parse_payload_end(end))}
        held[place] = shared[ends]
    return held


def _positions(held: Iterable[Endings]) -> frozenset[Position]:
    """Each shared entry is counted once."""
    return frozenset().union(*{id(endings): endings for endings in held}.values())


def _committed(save: Path) -> tuple[frozenset[Position], frozenset[Position], bool]:
    """The positions that have a vote directory, those that retention deleted, and whether anything is there."""
    voted, deleted, any_there = set(), set(), False
    for name in reading.listed(names.commits(save)):
        any_there = True
        if (position := names.parse_vote_dir(name)) is not None:
            voted.add(position)
        elif (position := names.parse_deleted_dir(name)) is not None:
            deleted.add(position)
    return frozenset(voted), frozenset(deleted), any_there


def _steps_per_epoch(save: Path, voted: frozenset[Position]) -> int | None:
    for position in sorted(voted, reverse=True):
        found, _ = votes.read_all(names.vote_dir(save, position), limit=1)
        if found:
            return next(iter(found.values())).steps_per_epoch
    return None
