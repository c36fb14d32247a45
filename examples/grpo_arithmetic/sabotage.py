"""Harm on purpose, for the demo and the tests: a rank that kills itself, or a resume that leaves a state out.

    GRPO_KILL=rank=1,phase=save,at=0_20      SIGKILL between a payload's temp file and its publication
    GRPO_KILL=rank=0,phase=update,at=1_7     SIGKILL between rollout and optimizer update
    GRPO_BREAK=optimizer|rng|data|step       what the next resume leaves out

Nothing of this is armed unless the environment asks for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import Tensor

from ms_resume import Draws

if TYPE_CHECKING:
    from grpo_arithmetic.trainer import GRPOTrainer

BREAKS = ("optimizer", "rng", "data", "step")


def arm(trainer: GRPOTrainer, environ: Mapping[str, str] = os.environ) -> None:
    if kill := environ.get("GRPO_KILL"):
        wanted = dict(part.split("=") for part in kill.split(","))
        if int(wanted["rank"]) == trainer.world.rank:
            _arm_kill(trainer, wanted["phase"], wanted["at"])
    if broken := environ.get("GRPO_BREAK"):
        trainer.on_phase.append(_Forget(trainer, broken))


def _arm_kill(trainer: GRPOTrainer, phase: str, at: str) -> None:
    def on_phase(name: str, epoch: int, step: int) -> None:
        if (name, f"{epoch}_{step}") != (phase, at):
            return
        if phase != "save":
            _die()
        sys.addaudithook(_die_at_publication)

    trainer.on_phase.append(on_phase)


def _die_at_publication(event: str, arguments: tuple[Any, ...]) -> None:
    """The optimizer's temp file is whole and synced by now, and about to get its name; the policy has its own."""
    if event == "os.link" and "optimizer_rank_" in os.fspath(arguments[0]):
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Forget:
    """Undoes one part of a resume, as if it had not been saved."""

    def __init__(self, trainer: GRPOTrainer, what: str) -> None:
        if what not in BREAKS:
            raise ValueError(f"GRPO_BREAK is {what!r}, expected one of {', '.join(BREAKS)}")
        self._trainer, self._what = trainer, what

    def __call__(self, phase: str, epoch: int, step: int) -> None:
        if phase == "start" and (epoch, step) != (0, 0):
            getattr(self, f"_{self._what}")(epoch)

    def _optimizer(self, epoch: int) -> None:
        for parameter in self._trainer.optimizer.get_parameters():
            if parameter.name.startswith(("adam_m.", "adam_v.")):
                parameter.copy_(Tensor(np.zeros(parameter.shape, np.float32)))

    def _step(self, epoch: int) -> None:
        step = self._trainer.optimizer.global_step
        step.copy_(Tensor(np.zeros(step.shape, np.int32)))

    def _rng(self, epoch: int) -> None:
        self._trainer.draws = Draws(self._trainer.config.rl_config.seed + 1, self._trainer.world.rank)

    def _data(self, epoch: int) -> None:
        self._trainer.cursor.seek(epoch, 0)
