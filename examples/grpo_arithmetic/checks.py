"""What the types of a configuration do not say: ranges, and values that have to fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from grpo_arithmetic.settings import Config

MORE_THAN_0 = (
    "rl_config.epochs",
    "rl_config.chunk_size",
    "rl_config.num_rollouts",
    "rl_config.num_iterations",
    "rl_config.save_ckpt_interval",
    "rl_config.save_max_ckpt_num",
    "actor_config.loss_scale_value",
    "actor_config.lr_schedule.decay_steps",
    "ref_config.ref_model_sync_steps",
    "generate_config.sampling_config.temperature",
    "example_config.loss_scale_window",
    "example_config.base_model.batch_size",
    "example_config.base_model.max_steps",
    "example_config.base_model.check_interval",
    "example_config.model.layers",
)
AT_LEAST_0 = ("rl_config.seed", "example_config.eval_interval", "example_config.generate_interval")
ONE_OF = {
    "rl_config.save_ckpt_format": ("safetensors", "ckpt"),
    "actor_config.optimizer.type": ("adamw",),
    "actor_config.lr_schedule.lr_decay_style": ("cosine", "linear", "constant"),
}
Complaint = tuple[str, str]
"""A key, and what is wrong with its value."""


def complaints(config: Config) -> Iterator[Complaint]:
    """Every value that cannot be meant, with what was found and what was expected."""
    for key, expected in (*_out_of_range(config), *_unfit(config)):
        yield key, f"found {attrgetter(key)(config)!r}, expected {expected}"


def _out_of_range(config: Config) -> Iterator[Complaint]:
    yield from ((key, "more than 0") for key in MORE_THAN_0 if attrgetter(key)(config) <= 0)
    for key, choices in ONE_OF.items():
        if attrgetter(key)(config) not in choices:
            yield key, " or ".join(choices)
    yield from ((key, "0 or more") for key in AT_LEAST_0 if attrgetter(key)(config) < 0)
    if config.rl_config.num_generations < 2:
        yield "rl_config.num_generations", "2 or more, because advantages are taken within a group"


def _unfit(config: Config) -> Iterator[Complaint]:
    schedule, reward = config.actor_config.lr_schedule, config.reward_config
    if not 0 <= schedule.min_lr <= schedule.lr:
        yield "actor_config.lr_schedule.min_lr", f"0 to lr, which is {schedule.lr}"
    if len(reward.verifier_weight) != len(reward.verifier_function):
        yield "reward_config.verifier_weight", f"{len(reward.verifier_function)} weights, one a function"
    yield from _unfit_example(config)


def _unfit_example(config: Config) -> Iterator[Complaint]:
    task, model = config.example_config.task, config.example_config.model
    longest, pairs = len(str(2 * task.numbers - 2)) + 1, task.numbers**2
    if task.numbers < 2:
        yield "example_config.task.numbers", "2 or more"
    if not 0 < task.held_out < pairs:
        yield "example_config.task.held_out", f"1 to {pairs - 1}, as there are {pairs} sums"
    if config.generate_config.sampling_config.max_tokens < longest:
        yield (
            "generate_config.sampling_config.max_tokens",
            f"{longest} or more, as answers have an end",
        )
    if model.heads < 1 or model.width % model.heads:
        yield "example_config.model.width", f"a multiple of heads, which is {model.heads}"
