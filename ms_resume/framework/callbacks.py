"""A `mindspore.train.Callback` that hands on what `Model.train` tells it."""

from __future__ import annotations

from typing import Any, Protocol


class Trained(Protocol):
    """Who wants to hear of it."""

    initial_epoch: int

    @property
    def left(self) -> bool: ...

    def begins(self, dataset: Any, *, sink_mode: bool, loads_a_file: bool) -> None: ...

    def epoch_begins(self, epoch: int) -> None: ...

    def step_done(self) -> bool: ...

    def trained(self) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def callback(owner: Trained) -> Any:
    """`Model.train` takes subclasses of its own Callback only, which is there once MindSpore is imported."""
    from mindspore.train import Callback, OnRequestExit

    class ResumeCallback(Callback):  # type: ignore[misc]  # MindSpore ships no types
        initial_epoch = owner.initial_epoch

        @property
        def left(self) -> bool:
            return owner.left

        def on_train_begin(self, run_context: Any) -> None:
            given = run_context.original_args()
            loads = any(isinstance(other, OnRequestExit) and other.save_ckpt for other in given.list_callback)
            owner.begins(given.train_dataset, sink_mode=bool(given.dataset_sink_mode), loads_a_file=loads)

        def on_train_epoch_begin(self, run_context: Any) -> None:
            owner.epoch_begins(int(run_context.original_args().cur_epoch_num) - 1)

        def on_train_step_end(self, run_context: Any) -> None:
            if owner.step_done():
                run_context.request_stop()

        def on_train_end(self, run_context: Any) -> None:
            owner.trained()

        def __exit__(self, *err: Any) -> None:
            if err[1] is not None:
                owner.failed(err[1])

    return ResumeCallback()
