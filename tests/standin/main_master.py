"""The entry point of master: flags."""

from __future__ import annotations

import argparse

from mindrlhf.trainer.spmd.grpo_trainer import GRPOTrainer


def build(words=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--model_name", default="qwen")
    parser.add_argument("--dataset_file")
    parser.add_argument("--resume_training", action="store_true")
    parser.add_argument("--tokenizer_dir")
    parser.add_argument("--actor_checkpoint_path")
    parser.add_argument("--ref_checkpoint_path")
    parser.add_argument("--save_checkpoint_dir")
    return GRPOTrainer(no_patch_tensor_shape=False, args=parser.parse_args(words))


if __name__ == "__main__":
    build().run_grpo_train()
