"""Gives the policy's weights to the nets that make rollouts; merges what compiling left in the strategy directory."""

from __future__ import annotations

import glob
import json
import os

from mindspore import Tensor

from mindrlhf.worker.worker import Worker


class TransformWorker(Worker):
    def __init__(self, grpo_config, policy, infer):
        super().__init__(grpo_config)
        self._policy, self._infer = policy.grpo_model_train.policy_model, infer

    def reshard_params(self, step_num, input_on_device_flag_dict=None):
        self.calls.append("reshard")
        for source, target in ((self._policy.w, self._infer.w), (self._policy.b, self._infer.b)):
            target.copy_(Tensor(source.asnumpy().copy()))


def merge_pipeline_strategys(directory):
    """B23: of each pipeline stage the first file that is listed, whoever wrote it when."""
    merged = {}
    for path in sorted(glob.glob(os.path.join(directory, "strategy_*.ckpt"))):
        with open(path, encoding="utf-8") as file:
            strategy = json.load(file)
        merged.setdefault(strategy["stage"], strategy)
    return merged
