"""The reference: saved with every checkpoint but the last, located on its own."""

from __future__ import annotations

import os

import mindspore as ms
from mindformers import logger
from mindformers.tools.resume_ckpt import get_resume_checkpoint_by_meta
from mindspore.communication import get_rank

from mindrlhf.models.grpo_models import Weights
from mindrlhf.utils.utils import (
    ensure_total_ckpt_is_less_than_limit,
    get_checkpoint_name,
    load_param_to_net,
    record_last_ckpt_to_json,
)
from mindrlhf.worker.worker import Worker


class RefWorker(Worker):
    always_safetensors = False

    def __init__(self, grpo_config, args=None):
        super().__init__(grpo_config)
        self.ref_ckpt_path = self.model_path = grpo_config.ref_config.load
        self.ref_model = Weights("", grpo_config.actor_config.size, 1.0)
        self.on_device = True

    def model(self):
        return self.ref_model

    def load(self):
        self.calls.append("load ref")
        self.on_device = True

    def offload(self):
        self.calls.append("offload ref")
        self.on_device = False

    def save_checkpoints(self, epochs=0, steps=0, start_epoch=0, start_step=0, formats="ckpt"):
        rl_config = self.grpo_config.rl_config
        if (epochs, steps) == (start_epoch, start_step):
            return
        if self.always_safetensors or rl_config.save_ckpt_format == "safetensors":
            formats = "safetensors"
        ref_dir = os.path.join(self.grpo_config.actor_config.save, "ref")
        ckpt_file = get_checkpoint_name(ref_dir, prefix="ref", epoch_num=epochs, step_num=steps, formats=formats)
        rank_dir = os.path.join(ref_dir, f"rank_{get_rank()}")
        self.load()
        self.calls.append("save ref")
        ms.save_checkpoint(self.ref_model, ckpt_file, integrated_save=False, format=formats)
        self.offload()
        ensure_total_ckpt_is_less_than_limit(ckpt_path=rank_dir, limit=rl_config.save_max_ckpt_num, formats=formats)
        record_last_ckpt_to_json(
            epoch=epochs,
            step=steps,
            ckpt_file=os.path.basename(ckpt_file),
            meta_json=os.path.join(rank_dir, "meta.json"),
        )

    def reload_ckpt(self, formats="ckpt"):
        """B8: the format is that of saving, where the policy's is that of loading."""
        if self.always_safetensors or self.grpo_config.rl_config.save_ckpt_format == "safetensors":
            formats = "safetensors"
        rank_dir = os.path.join(self.ref_ckpt_path, f"rank_{get_rank()}")
        if not os.path.isdir(rank_dir):
            raise ValueError(f"There is no *.{formats} in {rank_dir}")
        logger.info("Loading latest ref checkpoint: %s", rank_dir)
        if not os.path.exists(os.path.join(rank_dir, "meta.json")):
            raise ValueError(f"Could not find meta.json in directory {rank_dir}")
        os.environ["LOCAL_DEFAULT_PATH"] = self.ref_ckpt_path
        ckpt_path = os.path.join(rank_dir, get_resume_checkpoint_by_meta(self.ref_ckpt_path, formats))
        param_dict = ms.load_checkpoint(ckpt_path, format=formats)
        self.calls.append("fill ref")
        load_param_to_net(self.ref_model, param_dict)
        self.on_device = True

    def load_checkpoint(self):
        self.calls.append("load ref files")
