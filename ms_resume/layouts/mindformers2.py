"""MindFormers 2: a directory for each iteration, shards of model and optimizer, and a tracker that may be wrong.

    <output>/checkpoint/latest_checkpointed_iteration.txt
    <output>/checkpoint/iteration_NNNNNNNN/<prefix->{model,opt}-IIIIIII-NNNNNNN.safetensors, common.json, metadata.json

The position is (0, iteration), a shard's rank its number. An iteration is whole when common.json and metadata.json are
there, all shards of both kinds are, and each tensor that metadata.json lists is in the file that it names for it.
https://gitee.com/mindspore/mindformers/blob/master/mindformers/checkpoint/metadata.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL
from ms_resume.ondisk import payload, reading
from ms_resume.records import Checkpoint, Found, Position, Rejection

NAME = "mindformers-2"
TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION = re.compile(r"iteration_(\d{1,18})", re.ASCII)
_SHARD = re.compile(r"(?:.+-)?(?P<kind>model|opt)-(?P<number>\d{7})-(?P<of>\d{7})\.safetensors", re.ASCII)
_ROLES = {"model": MODEL, "opt": "optimizer"}
_COMMON, _METADATA = "common.json", "metadata.json"
_COMMON_LIMIT, _METADATA_LIMIT = 1 << 20, 64 << 20
"""The second lists each shard of each tensor of the job: some hundred thousand."""

_LONGEST_KEY = 8192
_ABNORMAL = 1


@dataclass(frozen=True)
class Iterations:
    """A `layouts.Holding`."""

    NAME: str
    save: Path
    directories: Mapping[Position, Path]
    roles: tuple[str, ...] = (MODEL, "optimizer")
    """Of which all shards must be there."""

    @property
    def positions(self) -> list[Position]:
        return sorted(self.directories, reverse=True)

    def files(self, position: Position) -> Mapping[tuple[str, int], Path]:
        try:
            return _shards(self.directories[position])
        except Damaged:
            return {}

    def judge(self, position: Position) -> Checkpoint | Rejection:
        directory = self.directories[position]
        try:
            files = _shards(directory)
        except Damaged as error:
            return Rejection(position, "damaged", error.message)
        for role in self.roles:
            if missing := _missing(directory, role, files):
                return Rejection(position, "torn", f"{directory.name}: {missing[1]}", missing[0])
        try:
            common = _read(directory / _COMMON, _COMMON_LIMIT)
            _check_listed(directory, _read(directory / _METADATA, _METADATA_LIMIT))
        except FileNotFoundError as error:
            return Rejection(position, "torn", f"{error.filename}: missing")
        except Damaged as error:
            rank = next((rank for (_, rank), path in files.items() if str(path) in error.message), None)
            return Rejection(position, "damaged", error.message, () if rank is None else (rank,))
        found = tuple(Found(rank, role, path) for (role, rank), path in sorted(files.items(), key=_by_rank))
        world_size = len({rank for _, rank in files})
        warnings = tuple(self._warnings(position, common))
        return Checkpoint(self.save, NAME, position, world_size, found, warnings=warnings)

    def _warnings(self, position: Position, common: Mapping[str, Any]) -> Iterable[str]:
        directory = self.directories[position]
        if (said := common.get("global_step")) != position.step:
            yield f"{directory.name}/{_COMMON}: says global_step {reading.brief(said)}"
        if common.get("ckpt_status") == _ABNORMAL:
            yield f"{directory.name}/{_COMMON}: says that its weights were not healthy (ckpt_status {_ABNORMAL})"
        tracked = _tracked(directory.parent)
        if tracked != str(position.step):
            yield f"{TRACKER}: says {tracked}, the newest whole iteration is {position.step}"


def evidence(directory: Path) -> Path | None:
    return next((path for path, _ in _iterations(directory)), None)


def take(directory: Path) -> Iterations:
    return Iterations(NAME, directory, {Position(0, int(match[1])): path for path, match in _iterations(directory)})


@dataclass(frozen=True, slots=True)
class Stored:
    """One piece of a tensor, in a file of this role, that these ranks have. Pieces with the same key are copies."""

    key: str
    role: str
    file: str
    ranks: frozenset[int]


def stored(directory: Path) -> dict[str, list[Stored]]:
    """What metadata.json of one iteration says of each tensor. Raises Damaged where it cannot be read."""
    found: dict[str, list[Stored]] = {}
    entries = _read(directory / _METADATA, _METADATA_LIMIT).get("storage_data")
    for key, places in entries.items() if isinstance(entries, dict) else ():
        name = _tensor(key)
        for place in places if isinstance(places, list) else ():
            file = place.get("file_name") if isinstance(place, dict) else None
            if type(file) is str and (match := _SHARD.fullmatch(file)):
                ranks = [place.get("storage_rank"), *_listed(place.get("rank_group"))]
                held = frozenset(rank for rank in ranks if type(rank) is int)
                found.setdefault(name, []).append(Stored(key, _ROLES[match["kind"]], file, held))
    return found


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def parse_iteration(name: str) -> Position | None:
    """The position of an iteration's directory."""
    match = _ITERATION.fullmatch(name)
    return Position(0, int(match[1])) if match else None


