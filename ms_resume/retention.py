"""What may be deleted, decided purely, and the deleting of it, which never goes by an old list alone.

Rank 0 renames a position's vote directory away, after which it is no checkpoint; each rank then unlinks its own
payloads, and only those whose header carries the attempt that the deleted vote named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ms_resume import ownership, removal
from ms_resume.errors import Damaged
from ms_resume.layouts import ours
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import atomic, meta, names, payload, reading, votes
from ms_resume.records import Checkpoint, Payload, Position, Rejection, Writer, ordinal_of

NEVER_FEWER_THAN = 2


@dataclass(frozen=True, slots=True)
class Standing:
    """One position of ours as retention sees it: `live` and complete, `weights` (complete, but not for a resume), torn,
    or abandoned."""

    position: Position
    state: str
    attempt: str | None = None
    global_step: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.state == "live"

    @property
    def whole(self) -> bool:
        return self.state in ("live", "weights")


@dataclass(frozen=True, slots=True)
class Keep:
    """Which complete checkpoints stay: the `last` ones, those whose global step `every` divides, and the best by a
    metric, given as `max:reward` or `min:val_loss`. 0 and the empty string ask for nothing. `always` stay whatever they
    are."""

    last: int
    every: int = 0
    best: str = ""
    always: frozenset[Position] = frozenset()


def pinned(save: Path) -> set[Position]:
    """The positions that somebody has asked to keep. Raises Damaged where nobody can tell: behind a symbolic link."""
    return {p for name in reading.listed(names.pins(save)) if (p := names.parse_vote_dir(name))}


def wanted(standing: Sequence[Standing], keep: Keep) -> set[Position]:
    """The complete positions that stay beside the last ones. Of equally good ones the newest; one without the metric,
    or with one that is no number, is not the best."""
    complete = [entry for entry in _by_position(standing) if entry.complete]
    found = {entry.position for entry in complete if keep.every and entry.global_step % keep.every == 0}
    direction, _, name = keep.best.partition(":")
    rated = [(value, entry.position) for entry in complete if (value := _number(entry.metrics.get(name))) is not None]
    if rated and name:
        best = max(value if direction == "max" else -value for value, _ in rated)
        found.add(max(position for value, position in rated if (value if direction == "max" else -value) == best))
    return found


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def removable(standing: Sequence[Standing], *, keep_last: int, protected: Collection[Position] = ()) -> list[Position]:
    """The positions that may go, oldest first.

    Args:
        keep_last: How many complete ones stay, and as many of weights alone; 1 counts as 2, 0 or less keeps all. Torn
            ones do not count.
        protected: Pinned, named by a `meta.json`, or `wanted`.
    """
    keep = max(keep_last, NEVER_FEWER_THAN) if keep_last > 0 else len(standing)
    surplus = sorted((entry.position for entry in standing if entry.state == "weights"), reverse=True)[keep:]
    complete = sorted((entry.position for entry in standing if entry.complete), reverse=True)
    if len(complete) < NEVER_FEWER_THAN:
        return sorted(set(surplus) - set(protected))
    oldest_kept = complete[:keep][-1]
    newest_of = {entry.attempt: entry.position for entry in _by_position(standing) if entry.complete}
    return [
        entry.position
        for entry in _by_position(standing)
        if entry.position not in protected
        and (entry.position < oldest_kept or entry.position in surplus or _is_garbage(entry, newest_of))
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """The positions of ours in a directory, newest first, and those among them that may go, oldest first."""

    standing: list[Standing]
    gone: list[Position]


def plan(surveyed: Survey, keep: Keep) -> Plan:
    """What `sweep` would do now. Writes nothing."""
    claimed = [position for position in surveyed.positions if ours.has_part(surveyed, position)]
    standing = [_standing(position, ours.judge(surveyed, position)) for position in claimed]
    protected = _protected(surveyed.save, surveyed) | wanted(standing, keep) | keep.always
    gone = removable(standing, keep_last=keep.last, protected=protected)
    return Plan(standing, [p for p in gone if p in surveyed.voted or p not in surveyed.deleted])


def leaving(writer: Writer, surveyed: Survey, gone: Collection[Position]) -> dict[Position, list[Path]]:
    """The payloads of every rank that go with `gone`, and what is left of positions that were taken out before."""
    found: dict[Position, list[Path]] = {}
    directories = [(position, names.vote_dir(writer.save, position), writer.attempt.ordinal) for position in gone]
    for directory in _deleted_dirs(writer.save):
        if (position := names.parse_deleted_dir(directory.name)) is not None:
            directories.append((position, directory, _deleted_by(directory)))
    for rank in ranks(surveyed):
        of_rank = replace(writer, rank=rank)
        kept = _named_by_votes(of_rank, without=gone)
        for position, directory, deleted_by in directories:
            named = _files_of(directory / f"rank_{rank}.json")
            listed = (named.keys() | _own_payloads(of_rank, position)) - kept
            kept |= listed  # named by two that go, it goes once
            paths = [(writer.save / relative, named.get(relative)) for relative in sorted(listed)]
            going = [path for path, payload in paths if _proven(path, payload, deleted_by)]
            found.setdefault(position, []).extend(going)
    return found


def ranks(surveyed: Survey) -> list[int]:
    """Every rank that has a directory, or a vote for a position that was taken out."""
    listed = (name for directory in _deleted_dirs(surveyed.save) for name in reading.listed(directory))
    voted = {rank for name in listed if (rank := names.parse_vote(name)) is not None}
    return sorted(voted.union(*surveyed.ranks.values()))


def sweep(writer: Writer, surveyed: Survey, keep: Keep) -> list[Position]:
    """Rank 0: takes what `removable` names out of the checkpoints, and returns those positions. Deletes no payload."""
    planned = plan(surveyed, keep)
    complete, gone = [entry.position for entry in planned.standing if entry.whole], planned.gone
    for position in complete if gone else ():
        if position not in gone:  # what retention relies on, whoever made it
            atomic.sync_dir(names.vote_dir(writer.save, position))
    for position in gone:
        _retire(writer, surveyed, position)
    for directory in _deleted_dirs(writer.save):
        emptied = names.parse_deleted_dir(directory.name)
        saved_again = emptied in surveyed.voted and emptied not in gone
        if saved_again or emptied not in surveyed.payloads:
            atomic.remove_dir_if_empty(directory)
    return gone


def remove_payloads(writer: Writer) -> int:
    """Each rank: unlinks its own payloads of positions that rank 0 took out. Returns the number of files removed."""
    removed = 0
    for directory in _deleted_dirs(writer.save):
        position = names.parse_deleted_dir(directory.name)
        assert position is not None  # _deleted_dirs lists no other
        deleted_by = _deleted_by(directory)
        vote = directory / f"rank_{writer.rank}.json"
        named = _files_of(vote)
        kept = _named_by_votes(writer)
        for relative in sorted(named.keys() | _own_payloads(writer, position)):
            path = writer.save / relative
            if relative not in kept and _proven(path, named.get(relative), int(deleted_by)):
                removal.retire(writer, path)
                removed += 1
        if vote.exists() and not any(removal.holds(writer, writer.save / relative) for relative in named):
            atomic.remove(vote)  # it is what proves a `.ckpt` ours that could not be removed and comes back
    return removed


def sweep_temp_files(writer: Writer) -> int:
    """Each rank: removes its own temp files of attempts that are over. Stock's `*.tmp` are never touched.

    One of this attempt's own ordinal and another name died before its record had that name, or lost the race for it.
    """
    payloads = [names.rank_dir(writer.save, role, writer.rank) for role in names.DIRECTORIES]
    vote = f"rank_{writer.rank}.json"
    found = [path for directory in payloads for path in _listing(directory, names.parse_part)]
    for directory in _listing(names.commits(writer.save), names.may_hold_votes):
        found += [path for path in _listing(directory, names.parse_part) if path.name.startswith(f".{vote}.")]
    if writer.leads:
        found += [p for d in (writer.save, names.attempts(writer.save)) for p in _listing(d, names.parse_part)]
    removed = 0
    for path in found:
        parsed = names.parse_part(path.name)
        if parsed and parsed[1] != writer.attempt.attempt and ordinal_of(parsed[1]) <= writer.attempt.ordinal:
            atomic.remove(path)
            removed += 1
    return removed


def _by_position(standing: Iterable[Standing]) -> list[Standing]:
    return sorted(standing, key=lambda entry: entry.position)


def _is_garbage(entry: Standing, newest_of: Mapping[str | None, Position]) -> bool:
    """A torn position that its own attempt has left behind is; one ahead of it may be a save under way."""
    newest = newest_of.get(entry.attempt)
    return entry.state == "torn" and entry.attempt is not None and newest is not None and entry.position < newest


def _standing(position: Position, verdict: Checkpoint | Rejection) -> Standing:
    if isinstance(verdict, Checkpoint):
        vote = verdict.votes[0]
        state = "live" if vote.file("optimizer") else "weights"
        return Standing(position, state, verdict.attempt, vote.global_step, vote.metrics)
    return Standing(position, verdict.kind, verdict.attempt)


def _protected(save: Path, surveyed: Survey) -> set[Position]:
    protected = pinned(save)
    train = save / names.DIRECTORIES["policy"]
    for rank in surveyed.ranks["policy"]:
        if (named := meta.read(train / f"rank_{rank}").position) is not None:
            protected.add(named)
    return protected


def _retire(writer: Writer, surveyed: Survey, position: Position) -> None:
    """The vote directory goes out of the way in one rename; without one, an empty directory says the same."""
    target = names.deleted_dir(writer.save, position, writer.attempt.attempt)
    if position in surveyed.voted:
        removal.retire(writer, names.vote_dir(writer.save, position), keep_as=target)
    else:
        ownership.assert_owner(writer)
        atomic.make_dirs(target)


def _deleted_dirs(save: Path) -> list[Path]:
    return _listing(names.commits(save), names.parse_deleted_dir)


def _deleted_by(directory: Path) -> int:
    """The ordinal of the attempt that took a position out."""
    return int(directory.name.rpartition("-")[0].rpartition("-")[2])


def _own_payloads(writer: Writer, position: Position) -> set[str]:
    paths = [
        names.payload(writer.save, role, writer.rank, position, file_format)
        for role in names.DIRECTORIES
        for file_format in names.FORMATS
    ]
    return {path.relative_to(writer.save).as_posix() for path in paths if path.exists()}


def _named_by_votes(writer: Writer, without: Collection[Position] = ()) -> set[str]:
    """Every file that a vote of this rank still names, live or not: a reference serves many positions."""
    named: set[str] = set()
    for directory in _listing(names.commits(writer.save), names.parse_vote_dir):
        if names.parse_vote_dir(directory.name) not in without:
            named |= _files_of(directory / f"rank_{writer.rank}.json").keys()
    return named


def _files_of(vote: Path) -> dict[str, Payload]:
    try:
        return {file.path: file for file in votes.read(vote).files}
    except (FileNotFoundError, NotADirectoryError, Damaged):
        return {}


def _proven(path: Path, named: Payload | None, deleted_by: int) -> bool:
    """Whether a file is ours to delete: its header carries the attempt that the deleted vote named, or, where this rank
    never voted, one not newer than the attempt that deleted the position. A `.ckpt` needs the vote, and its size."""
    try:
        if path.suffix == ".ckpt":
            return named is not None and path.stat().st_size == named.bytes
        mark = payload.read_header(path).mark
    except (OSError, Damaged):
        return False
    if mark is None:
        return False
    return mark.attempt == named.attempt if named else ordinal_of(mark.attempt) <= deleted_by


def _listing(path: Path, parse: Callable[[str], object]) -> list[Path]:
    """What has a name that `parse` knows; nothing behind a symbolic link."""
    try:
        return sorted(path / name for name in reading.listed(path) if parse(name))
    except Damaged:
        return []
