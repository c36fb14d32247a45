"""Names, retention, `meta.json`, and loading, as MindRLHF does it."""

from __future__ import annotations

import json
import os

import mindspore as ms
from mindformers import logger
from mindspore.communication import get_rank


def get_checkpoint_name(
    ckpt_path, prefix: str = "network", epoch_num: int | None = None, step_num: int | None = None, formats: str = "ckpt"
):
    """Makes the rank's directory, too."""
    directory = os.path.join(os.path.abspath(ckpt_path), f"rank_{get_rank()}")
    os.makedirs(directory, exist_ok=True)
    return os.path.join(directory, f"{prefix}_rank_{get_rank()}-{epoch_num}_{step_num}.{formats}")


def ensure_total_ckpt_is_less_than_limit(ckpt_path: str, limit: int = 5, formats: str = "ckpt"):
    """B24: by time of change, torn ones count, each rank for itself."""
    there = [os.path.join(ckpt_path, name) for name in os.listdir(ckpt_path) if name.endswith(f".{formats}")]
    for path in sorted(there, key=os.path.getmtime)[: max(len(there) - limit, 0)]:
        os.remove(path)


def load_param_to_net(net, param_dict):
    """B15: whatever does not fit is a warning."""
    missing, unexpected = ms.load_param_into_net(net, param_dict)
    if missing:
        logger.warning("parameters that were not loaded: %s", missing)
    if unexpected:
        logger.warning("names in the checkpoint that are not in the net: %s", unexpected)


def record_last_ckpt_to_json(epoch: int, step: int, ckpt_file: str, meta_json: str):
    """B1, B2: over the old content, without cutting it, neither atomic nor synced."""
    record = {"last_epoch": epoch, "last_step": step, "last_ckpt_file": ckpt_file}
    with os.fdopen(os.open(meta_json, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump(record, file)
