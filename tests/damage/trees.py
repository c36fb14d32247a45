"""Save directories held in memory: file by file, so that a damage is a mapping from paths to other bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import savers
from faults.cases import room

from ms_resume import locate, write
from ms_resume.layouts import mindrlhf
from ms_resume.load.source import Source
from ms_resume.ondisk import names, votes
from ms_resume.records import Attempt, Checkpoint, Position, Vote
from ms_resume.state import Arrays, HostTensor, read_all, scalar

Files = Mapping[str, bytes]
"""By path below the save directory."""

Changes = Mapping[str, bytes | None]
"""What is there instead; None for nothing."""


@dataclass(frozen=True, eq=False)
class Tree:
    """A save directory whose newest whole checkpoint is `taken`. `strays` are files of another attempt that once stood
    under these names."""

    name: str
    files: Files
    strays: Files = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def put(self, directory: Path) -> None:
        change(directory, self.files)


@dataclass(frozen=True)
class Whole:
    """What an undamaged tree is taken for: the checkpoint, its files, all (position, attempt) that are whole."""

    taken: Checkpoint
    reads: tuple[str, ...]
    whole: frozenset[tuple[Position, str | None]]

    @property
    def layout(self) -> str:
        return self.taken.layout

    @property
    def votes(self) -> list[str]:
        """Paths of its votes."""
        return [path for path in self.reads if path.startswith("commits/")]

    @property
    def payloads(self) -> list[str]:
        return [path for path in self.reads if not path.startswith("commits/")]


def change(directory: Path, changes: Changes) -> None:
    for path, content in changes.items():
        target = directory / path
        if content is None:
            target.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def files_of(directory: Path) -> dict[str, bytes]:
    """All but links: `latest` is for people."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


@lru_cache(maxsize=64)
def standing(tree: Tree) -> tuple[Path, Whole]:
    """The tree on disk, and what it is taken for; once for each process. Who changes it puts it back."""
    directory = room() / tree.name.replace(" ", "_").replace(",", "")
    shutil.rmtree(directory, ignore_errors=True)
    tree.put(directory)
    taken = locate.latest(directory).checkpoint
    assert taken is not None, tree
    found = {(one.position, one.attempt) for one in locate.every(directory) if isinstance(one, Checkpoint)}
    return directory, Whole(taken, tuple(read_by(taken)), frozenset(found))


def read_by(taken: Checkpoint) -> list[str]:
    """The files that a resume from `taken` reads, by path below the save directory."""
    cast = [names.vote(taken.save, taken.position, vote.rank) for vote in taken.votes]
    return [path.relative_to(taken.save).as_posix() for path in (*(file.path for file in taken.files), *cast)]


def ours(world_size: int, file_format: str) -> Tree:
    """Attempt 1 saved 0_5, 1_0 and 2_0; attempt 2 went back to 0_5 and saved 1_0 again, with other numbers. Its votes
    name the reference of 0_5, where the format allows that."""
    directory = room() / "made"
    shutil.rmtree(directory, ignore_errors=True)
    chance = random.Random(f"{world_size} {file_format}")
    first = savers.open_attempt(directory, world_size=world_size)
    cast = {at: _save(directory, first, at, file_format, chance) for at in ("0_5", "1_0", "2_0")}
    before = files_of(directory)
    second = savers.open_attempt(directory, "0_5", by=first.attempt, world_size=world_size)
    _save(directory, second, "1_0", file_format, chance, cast["0_5"])
    after = files_of(directory)
    strays = {path: content for path, content in before.items() if after.get(path) not in (None, content)}
    return Tree(f"ours, {world_size} ranks, {file_format}", after, strays)


def _save(
    directory: Path,
    attempt: Attempt,
    at: str,
    file_format: str,
    chance: random.Random,
    previous: list[Vote] | None = None,
) -> list[Vote]:
    cast = []
    for rank in range(attempt.world_size):
        taken = write.Snapshot(
            Position.parse(at), Position.parse(at).step, _held(at, rank, chance), {"scale": {"value": 1.5}}, file_format
        )
        about = {**savers.ABOUT, "metrics": {"reward": 0.25}, "tool": {"python": "3"}, "parallel": {"dp": 1, "tp": 2}}
        who = savers.writer(directory, attempt, rank)
        cast.append(write.save(who, taken, about, previous[rank] if previous else None).vote)
    return cast


def _held(at: str, rank: int, chance: random.Random) -> dict[str, dict[str, HostTensor]]:
    draw = np.random.default_rng(chance.randrange(1 << 30))
    weights = {
        "model.w": draw.standard_normal((40, 64)).astype(np.float32),
        "model.norm": draw.standard_normal(300).astype(np.float16),
    }
    moments = {
        f"adam_m.{name}": draw.standard_normal(value.shape).astype(value.dtype) for name, value in weights.items()
    }
    position = Position.parse(at)
    half = HostTensor("BF16", (50, 3), memoryview(draw.bytes(300)))
    fixed = np.random.default_rng(rank).standard_normal((30, 40)).astype(np.float32)
    numbers = {"epoch_num": scalar(position.epoch), "step_num": scalar(position.step)}
    return {
        "policy": {**read_all(Arrays(weights)), "model.bf": half, **numbers},
        "optimizer": {**read_all(Arrays({**weights, **moments})), "model.bf": half},
        "ref": read_all(Arrays({"model.w": fixed})),
        "state": {"global_step": scalar(position.step), **read_all(Arrays({"rng.words": draw.integers(0, 9, 700)}))},
    }


def meaning(path: str, content: bytes, directory: Path) -> object:
    """What a resume takes from a file: the values of a vote, the tensors of a payload."""
    if path.startswith("commits/"):
        return votes.decode(directory / path, content)
    spare = room() / f"spare_{path.rpartition('/')[2]}"
    spare.write_bytes(content)
    return {
        name: (info.dtype, info.shape, bytes(Source(spare).read(name).data))
        for name, info in mindrlhf.tensors(spare).items()
    }