def _iterations(directory: Path) -> list[ranked.Fitting]:
    below = list(ranked.files_like(directory / "checkpoint", _ITERATION))
    return below or list(ranked.files_like(directory, _ITERATION, given=True))


def _shards(directory: Path) -> dict[tuple[str, int], Path]:
    found = ranked.files_like(directory, _SHARD)
    return {(_ROLES[match["kind"]], int(match["number"])): path for path, match in found}


def _by_rank(entry: tuple[tuple[str, int], Path]) -> tuple[int, str]:
    (role, rank), _ = entry
    return rank, role


def _missing(directory: Path, role: str, files: Mapping[tuple[str, int], Path]) -> tuple[tuple[int, ...], str] | None:
    """Numbers of shards that are not there, and how to say it; by how many the names say there are."""
    paths = {rank: path for (of, rank), path in files.items() if of == role}
    if not paths:
        return (), f"no {role} shard"
    said = {int(match["of"]) for path in paths.values() if (match := _SHARD.fullmatch(path.name))}
    if len(said) > 1:
        return (), f"{role} shards of {' and of '.join(map(str, sorted(said)))} lie side by side"
    missing = tuple(number for number in range(min(max(said), len(paths) + 8)) if number not in paths)
    return (missing, f"{role} shard {', '.join(map(str, missing))} of {max(said)} missing") if missing else None


def _read(path: Path, limit: int) -> dict[str, Any]:
    """Raises Damaged where it is no JSON object of a size that makes sense."""
    try:
        document = reading.parse(reading.content(path, limit))
    except ValueError as error:
        raise reading.damaged(path, f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise Damaged(f"{path}: is a {type(document).__name__}, expected an object", path=str(path))
    return document


def _check_listed(directory: Path, metadata: Mapping[str, Any]) -> None:
    """Every header describes its file; what metadata.json says is stored somewhere is there."""
    held = {path.name: payload.read_header(path).tensors.keys() for path, _ in ranked.files_like(directory, _SHARD)}
    stored = metadata.get("storage_data")
    if not isinstance(stored, dict):
        raise Damaged(f"{directory / _METADATA}: no storage_data in it", path=str(directory / _METADATA))
    for key, places in stored.items():
        name, files = _tensor(key), _file_names(places)
        said = f"{directory / _METADATA}: {reading.brief(name)} is"
        for file in files:
            if file not in held:
                raise Damaged(f"{said} stored in {reading.brief(file)}, which is not there")
        if not any(name in held[file] for file in files):
            raise Damaged(f"{said} in none of the files that it names for it")


def _tensor(key: str) -> str:
    """Of a key like `('layer.weight', (0, 0))`."""
    if len(key) > _LONGEST_KEY:
        return key
    try:
        name, _ = ast.literal_eval(key)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key
    return name if isinstance(name, str) else key


def _file_names(places: object) -> list[str]:
    entries = places if isinstance(places, list) else []
    return [entry["file_name"] for entry in entries if isinstance(entry, dict) and type(entry.get("file_name")) is str]


def _tracked(root: Path) -> str:
    try:
        return reading.content(root / TRACKER, 64).decode(errors="replace").strip() or "nothing"
    except (OSError, Damaged):
        return "nothing: it cannot be read"
