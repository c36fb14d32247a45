"""A job at toy size: real Checkpointers, one thread a rank, on NumPy state; the ranks take turns.

A rank runs until it waits for the others, then the next one does: the order of calls on the disk is always the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from runs import Scale

import ms_resume
from ms_resume.framework import version
from ms_resume.resume import checkpointer as _loaded  # noqa: F401  # lazily loaded otherwise, by each child anew
from ms_resume.state import Arrays
from ms_resume.strategies import Parallel, Strategy

version.tool()  # looked up once in a process, and so once for all children
T = TypeVar("T")
STEPS_PER_EPOCH = 100
_ITEMS = 3000
"""Float32 values in a tensor: three blocks of 4 KiB, the last one cut."""


class Turns:
    """Whose turn it is, and what the ranks said."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._turn = 0
        self._said: list[dict[int, bytes]] = []
        self._ended: set[int] = set()
        self._broken = False
        self._changed = threading.Condition()

    def begin(self, rank: int) -> None:
        with self._changed:
            self._wait_for(rank)

    def end(self, rank: int, *, well: bool) -> None:
        with self._changed:
            self._ended.add(rank)
            self._broken |= not well
            self._pass_on(rank)

    def anew(self) -> None:
        """All ranks have ended, and begin something else."""
        self._turn, self._ended = 0, set()

    def say(self, number: int, rank: int, data: bytes) -> list[bytes]:
        with self._changed:
            while len(self._said) <= number:
                self._said.append({})
            self._said[number][rank] = data
            self._pass_on(rank)
            self._wait_for(rank)
            if len(self._said[number]) < self.world_size:
                raise threading.BrokenBarrierError
            return [self._said[number][rank] for rank in range(self.world_size)]

    def _wait_for(self, rank: int) -> None:
        self._changed.wait_for(lambda: self._turn == rank)

    def _pass_on(self, rank: int) -> None:
        others = [(rank + n) % self.world_size for n in range(1, self.world_size + 1)]
        self._turn = next((other for other in others if other not in self._ended), -1)
        self._changed.notify_all()


class Group:
    """One rank of `Turns`: a `ms_resume.framework.group.Group`."""

    def __init__(self, rank: int, turns: Turns) -> None:
        self.rank, self.world_size = rank, turns.world_size
        self.turns = turns
        self._next = 0

    def exchange(self, data: bytes) -> list[bytes]:
        self._next += 1
        return self.turns.say(self._next - 1, self.rank, data)


def groups(world_size: int) -> list[Group]:
    turns = Turns(world_size) if world_size > 1 else _Alone(1)
    return [Group(rank, turns) for rank in range(world_size)]


def in_turns(groups: Sequence[Group], rank_main: Callable[[Group], T]) -> list[T]:
    """Runs `rank_main` on every rank; raises the first error that is no mere loss of a peer."""
    if len(groups) == 1:
        return [rank_main(groups[0])]
    turns, results, errors = groups[0].turns, {}, {}
    turns.anew()

    def one(rank: int) -> None:
        turns.begin(rank)
        try:
            results[rank] = rank_main(groups[rank])
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            errors[rank] = error
        finally:
            turns.end(rank, well=rank not in errors)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [error for error in errors.values() if not isinstance(error, threading.BrokenBarrierError)]
    for error in (*own, *errors.values()):
        raise error
    return [results[rank] for rank in range(len(groups))]


class _Alone(Turns):
    def say(self, number: int, rank: int, data: bytes) -> list[bytes]:
        return [data]


