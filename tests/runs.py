"""Real runs at toy size: the real Checkpointer, each rank a thread, NumPy arrays in the place of nets.

What a run leaves on disk is what a job of MindSpore leaves there, byte for byte in form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

import ms_resume
from ms_resume.state import Arrays

T = TypeVar("T")
QUIET = ms_resume.Settings(keep_last=0, heartbeat_s=0)
"""Retention keeps everything and no heartbeat beats."""
Step = Callable[["TinyRank", tuple[int, int]], None]
"""Called before each training step with the rank and (epoch, step); what it raises ends that rank."""


class Rounds:
    """What the ranks said, round by round. A round that is complete stays so, whoever dies after it."""

    def __init__(self, world_size: int, timeout_s: float) -> None:
        self.world_size = world_size
        self._timeout_s = timeout_s
        self._said: list[dict[int, bytes]] = []
        self._changed = threading.Condition()
        self._broken = False

    def say(self, number: int, rank: int, data: bytes) -> list[bytes]:
        with self._changed:
            while len(self._said) <= number:
                self._said.append({})
            said = self._said[number]
            said[rank] = data
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(said) == self.world_size or self._broken, self._timeout_s)
            if len(said) < self.world_size:
                raise threading.BrokenBarrierError
            return [said[rank] for rank in range(self.world_size)]

    def abort(self) -> None:
        with self._changed:
            self._broken = True
            self._changed.notify_all()


class ThreadGroup:
    """One rank of a group of threads: `exchange` as a `ms_resume.framework.group.Group` has it. `exchanges` counts
    them."""

    def __init__(self, rank: int, rounds: Rounds) -> None:
        self.rank = rank
        self.world_size = rounds.world_size
        self._rounds = rounds
        self.exchanges = 0

    def exchange(self, data: bytes) -> list[bytes]:
        self.exchanges += 1
        return self._rounds.say(self.exchanges - 1, self.rank, data)

    def leave(self) -> None:
        """This rank ends: whoever waits for it, or will, waits in vain."""
        self._rounds.abort()


@dataclass
class Outcome(Generic[T]):
    """What each rank returned or raised. A rank that only lost its peers has `BrokenBarrierError`."""

    results: dict[int, T] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)

    def ok(self) -> list[T]:
        """The results by rank. Raises the first rank's own error where there is one."""
        own = [e for e in self.errors.values() if not isinstance(e, threading.BrokenBarrierError)]
        for error in (*own, *self.errors.values()):
            raise error
        return [self.results[rank] for rank in sorted(self.results)]


def run_ranks(world_size: int, rank_main: Callable[[ThreadGroup], T], timeout_s: float = 60) -> Outcome[T]:
    """Runs `rank_main` on every rank at once; one that ends with an error keeps no other waiting for it."""
    rounds = Rounds(world_size, timeout_s)
    outcome: Outcome[T] = Outcome()

    def one(rank: int) -> None:
        try:
            outcome.results[rank] = rank_main(ThreadGroup(rank, rounds))
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            outcome.errors[rank] = error
            rounds.abort()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return outcome


class Scale:
    """Plain state beside the tensors."""

    value = 1.0


@dataclass
class TinyRank:
    """One rank's live state, and what it saw: `positions` are the steps it ran, `start` where it began."""

    rank: int
    checkpointer: ms_resume.Checkpointer | None = None
    start: ms_resume.Position | None = None
    positions: list[tuple[int, int]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    samples: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Of all ranks, by step, where a test counts them."""

    def __post_init__(self) -> None:
        weights = np.full((3, 4), float(self.rank), np.float32)
        self.policy = Arrays(w=weights, bias=np.zeros(3, np.float16))
        moments = Arrays({"adam_m.w": np.zeros((3, 4), np.float32), "adam_m.bias": np.zeros(3, np.float16)})
        self.optimizer = Arrays({**self.policy, **moments, "global_step": np.zeros(1, np.int32)})
        self.ref = Arrays(w=np.ones((3, 4), np.float32))
        self.rng = np.random.default_rng(self.rank)
        self.scale = Scale()

    def components(self) -> list[ms_resume.Component]:
        return [ms_resume.Randomness(sampler=self.rng), ms_resume.Fields("scale", self.scale, "value")]

    def saves_in(self, save: Path, group: Any, **other: Any) -> ms_resume.Checkpointer:
        """Its Checkpointer; by `other` arguments than these, where a test needs some."""
        given: dict[str, Any] = {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "ref": self.ref,
            "components": self.components(),
            "steps_per_epoch": 10,
            "settings": QUIET,
            "say": self.said.append,
        }
        self.checkpointer = ms_resume.Checkpointer(save, **(given | other), group=group)
        return self.checkpointer

    def train_one_step(self) -> None:
        """Depends on weights, moments, randomness, and scale: leaving one of them out of a resume shows."""
        drawn = self.rng.normal(size=(3, 4)).astype(np.float32)
        self.optimizer["adam_m.w"][...] = 0.9 * self.optimizer["adam_m.w"] + drawn * self.scale.value
        self.policy["w"][...] += 0.1 * self.optimizer["adam_m.w"]
        self.optimizer["global_step"] += 1
        self.scale.value *= 1.01


def tiny_run(
    save: Path,
    *,
    world_size: int = 2,
    epochs: int = 1,
    steps_per_epoch: int = 10,
    save_every: int = 5,
    resume: bool = False,
    stop: tuple[int, int] | None = None,
    before_step: Step | None = None,
    start: dict[str, Any] | None = None,
    **checkpointer: Any,
) -> Outcome[TinyRank]:
    """A whole run: start, train, save as it goes, close.

    Args:
        stop: Leave, in good order, before this step is run.
        before_step: Raises to let a rank die there.
        start: Further arguments of `Checkpointer.start`.
        checkpointer: Further arguments of `Checkpointer`; what is left out is as in `TinyRank.saves_in`.
    """

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        with me.saves_in(save, group, steps_per_epoch=steps_per_epoch, **checkpointer) as saver:
            me.start = saver.start(resume=resume, **(start or {}))
            for position in saver.steps(epochs, save_every=save_every):
                if position == stop:
                    break
                if before_step:
                    before_step(me, position)
                group.exchange(b"")  # ranks go in step, as the reduction of gradients keeps them
                me.train_one_step()
                me.positions.append(position)
        return me

    return run_ranks(world_size, rank_main)
