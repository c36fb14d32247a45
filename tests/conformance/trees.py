"""One tree of each layout, with real payloads: positions 1, 2, 3, as a healthy job leaves them; of two ranks where they
save a file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import savers
import stock_trees
import torch_trees
from safetensors.numpy import save_file

from ms_resume.ondisk import ckpt, names
from ms_resume.records import Position
from ms_resume.state import Arrays

NUMBERS, RANKS = (1, 2, 3), (0, 1)


@dataclass(frozen=True)
class Tree:
    """`file` is that of the weights of (number of the position, rank)."""

    layout: str
    build: Callable[[Path], None]
    position: Callable[[int], Position]
    file: Callable[[Path, int, int], Path]
    kind: str = ""
    """What the verdict on a whole position is called where a resume could not take it."""
    ranks: tuple[int, ...] = RANKS
    documents_decide: bool = False
    """Whether a position is not whole without its JSON and text files."""


def weights(number: int, rank: int, *, last: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Of one position and rank alone; `last` is what the trainer saves behind them."""
    value = np.float32(number + rank / 8)
    held = {"model.w": np.full((2, 3), value, np.float32), "model.norm": np.full(3, value / 2, np.float16)}
    return {**held, **{name: np.array(value, np.int64) for name, value in (last or {}).items()}}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(arrays), path, metadata={"format": "ms"})
        return
    held, infos = Arrays(arrays), Arrays(arrays).infos()
    path.write_bytes(b"".join(ckpt.encode((name, infos[name], held.read(name).data) for name in held)))


def _each(save: Path, file: Callable[[Path, int, int], Path], last: Callable[[int], Mapping[str, int]]) -> None:
    for number in NUMBERS:
        for rank in RANKS:
            write(file(save, number, rank), weights(number, rank, last=last(number)))


# -- ours and MindRLHF's


def _ours(save: Path) -> None:
    attempt = savers.open_attempt(save, world_size=len(RANKS))
    for number in NUMBERS:
        savers.save_all(f"0_{number}", *(savers.writer(save, attempt, rank) for rank in RANKS), value=number)


def _mindrlhf(save: Path) -> None:
    stock_trees.healthy(save, *((0, number) for number in NUMBERS))


def _policy(save: Path, number: int, rank: int) -> Path:
    return names.payload(save, "policy", rank, Position(0, number))


# -- MindFormers


def _mindformers(ending: str) -> tuple[Callable[[Path], None], Callable[[Path, int, int], Path]]:
    def file(save: Path, number: int, rank: int) -> Path:
        again = "_1" if number == 3 else ""  # saved by a later task of the same job
        return save / "checkpoint" / f"rank_{rank}" / f"my-llama_rank_{rank}{again}-{number}_2.{ending}"

    def build(save: Path) -> None:
        _each(save, file, lambda number: {"epoch_num": number, "step_num": 2 * number})
        for rank in RANKS:
            said = {"last_epoch": 3, "last_step": 2, "last_ckpt_file": file(save, 3, rank).name}
            (file(save, 3, rank).parent / "meta.json").write_text(json.dumps(said))

    return build, file


def _shard(save: Path, number: int, rank: int, kind: str = "model") -> Path:
    directory = save / "checkpoint" / f"iteration_{10 * number:08d}"
    return directory / f"CKP-{kind}-{rank:07d}-{len(RANKS):07d}.safetensors"


