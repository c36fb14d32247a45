"""Stock trees of files that MindSpore itself wrote: in a process of its own, once for each run of the campaign.

`python -m damage.stock DIRECTORY WHOLES SEED` is that process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import stock_trees
from faults.cases import room
from faults.shim import Unavailable

from damage.trees import Tree, files_of

At = stock_trees.At


def trees(sort: str) -> list[Tree]:
    """0_5 and 0_10 of 1, 2 and 3 ranks, in both formats. `sort`: `crc`, or `plain` for none."""
    return [Tree(directory.name, files_of(directory)) for directory in sorted((_written(0, 0) / sort).iterdir())]


def whole(count: int, seed: int) -> list[tuple[Tree, str]]:
    """Trees of every sort, and the position that each one is taken at."""
    found = sorted((_written(count, seed) / "whole").iterdir())
    return [(Tree(directory.name, files_of(directory)), directory.name.split()[-1]) for directory in found]


@lru_cache(maxsize=4)
def _written(count: int, seed: int) -> Path:
    if importlib.util.find_spec("mindspore") is None:
        raise Unavailable("MindSpore is not installed")
    directory = room() / f"stock_{count}"
    command = [sys.executable, "-m", "damage.stock", str(directory), str(count), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert ended.returncode == 0, ended.stderr
    return directory


# In the process that has MindSpore


def _write_all(directory: Path, count: int, seed: int) -> None:
    if not count:
        for world_size in (1, 2, 3):
            for form in ("safetensors", "ckpt"):
                for sort in ("crc", "plain"):
                    save = directory / sort / f"stock, {sort}, {world_size} ranks, {form}"
                    _job(save, random.Random(save.name), [(0, 5), (0, 10)], world_size, form, crc=sort == "crc")
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        positions = chance.choice([[(0, 5), (0, 10)], [(0, 10), (1, 0)], [(1, 0)], [(0, 3), (0, 6), (0, 9)]])
        at = f"{positions[-1][0]}_{positions[-1][1]}"
        save = directory / "whole" / f"{number:04} whole at {at}"
        form = chance.choice(["safetensors", "ckpt"])
        _job(save, chance, positions, chance.choice([1, 2, 3]), form, crc=chance.random() < 0.5, varied=True)


def _job(
    save: Path,
    chance: random.Random,
    positions: list[At],
    world_size: int,
    form: str,
    *,
    crc: bool,
    varied: bool = False,
) -> None:
    """What a stock job leaves. `varied`: other dtypes, NaN, a reference that was not saved at last, a change of format,
    meta.json with garbage behind it, leftovers."""
    shapes = {"model.w": (40, 64), "model.norm": (300,), "model.bias": (chance.randint(1, 9),)}
    kinds = {name: chance.choice([np.float32, np.float16]) if varied else np.float32 for name in shapes}
    bfloat16 = varied and (form == "ckpt" or not crc)  # MindSpore cannot save it with a CRC in safetensors
    older_ref = varied and len(positions) > 1 and chance.random() < 0.3
    mixed = varied and not crc and chance.random() < 0.3
    for rank in range(world_size):
        draw = np.random.default_rng(chance.randrange(1 << 30))
        fixed = {"model.w": draw.standard_normal((30, 40)).astype(np.float32)}
        for at in positions:
            last = at == positions[-1]
            weights = {name: draw.standard_normal(shape).astype(kinds[name]) for name, shape in shapes.items()}
            if varied and chance.random() < 0.2:
                weights["model.norm"][:7] = [np.nan, np.inf, -np.inf, -0.0, 0, np.nan, 1]
            moments = {f"adam_m.{name}": np.abs(value) for name, value in weights.items()}
            numbers = {"global_step": np.array([at[1]], np.int32), "learning_rate": np.array(1e-6, np.float32)}
            used = "ckpt" if mixed and not last else form
            wide = {"model.bf": draw.standard_normal((5, 3))} if bfloat16 else {}
            _save(save, "policy", rank, at, used, crc, {**weights, **wide}, {"epoch_num": at[0], "step_num": at[1]})
            _save(save, "optimizer", rank, at, used, crc, {**weights, **wide, **moments, **numbers}, None)
            if not (older_ref and last):
                _save(save, "ref", rank, at, used, crc, fixed, None)
        _leftovers(save, rank, positions, form, chance if varied else None)


def _save(
    save: Path,
    role: str,
    rank: int,
    at: At,
    form: str,
    crc: bool,
    arrays: dict[str, Any],
    numbers: dict[str, int] | None,
) -> None:
    import mindspore

    path = stock_trees.payload_path(save, role, rank, at).with_suffix(f".{form}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: mindspore.Tensor(value, mindspore.bfloat16 if name == "model.bf" else None)
        for name, value in arrays.items()
    }
    listed = [{"name": name, "data": tensor} for name, tensor in tensors.items()]
    mindspore.save_checkpoint(listed, str(path), integrated_save=False, append_dict=numbers, crc_check=crc, format=form)


def _leftovers(save: Path, rank: int, positions: list[At], form: str, chance: random.Random | None) -> None:
    for role in stock_trees.DIRECTORIES:
        name = stock_trees.payload_path(Path(), role, rank, positions[-1]).with_suffix(f".{form}").name
        said = {"last_epoch": positions[-1][0], "last_step": positions[-1][1], "last_ckpt_file": name}
        content = json.dumps(said).encode()
        if chance and chance.random() < 0.2:
            content += b'rs"}'
        stock_trees.set_meta(save, role, rank, content)
        if chance and chance.random() < 0.2:
            stock_trees.meta_path(save, role, rank).with_name(f"{name.rpartition('-')[0]}-9_9.tmp").write_bytes(b"half")


if __name__ == "__main__":
    os.environ.setdefault("GLOG_v", "3")
    _write_all(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
