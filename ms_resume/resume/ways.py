"""From what was asked for to what is started from: flags, then what of it is there, found by all ranks together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import DiskError, NothingToResume, UsageError
from ms_resume.load.names.name_map import NameMap
from ms_resume.ondisk import attempts
from ms_resume.records import Position, Writer
from ms_resume.resume import agree, choice, iteration
from ms_resume.resume.iteration import Model
from ms_resume.resume.session import Job, Loaded
from ms_resume.resume.start_mode import StartMode


@dataclass(frozen=True, slots=True)
class Way:
    """What a start mode leads to in this save directory. `weights` with `is_new` are all that is loaded; of `source`,
    `position` and `global_step` None is what `Checkpointer.start` makes of it."""

    weights: Path | None = None
    is_new: bool = False
    source: Path | None = None
    position: Position | None = None
    global_step: int | None = None
    name_map: NameMap | None = None
    model: Model | None = None


def find(job: Job, mode: StartMode, source: Path | None, ref_dir: Path | None) -> Way:
    """Looks for all that `mode` names. Nothing is loaded.

    Raises:
        UsageError, NothingToResume, Torn, Damaged, LayoutMismatch: It is not there, or not what it should be; the same
            on all ranks.
    """
    name_map, _ = agree.together(job.group, lambda: NameMap.read(mode.name_map) if mode.name_map else None)
    if mode.pretrained:
        return Way(mode.pretrained, is_new=True, name_map=name_map)
    model = Model.from_json(agree.from_first(job.group, lambda: _model(job, mode))) if mode.iteration else None
    weights = model.path if model and model.name else None
    if not mode.resume:
        return Way(weights, is_new=weights is not None, name_map=name_map, model=model)
    if mode.restarted and agree.from_first(job.group, lambda: _is_done(job, mode, source, ref_dir)):
        return Way(weights, name_map=name_map, model=model)
    position = None
    if path := mode.checkpoint:
        found, _ = agree.together(job.group, lambda: choice.given(path))
        source, position = found
    return Way(weights, False, source, position, mode.from_step, name_map, model)


def is_taken(job: Job, model: Model | None, loaded: Loaded) -> bool:
    """Whether the checkpoint was trained from the iteration model's weights already."""
    chosen = loaded.choice
    if model is None or chosen.position is None:
        return False
    found: bool = agree.from_first(job.group, lambda: iteration.is_taken(chosen.save, chosen.attempt, model.name))
    return found


def strategy(job: Job, model: Model | None, loaded: Loaded, writer: Writer) -> list[str]:
    """What the banner says of an iteration model; its configuration is written where it lacks one."""
    if model is None or job.group.rank != 0:
        return []
    at = f"{loaded.choice.save} at {loaded.choice.position}" if loaded.choice.position else ""
    lines = iteration.told(model, at, is_placed=bool(loaded.weights))
    try:
        wrote = iteration.write_config(model, _model_config(job), writer.attempt.attempt)
    except DiskError as error:
        wrote = f"warning: {error.message}"
    return [*lines, *([wrote] if wrote else [])]


def _model(job: Job, mode: StartMode) -> dict[str, Any]:
    model = iteration.find(job.save, mode.iteration)
    if model.name:
        iteration.check_config(model, _model_config(job))
    return model.to_json()


def _model_config(job: Job) -> Mapping[str, Any]:
    config: Mapping[str, Any] = job.about["model_config"]
    return config


def _is_done(job: Job, mode: StartMode, source: Path | None, ref_dir: Path | None) -> bool:
    """Whether a start of the live line went on from what is asked for already: whoever starts the same command again
    wants what came after."""
    records = attempts.read_all(job.save) if job.save.exists() else []
    line = attempts.line_of(records).bounds
    origins = [record.origin for record in records if record.attempt in line and record.origin]
    if not origins:
        return False
    save, position = (source or job.save).resolve(), None
    try:
        if mode.checkpoint:
            save, position = choice.given(mode.checkpoint)
        if mode.from_step is not None:
            position = choice.at_global_step(save, mode.from_step, ref_dir, job.steps_per_epoch)
    except (UsageError, NothingToResume):
        return True  # it was there for the first start: retention has taken it since
    if save != job.save:
        return any(origin.save == str(save) for origin in origins)
    return position is None or any(origin.position == position and origin.save is None for origin in origins)
