"""Where each node has a disk of its own: who shares one, and what all ranks have.

A disk's first rank does there what rank 0 does on a shared one: it looks whether the directory is free, writes the
attempt record, and lets retention decide. What is complete nobody can read from one disk; the ranks tell each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.framework.group import Group
from ms_resume.layouts import mindrlhf, ours
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import names, payload, reading, votes
from ms_resume.ownership import machine
from ms_resume.records import Checkpoint, Position, Vote
from ms_resume.resume import agree


@dataclass(frozen=True, slots=True)
class Disk:
    """The ranks that see the same save directory as this one, in order."""

    ranks: tuple[int, ...]
    rank: int
    world_size: int

    @property
    def leader(self) -> int:
        return self.ranks[0]

    @property
    def leads(self) -> bool:
        return self.rank == self.leader

    @property
    def is_shared(self) -> bool:
        """By all ranks."""
        return len(self.ranks) == self.world_size


@dataclass(frozen=True, slots=True)
class Offer:
    """What one rank has of one position: its vote's attempt, world size, and digest, or its stock files."""

    position: Position
    layout: str
    attempt: str | None = None
    world_size: int = 0
    digest: str = ""

    @property
    def key(self) -> tuple[Position, str, str | None, int]:
        """Equal on all ranks where they are parts of one checkpoint."""
        return self.position, self.layout, self.attempt, self.world_size


@dataclass(frozen=True, slots=True)
class Begun:
    """What one rank's disk tells of saves that may never have been whole: the fresh starts on record there, the
    positions there with their writers, and those at which this rank voted."""

    starts: frozenset[str] = frozenset()
    there: frozenset[tuple[Position, str]] = frozenset()
    voted: frozenset[tuple[Position, str]] = frozenset()


def begun(surveyed: Survey, rank: int) -> Begun | None:
    """None where the disk shows that something was whole once, or may have been."""
    starts = frozenset(record.attempt for record in surveyed.records if record.origin is None)
    ours_alone = all(ours.claims(surveyed, position) for position in surveyed.positions)
    if surveyed.deleted or len(starts) < len(surveyed.records) or not ours_alone:
        return None
    there = {(position, attempt) for position in surveyed.positions for attempt in ours.writers(surveyed, position)}
    cast = {(vote.position, vote.attempt) for vote in _votes_of(surveyed, rank)}
    return Begun(starts, frozenset(there), frozenset(cast))


def never_whole(told: Iterable[Begun | None]) -> bool:
    """Whether of each position a rank took part in the attempt, by its disk's records, and did not vote: a fresh start
    loses nothing. A disk without records, maybe a new one, says nothing of what another one holds."""
    known = list(told)
    begun = [entry for entry in known if entry is not None]
    there = {saved for entry in begun for saved in entry.there}
    torn = (any(saved[1] in entry.starts and saved not in entry.voted for entry in begun) for saved in there)
    return len(begun) == len(known) and all(torn)


def begun_to_json(entry: Begun | None) -> list[Any] | None:
    if entry is None:
        return None
    pairs = (sorted([position.to_json(), attempt] for position, attempt in some) for some in (entry.there, entry.voted))
    return [sorted(entry.starts), *pairs]


def begun_from_json(data: list[Any] | None) -> Begun | None:
    if data is None:
        return None
    starts, *some = data
    return Begun(frozenset(starts), *(frozenset((Position(*at), attempt) for at, attempt in pairs) for pairs in some))


def _votes_of(surveyed: Survey, rank: int) -> Iterator[Vote]:
    for position in surveyed.voted:
        with contextlib.suppress(FileNotFoundError, Damaged):
            yield votes.read(names.vote(surveyed.save, position, rank))


def shared(group: Group) -> Disk:
    return Disk(tuple(range(group.world_size)), group.rank, group.world_size)


def find(group: Group, save: Path) -> Disk:
    """Asks all ranks where their save directory lies; it need not exist."""
    _, told = agree.together(group, lambda: _place(save), lambda place: place)
    mine = told[group.rank]
    return Disk(tuple(rank for rank, place in enumerate(told) if place == mine), group.rank, group.world_size)


def offers(surveyed: Survey, rank: int) -> list[Offer]:
    """What `rank` has, newest first: live, with its files, whatever other ranks have."""
    found = (_offer(surveyed, position, rank) for position in surveyed.positions)
    return [offer for offer in found if offer is not None]


def common(told: Iterable[Iterable[Offer]]) -> list[tuple[Offer, ...]]:
    """The checkpoints of which every rank has its part, newest first; one offer a rank, in their order."""
    by_key = [{offer.key: offer for offer in offers} for offers in told]
    everywhere = set.intersection(*(set(offers) for offers in by_key)) if by_key else set()
    return [tuple(offers[key] for offers in by_key) for key in sorted(everywhere, key=lambda key: key[0], reverse=True)]


def to_json(offer: Offer) -> list[Any]:
    return [offer.position.to_json(), offer.layout, offer.attempt, offer.world_size, offer.digest]


def from_json(data: list[Any]) -> Offer:
    (epoch, step), *rest = data
    return Offer(Position(epoch, step), *rest)


def _place(save: Path) -> list[Any]:
    """The machine, the directory that is there, and the way from it."""
    there = next(step for step in (save, *save.parents) if step.exists())
    status = there.stat()
    return [machine(), status.st_dev, status.st_ino, save.relative_to(there).as_posix()]


def _offer(surveyed: Survey, position: Position, rank: int) -> Offer | None:
    if not ours.claims(surveyed, position):
        judged = mindrlhf.judge(surveyed, position, (rank,))
        return Offer(position, mindrlhf.NAME) if isinstance(judged, Checkpoint) else None
    path = names.vote(surveyed.save, position, rank)
    try:
        content = reading.content(path)
        vote = votes.decode(path, content)
    except (FileNotFoundError, Damaged):
        return None
    if not ours.is_live(surveyed, vote) or not _has_files(surveyed.save, vote):
        return None
    return Offer(position, ours.NAME, vote.attempt, vote.world_size, payload.digest_of(content))


def _has_files(save: Path, vote: Vote) -> bool:
    """By their sizes, like any complete position; a resume checks the rest while it loads."""
    if vote.file("optimizer") is None:
        return False
    return ours.missing_file(save, vote) is None


def missing(told: Mapping[int, Iterable[Offer]], position: Position) -> tuple[int, ...]:
    """The ranks that have nothing of `position`."""
    return tuple(rank for rank, offers in told.items() if all(offer.position != position for offer in offers))
