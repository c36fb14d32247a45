"""`python model_train_runs.py ROOT [PLAN ...]`: runs of `Model.train` that SIGKILL ends; see `killed_runs`."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path
from typing import Any

import killed_runs
import mindspore as ms
import numpy as np
from mindspore import nn, train

import ms_resume
from ms_resume.adapters.model_train import ResumeCallback

STEPS, EPOCHS, SAVE_EVERY = 5, 3, 2


class Watch(train.Callback):
    """Draws in each step, and tells that, the batch, and the loss."""

    def __init__(self, told: killed_runs.Told) -> None:
        super().__init__()
        self._told = told

    def on_train_step_end(self, run_context: Any) -> None:
        given = run_context.original_args()
        drawn = [random.random(), float(np.random.normal()), float(ms.ops.standard_normal((1,)).asnumpy()[0])]
        batch = hashlib.sha256(given.train_dataset_element[0].asnumpy().tobytes()).hexdigest()[:8]
        self._told.step({"batch": batch, "loss": float(given.net_outputs), "drawn": drawn})


def run(save: Path, told: killed_runs.Told) -> None:
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
    model.train(EPOCHS, dataset, callbacks=[Watch(told), resume], initial_epoch=resume.initial_epoch)
    held = {parameter.name: parameter.asnumpy().tobytes().hex() for parameter in optimizer.get_parameters()}
    told.say({"end": held, "drawn": [random.random(), float(np.random.normal())]})


if __name__ == "__main__":
    killed_runs.forked(Path(sys.argv[1]), run, sys.argv[2:])
