"""What a person gives to be compared: a payload, a checkpoint in a save directory, a model, a list of names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ms_resume import layouts, locate
from ms_resume.cli import directory, show
from ms_resume.errors import Torn, UsageError
from ms_resume.layouts import mindrlhf
from ms_resume.load import huggingface
from ms_resume.load.names import listing
from ms_resume.ondisk import reading
from ms_resume.records import ROLES, Position, TensorInfo

_AT = re.compile(r"(?P<path>.+)@(?P<position>\d+_\d+)", re.ASCII)
_SUFFIXES = (".safetensors", ".ckpt")
_CHECKPOINTS = "a .safetensors or .ckpt file, a save directory, or SAVE@E_S"
_NAMED = "a .safetensors or .ckpt file, a save directory, SAVE@E_S, a Hugging Face directory, or a list of names"


@dataclass(frozen=True)
class Side:
    """One of the two. `path` is the payload, None of a list of names."""

    said: str
    role: str | None
    tensors: Mapping[str, TensorInfo]
    path: Path | None = None


@dataclass(frozen=True)
class Files:
    """The payloads that a word names: one, or those of a checkpoint, by role and rank."""

    said: str
    by_place: Mapping[tuple[str, int], Path] = field(default_factory=dict)
    single: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", choices=ROLES, help="whose payloads of a checkpoint, or whose names of a list")
    parser.add_argument("--rank", type=int, metavar="N", help="which rank's payloads of a checkpoint")


def files(word: str) -> Files:
    """The payloads that `word` names.

    Raises:
        UsageError: It names none.
        NothingToResume, Torn, Damaged: A save directory without a whole checkpoint, or not at that position.
    """
    path = Path(word)
    if match := None if path.exists() else _AT.fullmatch(word):
        save = directory.find(match["path"])
        found = locate.at(save, Position.parse(match["position"])).checkpoint
        assert found is not None  # `at` raises where there is none
        return Files(word, {(file.role, file.rank): file.path for file in found.files})
    if path.is_dir():
        save = directory.find(word)
        located = locate.newest(layouts.find(save))
        if located.checkpoint is None:
            raise directory.nothing(save, located.rejected)
        chosen = located.checkpoint
        return Files(f"{word}@{chosen.position}", {(file.role, file.rank): file.path for file in chosen.files})
    single = _regular(path, _CHECKPOINTS)
    show.kind(single)  # a list of names has no values, and is no damaged payload
    return Files(word, single=single)


def side(word: str, role: str | None, rank: int | None) -> Side:
    """The names that `word` stands for. Raises as `files` does, and Damaged for a payload that cannot be read."""
    path = Path(word)
    if path.is_file() and path.suffix not in _SUFFIXES and _is_text(listed := _regular(path, _NAMED)):
        return _listed(word, listing.read(listed), role)
    if path.is_dir() and huggingface.is_here(path):
        return Side(f"{word} (Hugging Face)", role, huggingface.open_dir(path).tensors, path)
    if not path.exists() and not _AT.fullmatch(word):
        _regular(path, _NAMED)
    found = files(word)
    if found.single is not None:
        return _of_file(found.said, found.single, role)
    chosen = role or "policy", rank or 0
    if chosen not in found.by_place:
        there = ", ".join(f"{one} of rank {number}" for one, number in sorted(found.by_place)[:8])
        raise Torn(
            f"{found.said}: no {chosen[0]} of rank {chosen[1]}, there is {there}",
            hint="--role and --rank choose another",
        )
    return _of_file(f"{found.said}, {chosen[0]} of rank {chosen[1]}", found.by_place[chosen], chosen[0])


def _of_file(said: str, path: Path, role: str | None) -> Side:
    contents, damaged = show.read(path)
    if damaged is not None:
        raise damaged
    role = role or contents.role
    tensors = {name: info for name, info in contents.tensors.items() if name not in mindrlhf.POSITION_TENSORS}
    if not tensors:
        raise UsageError(f"{path}: no tensor in it", hint="`ms-resume show` tells what it holds")
    return Side(said, role, tensors, path)


def _listed(said: str, roles: Mapping[str, dict[str, TensorInfo]], role: str | None) -> Side:
    """Of a list without roles all of it, whatever role is asked for."""
    chosen = role if role in roles else next(iter(roles), None) if len(roles) == 1 else None
    if chosen is None or (role and chosen not in ("", role)):
        held = ", ".join(one or "names without a role" for one in roles) or "nothing"
        raise UsageError(f"{said}: holds {held}, expected one role", hint="choose it with --role")
    if not roles[chosen]:
        raise UsageError(f"{said}: no name in it", hint="was the net built before its names were written?")
    return Side(f"{said}, {chosen}" if chosen else said, chosen or role, roles[chosen])


def _is_text(path: Path) -> bool:
    """Whether it is a list, not a payload under another ending."""
    with reading.opened(path) as file:
        begin = file.read(9)
    return (begin[:1] not in (b"", b"\n") and begin[8:] != b"{") or begin.lstrip()[:1] in (b"{", b"[")


def _regular(path: Path, expected: str) -> Path:
    """A plain file, the target of a link that a person gave. Raises UsageError where it is none."""
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(
            f"{path}: {what}, expected {expected}",
            hint="check the path",
        )
    return path.resolve() if path.is_symlink() else path
