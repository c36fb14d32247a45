"""What can be configured, with defaults; names and nesting are MindRLHF's, except for `example_config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RLConfig:
    """A step takes `chunk_size * num_rollouts` prompts a rank, and `num_generations` samples of each."""

    dataset_file: str = ""
    epochs: int = 1
    seed: int = 0
    chunk_size: int = 8
    num_rollouts: int = 1
    num_generations: int = 8
    num_iterations: int = 1
    beta: float = 0.01
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    save_ckpt_interval: int = 10
    save_max_ckpt_num: int = 5
    save_ckpt_format: str = "safetensors"
    save_strategy_dir: str = "./strategy/"
    resume_training: bool = False
    tensorboard: bool = False
    tensorboard_dir: str = ""

    @property
    def prompts_per_rank(self) -> int:
        return self.chunk_size * self.num_rollouts


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    type: str = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    eps: float = 1.0e-8
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class LRScheduleConfig:
    """Steps are optimizer updates; `decay_steps` counts from the end of the warm-up, whatever `epochs` is."""

    lr: float = 1.0e-4
    min_lr: float = 0.0
    warmup_step: int = 20
    decay_steps: int = 1000
    lr_decay_style: str = "cosine"


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """This trainer splits the data only; `data_parallel` 0 means the number of workers."""

    data_parallel: int = 0
    model_parallel: int = 1
    pipeline_stage: int = 1
    expert_parallel: int = 1
    context_parallel: int = 1


@dataclass(frozen=True, slots=True)
class ActorConfig:
    load: str = ""
    save: str = ""
    loss_scale_value: float = 1024.0
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LRScheduleConfig = LRScheduleConfig()
    parallel_config: ParallelConfig = ParallelConfig()


@dataclass(frozen=True, slots=True)
class RefConfig:
    load: str = ""
    sync_ref_model: bool = False
    ref_model_sync_steps: int = 50


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    temperature: float = 1.0
    max_tokens: int = 4


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    load: str = ""
    sampling_config: SamplingConfig = SamplingConfig()


@dataclass(frozen=True, slots=True)
class RewardConfig:
    verifier_function: tuple[str, ...] = ("accuracy_reward", "format_reward")
    verifier_weight: tuple[float, ...] = (1.0, 0.1)


@dataclass(frozen=True, slots=True)
class ContextConfig:
    device_target: str = "CPU"


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """Sums of two numbers below `numbers`; `held_out` of the pairs are never trained on."""

    numbers: int = 40
    held_out: int = 200


@dataclass(frozen=True, slots=True)
class ModelConfig:
    layers: int = 2
    width: int = 128
    heads: int = 4


@dataclass(frozen=True, slots=True)
class BaseModelConfig:
    """The supervised warm-up; it stops at `stop_accuracy` on held-out prompts, or after `max_steps`."""

    seed: int = 0
    lr: float = 2.0e-3
    batch_size: int = 128
    max_steps: int = 1000
    check_interval: int = 10
    stop_accuracy: float = 0.5


@dataclass(frozen=True, slots=True)
class ExampleConfig:
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    base_model: BaseModelConfig = BaseModelConfig()
    loss_scale_window: int = 100
    """Updates without overflow after which the loss scale doubles."""

    eval_interval: int = 250
    """Global steps between two looks at the accuracy on held-out prompts; 0 leaves them out."""

    generate_interval: int = 250
    """Global steps between two looks at samples; 0 leaves them out."""


@dataclass(frozen=True, slots=True)
class Config:
    rl_config: RLConfig = RLConfig()
    actor_config: ActorConfig = ActorConfig()
    ref_config: RefConfig = RefConfig()
    generate_config: GenerateConfig = GenerateConfig()
    reward_config: RewardConfig = RewardConfig()
    context: ContextConfig = ContextConfig()
    example_config: ExampleConfig = ExampleConfig()
    ignored: tuple[str, ...] = ()
    """MindRLHF's keys that were given and have no meaning here."""
