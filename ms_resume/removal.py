"""Taking files away so that a worker that is slow to die never takes its successor's.

    writes   hidden names (`.<name>.<attempt>.retired`) for a moment, in place of what is removed

No file system removes a file on condition. So what is to go is renamed first, then the owner of the directory is asked
for again: who owns it after the renaming owned it at the renaming, so no successor has had a file there yet. Who does
not, leaves it aside. The next start gives back what is live (`put_back`), before it locates and after, so that it never
goes on from an older checkpoint because a newer one lay aside just then; `sweep` clears the rest.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged, DiskError
from ms_resume.ondisk import atomic, attempts, names, payload, reading, votes
from ms_resume.ondisk.attempts import Line
from ms_resume.ownership import assert_owner
from ms_resume.records import Position, Writer, ordinal_of

_FULL = (errno.ENOSPC, errno.EDQUOT)


def retire(writer: Writer, path: Path, *, keep_as: Path | None = None) -> None:
    """Removes a vote or payload, durably, or gives it the name `keep_as` in its directory.

    Raises:
        Superseded: A newer attempt owns the directory. What stood there is aside at most.
    """
    assert_owner(writer)
    aside = names.retired(path, writer.attempt.attempt)
    try:
        if not atomic.put_aside(path, aside):
            return
    except DiskError as error:
        if error.fields["errno"] not in _FULL or keep_as is not None:
            raise
        aside = path  # a full xfs has no room for another name, and removing is what makes room
    assert_owner(writer)
    if keep_as is None:
        atomic.remove(aside)
    else:
        atomic.rename(aside, keep_as)


def holds(writer: Writer, path: Path) -> bool:
    """Whether this attempt put a file aside that it could not remove."""
    return names.retired(path, writer.attempt.attempt).exists()


def put_back(save: Path) -> int:
    """Rank 0, before its start has a record: gives every live file that lies aside its name again.

    A file with no author (stock's, or a `.ckpt`) is given back where its place is free.

    Returns:
        The number of files that came back.
    """
    line = attempts.line_of(attempts.read_all(save))
    return sum(_give_back(found, line) for found in _asides(save))


def sweep(writer: Writer) -> int:
    """Each rank, once its start has a record, and before any rank removes anything: what lies aside and is not live.

    Returns:
        The number of files removed.
    """
    line = attempts.line_of(attempts.read_all(writer.save))
    removed = 0
    for found in _asides(writer.save, writer.rank):
        author = author_of(found.path, found.home.name)
        wanted = author is None or (_live(line, author, found.home) and not _not_older(found.home, author))
        if not wanted:
            assert_owner(writer)
            atomic.remove(found.path)
            removed += 1
    if writer.leads:
        for name in [name for name in _listed(names.commits(writer.save)) if names.parse_retired(name)]:
            atomic.remove_dir_if_empty(names.commits(writer.save) / name)
    return removed


def author_of(path: Path, name: str) -> str | None:
    """The attempt that wrote a vote or payload, whose own name is `name`; None where it does not say."""
    try:
        if names.parse_vote(name) is not None:
            return votes.author(path)
        mark = payload.read_header(path).mark
    except (OSError, Damaged):
        return None
    return mark.attempt if mark else None


@dataclass(frozen=True, slots=True)
class _Aside:
    """A file that lies aside, and the path that it had."""

    path: Path
    home: Path


def _give_back(found: _Aside, line: Line) -> bool:
    home, author = found.home, author_of(found.path, found.home.name)
    if author is not None and not _live(line, author, home):
        return False
    if author is not None and home.exists() and not _not_older(home, author):
        atomic.put_aside(home, names.retired(home, author))
    atomic.make_dirs(home.parent)
    try:
        return atomic.give_back(found.path, home)
    except FileExistsError:
        return False


def _live(line: Line, author: str, home: Path) -> bool:
    named = names.parse_payload(home.name)
    position = named.position if named else names.parse_vote_dir(home.parent.name)
    return isinstance(position, Position) and line.holds(author, position)


def _not_older(path: Path, author: str) -> bool:
    """Whether what stands there is of `author` or a newer attempt."""
    there = author_of(path, path.name)
    return there is not None and ordinal_of(there) >= ordinal_of(author)


def _asides(save: Path, rank: int | None = None) -> Iterator[_Aside]:
    """Of one rank or all: files taken singly, payloads before votes, and votes whose directory was taken."""
    commits = [names.commits(save) / name for name in _listed(names.commits(save)) if names.may_hold_votes(name)]
    for directory in (*_rank_dirs(save, rank), *commits):
        for name in sorted(name for name in _listed(directory) if names.parse_retired(name)):
            parsed = names.parse_retired(name)
            if parsed and (directory not in commits or _is_vote(parsed[0], rank)):
                yield _Aside(directory / name, _home(directory) / parsed[0])
    for directory in filter(_was_taken, commits):
        for name in sorted(name for name in _listed(directory) if _is_vote(name, rank)):
            yield _Aside(directory / name, _home(directory) / name)


def _rank_dirs(save: Path, rank: int | None) -> Iterator[Path]:
    for role, directory in names.DIRECTORIES.items():
        if rank is None:
            found = _listed(save / directory)
            yield from (save / directory / name for name in found if names.parse_rank_dir(name) is not None)
        elif not (save / directory).is_symlink():
            yield names.rank_dir(save, role, rank)


def _listed(directory: Path) -> Iterator[str]:
    """Nothing behind a symbolic link: it may lead to another job's directory."""
    with contextlib.suppress(Damaged, PermissionError):
        yield from reading.listed(directory)


def _is_vote(name: str, rank: int | None) -> bool:
    found = names.parse_vote(name)
    return found is not None and rank in (None, found)


def _was_taken(directory: Path) -> bool:
    return names.parse_retired(directory.name) is not None


def _home(directory: Path) -> Path:
    parsed = names.parse_retired(directory.name)
    return directory.with_name(parsed[0]) if parsed else directory
