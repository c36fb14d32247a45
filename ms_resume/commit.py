"""Stage 2 of 6: make this rank's payloads count.

    reads    the payload records of this rank, closed and synced by `write`
    writes   commits/E_S/rank_R.json, then meta.json of ref, optimizer, train

There is no coordinator: a position is complete when the votes of all ranks are there, a pure function of the files.
Nothing after this module may see a position that lacks a rank's vote.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ms_resume import removal
from ms_resume.errors import Damaged, DiskError, MsResumeError, Superseded
from ms_resume.ondisk import atomic, meta, names, payload, reading, votes
from ms_resume.ownership import assert_owner
from ms_resume.records import Payload, Position, Vote, Writer, ordinal_of

_PATIENCE = 3
"""Times that a name is cleared for a file: each worker that is slow to die can be in the way once."""

_META_ORDER = ("ref", "optimizer", "policy")
"""Stock code locates each on its own: in this order a kill in between never leaves weights newer than moments."""


def standing_vote(writer: Writer, position: Position) -> Vote | None:
    """This attempt's own vote at `position`, when its files are all there: then there is nothing to save."""
    try:
        vote = votes.read(names.vote(writer.save, position, writer.rank))
    except (FileNotFoundError, Damaged):
        return None
    mine = (vote.attempt, vote.world_size) == (writer.attempt.attempt, writer.world_size)
    return vote if mine and all(in_place(writer.save, file) for file in vote.files) else None


def in_place(save: Path, file: Payload) -> bool:
    """Whether a payload is there as its vote names it, by size and header."""
    try:
        if file.path.endswith(".ckpt"):
            return (save / file.path).stat().st_size == file.bytes
        header = payload.read_header(save / file.path)
    except (OSError, Damaged):
        return False
    return (header.file_bytes, header.digest) == (file.bytes, file.digest)


def complete(save: Path, vote: Vote) -> bool:
    """Whether the checkpoint that `vote` belongs to has the votes of all ranks."""
    directory = names.vote_dir(save, vote.position)
    try:
        if len(os.listdir(directory)) < vote.world_size:  # most ranks look too early: one listing tells them
            return False
        found, _ = votes.read_all(directory)
    except OSError:
        return False  # a newer attempt has taken it away, or the file system does not answer: an older one will do
    same = {
        rank for rank, other in found.items() if (other.attempt, other.world_size) == (vote.attempt, vote.world_size)
    }
    return same >= set(range(vote.world_size))


def retract(writer: Writer, position: Position, paths: Iterable[Path]) -> None:
    """Clears this rank's place at `position` for a new save: first its vote, durably, then the files in the way.

    Ours are removed; a file that nothing proves ours is renamed aside, never deleted.

    Raises:
        Superseded: A file there belongs to a newer attempt.
    """
    vote_path = names.vote(writer.save, position, writer.rank)
    named = _named_by(vote_path)
    removal.retire(writer, vote_path)
    here = {
        path for path in named if (name := names.parse_payload(path.rpartition("/")[2])) and name.position == position
    }
    wanted = {path.relative_to(writer.save).as_posix() for path in paths}
    for path in sorted(wanted | here):
        clear(writer, writer.save / path, proven=path in named)


def clear(writer: Writer, path: Path, *, proven: bool = False) -> None:
    """Removes one vote or payload of an attempt not newer than this one, or renames a foreign file aside.

    Raises:
        Superseded: It belongs to a newer attempt, or to another process that says it is this one.
    """
    if not path.exists():
        return
    is_vote = names.parse_vote(path.name) is not None
    owner = removal.author_of(path, path.name)
    if owner is not None and ordinal_of(owner) + is_vote > writer.attempt.ordinal:
        who = "another process of this attempt" if owner == writer.attempt.attempt else f"the newer attempt {owner}"
        raise Superseded(f"{path}: written by {who}", hint="let this process end")
    ours = owner is not None or proven or is_vote
    removal.retire(writer, path, keep_as=None if ours else names.superseded(path, writer.attempt.attempt))


def cast(writer: Writer, vote: Vote) -> None:
    """Casts the vote: after this, and with those of the other ranks, the position counts.

    Raises:
        Superseded: Another writer voted here, and not one of an older attempt.
    """
    atomic.make_dirs(names.commits(writer.save))
    publish(writer, names.vote(writer.save, vote.position, writer.rank), [votes.encode(vote)])


def publish(writer: Writer, path: Path, content: atomic.Content) -> None:
    """Gives a vote or payload its name. What workers of older attempts, slow to die, put in the way is cleared."""
    _name(writer, path, lambda: atomic.publish(path, content, writer.attempt.attempt))


def share(writer: Writer, other: Path, path: Path) -> None:
    """Gives another rank's payload a second name, like `publish`."""
    _name(writer, path, lambda: atomic.share(other, path))


def _name(writer: Writer, path: Path, give: Callable[[], None]) -> None:
    for _ in range(_PATIENCE):
        atomic.make_dirs(path.parent)
        assert_owner(writer)
        try:
            give()
            return
        except FileExistsError:
            clear(writer, path)
        except DiskError as error:
            if error.fields["errno"] != errno.ENOENT:
                raise  # else such a worker renamed the directory away
    raise Superseded(f"{path}: another writer is at work there", hint="let this process end")


def record_meta(writer: Writer, files: dict[str, Path]) -> list[str]:
    """Rewrites this rank's `meta.json` files to `files` (by role). A failure is a warning: the vote is what counts."""
    warnings = []
    for role in _META_ORDER:
        if role not in files or not files[role].is_relative_to(writer.save):
            continue
        named = names.parse_payload(files[role].name)
        assert named is not None  # roles map to payload names
        path = names.rank_dir(writer.save, role, writer.rank) / names.META
        content = meta.encode(named.position, files[role].name)
        try:
            if not _holds(path, content):
                atomic.make_dirs(path.parent)
                assert_owner(writer)
                atomic.replace(path, content, writer.attempt.attempt)
        except (DiskError, OSError) as error:
            said = error.message if isinstance(error, DiskError) else str(error)
            warnings.append(f"{said}; the checkpoint counts, the next save repairs this")
    return warnings


def _holds(path: Path, content: bytes) -> bool:
    try:
        return reading.content(path) == content
    except (FileNotFoundError, Damaged):
        return False


def point_latest(writer: Writer, position: Position) -> None:
    """`latest` is for people: a failure is not worth a word, and no reader depends on it."""
    with contextlib.suppress(MsResumeError, OSError):
        target = f"{names.commits(writer.save).name}/{position}"
        link = writer.save / names.LATEST
        if not link.is_symlink() or os.readlink(link) != target:
            assert_owner(writer)
            atomic.point(link, target, writer.attempt.attempt)


def _named_by(vote_path: Path) -> set[str]:
    try:
        return {file.path for file in votes.read(vote_path).files}
    except (FileNotFoundError, Damaged):
        return set()
