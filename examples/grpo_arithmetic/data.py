"""Prompts as MindRecord files, and a stream of them that can be put at any step exactly.

The stream seeks with `set_init_step` on one iterator over all epochs: a `skip` would skip in every epoch, and
an iterator for each epoch would repeat one order.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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


def _seed_datasets(seed: int) -> None:
    """MindSpore seeds Python's and NumPy's random numbers along: in a resume, just after they were restored."""
    python, numpy = random.getstate(), np.random.get_state()
    ds.config.set_seed(seed)
    random.setstate(python)
    np.random.set_state(numpy)


class PromptStream:
    """This rank's share of the prompts, shuffled anew each epoch by the seed alone.

    The order of an epoch depends on the seed, its number and the shard; not on how many epochs the run has
    (tried with 1 to 5), so a run may be resumed with more epochs.
    """

    name = "prompts"

    def __init__(self, path: Path, *, seed: int, prompts_per_step: int, epochs: int, shard: tuple[int, int]) -> None:
        self._path, self._seed, self._epochs = path, seed, epochs
        self._prompts_per_step = prompts_per_step
        self._rank, self._num_ranks = shard
        self._taken = 0
        self._iterator: Any = None
        self.steps_per_epoch = int(self._pipeline().get_dataset_size())
        if self.steps_per_epoch == 0:
            raise ConfigError(f"{path}: too few prompts for one step of {prompts_per_step} on each rank")

    def state(self) -> dict[str, int]:
        """Where the stream stands; `taken` is the prompts this rank has finished with."""
        return {
            "seed": self._seed,
            "prompts_per_step": self._prompts_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "num_shards": self._num_ranks,
            "taken": self._taken * self._prompts_per_step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts the stream where `state` was taken.

        Raises:
            ConfigError: Seed, batch or shards differ, so no position in this stream is the same.
        """
        here = self.state()
        changed = [k for k in here if k != "taken" and here[k] != state[k]]
        if changed:
            raise ConfigError("; ".join(f"data order: {k} was {state[k]}, is now {here[k]}" for k in changed))
        self._seek_step(state["taken"] // self._prompts_per_step)

    def seek(self, epoch: int, step: int) -> None:
        self._seek_step(epoch * self.steps_per_epoch + step)

    def epoch(self) -> Iterator[Prompts]:
        """The rest of the current epoch, one step's prompts at a time."""
        if self._iterator is None:
            self._iterator = self._open()
        for row in self._iterator:
            yield _prompts(row)
            # Counted when the caller comes back for more: a save at the top of a step has not trained it.
            self._taken += 1

    def _seek_step(self, step: int) -> None:
        self._taken, self._iterator = step, None

    def _open(self) -> Any:
        pipeline = self._pipeline()
        pipeline.set_init_step(self._taken)
        return pipeline.create_dict_iterator(num_epochs=self._epochs, output_numpy=True)

    def _pipeline(self) -> Any:
        _seed_datasets(self._seed)
        rows = ds.MindDataset(
            str(self._path),
            columns_list=COLUMNS,
            num_parallel_workers=1,
            shuffle=True,
            num_shards=self._num_ranks,
            shard_id=self._rank,
        )
        return rows.batch(self._prompts_per_step, drop_remainder=True)
