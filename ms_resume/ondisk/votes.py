"""Votes as JSON: `commits/E_S/rank_R.json`. Readers ignore keys they do not know."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.ondisk import abreast, names, seal
from ms_resume.records import Payload, Position, Vote

FORMAT = "ms_resume/1"


def encode(vote: Vote) -> bytes:
    plain = asdict(vote)
    position = plain.pop("position")
    plain["files"] = list(plain["files"])
    document = {"format": FORMAT, "epoch": position["epoch"], "step": position["step"], **plain}
    return seal.encode(document)


def read(path: Path) -> Vote:
    """Raises Damaged where the file is no vote of a format this version knows; OSError where it cannot be read."""
    return decode(path, path.read_bytes())


def author(path: Path) -> str:
    """The attempt that cast a vote, wherever the file lies now. Raises as `read` does."""
    try:
        return _vote(seal.decode(path.read_bytes())).attempt
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"not a vote ({error!r})") from None


def decode(path: Path, content: bytes) -> Vote:
    try:
        document = seal.decode(content)
        if document["format"] != FORMAT:
            raise _damaged(path, f"format {document['format']!r}, this version reads {FORMAT!r}")
        vote = _vote(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"not a vote ({error!r})") from None
    _check_place(path, vote)
    return vote


def _vote(document: Mapping[str, Any]) -> Vote:
    known = {key: document[key] for key in Vote.__slots__ if key in document and key not in ("position", "files")}
    for key in ("epoch", "step", "rank", "world_size", "global_step", "steps_per_epoch"):
        if type(document[key]) is not int:
            raise TypeError(f"{key} {document[key]!r} is no whole number")
    files = tuple(_payload(file) for file in document["files"])
    vote = Vote(position=Position(document["epoch"], document["step"]), files=files, **known)
    if type(vote.attempt) is not str or vote.world_size < 1 or not files:
        raise ValueError(f"attempt {vote.attempt!r}, world size {vote.world_size}, {len(files)} files")
    return vote


def _payload(file: Mapping[str, Any]) -> Payload:
    words = [file[key] for key in ("role", "path", "digest", "attempt")]
    if type(file["bytes"]) is not int or not all(type(word) is str for word in words):
        raise TypeError(f"a file {file!r}")
    role, path, digest, attempt = words
    return Payload(role, path, file["bytes"], digest, attempt)


def _check_place(path: Path, vote: Vote) -> None:
    place = (path.parent.name.partition(".")[0], path.name)
    said = (str(vote.position), f"rank_{vote.rank}.json")
    if place != said:
        raise _damaged(path, f"it says that it is {'/'.join(said)}")
    for payload in vote.files:
        if payload.path.startswith("/") or ".." in payload.path.split("/"):
            raise _damaged(path, f"it names {payload.path!r}, outside the save directory")


def read_all(directory: Path, limit: int | None = None) -> tuple[dict[int, Vote], list[Damaged]]:
    """The votes in one position's directory by rank, and what is wrong with those that cannot be read.

    Args:
        limit: Read no more than so many files.
    """
    ranks = sorted(_ranks(directory))[:limit]
    found = list(abreast.each(lambda rank: _read_or_say(directory / f"rank_{rank}.json"), ranks, directory))
    return {vote.rank: vote for vote in found if isinstance(vote, Vote)}, [e for e in found if isinstance(e, Damaged)]


def any_in(directory: Path) -> bool:
    """Whether a vote lies there; a save that died leaves an empty directory."""
    return any(True for _ in _ranks(directory))


def _read_or_say(path: Path) -> Vote | Damaged | None:
    """None where it was retracted while the directory was read."""
    try:
        return read(path)
    except Damaged as error:
        return error
    except FileNotFoundError:
        return None


def _ranks(directory: Path) -> Iterator[int]:
    try:
        listed = os.listdir(directory)
    except FileNotFoundError:
        return iter(())
    return (rank for name in listed if (rank := names.parse_vote(name)) is not None)


def _damaged(path: Path, reason: str) -> Damaged:
    return Damaged(f"{path}: {reason}", path=str(path), reason=reason)
