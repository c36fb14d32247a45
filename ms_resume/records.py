"""The values that stages hand each other: frozen, plain, and free of open files.

Words are those of docs/format.md: a *position* (E, S) says that S steps of epoch E are done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ms_resume.errors import UsageError

ROLES = ("policy", "optimizer", "ref", "state")
"""In the order in which they are written and listed."""

_RUNS_SAID = 8


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """S steps of epoch E are done, run (E, S) next. 0-based; the end of an epoch is (E + 1, 0)."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch}_{self.step}"

    def to_json(self) -> list[int]:
        return [self.epoch, self.step]

    def normal(self, steps_per_epoch: int | None) -> Position:
        """Stock code's final form (epochs, steps per epoch) as the (epochs, 0) that it means."""
        return Position(self.epoch, 0) if self.step and self.step == steps_per_epoch else self

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises UsageError where `text` is not E_S."""
        if match := re.fullmatch(r"(\d+)_(\d+)", text, re.ASCII):
            return cls(int(match[1]), int(match[2]))
        raise UsageError(f"{text!r} is not a position", hint="write it as E_S, for example 0_10")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor in a payload: safetensors dtype (`F32`, `BF16`...), shape on this rank, bytes in the data part."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Payload:
    """One rank's file of one role, as its vote names it. `path` is relative to the save directory, with `/`."""

    role: str
    path: str
    bytes: int
    digest: str
    attempt: str


@dataclass(frozen=True, slots=True)
class Vote:
    """One rank's word that its payloads of one position are on disk: the commit."""

    position: Position
    global_step: int
    steps_per_epoch: int
    rank: int
    world_size: int
    attempt: str
    files: tuple[Payload, ...]
    layout: str = ""
    parallel: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tool: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""

    def file(self, role: str) -> Payload | None:
        return next((payload for payload in self.files if payload.role == role), None)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an attempt started from; `attempt` is None for a stock checkpoint, `save` is another directory."""

    position: Position
    attempt: str | None
    save: str | None = None


@dataclass(frozen=True, slots=True)
class DeadStock:
    """A stock position that an attempt went back past; it stays dead until one of these files changes."""

    position: Position
    files: tuple[tuple[str, int, int], ...]
    """(path relative to the save directory, bytes, mtime in ns) of its policy files."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the run; the newest one owns the directory."""

    attempt: str
    origin: Origin | None
    world_size: int
    host: str = ""
    boot_id: str = ""
    pid: int = 0
    pid_start: int = 0
    pid_namespace: str = ""
    created_at: str = ""
    label: str = ""
    weights: str = ""
    """The iteration model that this start took its weights from, `iter_N`."""

    dead_stock: tuple[DeadStock, ...] = ()

    @property
    def ordinal(self) -> int:
        return ordinal_of(self.attempt)


@dataclass(frozen=True, slots=True)
class Writer:
    """One rank of the attempt that owns a save directory: who it is that writes."""

    save: Path
    attempt: Attempt
    rank: int
    world_size: int
    leader: int = 0
    """The first rank that sees this directory: another one than 0 where each node has a disk of its own."""

    @property
    def leads(self) -> bool:
        return self.rank == self.leader


def ordinal_of(attempt: str) -> int:
    return int(attempt.partition("-")[0])


def in_ranges(ranks: Iterable[int]) -> str:
    """Ranks as people read them, sorted: `3, 7-1023`. Where there are many gaps, the first few and how many in all."""
    runs: list[tuple[int, int]] = []
    for rank in sorted(set(ranks)):
        first = runs.pop()[0] if runs and runs[-1][1] == rank - 1 else rank
        runs.append((first, rank))
    said = [_run(first, last) for first, last in runs[:_RUNS_SAID]]
    count = sum(last - first + 1 for first, last in runs)
    return ", ".join(said) + (f", ... ({count} in all)" if len(runs) > _RUNS_SAID else "")


def _run(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}{', ' if last == first + 1 else '-'}{last}"


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a checkpoint, as a layout found it."""

    rank: int
    role: str
    path: Path

    def to_json(self) -> dict[str, Any]:
        return {"rank": self.rank, "role": self.role, "path": str(self.path)}


@dataclass(frozen=True)
class Checkpoint:
    """A position that is whole: every rank, every role. `votes` are by rank, on a node's own disk those that
    lie there; of a layout without votes `found` are its files."""

    save: Path
    layout: str
    position: Position
    world_size: int
    found: tuple[Found, ...] = ()
    attempt: str | None = None
    votes: tuple[Vote, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def files(self) -> tuple[Found, ...]:
        """By rank. Of what votes name they are made when somebody asks: there may be many thousands."""
        named = (Found(vote.rank, file.role, self.save / file.path) for vote in self.votes for file in vote.files)
        return self.found or tuple(named)

    def of_rank(self, rank: int) -> dict[str, Path]:
        """Role to path of one rank."""
        return {found.role: found.path for found in self._by_rank.get(rank, ())}

    @cached_property
    def _by_rank(self) -> dict[int, list[Found]]:
        by_rank: dict[int, list[Found]] = {}
        for found in self.files:
            by_rank.setdefault(found.rank, []).append(found)
        return by_rank


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a position is not one to resume from. `kind`: abandoned, torn, or damaged."""

    position: Position
    kind: str
    reason: str
    ranks: tuple[int, ...] = ()
    attempt: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position.to_json(),
            "kind": self.kind,
            "reason": self.reason,
            "ranks": list(self.ranks),
        }


@dataclass(frozen=True, slots=True)
class Located:
    """What a search found: the newest whole checkpoint, and why each newer position is not it."""

    save: Path
    checkpoint: Checkpoint | None
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[str, ...] = ()
