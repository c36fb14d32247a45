"""A stock MindRLHF job at toy size: its files and `meta.json` as stock code writes them, beside ours or before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from faults.job import Rank
from faults.scenarios import Stage
from ms_resume.ondisk import names
from ms_resume.records import Position

_ROLES = ("policy", "optimizer", "ref")


def trains(world_size: int, step: int, come_from: int | None = None) -> Callable[[Stage], None]:
    """A stock job saves at `step`, begun anew or from a checkpoint of any kind."""

    def act(stage: Stage) -> None:
        stage.did(f"0_{step}", tuple(_one_rank(stage.save, rank, step, come_from) for rank in range(world_size)))

    return act


def _one_rank(save: Path, rank: int, step: int, come_from: int | None) -> str:
    """What a resume restores from its files: all but random state and counters, which stock code does not keep."""
    me, restored = Rank(rank), Rank(rank)
    for role in _ROLES if come_from is not None else ():
        _assign(me, role, load_file(_newest(save, role, rank, Position(0, come_from or 0))))
    me.train_one_step(13, new_reference=False)
    for role in _ROLES:
        arrays = dict(getattr(me, role))
        _assign(restored, role, arrays)
        _write(save, role, rank, Position(0, step), arrays)
    return restored.digest()


def _newest(save: Path, role: str, rank: int, at: Position) -> Path:
    """The reference may be older than the rest."""
    paths = names.rank_dir(save, role, rank).glob("*.safetensors")
    found = {name.position: path for path in paths if (name := names.parse_payload(path.name))}
    return found[max(position for position in found if position <= at)]


def _assign(rank: Rank, role: str, arrays: dict[str, np.ndarray]) -> None:
    for name, array in getattr(rank, role).items():
        array[...] = arrays[name]


def _write(save: Path, role: str, rank: int, at: Position, arrays: dict[str, np.ndarray]) -> None:
    path = names.payload(save, role, rank, at)
    path.parent.mkdir(parents=True, exist_ok=True)
    if role == "policy":
        arrays = {**arrays, "epoch_num": np.array(at.epoch), "step_num": np.array(at.step)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    said = {"last_epoch": at.epoch, "last_step": at.step, "last_ckpt_file": path.name}
    (path.parent / names.META).write_text(json.dumps(said))
