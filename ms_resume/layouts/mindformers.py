"""MindFormers 1.0: one file for each rank with network and optimizer, named by epoch and step in the epoch, from 1.

    <output>/checkpoint/rank_R/<prefix>_rank_R[_T]-E_S.<ckpt or safetensors>, and meta.json as MindRLHF's

A later task T of the same job writes the same position under another name: the latest counts. `epoch_num` and
`step_num` are saved last, so a `.ckpt` that was cut between two records lacks them.
https://gitee.com/mindspore/mindformers/blob/r1.5.0/mindformers/core/callback/callback.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts import ranked
from ms_resume.layouts.mindrlhf import POSITION_TENSORS
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.ondisk import meta, names, reading
from ms_resume.records import Position, TensorInfo

NAME = "mindformers-1.0"
_FILE = re.compile(
    rf"(?P<prefix>.+)_rank_(?P<rank>{names.NUMBER})(?:_(?P<task>{names.NUMBER}))?"
    rf"-(?P<epoch>{names.NUMBER})_(?P<step>{names.NUMBER})\.(?:ckpt|safetensors)",
    re.ASCII,
)
_HEALTH = "health_ckpts.json"
_HEALTH_LIMIT = 1 << 20


def evidence(directory: Path) -> Path | None:
    return ranked.first_in(_rank_dirs(directory).values(), _files)


def take(directory: Path) -> Ranked:
    root, dirs = _root(directory), _rank_dirs(directory)
    found: dict[Position, dict[tuple[str, int], tuple[int, Path]]] = {}
    for rank, path in dirs.items():
        for file, match in _files(path):
            position, task = Position(int(match["epoch"]), int(match["step"])), int(match["task"] or 0)
            at = found.setdefault(position, {})
            at[MODEL, rank] = max(at.get((MODEL, rank), (-1, file)), (task, file))
    by_position = {position: {key: file for key, (_, file) in files.items()} for position, files in found.items()}
    return Ranked(NAME, directory, by_position, tuple(dirs), _check_inside, partial(_warnings, root, by_position))


def _root(directory: Path) -> Path:
    below = directory / "checkpoint"
    return below if ranked.rank_dirs(below) else directory


def _rank_dirs(directory: Path) -> dict[int, Path]:
    root = _root(directory)
    return ranked.rank_dirs(root, given=root == directory)


def _files(rank_dir: Path) -> Iterable[tuple[Path, re.Match[str]]]:
    """Those of MindRLHF have the same form, and names of their own."""
    for file, match in ranked.files_like(rank_dir, _FILE):
        if rank_dir.name == f"rank_{match['rank']}" and match["prefix"] not in names.PREFIXES.values():
            yield file, match


def _check_inside(path: Path, held: Mapping[str, TensorInfo]) -> None:
    missing = [name for name in POSITION_TENSORS if name not in held]
    if missing and path.suffix == ".ckpt":
        raise Damaged(f"{path}: no {' and no '.join(missing)} in it, MindFormers saves them last: it was cut")


def _warnings(root: Path, by_position: Mapping[Position, ranked.Files], position: Position) -> Iterable[str]:
    for (_, rank), file in sorted(by_position[position].items()):
        said = meta.read(file.parent)
        place = f"rank_{rank}/{names.META}"
        if said.trouble:
            yield f"{place}: {said.trouble}; MindFormers could not resume from it"
        elif said.position != position:
            yield f"{place}: says {said.position}, the files say {position}"
    unhealthy = _unhealthy(root.parent / _HEALTH) | _unhealthy(root / _HEALTH)
    for file in sorted(by_position[position].values()):
        if file.name in unhealthy:
            yield f"{file}: {_HEALTH} says that its weights were not healthy"


def _unhealthy(path: Path) -> set[str]:
    """A hint, so what cannot be read says nothing. `is_health` is 1 where the embedding's norm was too large."""
    try:
        entries = reading.parse(reading.content(path, _HEALTH_LIMIT))
        return {entry["ckpt_name"] for entry in entries if entry["is_health"] == 1}
    except (OSError, Damaged, ValueError, TypeError, KeyError):
        return set()
