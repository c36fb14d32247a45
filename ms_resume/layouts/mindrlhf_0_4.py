"""MindRLHF 0.4.0, before it could resume: weights of the policy, named by epoch, without optimizer or meta.json.

    <save>/train/rank_R/policy_model_epoch_E.ckpt

A run can start from such weights, not resume from them. Nothing in such a file says that it was cut at a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ms_resume.layouts import ranked
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.ondisk import names
from ms_resume.records import Checkpoint, Position, Rejection

NAME = "mindrlhf-0.4.0"
_FILE = re.compile(rf"policy_model_epoch_(?P<epoch>{names.NUMBER})\.ckpt", re.ASCII)


def evidence(directory: Path) -> Path | None:
    return ranked.first_in(ranked.rank_dirs(directory / "train").values(), partial(ranked.files_like, pattern=_FILE))


def take(directory: Path) -> Ranked:
    dirs = ranked.rank_dirs(directory / "train")
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    for rank, path in dirs.items():
        for file, match in ranked.files_like(path, _FILE):
            found.setdefault(Position(int(match["epoch"]), 0), {})[MODEL, rank] = file
    return _WeightsOnly(NAME, directory, found, tuple(dirs))


@dataclass(frozen=True)
class _WeightsOnly(Ranked):
    def judge(self, position: Position) -> Checkpoint | Rejection:
        judged = super().judge(position)
        if isinstance(judged, Rejection):
            return judged
        return Rejection(position, "weights only", "whole, and without optimizer: a run can start from it, not resume")
