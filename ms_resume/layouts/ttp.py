"""MindIO TTP: what MindSpore saves when a rank fails, in a directory that gets its name when all ranks are done.

    <output>/ttp_saved_checkpoints-step_N/rank_R/<prefix>_rank_R-E_S.<ckpt or safetensors>

While ranks write, the directory is called `..._tmp`: that rename is the commit. The position is that in the file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.ondisk import names
from ms_resume.records import Checkpoint, Position, Rejection

NAME = "mindio-ttp"
_DIRECTORY = re.compile(rf"ttp_saved_checkpoints-step_(?P<step>{names.NUMBER})(?P<open>_tmp)?", re.ASCII)
_FILE = re.compile(
    rf".+_rank_(?P<rank>{names.NUMBER})(?:_\d+)?-(?P<epoch>{names.NUMBER})_(?P<step>{names.NUMBER})"
    r"\.(?:ckpt|safetensors)",
    re.ASCII,
)


def evidence(directory: Path) -> Path | None:
    return next((path for path, _ in ranked.files_like(directory, _DIRECTORY, given=True)), None)


def take(directory: Path) -> Ranked:
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    sizes: dict[Position, int] = {}
    still_open: dict[Position, Path] = {}
    saved = ranked.files_like(directory, _DIRECTORY, given=True)
    for path, match in sorted(saved, key=lambda entry: entry[1]["open"] is None):
        committed, dirs = match["open"] is None, ranked.rank_dirs(path)
        for position, rank, file in _files(dirs):
            if committed and position in still_open:  # the committed twin is the one that counts
                del still_open[position], found[position]
            if not committed:
                still_open[position] = path
            found.setdefault(position, {})[MODEL, rank] = file
            sizes[position] = max(dirs) + 1
    return _Committed(NAME, directory, found, (), still_open=still_open, sizes=sizes)


def _files(dirs: Mapping[int, Path]) -> Iterator[tuple[Position, int, Path]]:
    for rank, path in dirs.items():
        for file, match in ranked.files_like(path, _FILE):
            if int(match["rank"]) == rank:
                yield Position(int(match["epoch"]), int(match["step"])), rank, file


@dataclass(frozen=True)
class _Committed(Ranked):
    still_open: dict[Position, Path] = field(default_factory=dict)
    sizes: dict[Position, int] = field(default_factory=dict)

    def world_size(self, position: Position) -> int:
        return self.sizes[position]

    def judge(self, position: Position) -> Checkpoint | Rejection:
        if (path := self.still_open.get(position)) is not None:
            reason = f"{path.name} was never committed: not all ranks finished, or its directory would have lost `_tmp`"
            return Rejection(position, "torn", reason)
        return super().judge(position)
