"""Prompts as MindRecord files, read whole: the order in which they are trained on is `ms_resume.Cursor`'s."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileWriter

from grpo_arithmetic import task
from grpo_arithmetic.errors import ConfigError
from grpo_arithmetic.settings import TaskConfig
from grpo_arithmetic.task import Prompts
from ms_resume.errors import DiskError

COLUMNS = ["prompt_id", "tokens", "answer"]
SCHEMA = {
    "prompt_id": {"type": "int32"},
    "tokens": {"type": "int32", "shape": [-1]},
    "answer": {"type": "int32"},
}


def held_out_file(train_file: Path) -> Path:
    return train_file.with_name(f"{train_file.stem}_held_out{train_file.suffix}")


def make_files(train_file: Path, config: TaskConfig) -> None:
    """Writes the train prompts and, beside them, the held-out ones; a file that is there is left alone.

    Raises:
        ConfigError: A file that is there holds another number of prompts than the task has.
        DiskError: One cannot be made.
    """
    train, held_out = task.split(config.numbers, config.held_out)
    for path, prompts in ((held_out_file(train_file), held_out), (train_file, train)):
        if not path.exists():
            try:
                _write(path, prompts)
            except OSError as error:
                raise DiskError(
                    f"{path}: cannot be made: {error.strerror}",
                    hint="give --save_checkpoint_dir, or --dataset_file, a place that can be written",
                ) from error
        found = ds.MindDataset(str(path)).get_dataset_size()
        if found != len(prompts):
            raise ConfigError(f"{path}: found {found} prompts, expected {len(prompts)} for {config}")


def read_all(path: Path) -> Prompts:
    """All prompts in the order of the file."""
    size = ds.MindDataset(str(path)).get_dataset_size()
    rows = ds.MindDataset(str(path), columns_list=COLUMNS, shuffle=False).batch(size)
    return _prompts(next(rows.create_dict_iterator(num_epochs=1, output_numpy=True)))


def _write(path: Path, prompts: Prompts) -> None:
    # A MindRecord is two files that know each other's name, so they are written under their names in a
    # directory of their own, and the index moves first: whoever sees the data file can open it.
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    try:
        writer = FileWriter(str(scratch / path.name), shard_num=1)
        writer.add_schema(SCHEMA, "arithmetic prompts")
        writer.write_raw_data(_raw(prompts))
        writer.commit()
        os.replace(scratch / f"{path.name}.db", path.with_name(f"{path.name}.db"))
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _raw(prompts: Prompts) -> list[dict[str, Any]]:
    rows = zip(prompts.ids.tolist(), prompts.tokens, prompts.answers.tolist(), strict=True)
    return [{"prompt_id": i, "tokens": tokens, "answer": answer} for i, tokens, answer in rows]


def _prompts(row: dict[str, Any]) -> Prompts:
    return Prompts(*(np.ascontiguousarray(row[column], np.int32) for column in COLUMNS))
