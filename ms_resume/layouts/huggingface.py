"""Hugging Face's Trainer, and LLaMA-Factory, which uses it: a directory for each save; position (0, global step).

    checkpoint-N/trainer_state.json                   saved last; its `global_step` is N
    checkpoint-N/model.safetensors and its like       `pretrained.py`
    checkpoint-N/optimizer.pt, scheduler.pt           [scaler.pt]; without them a resume starts with a fresh optimizer
    checkpoint-N/rng_state[_R].pth                    of each rank
    checkpoint-N/global_stepN/                        with DeepSpeed, in the place of optimizer.pt: `deepspeed.py`
    checkpoint-N/{pytorch_model_fsdp_0,optimizer_0}/  with FSDP in shards; their .metadata is saved last

The newest is by number. One that lacks something is torn, also where the Trainer would load the rest without a word.
https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts import deepspeed, pretrained, ranked
from ms_resume.layouts.survey import MOST_LISTED
from ms_resume.ondisk import names, reading
from ms_resume.records import Checkpoint, Found, Position, Rejection, in_ranges

NAME = "huggingface-trainer"
STATE = "trainer_state.json"
_CHECKPOINT = re.compile(rf"checkpoint-(?P<step>{names.NUMBER})", re.ASCII)
_RANDOM = re.compile(rf"rng_state(?:_(?P<rank>{names.NUMBER}))?\.pth", re.ASCII)
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_SCHEDULER, _SCALER = "scheduler.pt", "scaler.pt"
_FSDP_MODEL, _FSDP_OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
_STATE_LIMIT = 64 << 20
"""It holds what was logged since the start."""


@dataclass(frozen=True)
class Checkpoints:
    """A `layouts.Holding`. With `uses_deepspeed` each must have its `global_stepN`, else where its files say so."""

    NAME: str
    save: Path
    directories: Mapping[Position, Path]
    uses_deepspeed: bool = False

    @property
    def positions(self) -> list[Position]:
        return sorted(self.directories, reverse=True)

    def files(self, position: Position) -> ranked.Files:
        try:
            return _Inside(self.directories[position], position.step).files
        except (Damaged, OSError):
            return {}

    def directory(self, position: Position) -> Path:
        return self.directories[position]

    def judge(self, position: Position) -> Checkpoint | Rejection:
        try:
            return self._judged(position, _Inside(self.directories[position], position.step))
        except Damaged as error:
            return Rejection(position, "damaged", error.message)
        except OSError as error:  # a job that is running rotates it away
            return Rejection(position, "torn", f"{error.filename}: {error.strerror}")

    def _judged(self, position: Position, inside: _Inside) -> Checkpoint | Rejection:
        if STATE not in inside.listed:
            return Rejection(position, "torn", f"{inside.path.name}: no {STATE}, which is saved last")
        inside.check_state()
        if inside.holds_weights_only:
            reason = "whole, and without optimizer (save_only_model): a run can start from it, not resume"
            if not (lacks := inside.lacks_weights()):
                return Rejection(position, "weights only", reason)
            return Rejection(position, "torn", *lacks)
        if lacks := inside.lacks(self.uses_deepspeed):
            return Rejection(position, "torn", *lacks)
        for (_, rank), path in sorted(inside.files.items()):
            try:
                pretrained.check(path)
            except Damaged as error:
                return Rejection(position, "damaged", error.message, (rank,))
        pretrained.check_index(inside.weights)
        found = tuple(Found(rank, role, path) for (role, rank), path in sorted(inside.files.items(), key=_by_rank))
        warnings = (*inside.warnings(), *self._fewer_ranks(position, inside))
        return Checkpoint(self.save, NAME, position, inside.world_size, found, warnings=warnings)

    def _fewer_ranks(self, position: Position, inside: _Inside) -> Iterable[str]:
        older = next((other for other in self.positions if other < position), None)
        before = _Inside(self.directories[older], older.step).world_size if older else 0
        if older and before > inside.world_size:
            yield f"{inside.path.name} is of {inside.world_size} ranks, {self.directories[older].name} of {before}"


def evidence(directory: Path) -> Path | None:
    return next((path for path, _ in ranked.files_like(directory, _CHECKPOINT, given=True)), None)


def take(directory: Path, *, uses_deepspeed: bool = False) -> Checkpoints:
    found = ranked.files_like(directory, _CHECKPOINT, given=True)
    return Checkpoints(
        NAME, directory, {Position(0, int(match["step"])): path for path, match in found}, uses_deepspeed
    )


def step_of(name: str) -> int | None:
    """N of `checkpoint-N`."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match["step"]) if match else None


_Lacks = tuple[str, tuple[int, ...]]


def _by_rank(entry: tuple[tuple[str, int], Path]) -> tuple[int, str]:
    (role, rank), _ = entry
    return rank, role


