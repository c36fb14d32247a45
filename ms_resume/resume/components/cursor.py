"""A run's place in a data set that can be read at any index: exact in the middle of an epoch, and nothing is re-read.

The order is a formula of seed and epoch, the same for all ranks, so the place is one number: how many samples all
ranks together have finished with. It means the same with another batch size or number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ms_resume.errors import LayoutMismatch, UsageError
from ms_resume.resume.components import identity, permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1


class Cursor:
    """Gives each rank the indices of its samples, step by step.

    Args:
        size: Samples in the data set.
        batch: Samples a rank and step.
        data: What the data set is recognised by: paths, arrays, or plain values by name. A resume with another one is
            refused, and the error says what changed.
        shuffle: Without it the order is that of the data set.
        keep_tail: The last step of an epoch takes what is left, shared out evenly; some ranks may get less than the
            others or nothing. Without it what does not fill a step is left out, other samples in each epoch.

    Example:
        for epoch in range(...):
            for indices in cursor.epoch():
                ...                         # save here, then train on data[indices]
    """

    def __init__(
        self,
        size: int,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        shuffle: bool = True,
        keep_tail: bool = False,
        data: Mapping[str, Any] | None = None,
        name: str = "data",
    ) -> None:
        if size < 1 or batch < 1 or not 0 <= rank < num_ranks:
            raise UsageError(f"a cursor over {size} samples, {batch} a step, for rank {rank} of {num_ranks}", hint="")
        if size < batch * num_ranks and not keep_tail:
            raise UsageError(
                f"{size} samples, but one step of all ranks takes {batch} x {num_ranks}",
                hint="take a smaller batch, fewer ranks, more data, or keep_tail=True",
            )
        self.name = name
        self._size, self._seed, self._batch, self._shuffle = size, seed, batch, shuffle
        self._rank, self._num_ranks, self._keep_tail = rank, num_ranks, keep_tail
        self._data = identity.of(data or {})
        self._epoch = self._done = 0
        self._told: list[str] = []

    @property
    def steps_per_epoch(self) -> int:
        return self._steps(self._size)

    @property
    def steps_left(self) -> int:
        """Of the epoch that the cursor stands in."""
        return self._steps(self._size - self._done)

    def epoch(self) -> Iterator[NDArray[Any]]:
        """This rank's indices for each step that is left of the epoch."""
        for _ in range(self.steps_left):
            yield self.peek()
            # Counted when the caller comes back for more: a save at the top of a step has not trained it.
            self._done = min(self._done + self._batch * self._num_ranks, self._size)
        self._epoch, self._done = self._epoch + 1, 0

    def peek(self) -> NDArray[Any]:
        """This rank's indices for the step that is next; the cursor stays where it is."""
        import numpy as np

        count = min(self._batch * self._num_ranks, self._size - self._done)
        first, end = (self._done + count * rank // self._num_ranks for rank in (self._rank, self._rank + 1))
        places = np.arange(first, end, dtype=np.int64)
        if not self._shuffle:
            return places
        found: NDArray[Any] = permutation.shuffled(places, self._size, seed=self._seed, epoch=self._epoch)
        return found

    def seek(self, epoch: int, step: int) -> None:
        """Puts the cursor at the top of a step, as if all before it were done with this batch and these ranks."""
        if not 0 <= step <= self.steps_per_epoch:
            raise LayoutMismatch(
                f"{self.name}: step {step} of an epoch that has {self.steps_per_epoch}",
                hint="give it the data, batch size, and number of ranks of the run that saved",
            )
        self._epoch, self._done = epoch, min(step * self._batch * self._num_ranks, self._size)

    def state(self) -> dict[str, Any]:
        return {"version": VERSION, "epoch": self._epoch, "done": self._done, **self._how(), **self._what()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts the cursor where `state` was taken.

        Raises:
            LayoutMismatch: The data set, the seed, or the kind of order is another one, or the place is behind its end.
            NamesMismatch: The state is of another version.
        """
        identity.check_version(self.name, state, VERSION)
        what = self._what()
        hint = "give this run the data and the seed that it was saved with"
        saved = {"size": state["size"], "seed": state["seed"], "shuffle": state["shuffle"]} | state["data"]
        now = {"size": what["size"], "seed": what["seed"], "shuffle": what["shuffle"]} | what["data"]
        identity.check(f"component {self.name}: other data", saved, now, hint)
        if not 0 <= state["done"] <= self._size or state["epoch"] < 0:
            raise LayoutMismatch(
                f"component {self.name}: it stands at sample {state['done']} of {self._size} in epoch {state['epoch']}",
                hint=hint,
            )
        self._epoch, self._done = state["epoch"], state["done"]
        was, now_ = (state["batch"], state["ranks"]), (self._batch, self._num_ranks)
        if was != now_:
            told = f"goes on at sample {self._done} of epoch {self._epoch} with {now_[0]} x {now_[1]} samples a step"
            self._told = [f"{told}, before {was[0]} x {was[1]}: none comes twice"]

    def notes(self) -> list[str]:
        """What the banner says of the restore."""
        return self._told

    def _steps(self, samples: int) -> int:
        together = self._batch * self._num_ranks
        return -(-samples // together) if self._keep_tail else samples // together

    def _how(self) -> dict[str, Any]:
        return {"batch": self._batch, "ranks": self._num_ranks}

    def _what(self) -> dict[str, Any]:
        return {"size": self._size, "seed": self._seed, "shuffle": self._shuffle, "data": self._data}
