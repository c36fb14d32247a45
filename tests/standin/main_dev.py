"""The entry point of the dev branch: overrides in hydra's form, over the defaults of the configuration."""

from __future__ import annotations

import sys

import yaml
from mindrlhf.configs import grpo_configs
from mindrlhf.trainer.spmd.grpo_trainer import GRPOTrainer


def build(words=None):
    config = grpo_configs.GRPOConfig()
    for word in sys.argv[1:] if words is None else words:
        name, _, value = word.partition("=")
        grpo_configs.put(config, name, yaml.safe_load(value))
    return GRPOTrainer(config_from_yaml=config, no_patch_tensor_shape=False)


if __name__ == "__main__":
    build().run_grpo_train()