@dataclass(frozen=True)
class _Inside:
    """One checkpoint-N: what is there, listed once."""

    path: Path
    step: int

    @cached_property
    def listed(self) -> frozenset[str]:
        return frozenset(reading.listed(self.path))

    @cached_property
    def weights(self) -> pretrained.Weights:
        return pretrained.find(self.path)

    @cached_property
    def random(self) -> dict[int, Path]:
        found = [(name, match) for name in self.listed if (match := _RANDOM.fullmatch(name))]
        ranks = {int(match["rank"] or 0): self.path / name for name, match in found}
        return {rank: path for rank, path in ranks.items() if rank < names.MOST_RANKS}

    @cached_property
    def deepspeed(self) -> deepspeed.Step:
        return deepspeed.find(self.path / deepspeed.name(self.step), max(self.random, default=0) + 1)

    @property
    def has_deepspeed(self) -> bool:
        return deepspeed.name(self.step) in self.listed

    @property
    def world_size(self) -> int:
        return self.deepspeed.world_size if self.has_deepspeed else max(self.random, default=0) + 1

    @cached_property
    def files(self) -> dict[tuple[str, int], Path]:
        """Those that are judged by what is inside."""
        named = {"optimizer": _OPTIMIZERS, "scheduler": (_SCHEDULER,), "scaler": (_SCALER,)}
        found = {
            (role, 0): self.path / name for role, options in named.items() for name in options if name in self.listed
        }
        found |= {("random", rank): path for rank, path in self.random.items()}
        return {**self.weights.files, **found, **(self.deepspeed.files if self.has_deepspeed else {})}

    @property
    def holds_weights_only(self) -> bool:
        trained = (*_OPTIMIZERS, _SCHEDULER, _SCALER, _FSDP_OPTIMIZER, deepspeed.LATEST)
        return not (self.random or self.listed & {*trained} or any(n.startswith("global_step") for n in self.listed))

    def check_state(self) -> None:
        """Raises Damaged where trainer_state.json is another step's, or no JSON."""
        path = self.path / STATE
        try:
            document = reading.parse(reading.content(path, _STATE_LIMIT))
        except ValueError as error:
            raise reading.damaged(path, f"no JSON: {error}") from None
        said = document.get("global_step") if isinstance(document, dict) else None
        if said != self.step:
            raise reading.damaged(path, f"says global_step {reading.brief(said)}, its directory {self.step}")

    def lacks(self, uses_deepspeed: bool) -> _Lacks | None:
        """What is not there, by names, and of which ranks."""
        if self.has_deepspeed:
            return self._lacks_of_deepspeed()
        of_deepspeed = sorted(n for n in self.listed if n == deepspeed.LATEST or n.startswith("global_step"))
        if uses_deepspeed or of_deepspeed:
            why = "DeepSpeed is used" if uses_deepspeed else f"{of_deepspeed[0]} is there, so DeepSpeed was used"
            return f"{self.path.name}: no {deepspeed.name(self.step)}, and {why}", ()
        return self._lacks_shards() or self._lacks_of_optimizer() or self.lacks_weights() or self._lacks_random()

    def lacks_weights(self) -> _Lacks | None:
        if _FSDP_MODEL in self.listed and not self.weights.files:
            return None
        return (self.weights.torn, self.weights.ranks) if self.weights.torn else None

    def _lacks_of_deepspeed(self) -> _Lacks | None:
        if self.deepspeed.torn:
            return f"{self.path.name}/{self.deepspeed.torn}", self.deepspeed.ranks
        if self.weights.torn and (
            self.weights.files or self.weights.index
        ):  # none at all: ZeRO 3 keeps them in global_stepN alone
            return self.weights.torn, self.weights.ranks
        return self._lacks_random()

    def _lacks_of_optimizer(self) -> _Lacks | None:
        if _FSDP_OPTIMIZER not in self.listed and not self.listed & {*_OPTIMIZERS}:
            return f"{self.path.name}: neither {deepspeed.name(self.step)} nor {_OPTIMIZERS[0]}", (0,)
        if _SCHEDULER not in self.listed:
            return f"{self.path.name}: no {_SCHEDULER}, and the Trainer loads the optimizer only with it", (0,)
        return None

    def _lacks_shards(self) -> _Lacks | None:
        """FSDP's shards have no CRCs: that the index over them is there is all that is judged."""
        for name in (_FSDP_MODEL, _FSDP_OPTIMIZER):
            if name in self.listed and ".metadata" not in set(reading.listed(self.path / name)):
                return f"{self.path.name}/{name}: no .metadata in it, which is saved last", ()
        return None

    def _lacks_random(self) -> _Lacks | None:
        missing = tuple(rank for rank in range(self.world_size) if rank not in self.random) if self.random else ()
        if not missing:
            return None
        return f"{self.path.name}: no rng_state of rank {in_ranges(missing)}", missing[:MOST_LISTED]

    def warnings(self) -> Iterable[str]:
        if not self.random:
            yield f"{self.path.name}: no rng_state: the Trainer goes on with other random numbers"
        if self.has_deepspeed:
            yield from deepspeed.warnings(self.path, self.step)
