"""What people and stock code go by, `meta.json`, `latest`, and a vote, is true at every moment."""

from __future__ import annotations

import os
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.ondisk import meta, names, payload, votes
from ms_resume.ondisk.meta import Meta
from ms_resume.records import Vote

_ROLES = ("ref", "optimizer", "policy")
"""Each may be newer than those after it, never older: stock code would combine new weights with old moments."""


def wrong(before: Path, save: Path, world_size: int) -> str:
    """What became untrue since `before`, a copy of the directory; what was untrue there already does not count."""
    if not save.is_dir():
        return ""
    found = (_wrong_rank(before, save, rank) for rank in range(world_size))
    return next(filter(None, found), "") or _wrong_latest(before, save, world_size) or _mixed(save)


def _wrong_rank(before: Path, save: Path, rank: int) -> str:
    was = {role: meta.read(names.rank_dir(before, role, rank)) for role in _ROLES}
    now = {role: meta.read(names.rank_dir(save, role, rank)) for role in _ROLES}
    for number, role in enumerate(_ROLES):
        if now[role] == was[role] or (was[role].trouble not in ("", "missing") and now[role].trouble):
            if _stood(before, role, rank, was[role]) and not _stood(save, role, rank, now[role]):
                return f"{role} of rank {rank}: the file that its meta.json names is gone: {now[role].file}"
            continue
        if now[role].trouble or not _stood(save, role, rank, now[role]):
            return f"{role} of rank {rank}: its meta.json is {now[role].trouble or 'about a file that is not there'}"
        if ahead := _ahead(before, save, rank, now, role, _ROLES[: number + 1]):
            return ahead
    return ""


def _ahead(before: Path, save: Path, rank: int, now: dict[str, Meta], role: str, due: tuple[str, ...]) -> str:
    """A meta.json that was written follows its vote, and those that come before it."""
    position = now[role].position
    if role == "ref" or position is None:
        return ""
    vote = _vote(save, rank, now[role])
    if vote is None:
        new = not _stood(before, role, rank, now[role])
        return f"{role} of rank {rank}: its meta.json says {position}, there is no vote" if new else ""
    for earlier in due:
        named = vote.file(earlier)
        if named and _older(now[earlier], Path(named.path).name):
            return f"rank {rank}: meta.json of {role} says {position}, that of {earlier} names {now[earlier].file}"
    return ""


def _older(said: Meta, name: str) -> bool:
    named = names.parse_payload(name)
    return named is not None and (said.position is None or said.position < named.position)


def _vote(save: Path, rank: int, said: Meta) -> Vote | None:
    assert said.position is not None
    try:
        return votes.read(names.vote(save, said.position, rank))
    except (Damaged, FileNotFoundError):
        return None


def _stood(save: Path, role: str, rank: int, said: Meta) -> bool:
    return bool(said.file) and (names.rank_dir(save, role, rank) / said.file).exists()


def _wrong_latest(before: Path, save: Path, world_size: int) -> str:
    """A link to a checkpoint that stands there stays one, and points to no other that is not complete."""
    was, now = before / names.LATEST, save / names.LATEST
    if was.exists() and not now.exists():
        return f"latest points to nothing: {os.readlink(now)}" if now.is_symlink() else "latest is gone"
    if now.is_symlink() and (not was.is_symlink() or os.readlink(now) != os.readlink(was)):
        found, _ = votes.read_all(save / os.readlink(now))
        if len(found) != world_size or len({vote.attempt for vote in found.values()}) != 1:
            return f"latest points to {os.readlink(now)}, which is not complete"
    return ""


def _mixed(save: Path) -> str:
    """A vote goes before another file takes the place of one that it names."""
    for directory in save.glob("commits/*_*"):
        for vote in votes.read_all(directory)[0].values() if names.parse_vote_dir(directory.name) else ():
            for file in vote.files:
                path = save / file.path
                if path.suffix == ".safetensors" and path.exists() and author(path) not in (file.attempt, None):
                    return f"{file.path} is not the file that the vote of rank {vote.rank} at {vote.position} names"
    return ""


def author(path: Path) -> str | None:
    """The attempt that wrote a payload; empty for stock's, None for a damaged one."""
    try:
        mark = payload.read_header(path).mark
    except Damaged:
        return None
    return mark.attempt if mark else ""


def after_a_save(save: Path, position: str, cast: tuple[Vote, ...]) -> str:
    """All of them name what was saved."""
    for vote in cast:
        for role in _ROLES:
            if (named := vote.file(role)) is None:
                continue
            said = meta.read(names.rank_dir(save, role, vote.rank))
            if said.trouble or said.file != Path(named.path).name:
                return f"meta.json of {role} of rank {vote.rank} names {said.file or said.trouble}"
    if os.readlink(save / names.LATEST) != f"commits/{position}":
        return f"latest points to {os.readlink(save / names.LATEST)}"
    return ""
