"""What rollouts are made with: filled from the policy, never from a file of a checkpoint."""

from __future__ import annotations

from mindrlhf.models.grpo_models import Weights
from mindrlhf.worker.worker import Worker


class InferWorker(Worker):
    def __init__(self, grpo_config, args=None):
        super().__init__(grpo_config)
        self.grpo_model_infer = Weights("infer.", grpo_config.actor_config.size, 0.0)

    def model(self):
        return self.grpo_model_infer

    def get_infer_dp(self):
        return 1

    def load_checkpoint(self):
        self.calls.append("load infer files")
