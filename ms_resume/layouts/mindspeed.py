"""MindSpeed for MindSpore: one file for each rank, named by the global step; the position is (0, global step).

    <save>/rank_R/<prefix>_rank_R_G.<ckpt or safetensors>, and a meta.json with `last_global_step`, `last_ckpt_file`

Only the file before it shows that a `.ckpt` was cut between two records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.ondisk import names, reading
from ms_resume.records import Position

NAME = "mindspeed-ms"
_FILE = re.compile(
    rf"(?P<prefix>.+)_rank_(?P<rank>{names.NUMBER})_(?P<step>{names.NUMBER})\.(?:ckpt|safetensors)", re.ASCII
)
_META_LIMIT = 1 << 16


def evidence(directory: Path) -> Path | None:
    return ranked.first_in(ranked.rank_dirs(directory, given=True).values(), _files)


def take(directory: Path) -> Ranked:
    dirs = ranked.rank_dirs(directory, given=True)
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    for rank, path in dirs.items():
        for file, match in _files(path):
            found.setdefault(Position(0, int(match["step"])), {})[MODEL, rank] = file
    return Ranked(NAME, directory, found, tuple(dirs), warnings=partial(_warnings, found))


def _files(rank_dir: Path) -> Iterable[tuple[Path, re.Match[str]]]:
    for file, match in ranked.files_like(rank_dir, _FILE):
        if rank_dir.name == f"rank_{match['rank']}":
            yield file, match


def _warnings(by_position: Mapping[Position, ranked.Files], position: Position) -> Iterable[str]:
    for (_, rank), file in sorted(by_position[position].items()):
        said = _step(file.parent / names.META)
        if said != position.step:
            yield f"rank_{rank}/{names.META}: says {said}, the files say {position.step}"


def _step(path: Path) -> int | str:
    try:
        return reading.whole(reading.parse(reading.content(path, _META_LIMIT))["last_global_step"])
    except OSError:
        return "nothing: it is missing"
    except (Damaged, ValueError, TypeError, KeyError):
        return "nothing that can be read"
