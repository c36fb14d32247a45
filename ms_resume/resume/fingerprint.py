"""What a vote says of the job that cast it, so that another job is recognised: names and shapes, and configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo

SECTIONS = ("rl_config", "actor_config", "ref_config", "generate_config", "reward_config", "example_config")
"""Sections of MindRLHF's configuration whose keys decide what a step computes."""

LEFT_OUT = frozenset(
    (
        "epochs load save resume_training tensorboard tensorboard_dir dataset_file tokenizer_dir save_strategy_dir "
        "save_ckpt_interval save_max_ckpt_num save_ckpt_format load_ckpt_format save_prompt_completions_dir "
        "save_prompt_completions_interval checkpoint_name model_config parallel_config port"
    ).split()
)
"""Keys that a resumed run may change freely: how long it runs, where it reads and writes, and how often. The vote says
the parallel configuration apart."""


def layout(roles: Mapping[str, Mapping[str, TensorInfo]]) -> str:
    """A digest over names, shapes, and dtypes of all roles on this rank."""
    plain = {
        role: [[name, info.dtype, list(info.shape)] for name, info in sorted(tensors.items())]
        for role, tensors in sorted(roles.items())
    }
    return payload.digest_of(_canonical(plain))


def config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are compared, flat, and a digest over them."""
    keys = {
        name: value
        for section in SECTIONS
        if isinstance(given.get(section), Mapping)
        for name, value in _flat(section, given[section])
    }
    return {"fingerprint": payload.digest_of(_canonical(keys)), "keys": keys} if keys else {}


def _flat(prefix: str, section: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        if key in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            found += _flat(f"{prefix}.{key}", value)
        else:
            found.append((f"{prefix}.{key}", list(value) if isinstance(value, tuple) else value))
    return found


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
