"""Iteration models beside trainer checkpoints: which one a start takes its weights from, and what is said of it.

They hold weights alone. Where both are there, weights come from the iteration model and everything else from the
checkpoint, unless the checkpoint was saved after its weights had come from that same model: those were trained since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume import locate
from ms_resume.errors import LayoutMismatch, NothingToResume
from ms_resume.layouts import iterations, pretrained
from ms_resume.ondisk import atomic, attempts, reading
from ms_resume.records import Position, Rejection
from ms_resume.resume.start_mode import AUTO

_WHOLE = "weights only"
_NEAREST = 2


@dataclass(frozen=True, slots=True)
class Model:
    """What a start looks for: `name` is `iter_N`, empty where none is whole; `path` the directory with its weights."""

    name: str
    path: Path
    rejected: tuple[Rejection, ...] = ()

    def to_json(self) -> dict[str, Any]:
        rejected = [rejection.to_json() for rejection in self.rejected]
        return {"name": self.name, "path": str(self.path), "rejected": rejected}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Model:
        rejected = (Rejection(Position(*r["position"]), r["kind"], r["reason"]) for r in data["rejected"])
        return cls(data["name"], Path(data["path"]), tuple(rejected))


def find(save: Path, asked: str) -> Model:
    """The newest whole model for `auto`; or exactly `iter_N`. A newer one that is not whole is passed over.

    Raises:
        NothingToResume: That one is not there; the nearest are named.
        Torn, Damaged: It is not whole.
    """
    there = iterations.take(save) if save.is_dir() else None
    positions = there.positions if there else []
    rejected: list[Rejection] = []
    if asked != AUTO:
        positions = [_exactly(save, positions, Position(int(asked.partition("_")[2]), 0))]
    for position in positions:
        assert there is not None  # it has a position
        verdict = there.judge(position)
        if verdict.kind == _WHOLE:
            return Model(_name(position), _home(there, position), tuple(rejected))
        if asked != AUTO:
            raise locate.refusal(save, verdict)
        rejected.append(verdict)
    return Model("", save, tuple(rejected))


def check_config(model: Model, model_config: Mapping[str, Any]) -> None:
    """Raises LayoutMismatch where the `config.json` beside the weights is of another model than this job's, which the
    weights fit: whoever reads it would build the wrong net."""
    path = model.path / pretrained.CONFIG
    try:
        found = reading.parse(reading.content(path))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise _wrong_config(path, f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _wrong_config(path, "no JSON object")
    for key in sorted(found.keys() & model_config.keys()):
        if found[key] != _plain(model_config[key]):
            raise _wrong_config(path, f"{key} is {found[key]!r}, this job's model has {_plain(model_config[key])!r}")


def write_config(model: Model, model_config: Mapping[str, Any], attempt: str) -> str:
    """Writes a missing `config.json` from the job's own model, and says so; empty where there is nothing to do.

    Raises:
        DiskError: It cannot be written.
    """
    path = model.path / pretrained.CONFIG
    if not model_config or path.exists():
        return ""
    atomic.publish(path, [json.dumps(_plain(dict(model_config)), indent=2).encode() + b"\n"], attempt)
    return f"{model.name}: {pretrained.CONFIG} was missing, and is written from this job's model"


def is_taken(save: Path, attempt: str | None, name: str) -> bool:
    """Whether a checkpoint of `attempt` was trained from that model's weights: its own start took them, or one that it
    descends from."""
    records = {record.attempt: record for record in attempts.read_all(save)}
    seen: set[str] = set()
    while attempt in records and attempt not in seen:
        seen.add(attempt)
        record = records[attempt]
        if record.weights == name:
            return True
        attempt = record.origin.attempt if record.origin and record.origin.save is None else None
    return False


def told(model: Model, checkpoint: str, *, is_placed: bool) -> list[str]:
    """What the banner says of the choice between the two.

    Args:
        checkpoint: Where the training state comes from; empty for a new run.
        is_placed: Whether the model's weights are taken.
    """
    lines = [f"passed over {_name(r.position)}: {r.kind}: {r.reason}" for r in model.rejected]
    if is_placed and checkpoint:
        lines += ["strategy: BOTH found: weights of the iteration model, training state of the checkpoint"]
    elif is_placed:
        lines += ["strategy: ITERATION MODEL only: its weights, and a training state that starts anew"]
    elif checkpoint:
        why = f"{model.name} is what its weights were trained from" if model.name else "no whole iteration model"
        lines += [f"strategy: CHECKPOINT only: {why}"]
    else:
        lines += ["strategy: FROM THE START: neither a checkpoint nor a whole iteration model"]
    if is_placed:
        lines += [f"  model weights from: {model.name}, {model.path} (weights only, no optimizer)"]
    if checkpoint:
        held = "weights, optimizer, position, components"
        lines += [f"  {'training state' if is_placed else 'everything'} from: {checkpoint} ({held})"]
    return lines


def _exactly(save: Path, positions: list[Position], wanted: Position) -> Position:
    if wanted in positions:
        return wanted
    near = sorted(positions, key=lambda position: abs(position.epoch - wanted.epoch))[: 2 * _NEAREST]
    said = ", ".join(_name(position) for position in sorted(near))
    raise NothingToResume(
        f"{save}: no iteration model {_name(wanted)}, {f'the nearest are {said}' if near else 'nor any'}",
        hint="give one of those to --resume_from_iteration, or auto for the newest whole one"
        if near
        else "iteration models are directories iter_N in the save directory",
    )


def _home(there: iterations.Iterations, position: Position) -> Path:
    return next(iter(there.files(position).values())).parent


def _name(position: Position) -> str:
    return f"iter_{position.epoch}"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _wrong_config(path: Path, what: str) -> LayoutMismatch:
    return LayoutMismatch(
        f"{path}: contradicts the weights beside it: {what}",
        hint="correct that file, or move it away: it is written anew from this job's model",
        path=str(path),
    )
