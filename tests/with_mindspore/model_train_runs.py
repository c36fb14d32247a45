"""Runs of `Model.train`, each a process of its own; one that is to be killed is, by SIGKILL.

    python model_train_runs.py ROOT [PLAN ...]

First one that nobody kills, in ROOT/whole, then those of each PLAN, in ROOT/killed, where one goes on from what is left
of the one before. A PLAN says where a run ends: `step:N` after so many steps, `sync:NAME` before it syncs what has a
name that ends so, `end`. What a run saw, step by step, and what it ended with, is in a file beside its directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, train

import ms_resume
from ms_resume.adapters.model_train import ResumeCallback

STEPS, EPOCHS, SAVE_EVERY = 5, 3, 2


class Watch(train.Callback):
    """Draws in each step, and notes that, the batch, and the loss; then may end the process."""

    def __init__(self, log: Path, kill_after: int) -> None:
        super().__init__()
        self._log, self._left = log, kill_after

    def on_train_step_end(self, run_context: Any) -> None:
        given = run_context.original_args()
        drawn = [random.random(), float(np.random.normal()), float(ms.ops.standard_normal((1,)).asnumpy()[0])]
        batch = hashlib.sha256(given.train_dataset_element[0].asnumpy().tobytes()).hexdigest()[:8]
        append(self._log, {"batch": batch, "loss": float(given.net_outputs), "drawn": drawn})
        self._left -= 1
        if self._left == 0:
            die()


def append(log: Path, row: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before_sync_of(name: str) -> None:
    sync = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").partition(".0000")[0].endswith(name):  # a part has its attempt behind it
            die()
        sync(fd)

    os.fsync = fsync


def run(save: Path, log: Path, plan: str) -> None:
    what, _, number = plan.partition(":")
    if what == "sync":
        kill_before_sync_of(number)
    ms.set_seed(7)
    ms.dataset.config.set_seed(7)
    random.seed(7)
    source = np.random.default_rng(7)
    data = source.normal(size=(STEPS * 4 + 3, 6)).astype(np.float32)
    dataset = ms.dataset.NumpySlicesDataset((data, data[:, :2] ** 2), shuffle=True).batch(4, drop_remainder=True)
    network = nn.Dense(6, 2, weight_init=ms.Tensor(source.normal(size=(2, 6)).astype(np.float32)))
    optimizer = nn.AdamWeightDecay(network.trainable_params(), learning_rate=nn.WarmUpLR(0.05, 4))
    model = train.Model(network, loss_fn=nn.MSELoss(), optimizer=optimizer)
    settings = ms_resume.Settings(heartbeat_s=0)
    resume = ResumeCallback(save, network, optimizer, dataset, save_every=SAVE_EVERY, settings=settings)
    watch = Watch(log, int(number) if what == "step" else 0)
    model.train(EPOCHS, dataset, callbacks=[watch, resume], initial_epoch=resume.initial_epoch)
    held = {parameter.name: parameter.asnumpy().tobytes().hex() for parameter in optimizer.get_parameters()}
    append(log, {"end": held, "drawn": [random.random(), float(np.random.normal())]})


def main(root: Path, *plans: str) -> None:
    """Each run is forked from here, where MindSpore is imported and has not done anything yet."""
    for name, plan in [("whole", "end"), *(("killed", plan) for plan in plans)]:
        log = root / f"{name}.jsonl"
        child = os.fork()
        if child == 0:
            run(root / name, log, plan)
            os._exit(0)
        append(log, {"ended": os.waitpid(child, 0)[1]})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
