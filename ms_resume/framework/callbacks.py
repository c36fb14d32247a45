"""A `mindspore.train.Callback` that hands on what `Model.train` tells it."""

from __future__ import annotations

from typing import Any, Protocol


class Trained(Protocol):
    """Who wants to hear of it."""

    initial_epoch: int

    def step_done(self) -> None: ...

    def trained(self) -> None: ...


def callback(owner: Trained) -> Any:
    """`Model.train` takes subclasses of its own Callback only, which is there once MindSpore is imported."""
    from mindspore.train import Callback

    class ResumeCallback(Callback):  # type: ignore[misc]  # MindSpore ships no types
        initial_epoch = owner.initial_epoch

        def on_train_step_end(self, run_context: Any) -> None:
            owner.step_done()

        def on_train_end(self, run_context: Any) -> None:
            owner.trained()

    return ResumeCallback()
