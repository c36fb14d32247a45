"""Save directories as stock MindRLHF leaves them, healthy and broken, with real safetensors.

Each `f…` function builds one case; what a resume must do with it stands in its docstring. The mode bits are
stock's too: payloads 0400, meta.json 0600.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DIRECTORIES = {"policy": "train", "optimizer": "optimizer", "ref": "ref"}
PREFIXES = {"policy": "policy_model", "optimizer": "optimizer", "ref": "ref"}

At = tuple[int, int]
"""(epoch, step)."""


def payload_path(save: Path, role: str, rank: int, at: At) -> Path:
    name = f"{PREFIXES[role]}_rank_{rank}-{at[0]}_{at[1]}.safetensors"
    return save / DIRECTORIES[role] / f"rank_{rank}" / name


def meta_path(save: Path, role: str, rank: int) -> Path:
    return save / DIRECTORIES[role] / f"rank_{rank}" / "meta.json"


def tensors(role: str, rank: int, at: At) -> dict[str, np.ndarray]:
    """What stock code saves for `role`; the weights are those of this rank and position alone."""
    value = np.float32(1000 * at[0] + at[1] + rank / 8)
    weights = {"model.w": np.full((2, 3), value, np.float32), "model.norm": np.full(3, value / 2, np.float16)}
    if role == "policy":
        return {**weights, "epoch_num": np.array(at[0], np.int64), "step_num": np.array(at[1], np.int64)}
    if role == "ref":
        return {"model.w": np.ones((2, 3), np.float32)}
    moments = {f"{kind}.{name}": np.zeros_like(w) for kind in ("adam_m", "adam_v") for name, w in weights.items()}
    return {**weights, **moments, "global_step": np.array([at[1]], np.int32)}


def add(save: Path, role: str, ranks: Iterable[int], *positions: At) -> None:
    for rank in ranks:
        for at in positions:
            path = payload_path(save, role, rank, at)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors(role, rank, at), path, metadata={"format": "ms"})
            path.chmod(0o400)


def meta_bytes(role: str, rank: int, at: At) -> bytes:
    name = payload_path(Path(), role, rank, at).name
    return json.dumps({"last_epoch": at[0], "last_step": at[1], "last_ckpt_file": name}).encode()


def set_meta(save: Path, role: str, rank: int, content: bytes) -> None:
    path = meta_path(save, role, rank)
    path.write_bytes(content)
    path.chmod(0o600)


def healthy(save: Path, *positions: At, ranks: Iterable[int] = (0, 1)) -> None:
    """A stock job that saved `positions` one after the other and was stopped."""
    for role in DIRECTORIES:
        for rank in ranks:
            add(save, role, [rank], *positions)
            set_meta(save, role, rank, meta_bytes(role, rank, positions[-1]))


def f1(save: Path) -> None:
    """Healthy, 2 ranks: (0, 10)."""
    healthy(save, (0, 5), (0, 10))


def f2(save: Path) -> None:
    """Every meta.json has a tail of the longer one before it, as stock code leaves it: (1, 0)."""
    healthy(save, (0, 100), (1, 0))
    for role in DIRECTORIES:
        for rank in (0, 1):
            old, new = meta_bytes(role, rank, (0, 100)), meta_bytes(role, rank, (1, 0))
            set_meta(save, role, rank, new + old[len(new) :])


def f3(save: Path) -> None:
    """A torn meta.json: (0, 10), the files decide."""
    f1(save)
    set_meta(save, "policy", 1, b'{"last_epoch": 0, "last_s')


def f3b(save: Path) -> None:
    """An empty meta.json: (0, 10)."""
    f1(save)
    set_meta(save, "policy", 1, b"")


def f3c(save: Path) -> None:
    """No meta.json: (0, 10)."""
    f1(save)
    meta_path(save, "policy", 1).unlink()


def f4(save: Path) -> None:
    """Rank 1 died before it saved 0_10: (0, 5) for all."""
    f1(save)
    for role in DIRECTORIES:
        payload_path(save, role, 1, (0, 10)).unlink()
        set_meta(save, role, 1, meta_bytes(role, 1, (0, 5)))


def f5(save: Path) -> None:
    """A policy file of no bytes: (0, 5)."""
    f1(save)
    empty = payload_path(save, "policy", 1, (0, 10))
    empty.chmod(0o600)
    empty.write_bytes(b"")


def f6(save: Path) -> None:
    """The optimizer is one save behind: (0, 5), never the policy of 10 with the moments of 5."""
    f1(save)
    for rank in (0, 1):
        payload_path(save, "optimizer", rank, (0, 10)).unlink()
        set_meta(save, "optimizer", rank, meta_bytes("optimizer", rank, (0, 5)))


def f6b(save: Path) -> None:
    """No optimizer directory: nothing to resume."""
    f1(save)
    for rank in (0, 1):
        _remove_dir(save / "optimizer" / f"rank_{rank}")
    (save / "optimizer").rmdir()


def f6c(save: Path) -> None:
    """No optimizer of rank 1: nothing to resume."""
    f1(save)
    _remove_dir(save / "optimizer" / "rank_1")


def f8(save: Path) -> None:
    """Each rank kept one checkpoint, and not the same: nothing to resume."""
    healthy(save, (0, 10), ranks=[0])
    healthy(save, (0, 5), ranks=[1])


def f9(save: Path) -> None:
    """What MindSpore and MindFormers leave lying about: (0, 10), none of it is taken for a checkpoint."""
    f1(save)
    train = save / "train" / "rank_0"
    (train / "policy_model_rank_0-0_15.tmp").write_bytes(b"half a checkpoint")
    (train / "tmpab12cd").write_bytes(meta_bytes("policy", 0, (0, 15)))
    (train / "param_name_map.json").write_text("{}")
    record = save / "train" / "resume_record"
    record.mkdir()
    named = [save / "train" / "rank_0" / f"policy_model_rank_0-0_{step}.safetensors" for step in (5, 10)]
    (record / "latest_checkpointed_iteration.txt").write_text("".join(f"{path}\n" for path in named))


def _remove_dir(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
