"""How this start was asked for: fresh from a base model, or on from a save directory.

MindRLHF's `--actor_checkpoint_path` means the base model in a fresh run and `<save>/train` in a resumed one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_arithmetic.settings import Config
from ms_resume import StartMode, strategies
from ms_resume.errors import UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """`base_models` are the policy's and the reference's; a resume needs them only if nothing was ever whole."""

    mode: StartMode
    source: Path | None
    ref_dir: Path | None
    base_models: tuple[Path, Path]
    parallel: Mapping[str, Any]


def build(strategy: str | None, mode: StartMode, config: Config, num_ranks: int) -> Request:
    """Raises UsageError where a resume by --resume_training names no directory of the form `<save>/train`, or none
    that exists. With every other flag that path means the base model."""
    resume = any(said.startswith("--resume_training") for said in mode.said)
    actor, ref = config.actor_config.load, config.ref_config.load
    base = os.environ.get("BASE_MODEL", "") if resume else actor
    return Request(
        mode=mode,
        source=_source(actor, config.actor_config.save) if resume else None,
        ref_dir=Path(ref) if resume and ref else None,
        base_models=(Path(base), Path(base if resume or not ref else ref)),
        parallel=_parallel(strategy, num_ranks),
    )


def _source(actor: str, save: str) -> Path:
    path = Path(os.path.normpath(actor)) if actor else Path(save) / "train"
    if path.name != "train":
        raise UsageError(
            f"--actor_checkpoint_path: found {actor}, expected the `train` directory of a save directory",
            hint=f"give {path}/train, or leave --resume_training out to start from a base model",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"{path.parent}: does not exist, expected the save directory to resume from",
            hint="check the path; for a first start leave --resume_training out",
        )
    return path.parent


def _parallel(template: str | None, num_ranks: int) -> dict[str, Any]:
    if template is None:
        return strategies.Strategy("", num_ranks, strategies.Parallel(num_ranks, 1, 1)).as_json()
    strategy = strategies.load(template)
    strategies.check(strategy, num_ranks)
    return strategy.as_json()
