"""A run's place in a pipeline of `mindspore.dataset`: exact where MindSpore can be; the banner says what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ms_resume.errors import LayoutMismatch, UsageError
from ms_resume.framework import datasets
from ms_resume.resume.components import identity

VERSION = 1


class DatasetCursor:
    """Iterates over a pipeline that can be put at any step.

    Args:
        build: Makes the pipeline, batched and sharded. Called when the order has been seeded, and again at a resume.
        epochs: All epochs of the run: one iterator goes over them.
        pure: The pipeline's Python functions give the same for the same sample, whenever they are called. Then nothing
            has to be read again because of them.
        data: What the data set is recognised by: paths, arrays, or plain values by name.

    Raises:
        UsageError: Neither seeking nor reading again would be exact.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        *,
        epochs: int,
        seed: int,
        pure: bool = False,
        data: Mapping[str, Any] | None = None,
        name: str = "data",
    ) -> None:
        self.name = name
        self._build, self._epochs, self._seed = build, epochs, seed
        self._data = identity.of(data or {})
        self._step = 0
        self._rows: Iterable[dict[str, Any]] | None = None
        self._told: list[str] = []
        pipeline = datasets.seeded(build, seed)
        self.steps_per_epoch = int(pipeline.get_dataset_size())
        self._judged = datasets.judge(pipeline, pure=pure)
        if self._judged.refused or self.steps_per_epoch < 1:
            raise UsageError(
                f"{name}: {self._judged.refused or 'the pipeline has no step'}; a resume could not be exact",
                hint="use ms_resume.Cursor over an indexed source, one worker, or pure=True where that is true",
            )

    def epoch(self) -> Iterator[dict[str, Any]]:
        """The rows that are left of the epoch, as NumPy arrays by column."""
        if self._rows is None:
            fast = self._judged.fast
            self._rows = datasets.opened(self._build, seed=self._seed, step=self._step, epochs=self._epochs, fast=fast)
        for row in self._rows:  # ends at each epoch's end, and goes on with the next one
            yield row
            # Counted when the caller comes back for more: a save at the top of a step has not trained it.
            self._step += 1

    def seek(self, epoch: int, step: int) -> None:
        """Puts it at the top of a step."""
        self._step, self._rows = epoch * self.steps_per_epoch + step, None
        if self._judged.rereads and self._step:
            self._told = [f"reads {self._step} steps again: {self._judged.rereads}"]

    def state(self) -> dict[str, Any]:
        return {"version": VERSION, "step": self._step, "is": self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where `state` was taken.

        Raises:
            LayoutMismatch: Seed, steps of an epoch, or data are others, or the place is behind the end of the run.
            NamesMismatch: The state is of another version.
        """
        identity.check_version(self.name, state, VERSION)
        hint = "give this run the data, the seed, and the batches that it was saved with"
        identity.check(f"component {self.name}: other data", state["is"], self._identity(), hint)
        if not 0 <= state["step"] <= self._epochs * self.steps_per_epoch:
            raise LayoutMismatch(
                f"component {self.name}: it stands at step {state['step']}, this run has {self._epochs} epochs of "
                f"{self.steps_per_epoch}",
                hint="give it as many epochs as it has run already, or more",
            )
        self.seek(*divmod(state["step"], self.steps_per_epoch))

    def notes(self) -> list[str]:
        """What the banner says of the restore."""
        return self._told

    def _identity(self) -> dict[str, Any]:
        return {"seed": self._seed, "steps_per_epoch": self.steps_per_epoch, **self._data}
