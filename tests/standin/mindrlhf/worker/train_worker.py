"""Policy and optimizer: training, saving in four steps that nothing holds together, loading from two directories."""

from __future__ import annotations

import os

import mindspore as ms
import numpy as np
from mindformers import logger
from mindformers.tools.resume_ckpt import get_resume_checkpoint_by_meta
from mindspore.communication import get_rank

from mindrlhf.models.grpo_models import OPTIMIZERS, AdamWeightDecayOp, GRPOModelTrain, TrainOneStepWithLossScaleGRPO
from mindrlhf.utils.utils import (
    ensure_total_ckpt_is_less_than_limit,
    get_checkpoint_name,
    load_param_to_net,
    record_last_ckpt_to_json,
)
from mindrlhf.worker.worker import Worker


class TrainWorker(Worker):
    always_safetensors = False

    def __init__(self, grpo_config, args=None):
        super().__init__(grpo_config)
        actor = grpo_config.actor_config
        self.sft_ckpt_path_train = actor.load
        self.load_ckpt_format = grpo_config.rl_config.load_ckpt_format
        self.grpo_model_train = GRPOModelTrain(actor.size)
        kind = AdamWeightDecayOp if actor.opt_offload else OPTIMIZERS[actor.optimizer]
        optimizer = kind(list(self.grpo_model_train.get_parameters()))
        self.grpo_with_grad = TrainOneStepWithLossScaleGRPO(self.grpo_model_train, optimizer)
        self.model_on_device = self.optimizer_on_device = True
        self.global_training_step = 0
        self.store = []

    def model(self):
        return self.grpo_model_train

    def push_to_store(self, data):
        self.store = data

    def train(self):
        self.calls.append("train")
        self.grpo_with_grad.step(float(np.mean(self.store)))
        self.global_training_step += 1

    def load_model(self):
        self.calls.append("load model")
        self.model_on_device = True

    def offload_model(self):
        self.calls.append("offload model")
        self.model_on_device = False

    def load_optimizer(self):
        self.calls.append("load optimizer")
        self._move_moments(True)

    def offload_optimizer(self):
        self.calls.append("offload optimizer")
        self._move_moments(False)

    def _move_moments(self, on_device):
        """B26: an optimizer with `moments1` has no `exp_avg`."""
        for moment in (*self.grpo_with_grad.optimizer.exp_avg, *self.grpo_with_grad.optimizer.exp_avg_sq):
            assert moment.name.startswith(("adam_m.", "adam_v."))
        self.optimizer_on_device = on_device

    def save_checkpoints(self, epochs=0, steps=0, start_epoch=0, start_step=0, formats="ckpt"):
        rl_config = self.grpo_config.rl_config
        if (epochs, steps) == (start_epoch, start_step):
            logger.info("There is no checkpoint to save!")
            return
        if self.always_safetensors or rl_config.save_ckpt_format == "safetensors":
            formats = "safetensors"
        limit, policy = rl_config.save_max_ckpt_num, self.grpo_model_train.grpo_model_train.policy_model

        train_dir = os.path.join(self.grpo_config.actor_config.save, "train")
        ckpt_file = get_checkpoint_name(
            train_dir, prefix="policy_model", epoch_num=epochs, step_num=steps, formats=formats
        )
        rank_dir = os.path.join(train_dir, f"rank_{get_rank()}")
        self.load_model()
        policy.init_parameters_data()
        self.calls.append("save policy")
        numbers = {"epoch_num": epochs, "step_num": steps}
        ms.save_checkpoint(policy, ckpt_file, append_dict=numbers, integrated_save=False, format=formats)
        self.offload_model()
        ensure_total_ckpt_is_less_than_limit(ckpt_path=rank_dir, limit=limit, formats=formats)

        optimizer_dir = os.path.join(self.grpo_config.actor_config.save, "optimizer")
        ckpt_file_opt = get_checkpoint_name(
            optimizer_dir, prefix="optimizer", epoch_num=epochs, step_num=steps, formats=formats
        )
        rank_dir_opt = os.path.join(optimizer_dir, f"rank_{get_rank()}")
        self.load_optimizer()
        self.grpo_with_grad.optimizer.init_parameters_data()
        self.calls.append("save optimizer")
        ms.save_checkpoint(self.grpo_with_grad.optimizer, ckpt_file_opt, integrated_save=False, format=formats)
        self.offload_optimizer()
        ensure_total_ckpt_is_less_than_limit(ckpt_path=rank_dir_opt, limit=limit, formats=formats)

        for directory, file in ((rank_dir, ckpt_file), (rank_dir_opt, ckpt_file_opt)):
            record_last_ckpt_to_json(
                epoch=epochs,
                step=steps,
                ckpt_file=os.path.basename(file),
                meta_json=os.path.join(directory, "meta.json"),
            )

    def reload_ckpt(self, formats="ckpt"):
        if self.load_ckpt_format in ("hf_safetensors", "ms_safetensors"):
            formats = "safetensors"
        param_dict = _load_newest(self.sft_ckpt_path_train, formats)
        epoch_num = int(param_dict.pop("epoch_num", 0))
        step_num = int(param_dict.pop("step_num", 0))
        self.calls.append("fill policy")
        load_param_to_net(self.grpo_model_train.grpo_model_train.policy_model, param_dict)

        optimizer_dir = os.path.join(os.path.dirname(os.path.normpath(self.sft_ckpt_path_train)), "optimizer")
        if os.path.isdir(os.path.join(optimizer_dir, f"rank_{get_rank()}")):
            param_dict = _load_newest(optimizer_dir, formats)
            self.calls.append("fill optimizer")
            load_param_to_net(self.grpo_with_grad.optimizer, param_dict)
        self.model_on_device = self.optimizer_on_device = True
        return epoch_num, step_num

    def load_checkpoint(self):
        """A fresh start, from the model's own files: here there is nothing to read."""
        self.calls.append("load model files")


def _load_newest(directory, formats):
    """One directory, whatever the others hold; `LOCAL_DEFAULT_PATH` is left pointing there."""
    rank_dir = os.path.join(directory, f"rank_{get_rank()}")
    if not os.path.isdir(rank_dir):
        raise ValueError(f"There is no *.{formats} in {rank_dir}")
    if not os.path.exists(os.path.join(rank_dir, "meta.json")):
        raise ValueError(f"Could not find meta.json in directory {rank_dir}")
    os.environ["LOCAL_DEFAULT_PATH"] = directory
    ckpt_path = os.path.join(rank_dir, get_resume_checkpoint_by_meta(directory, formats))
    return ms.load_checkpoint(ckpt_path, format=formats)
