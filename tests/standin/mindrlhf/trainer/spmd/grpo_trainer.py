"""GRPO's loop: saves at the top of a step, trains, and saves once more at the end; its start, also with resume."""

from __future__ import annotations

import os

import mindspore as ms
from mindformers import logger

from mindrlhf.configs import grpo_configs
from mindrlhf.trainer.spmd.grpo_experience_maker import GRPOExperienceMaker
from mindrlhf.worker.infer_worker import InferWorker
from mindrlhf.worker.ref_worker import RefWorker
from mindrlhf.worker.train_worker import TrainWorker
from mindrlhf.worker.transform_worker import TransformWorker


class _Trainer:
    """What both branches have."""

    always_safetensors = False

    def _build(self, resumes):
        self.resumes = resumes
        TrainWorker.always_safetensors = RefWorker.always_safetensors = self.always_safetensors
        ms.set_seed(self.grpo_config.rl_config.seed)  # B17: on resume, too
        self.tensor_writer = []
        self.infer = InferWorker(grpo_config=self.grpo_config)
        self.ref = RefWorker(grpo_config=self.grpo_config)
        self.train = TrainWorker(grpo_config=self.grpo_config)
        self.rename_safetensors_weights()
        self.transform = TransformWorker(self.grpo_config, self.train.model(), self.infer.model())

    def _finish(self):
        self.transform.reshard_params(0)
        self.experience_maker = GRPOExperienceMaker(
            self.train, self.infer, self.ref, None, self.grpo_config, None, self.tensor_writer, self.i_step
        )
        self.step_num = self.experience_maker.step_num

    def rename_safetensors_weights(self):
        """B22: also where the directory holds a checkpoint, in which there is nothing to convert."""
        self.train.calls.append(f"convert {self.grpo_config.actor_config.load}")

    def _load_checkpoint(self):
        if not self.resumes:
            for worker in (self.infer, self.ref, self.train):
                worker.load_checkpoint()
            return
        epoch_num, data_skip_steps = self.train.reload_ckpt()
        self.ref.reload_ckpt()
        self.transform.reshard_params(0)
        self.n_epoch = self.start_epoch = epoch_num
        self.i_step = self.start_step = data_skip_steps

    def _reshard_train_to_infer(self):
        self.transform.reshard_params(self.i_step)

    def run_grpo_train(self):
        rl_config = self.grpo_config.rl_config
        logger.info("Start training epoch num:%s", rl_config.epochs)
        while self.n_epoch < rl_config.epochs:
            while self.i_step < self.step_num:
                if self.i_step % rl_config.save_ckpt_interval == 0:
                    position = {
                        "epochs": self.n_epoch,
                        "steps": self.i_step,
                        "start_epoch": self.start_epoch,
                        "start_step": self.start_step,
                    }
                    self.train.save_checkpoints(**position)
                    self.ref.save_checkpoints(**position)
                self.experience_maker.make_experience(num_rollouts=rl_config.num_rollouts)
                self.train.load_optimizer()
                self.train.load_model()
                self.train.train()
                self.train.offload_optimizer()
                self._reshard_train_to_infer()
                self.i_step += 1
            self.i_step = 0
            self.n_epoch += 1
        self.train.load_model()
        self.train.save_checkpoints(epochs=rl_config.epochs, steps=self.step_num)  # B11, B12


class _Master(_Trainer):
    def __init__(self, no_patch_tensor_shape, args=None):
        self.args = args
        self.grpo_config = self._init_grpo_configs(args)
        self._build(args.resume_training)
        self.i_step = self.n_epoch = self.start_step = self.start_epoch = 0
        self._load_checkpoint()
        self._finish()

    def _init_grpo_configs(self, args):
        config = grpo_configs.from_yaml(args.config)
        given = {
            "actor_config.load": args.actor_checkpoint_path,
            "ref_config.load": args.ref_checkpoint_path,
            "actor_config.save": args.save_checkpoint_dir,
        }
        for name, value in given.items():
            if value is not None:
                grpo_configs.put(config, name, value)
        return config


class _Dev(_Trainer):
    always_safetensors = True  # B14

    def __init__(self, config_from_yaml, **kwargs):
        self.grpo_config = config_from_yaml
        self._build(self.grpo_config.rl_config.resume_training)
        self._load_checkpoint()
        self.i_step = self.n_epoch = self.start_step = self.start_epoch = 0  # B13
        self._finish()


class GRPOTrainer(_Dev if os.environ.get("STANDIN_BRANCH") == "dev" else _Master):
    """One name on both branches."""