class Rank:
    """One rank's live state."""

    checkpointer: ms_resume.Checkpointer
    start: ms_resume.Position

    def __init__(self, seed: int) -> None:
        self.said: list[str] = []
        self.policy = Arrays(w=np.full(_ITEMS, float(seed), np.float32), bias=np.zeros(3, np.float16))
        moments = Arrays({"adam_m.w": np.zeros(_ITEMS, np.float32)})
        self.optimizer = Arrays({**self.policy, **moments, "global_step": np.zeros(1, np.int32)})
        self.ref = Arrays(w=np.ones(_ITEMS, np.float32))
        self.rng = np.random.default_rng(seed)
        self.scale = Scale()

    def train_one_step(self, tag: int, *, new_reference: bool) -> None:
        """Depends on everything that is restored; `tag` makes one attempt's step another one's."""
        drawn = self.rng.normal(size=_ITEMS).astype(np.float32)
        self.optimizer["adam_m.w"][...] = 0.9 * self.optimizer["adam_m.w"] + drawn * self.scale.value
        self.policy["w"][...] += 0.1 * self.optimizer["adam_m.w"] + tag
        self.optimizer["global_step"] += 1
        self.scale.value *= 1.01
        if new_reference:
            self.ref["w"][...] += 1 + tag

    def save(self, step: int) -> None:
        """With the retention behind it: what comes next on the disk is always the same."""
        self.checkpointer.save(0, step)
        assert self.checkpointer._saver is not None  # it has started
        self.checkpointer._saver.rest()

    def digest(self) -> str:
        """Of every bit that a resume has to bring back."""
        content = hashlib.sha256()
        for role in (self.policy, self.optimizer, self.ref):
            for name in sorted(role):
                content.update(name.encode() + role[name].tobytes())
        content.update(repr((self.rng.bit_generator.state, self.scale.value)).encode())
        return content.hexdigest()[:16]


def disk_of(top: Path, rank: int) -> Path:
    """The save directory of a rank where two share a node, below one for all."""
    return top / f"node_{rank // 2}"


Digests = tuple[str, ...]
"""Of all ranks, by rank."""


class Job:
    """All ranks of one start of the run, in this process.

    Args:
        replicas: All have the same state, and share the work; who waits for another one's file does so in vain if that
            one's turn comes later.
        local: Nodes have disks of their own, see `disk_of`.
    """

    def __init__(
        self,
        save: Path,
        world_size: int,
        tag: int = 0,
        *,
        keep_last: int = 2,
        save_format: str = "safetensors",
        replicas: bool = False,
        local: bool = False,
    ) -> None:
        self.save_dir, self.world_size, self.tag, self.replicas = save, world_size, tag, replicas
        self.disk_of = disk_of if local else lambda save, rank: save
        self.settings = ms_resume.Settings(
            keep_last=keep_last,
            heartbeat_s=0,
            save_format=save_format,
            share_replicas_s=0.001 if replicas else 0,
            storage="local" if local else "shared",
        )
        self.local, self.groups = local, groups(world_size)
        self.ranks: list[Rank] = []

    def start(self, *, resume: bool = True, **arguments: Any) -> Digests:
        def rank_main(group: Group) -> Rank:
            me = Rank(0 if self.replicas else group.rank)
            me.checkpointer = ms_resume.Checkpointer(
                self.disk_of(self.save_dir, group.rank),
                parallel=Strategy("", self.world_size, Parallel(self.world_size, 1, 1)).as_json(),
                policy=me.policy,
                optimizer=me.optimizer,
                ref=me.ref,
                components=[ms_resume.Randomness(sampler=me.rng), ms_resume.Fields("scale", me.scale, "value")],
                steps_per_epoch=STEPS_PER_EPOCH,
                settings=self.settings,
                group=group,
                say=me.said.append,
            )
            me.start = me.checkpointer.start(resume=resume, **arguments)
            return me

        self.ranks = in_turns(self.groups, rank_main)
        return self.digests()

    @property
    def position(self) -> ms_resume.Position:
        """Where it started."""
        return self.ranks[0].start

    @property
    def said(self) -> list[str]:
        return [text for rank in self.ranks for text in rank.said]

    def train(self, *, new_reference: bool = False) -> Digests:
        for rank in self.ranks:
            rank.train_one_step(self.tag, new_reference=new_reference)
        return self.digests()

    def digests(self) -> Digests:
        return tuple(rank.digest() for rank in self.ranks)

    def save(self, step: int) -> None:
        """All ranks, one after the other; then once more retention, which after the last vote sees the whole save.

        On disks of nodes they speak with each other first, and retention sees what was there before.
        """
        if self.local:
            in_turns(self.groups, lambda group: self.ranks[group.rank].save(step))
        else:
            for rank in self.ranks:
                rank.save(step)
        self.tidy()

    def tidy(self) -> None:
        for rank in self.ranks:
            rank.checkpointer._saver.tidy()
