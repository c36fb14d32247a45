"""Prompts and rollouts. The order of the prompts is that of a fixed seed, anew with every pass over the data."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore.communication import get_rank

_SEED = 2023


class GRPOExperienceMaker:
    def __init__(
        self,
        train_model,
        infer_model,
        ref_model,
        old_policy_model,
        grpo_config,
        tokenizer,
        tensor_writer,
        dataset_ignore_step,
    ):
        self.train, self.infer, self.ref = train_model, infer_model, ref_model
        self.grpo_config, self.tensor_writer = grpo_config, tensor_writer
        self.infer_dp = infer_model.get_infer_dp()
        self.i_step = dataset_ignore_step
        self.make_exp_step = 0
        self.total_processed_tokens = 0
        self.step_num = 0
        self.prompts = []
        self._init_grpo_experience_dataset()

    def _init_grpo_experience_dataset(self):
        """B16: what earlier epochs have left of a pass is forgotten."""
        rl_config = self.grpo_config.rl_config
        ms.dataset.config.set_seed(_SEED)
        prompts = ms.dataset.NumpySlicesDataset(np.arange(rl_config.prompts, dtype=np.int32), shuffle=True)
        self.prompt_dataloader = prompts.batch(rl_config.batch_size, drop_remainder=True)
        self.prompt_iterator = self.prompt_dataloader.create_tuple_iterator(output_numpy=True)
        self.step_num = self.prompt_dataloader.get_dataset_size() // rl_config.num_rollouts
        for _ in range(self.i_step):
            self._get_batch(rl_config.num_rollouts)

    def _get_batch(self, num_rollouts):
        batches = []
        for _ in range(num_rollouts):
            try:
                batches.append(next(self.prompt_iterator))
            except StopIteration:
                ms.dataset.config.set_seed(_SEED)
                self.prompt_iterator = self.prompt_dataloader.create_tuple_iterator(output_numpy=True)
                batches.append(next(self.prompt_iterator))
        return np.concatenate([batch[0] for batch in batches])

    def make_experience(self, num_rollouts: int = 1, num_generations: int = 16):
        """The rollout depends on the prompts, on what is drawn, and on the weights that make rollouts."""
        self.prompts = [int(prompt) for prompt in self._get_batch(num_rollouts)]
        drawn = float(np.random.normal()) + get_rank()
        weights = float(self.infer.model().w.asnumpy().mean()) - float(self.ref.model().w.asnumpy().mean())
        self.tensor_writer.append((self.make_exp_step, round(drawn, 6)))
        self.train.push_to_store([np.mean(self.prompts), drawn, weights])
        self.make_exp_step += 1
        self.total_processed_tokens += 16 * num_generations * num_rollouts