def _mindformers2(save: Path) -> None:
    for number in NUMBERS:
        stored = {}
        for rank in RANKS:
            moments = {f"adam_m.{name}": array for name, array in weights(number, rank).items()}
            for kind, arrays in (("model", weights(number, rank)), ("opt", moments)):
                path = _shard(save, number, rank, kind)
                write(path, arrays)
                for name in arrays:
                    stored[str((name, (rank, 0)))] = [{"file_name": path.name, "storage_rank": rank}]
        said = {"epoch_num": 1, "step_num": 10 * number, "global_step": 10 * number, "loss_scale": 1.0}
        said |= {"global_batch_size": 8, "consumed_samples": 80 * number, "ckpt_status": 0}
        (path.parent / "common.json").write_text(json.dumps(said, indent=4))
        (path.parent / "metadata.json").write_text(json.dumps({"state_dict_metadata": {}, "storage_data": stored}))
    (save / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("30")


# -- others


def _mindspeed_file(save: Path, number: int, rank: int) -> Path:
    return save / f"rank_{rank}" / f"network_rank_{rank}_{100 * number}.ckpt"


def _mindspeed(save: Path) -> None:
    _each(save, _mindspeed_file, lambda number: {})
    for rank in RANKS:
        said = {"last_global_step": 300, "last_ckpt_file": _mindspeed_file(save, 3, rank).name}
        (save / f"rank_{rank}" / "meta.json").write_text(json.dumps(said))


def _old_file(save: Path, number: int, rank: int) -> Path:
    return save / "train" / f"rank_{rank}" / f"policy_model_epoch_{number}.ckpt"


def _ttp_file(save: Path, number: int, rank: int) -> Path:
    return save / f"ttp_saved_checkpoints-step_{12 * number}" / f"rank_{rank}" / f"ttp_rank_{rank}-1_{12 * number}.ckpt"


# -- torch's


def _hugging_face_file(save: Path, number: int, rank: int) -> Path:
    return save / f"checkpoint-{10 * number}" / "model.safetensors"


def _zero_file(save: Path, number: int, rank: int) -> Path:
    home = save / f"checkpoint-{10 * number}" / f"global_step{10 * number}"
    return home / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


def _numbered_file(save: Path, number: int, rank: int) -> Path:
    return save / "log" / f"model_{500 * number:05d}.pt"


def _numbered(save: Path) -> None:
    for number in NUMBERS:
        path = _numbered_file(save, number, 0)
        torch_trees.write_torch(path, torch_trees.content(number, "model"), top=path.stem)
    (save / "log" / "latest_checkpoint.pt").symlink_to("model_01500.pt")


def _iteration_file(save: Path, number: int, rank: int) -> Path:
    return save / f"iter_{number}" / f"model-{rank + 1:05d}-of-00002.safetensors"


def _iterations(save: Path) -> None:
    for number in NUMBERS:
        index = {}
        for rank in RANKS:
            held = {f"{rank}.{name}": array for name, array in weights(number, rank).items()}
            write(_iteration_file(save, number, rank), held)
            index |= dict.fromkeys(held, _iteration_file(save, number, rank).name)
        home = save / f"iter_{number}"
        (home / "config.json").write_text("{}")
        (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


_FORMER, _FORMER_FILE = _mindformers("ckpt")
_FORMER_ST, _FORMER_ST_FILE = _mindformers("safetensors")

TREES = {
    "ours": Tree("ms_resume", _ours, lambda n: Position(0, n), _policy),
    "MindRLHF": Tree("mindrlhf", _mindrlhf, lambda n: Position(0, n), _policy),
    "MindFormers 1.0": Tree("mindformers-1.0", _FORMER, lambda n: Position(n, 2), _FORMER_FILE),
    "MindFormers 1.0, safetensors": Tree("mindformers-1.0", _FORMER_ST, lambda n: Position(n, 2), _FORMER_ST_FILE),
    "MindFormers 2": Tree("mindformers-2", _mindformers2, lambda n: Position(0, 10 * n), _shard, documents_decide=True),
    "MindSpeed": Tree("mindspeed-ms", _mindspeed, lambda n: Position(0, 100 * n), _mindspeed_file),
    "MindRLHF 0.4.0": Tree(
        "mindrlhf-0.4.0",
        lambda save: _each(save, _old_file, lambda number: {}),
        lambda n: Position(n, 0),
        _old_file,
        kind="weights only",
    ),
    "TTP": Tree(
        "mindio-ttp",
        lambda save: _each(save, _ttp_file, lambda number: {}),
        lambda n: Position(1, 12 * n),
        _ttp_file,
    ),
    "Hugging Face": Tree(
        "huggingface-trainer",
        lambda save: torch_trees.hugging_face(save, *(10 * number for number in NUMBERS)),
        lambda n: Position(0, 10 * n),
        _hugging_face_file,
        ranks=(0,),
        documents_decide=True,
    ),
    "Hugging Face, ZeRO 3": Tree(
        "huggingface-trainer",
        lambda save: torch_trees.zero3(save, *(10 * number for number in NUMBERS)),
        lambda n: Position(0, 10 * n),
        _zero_file,
        documents_decide=True,
    ),
    "numbered": Tree("numbered", _numbered, lambda n: Position(0, 500 * n), _numbered_file, ranks=(0,)),
    "iterations": Tree(
        "iterations",
        _iterations,
        lambda n: Position(n, 0),
        _iteration_file,
        kind="weights only",
        documents_decide=True,
    ),
}
