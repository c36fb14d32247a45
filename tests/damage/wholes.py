"""Whole trees of every sort: what is checked in them must be silent."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import savers
from faults.cases import room
from runs import tiny_run

from damage import judge, stock, trees
from ms_resume import Settings, locate, write
from ms_resume.ondisk import names
from ms_resume.records import Attempt, Checkpoint, Position, Vote
from ms_resume.state import Arrays, HostTensor, read_all, scalar

OF_OURS, OF_STOCK = 800, 200
STEPS = 10


@dataclass(frozen=True)
class Case:
    """A tree of ours is made when it is looked at; a stock one was, all at once."""

    sort: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"whole: {self.sort}, {self.number}"


_stock: dict[int, tuple[trees.Tree, str]] = {}


def of_ours(seed: int) -> list[Case]:
    """Five of eight with drawn tensors, three whole runs with retention, pins, and going back."""
    return [Case("run" if n % 8 < 3 else "saves", n, seed) for n in range(OF_OURS)]


def of_stock(seed: int, share: float = 1) -> list[Case]:
    count = max(1, round(OF_STOCK * share))
    _stock.update(enumerate(stock.whole(count, seed)))
    return [Case("stock", n, seed) for n in range(count)]


def check(case: Case) -> str:
    directory = room() / "whole"
    shutil.rmtree(directory, ignore_errors=True)
    chance = random.Random(f"{case.seed} {case}")
    if case.sort == "stock":
        tree, expected = _stock[case.number]
        tree.put(directory)
    else:
        expected = (_run if case.sort == "run" else _saves)(directory, chance)
    said = _alarms(directory, expected, warns=case.sort == "stock")
    return f"{case}: {said}" if said else ""


def _alarms(directory: Path, expected: str, *, warns: bool) -> str:
    """What is said of a tree of which nothing should be."""
    located = locate.latest(directory, check=judge.deep)
    if located.checkpoint is None or str(located.checkpoint.position) != expected:
        return f"expected {expected}, found {located}"
    if located.warnings and not warns:
        return f"warnings {located.warnings}"
    for one in locate.every(directory):
        judged = judge.deep(one) if isinstance(one, Checkpoint) else one
        if judged is not None and judged.kind != "abandoned":
            return str(judged)
    return ""


def _run(directory: Path, chance: random.Random) -> str:
    """Real runs one after the other: each goes on, or goes back; then some positions are pinned."""
    every, world_size = chance.choice([2, 5]), chance.choice([1, 2, 3])
    settings = Settings(
        keep_last=chance.choice([0, 2, 3]), heartbeat_s=0, save_format=chance.choice(["safetensors", "ckpt"])
    )
    end = chance.randint(every, STEPS)
    tiny_run(
        directory, world_size=world_size, save_every=every, settings=settings, stop=(0, end) if end < STEPS else None
    )
    for _ in range(chance.randint(0, 2)):
        there = [one.position for one in locate.every(directory) if isinstance(one, Checkpoint)]
        back = chance.choice(there) if chance.random() < 0.5 else there[0]
        names.pins(directory).mkdir(exist_ok=True)
        (names.pins(directory) / str(chance.choice(there))).touch()
        begin = back.epoch * STEPS + back.step
        end = begin + chance.randint(every, STEPS)
        tiny_run(
            directory,
            world_size=world_size,
            epochs=3,
            save_every=every,
            settings=settings,
            resume=True,
            stop=(end // STEPS, end % STEPS),
            start={"position": back} if back != there[0] else None,
        ).ok()
    newest = end // every * every
    return f"{newest // STEPS}_{newest % STEPS}"


def _saves(directory: Path, chance: random.Random) -> str:
    """Saves of drawn tensors, by one attempt or two."""
    world_size, form = chance.choice([1, 2, 3]), chance.choice(["safetensors", "ckpt"])
    attempt = savers.open_attempt(directory, world_size=world_size)
    cast: list[Vote] | None = None
    steps = sorted(chance.sample(range(1, 30), chance.randint(1, 4)))
    for step in steps:
        cast = _save(directory, attempt, Position(0, step), form, chance, cast)
    if len(steps) > 1 and chance.random() < 0.4:
        back = chance.choice(steps[:-1])
        second = savers.open_attempt(directory, f"0_{back}", by=attempt.attempt, world_size=world_size)
        steps = [chance.randint(back + 1, 40)]
        _save(directory, second, Position(0, steps[-1]), form, chance, None)
    return f"0_{steps[-1]}"


def _save(
    directory: Path, attempt: Attempt, at: Position, form: str, chance: random.Random, previous: list[Vote] | None
) -> list[Vote]:
    cast = []
    for rank in range(attempt.world_size):
        drawn = _tensors(chance, form)
        weights = {**read_all(Arrays(w=np.full((2, 3), at.step, np.float32))), **drawn}
        held = {
            "policy": {**weights, "epoch_num": scalar(at.epoch), "step_num": scalar(at.step)},
            "optimizer": {**weights, "global_step": scalar(at.step)},
            "ref": read_all(Arrays(w=np.full((2, 3), rank, np.float32))),
            "state": {"global_step": scalar(at.step), **_tensors(chance, "safetensors")},
        }
        values = {"scale": {"best": chance.choice([float("inf"), float("nan"), 1.5]), "name": "Größe"}}
        taken = write.Snapshot(at, at.step, held, values, form)
        about = {**savers.ABOUT, "metrics": {"reward": chance.choice([float("nan"), 0.1])}}
        named = previous[rank] if previous else None
        cast.append(write.save(savers.writer(directory, attempt, rank), taken, about, named).vote)
    return cast


_ITEMS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U16": 2, "I64": 8, "BOOL": 1}
_NAN = {"BF16": 0x7FC1, "F16": 0x7C01, "F32": 0xFFC00ABC, "F64": 0x7FF00000DEADBEEF}


def _tensors(chance: random.Random, form: str) -> dict[str, HostTensor]:
    """Of drawn dtypes and shapes, empty ones among them, NaN with something in their mantissa, names of every sort."""
    found = {}
    for n in range(chance.randint(0, 6)):
        dtype = chance.choice(list(_ITEMS))
        shape = chance.choice([(), (1,), (0,) if form != "ckpt" else (0, 1), (0, 3), (3, 0, 2), (7,), (1, 6), (33, 65)])
        count = int(np.prod(shape))
        data = chance.randbytes(count * _ITEMS[dtype])
        if dtype in _NAN and chance.random() < 0.4:
            data = _NAN[dtype].to_bytes(_ITEMS[dtype], "little") * count
        if dtype == "BOOL":
            data = bytes(byte & 1 for byte in data)
        name = chance.choice(["model.layers.{}.w", "größe {}", "a/b/{}", 'quoted "{}"', "{}", "__metadata{}"]).format(n)
        found[f"x.{name}"] = HostTensor(dtype, shape, memoryview(data))
    return found
