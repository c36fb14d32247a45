"""Votes as JSON: `commits/E_S/rank_R.json`. Readers ignore keys they do not know."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged, UsageError
from ms_resume.ondisk import abreast, names, reading, seal
from ms_resume.records import Payload, Position, Vote

FORMAT = "ms_resume/1"

_MOST_DAMAGED = 8
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NUMBERS = ("rank", "world_size", "global_step", "steps_per_epoch")
_KINDS = {
    **dict.fromkeys(("parallel", "config", "model_config", "metrics", "tool"), dict),
    **dict.fromkeys(("attempt", "layout", "created_at"), str),
}


def encode(vote: Vote) -> bytes:
    """Raises UsageError where it is longer than what is read of a vote."""
    plain = asdict(vote)
    position = plain.pop("position")
    plain["files"] = list(plain["files"])
    document = {"format": FORMAT, "epoch": position["epoch"], "step": position["step"], **plain}
    content = seal.encode(document)
    if len(content) > reading.DOCUMENT_LIMIT:
        raise UsageError(
            f"the vote of {vote.position} has {len(content)} bytes, at most {reading.DOCUMENT_LIMIT} are read of one",
            hint="give `save` fewer metrics, and the Checkpointer a smaller model_config",
        )
    return content


def read(path: Path) -> Vote:
    """Raises Damaged where the file is no vote of a format this version knows; OSError where it cannot be read."""
    return decode(path, reading.content(path))


def author(path: Path) -> str:
    """The attempt that cast a vote, wherever the file lies now. Raises as `read` does."""
    try:
        return _vote(seal.decode(reading.content(path))).attempt
    except (ValueError, KeyError, TypeError) as error:
        raise reading.damaged(path, f"not a vote ({error!r})") from None


def decode(path: Path | str, content: bytes, decoded: Callable[[bytes], Any] = seal.decode) -> Vote:
    """Raises as `read` does.

    Args:
        decoded: `seal.Alike.decode`, where there are many.
    """
    try:
        document = decoded(content)
        if document["format"] != FORMAT:
            said = reading.brief(document["format"])
            raise reading.damaged(path, f"format {said}, this version reads {FORMAT!r}")
        vote = _vote(document)
    except (ValueError, KeyError, TypeError) as error:
        raise reading.damaged(path, f"not a vote ({error!r})") from None
    _check_place(path, vote)
    return vote


def _vote(document: Mapping[str, Any]) -> Vote:
    known: dict[str, Any] = {}
    for key, kind in _KINDS.items():
        if key in document:
            known[key] = value = document[key]
            if not isinstance(value, kind):
                raise TypeError(f"{key} {reading.brief(value)}")
    if not names.is_attempt(attempt := known.get("attempt", "")):
        raise ValueError(f"attempt {reading.brief(attempt)}")
    known |= {key: reading.whole(document[key]) for key in _NUMBERS}
    position = Position(reading.whole(document["epoch"]), reading.whole(document["step"]))
    files = tuple([_payload(file, attempt) for file in document["files"]])
    vote = Vote(position=position, files=files, **known)
    if not vote.rank < vote.world_size <= names.MOST_RANKS:
        raise ValueError(f"rank {vote.rank} of {vote.world_size}")
    if not files or len({file.role for file in files}) < len(files):
        raise ValueError(f"it names {len(files)} files, expected one for each role")
    return vote


def _payload(file: Mapping[str, Any], voter: str) -> Payload:
    role, path, digest, attempt = file["role"], file["path"], file["digest"], file["attempt"]
    if not (type(role) is type(path) is type(digest) is type(attempt) is str and _DIGEST.fullmatch(digest)) or not (
        attempt == voter or names.is_attempt(attempt)
    ):
        raise ValueError(f"a file {reading.brief(file)}")
    return Payload(role, path, reading.whole(file["bytes"]), digest, attempt)


def _check_place(path: Path | str, vote: Vote) -> None:
    *_, directory, name = os.fspath(path).split("/")
    place = (directory.partition(".")[0], name)
    said = (str(vote.position), f"rank_{vote.rank}.json")
    if place != said:
        raise reading.damaged(path, f"it says that it is {'/'.join(said)}")
    for payload in vote.files:
        position = names.parse_payload_path(payload.path, payload.role, vote.rank)
        if position is None:
            where = "not in its place" if names.stays_inside(payload.path) else "outside the save directory"
            raise reading.damaged(path, f"it names {reading.brief(payload.path)} as {payload.role[:20]!r}, {where}")
        if position != vote.position and payload.role != "ref":
            raise reading.damaged(path, f"it names {payload.path}, which is not of {vote.position}")


def read_all(directory: Path, limit: int | None = None) -> tuple[dict[int, Vote], list[Damaged]]:
    """The votes in one position's directory by rank, and what is wrong with the first few that cannot be read.

    Args:
        limit: Read no more than so many files.
    """
    try:
        ranks = sorted(_ranks(directory))[:limit]
    except Damaged as error:
        return {}, [error]
    found: dict[int, Vote] = {}
    damaged: list[Damaged] = []
    decoded = seal.Alike().decode
    for vote in abreast.each(lambda rank: _read_or_say(f"{directory}/rank_{rank}.json", decoded), ranks, directory):
        if isinstance(vote, Vote):
            found[vote.rank] = vote
        elif vote is not None and len(damaged) < _MOST_DAMAGED:
            damaged.append(vote)
    return found, damaged


def any_in(directory: Path) -> bool:
    """Whether a vote lies there; a save that died leaves an empty directory."""
    try:
        return any(True for _ in _ranks(directory))
    except Damaged:
        return False


def _read_or_say(path: str, decoded: Callable[[bytes], Any]) -> Vote | Damaged | None:
    """None where it was retracted while the directory was read."""
    try:
        return decode(path, reading.content(path), decoded)
    except Damaged as error:
        error.__context__ = None  # it and the traceback hold all that was read, of each damaged vote
        return error.with_traceback(None)
    except FileNotFoundError:
        return None


def _ranks(directory: Path) -> Iterator[int]:
    return (rank for name in reading.listed(directory) if (rank := names.parse_vote(name)) is not None)
