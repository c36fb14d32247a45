"""Which checkpoint of one directory to resume from: rank 0 decides by names and `meta.json`, and leaves a note.

What files hold is never looked at. The note lies in `$LOCAL_DEFAULT_PATH/resume_record`, which is made anew each time.
"""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import get_group_size, get_rank

from mindformers import logger

_NAME = re.compile(r"(?P<prefix>.+)_rank_(?P<rank>\d+)-(?P<epoch>\d+)_(?P<step>\d+)\.(?P<format>\w+)")


def get_resume_checkpoint_by_meta(
    checkpoint_dir, ckpt_format="ckpt", use_checkpoint_health_monitor=False, health_ckpts_record_dir="./output"
):
    """The file name for this rank; or True, where no `meta.json` could be read."""
    rank = get_rank()
    record = os.path.join(os.environ.get("LOCAL_DEFAULT_PATH", "./output"), "resume_record")
    note = os.path.join(record, "latest_checkpointed_iteration.txt")
    if rank == 0:
        shutil.rmtree(record, ignore_errors=True)
        os.makedirs(record, mode=0o750)
        _write(note, _decide(checkpoint_dir, ckpt_format))
    _barrier()
    with open(note, encoding="utf-8") as file:
        lines = file.read().splitlines()
    if lines[0].startswith("Error"):
        raise ValueError(f"Get resume-able checkpoint failed, due to {lines[0]}")
    if lines[0] == "FOUND NO META.JSON":
        return True
    chosen = _NAME.fullmatch(os.path.basename(lines[-1]))
    return f"{chosen['prefix']}_rank_{rank}-{chosen['epoch']}_{chosen['step']}.{chosen['format']}"


def _decide(checkpoint_dir, ckpt_format):
    try:
        every = (_meta(checkpoint_dir, rank, ckpt_format) for rank in range(get_group_size()))
        said = [position for position in every if position is not None]
        if not said:
            _check_last_timestamp(checkpoint_dir, ckpt_format)
            return "FOUND NO META.JSON"
        found = _everywhere(checkpoint_dir, min(said), ckpt_format)
        if not found:
            raise RuntimeError("No checkpoint could be resumed.")
        return "\n".join(found)
    except Exception as error:  # noqa: BLE001  # as the original does: the other ranks read it in the note
        return f"Error: {error}"


def _meta(checkpoint_dir, rank, ckpt_format):
    try:
        with open(os.path.join(checkpoint_dir, f"rank_{rank}", "meta.json"), encoding="utf-8") as file:
            meta = json.load(file)
        if not meta["last_ckpt_file"].endswith(f".{ckpt_format}"):
            raise ValueError(f"{meta['last_ckpt_file']} is no {ckpt_format}")
        return int(meta["last_epoch"]), int(meta["last_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("meta.json of rank %s is left out: %s", rank, error)
        return None


def _everywhere(checkpoint_dir, newest, ckpt_format):
    """Rank 0's files of the positions up to `newest` of which every rank has one, oldest first."""
    have: dict[tuple[int, int], dict[int, str]] = {}
    for rank in range(get_group_size()):
        directory = os.path.join(checkpoint_dir, f"rank_{rank}")
        if not os.path.isdir(directory):
            raise FileNotFoundError(f"rank_{rank} is not found!")
        for name in os.listdir(directory):
            parts = _NAME.fullmatch(name)
            if parts and parts["format"] == ckpt_format and (position := _position(parts)) <= newest:
                have.setdefault(position, {})[rank] = os.path.join(directory, name)
    return [have[position][0] for position in sorted(have) if len(have[position]) == get_group_size()]


def _check_last_timestamp(checkpoint_dir, ckpt_format):
    directories = [os.path.join(checkpoint_dir, f"rank_{rank}") for rank in range(get_group_size())]
    for directory in directories:
        if _newest(directory, ckpt_format) is None:
            raise ValueError(f"Checkpoint not found under {directory} with config.load_ckpt_format:{ckpt_format}.")
    positions = {_position(_NAME.fullmatch(os.path.basename(_newest(directory)))) for directory in directories}
    if len(positions) > 1:
        raise ValueError("The checkpoints of the last timestamp differ.")


def _newest(directory, ckpt_format="ckpt"):
    found = [os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(f".{ckpt_format}")]
    return max(found, key=os.path.getmtime, default=None)


def _position(parts):
    return int(parts["epoch"]), int(parts["step"])


def _write(note, text):
    with open(note, "w", encoding="utf-8") as file:
        file.write(text)


def _barrier():
    if get_group_size() > 1:
        ops.AllGather()(Tensor(np.zeros(1, np.float32))).asnumpy()
