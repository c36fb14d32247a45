"""Checkpoints for users of `Model.train`: a run that was killed goes on at the exact batch, bit for bit.

resume = ResumeCallback("out", network, optimizer, dataset, save_every=100, leave_on=[signal.SIGTERM])
model.train(epochs, dataset, callbacks=[resume], initial_epoch=resume.initial_epoch)
sys.exit(50 if resume.left else 0)
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.framework import callbacks
from ms_resume.resume.checkpointer import Checkpointer
from ms_resume.resume.components.randomness import Randomness
from ms_resume.settings import Settings
from ms_resume.state import Component


def ResumeCallback(  # for its users it is a class: MindSpore's Callback, made when MindSpore is there
    save: str | Path,
    network: Any,
    optimizer: Any,
    dataset: Any,
    *,
    save_every: int,
    resume: bool = True,
    components: Sequence[Component] = (),
    settings: Settings | None = None,
    leave_on: Sequence[signal.Signals] = (),
    **start: Any,
) -> Any:
    """A callback for `Model.train`. Making it restores network, optimizer, random state, and the data's position.

    Called by all ranks, when network and optimizer are built and random sources are seeded, and before `Model.train`;
    `dataset` is the one that is trained on, with its shuffling seeded (`mindspore.dataset.config.set_seed`).

    Args:
        save: The save directory, shared by all ranks.
        save_every: In steps; it is saved at the end of training, too.
        resume: Go on from the newest whole checkpoint, or begin where there was never one. False begins, and is refused
            where there are checkpoints.
        components: What else the next step depends on: a loss scale, counters.
        leave_on: Signals after which all ranks save and end training when a step is done; the ranks tell each other of
            them after each step.
        start: Further arguments of `Checkpointer.start`.

    Returns:
        The callback. Its `initial_epoch` goes to `Model.train`; it is the number of epochs when nothing is left to do,
        which `Model.train` refuses. Its `left` says whether training ended early, on request.

    Raises:
        MsResumeError: As `Checkpointer.start`.
        UsageError: The data set has no steps, or `save_every` is not positive. `Model.train` raises it before the first
            step where it was given another data set or epoch, or sink mode, in which a position means something else.
    """
    return callbacks.callback(
        _Training(save, network, optimizer, dataset, save_every, resume, components, settings, leave_on, start)
    )


class _Training:
    def __init__(
        self,
        save: str | Path,
        network: Any,
        optimizer: Any,
        dataset: Any,
        save_every: int,
        resume: bool,
        components: Sequence[Component],
        settings: Settings | None,
        leave_on: Sequence[signal.Signals],
        start: dict[str, Any],
    ) -> None:
        self._steps = int(dataset.get_dataset_size())
        if self._steps < 1 or save_every < 1:
            raise UsageError(
                f"a data set of {self._steps} steps, saved every {save_every}: expected at least 1 of each",
                hint="check the batch size and save_every",
            )
        self._save_every, self._dataset, self._epoch = save_every, dataset, -1
        self._checkpointer = Checkpointer(
            save,
            policy=network,
            optimizer=optimizer,
            components=[*components, Randomness()],
            steps_per_epoch=self._steps,
            settings=settings,
        )
        self._listens = bool(leave_on)
        if leave_on:
            self._checkpointer.leave_on(*leave_on)
        self._checkpointer.alone = True
        at = self._checkpointer.start(resume=resume and Path(save).exists(), **start)
        self._done = at.epoch * self._steps + at.step
        self.initial_epoch = at.epoch
        dataset.set_init_step(self._done)  # the pipeline goes on there, in the order of the epoch that it was in

    @property
    def left(self) -> bool:
        return self._checkpointer.left

    def begins(self, dataset: Any, *, sink_mode: bool, loads_a_file: bool) -> None:
        if dataset is not self._dataset or sink_mode:
            found = "dataset_sink_mode=True" if sink_mode else "another data set"
            raise UsageError(
                f"Model.train was given {found}: its position would not be the one that was saved",
                hint="model.train(epochs, DATASET, callbacks=[resume], initial_epoch=resume.initial_epoch) with the "
                "DATASET that the callback has, and without sink mode",
            )
        if loads_a_file:
            raise UsageError(
                "OnRequestExit(save_ckpt=True) is among the callbacks: it puts its own file, where there is one, over "
                "what was resumed, and swallows SIGTERM unless MS_ENABLE_GRACEFUL_EXIT=1",
                hint="take it out: ResumeCallback(leave_on=[signal.SIGTERM]) saves and ends training",
            )

    def epoch_begins(self, epoch: int) -> None:
        if self._epoch < 0 and epoch != self.initial_epoch:
            raise UsageError(
                f"Model.train begins with epoch {epoch}, and the data goes on in epoch {self.initial_epoch}",
                hint="model.train(..., initial_epoch=resume.initial_epoch)",
            )
        self._epoch = epoch

    def step_done(self) -> bool:
        """Whether training is to end, which saves. In a callback parameters do not change until it returns, so the copy
        has to be made by then."""
        self._done += 1
        if self._done % self._save_every == 0:
            self._save()
        return self._listens and self._checkpointer.leaves(self._checkpointer.gather_wishes())

    def trained(self) -> None:
        self._save()
        self._checkpointer.__exit__(None, None, None)

    def failed(self, error: BaseException) -> None:
        """What is being saved may end; the directory is free for another start, also in this process."""
        self._checkpointer.__exit__(type(error), error, None)

    def _save(self) -> None:
        self._checkpointer.begin(*divmod(self._done, self._steps))
        self._checkpointer.fence()
