"""The configuration: sections of a YAML file; keys that are not known are refused, as on master."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum

import yaml


class VllmMode(Enum):
    """What makes rollouts; a value in the configuration that is neither text nor a number."""

    ORIGIN = 0
    VLLM = 1


@dataclass
class RLConfig:
    epochs: int = 10
    num_rollouts: int = 1
    batch_size: int = 1
    seed: int = 1
    save_ckpt_interval: int = 1
    save_max_ckpt_num: int = 5
    save_ckpt_format: str = "safetensors"
    load_ckpt_format: str = "hf_safetensors"
    save_strategy_dir: str = "./strategy/"
    resume_training: bool = False
    prompts: int = 10


@dataclass
class ParallelConfig:
    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1


@dataclass
class ActorConfig:
    use_vllm: VllmMode = VllmMode.ORIGIN
    betas: tuple[float, float] = (0.9, 0.95)
    load: str = "/path/"
    save: str = "/tmp/"
    size: int = 4
    opt_offload: bool = False
    optimizer: str = "adamw"
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class RefConfig:
    load: str = "/path/"
    sync_ref_model: bool = False
    ref_model_sync_steps: int = 50


@dataclass
class GRPOConfig:
    rl_config: RLConfig = field(default_factory=RLConfig)
    actor_config: ActorConfig = field(default_factory=ActorConfig)
    ref_config: RefConfig = field(default_factory=RefConfig)


def from_mapping(given: dict[str, dict]) -> GRPOConfig:
    config = GRPOConfig()
    for section, values in given.items():
        for key, value in values.items():
            put(config, f"{section}.{key}", value)
    return config


def from_yaml(path: str) -> GRPOConfig:
    with open(path, encoding="utf-8") as file:
        return from_mapping(yaml.safe_load(file) or {})


def put(config: GRPOConfig, name: str, value: object) -> None:
    """Sets `section.key`; raises ValueError where there is no such key."""
    section, _, key = name.partition(".")
    held = getattr(config, section, None)
    if held is None or key not in {known.name for known in fields(held)}:
        raise ValueError(f"{name}: no such key")
    setattr(held, key, value)
