"""Pipelines of `mindspore.dataset`: opened at any step, and judged whether that is exact and what it costs.

Tried on 2.10.0 on a CPU: `set_init_step` on one iterator over all epochs is exact, a `skip` skips in every epoch, and
an iterator for each epoch repeats one order. With fast recovery what lies before the step is not read where the source
can be read at any index; a function that draws random numbers is then not where it was. Without it everything is read
again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Judgement:
    """What putting a pipeline at a step takes; `refused` says why it cannot be exact."""

    rereads: str = ""
    refused: str = ""

    @property
    def fast(self) -> bool:
        return not self.rereads


def judge(pipeline: Any, *, pure: bool) -> Judgement:
    """Looks at every stage of a pipeline.

    Args:
        pure: The trainer's word that its Python functions give the same for the same sample, whenever they are called.
    """
    stages = list(_stages(pipeline))
    functions = [] if pure else [stage for stage in stages if _functions(stage)]
    for stage in functions:
        if stage.num_parallel_workers not in (None, 1) or getattr(stage, "python_multiprocessing", False):
            return Judgement(
                refused=f"{_name(stage)} calls Python functions in {stage.num_parallel_workers} workers: if one draws "
                "random numbers, who draws which depends on the clock"
            )
    for stage in stages:
        kind = type(stage).__name__
        if kind == "GeneratorDataset" and _is_spent(stage.source):
            return Judgement(refused=f"{_name(stage)} reads an iterator, which can be read only once")
        if len(stage.children) > 1 or kind in ("SyncWaitDataset", "BucketBatchByLengthDataset", "TransferDataset"):
            return Judgement(refused=f"{_name(stage)} cannot be put at a step: MindSpore begins it at its start")
    reasons = [f"{_name(stage)} calls Python functions" for stage in functions]
    reasons += [reason for stage in stages if (reason := _order(stage))]
    return Judgement(rereads=reasons[0] if reasons else "")


def opened(build: Callable[[], Any], *, seed: int, step: int, epochs: int, fast: bool) -> Iterable[dict[str, Any]]:
    """The rows from a step on, counted over all epochs; each loop over them gives one epoch. What Python and NumPy draw
    next stays as it was."""
    import mindspore.dataset as ds

    before = ds.config.get_fast_recovery()
    pipeline = seeded(build, seed)
    pipeline.set_init_step(step)
    ds.config.set_fast_recovery(fast)
    try:
        rows: Iterable[dict[str, Any]] = pipeline.create_dict_iterator(num_epochs=epochs, output_numpy=True)
    finally:
        ds.config.set_fast_recovery(before)
    return rows


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """A pipeline whose order depends on the seed alone. MindSpore seeds Python's and NumPy's random numbers along: in a
    resume, that would be just after they were restored."""
    import mindspore.dataset as ds
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    ds.config.set_seed(seed)
    try:
        return build()
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _stages(pipeline: Any) -> Iterator[Any]:
    yield pipeline
    for child in pipeline.children:
        yield from _stages(child)


def _functions(stage: Any) -> bool:
    """Whether a stage calls Python that is not MindSpore's own."""
    calls = [*(getattr(stage, "operations", None) or ()), getattr(stage, "per_batch_map", None)]
    calls.append(getattr(stage, "predicate", None))
    return any(callable(call) and not type(call).__module__.startswith("mindspore.dataset") for call in calls)


def _order(stage: Any) -> str:
    """Why what lies before a step has to be read again, where it has to."""
    kind = type(stage).__name__
    if kind in ("ShuffleDataset", "RepeatDataset", "FilterDataset", "SkipDataset", "TakeDataset"):
        return f"{_name(stage)} knows its place only by what passed it"
    if not stage.children and not hasattr(stage, "sampler"):
        return f"{_name(stage)} can be read only from its start"
    if kind == "GeneratorDataset" and not hasattr(stage.source, "__getitem__"):
        return f"{_name(stage)} can be read only from its start"
    return ""


def _is_spent(source: Any) -> bool:
    """Whether what was read of a source is gone."""
    return hasattr(source, "__next__") and not hasattr(source, "__getitem__")


def _name(stage: Any) -> str:
    return type(stage).__name__.removesuffix("Dataset")
