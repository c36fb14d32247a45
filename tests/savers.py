"""Single ranks that write without a Checkpointer, in one thread, in an order that the test decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ms_resume import ownership, write
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, attempts, names, votes
from ms_resume.records import Attempt, Origin, Position, Vote, Writer
from ms_resume.state import Arrays, read_all, scalar

ABOUT = {
    "steps_per_epoch": 1000,
    "layout": "",
    "parallel": {},
    "config": {},
    "model_config": {},
    "metrics": {},
    "tool": {},
}


def open_attempt(save: Path, came_from: str = "", *, by: str | None = None, world_size: int = 1) -> Attempt:
    """A new start of the run, from the position `came_from` (of attempt `by`, or stock's), or fresh."""
    atomic.make_dirs(save)
    origin = Origin(Position.parse(came_from), by) if came_from else None
    return ownership.open_attempt(survey.take(save), origin, world_size, after=attempts.newest_ordinal(save))


def writer(save: Path, attempt: Attempt, rank: int = 0) -> Writer:
    return Writer(save, attempt, rank, attempt.world_size)


def snapshot(at: str, *, value: float = 1.0, ref: float = 1.0, file_format: str = "safetensors") -> write.Snapshot:
    position = Position.parse(at)
    policy = read_all(Arrays(w=np.full((2, 3), value, np.float32)))
    optimizer = Arrays({"w": np.full((2, 3), value, np.float32), "adam_m.w": np.zeros((2, 3), np.float32)})
    numbers = {"epoch_num": scalar(position.epoch), "step_num": scalar(position.step)}
    roles = {
        "policy": {**policy, **numbers},
        "optimizer": read_all(optimizer),
        "ref": read_all(Arrays(w=np.full((2, 3), ref, np.float32))),
        "state": {"global_step": scalar(position.step)},
    }
    return write.Snapshot(position, position.step, roles, {}, file_format)


def save(
    who: Writer,
    at: str,
    previous: Vote | None = None,
    *,
    value: float = 1.0,
    ref: float = 1.0,
    file_format: str = "safetensors",
) -> Vote:
    """One rank's save; its vote."""
    taken = snapshot(at, value=value, ref=ref, file_format=file_format)
    return write.save(who, taken, ABOUT, previous).vote


def save_all(at: str, *writers: Writer, value: float = 1.0) -> list[Vote]:
    return [save(who, at, value=value) for who in writers]


def files(save_dir: Path) -> dict[str, bytes]:
    """Everything below `save_dir`, by relative path."""
    return {p.relative_to(save_dir).as_posix(): p.read_bytes() for p in sorted(save_dir.rglob("*")) if p.is_file()}


def origin(at: str, by: str | None = None) -> Origin:
    return Origin(Position.parse(at), by)


def reference(save_dir: Path, at: str, rank: int) -> str:
    """The position of the reference file that a vote names."""
    named = votes.read(names.vote(save_dir, Position.parse(at), rank)).file("ref")
    assert named is not None
    return Path(named.path).stem.rpartition("-")[2]
