"""The entry point of the dev branch under hydra itself, in the form in which hydra goes to a directory of its own."""

from __future__ import annotations

import hydra
from hydra.core.config_store import ConfigStore
from mindrlhf.configs import grpo_configs
from mindrlhf.trainer.spmd.grpo_trainer import GRPOTrainer

ConfigStore.instance().store(name="grpo", node=grpo_configs.GRPOConfig)


@hydra.main(version_base="1.1", config_path=None, config_name="grpo")
def main(config):
    GRPOTrainer(config_from_yaml=config, no_patch_tensor_shape=False).run_grpo_train()


if __name__ == "__main__":
    main()
