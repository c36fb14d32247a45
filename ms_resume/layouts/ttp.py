"""MindIO TTP: what MindSpore saves when a rank fails, in a directory that gets its name when all ranks are done.

    <output>/ttp_saved_checkpoints-step_N/rank_R/<prefix>_rank_R-E_S.<ckpt or safetensors>

While ranks write, the directory is called `..._tmp`: that rename is the commit. The position is that in the file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.records import Checkpoint, Position, Rejection

NAME = "mindio-ttp"
_DIRECTORY = re.compile(r"ttp_saved_checkpoints-step_(?P<step>\d+)(?P<open>_tmp)?", re.ASCII)
_FILE = re.compile(r".+_rank_(?P<rank>\d+)(?:_\d+)?-(?P<epoch>\d+)_(?P<step>\d+)\.(?:ckpt|safetensors)", re.ASCII)


def evidence(directory: Path) -> Path | None:
    return next((path for path, _ in ranked.files_like(directory, _DIRECTORY)), None)


def take(directory: Path) -> Ranked:
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    sizes: dict[Position, int] = {}
    still_open: dict[Position, Path] = {}
    for path, match in sorted(ranked.files_like(directory, _DIRECTORY), key=lambda entry: entry[1]["open"] is None):
        for position, rank, file in _files(path):
            committed = match["open"] is None
            if committed and position in still_open:  # the committed twin is the one that counts
                del still_open[position], found[position]
            if not committed:
                still_open[position] = path
            found.setdefault(position, {})[MODEL, rank] = file
            sizes[position] = max(ranked.rank_dirs(path)) + 1
    return _Committed(NAME, directory, found, (), still_open=still_open, sizes=sizes)


def _files(directory: Path) -> Iterator[tuple[Position, int, Path]]:
    for rank, path in ranked.rank_dirs(directory).items():
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
