"""One run that is killed from outside, started again, killed again, until it is through: each kill costs one launch."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from exact import tiny_sizes
from exact.launches import Server
from exact.settings import Setting
from grpo_arithmetic import compare

PHASES = ("start", "rollout", "update", "save", "epoch")
"""In the load; while it generates; while it updates; behind a save that has begun; at an epoch's end."""

LONGEST_S = {"start": 0.5}
"""From a phase's beginning to the kill; of the others 0.06 s, more often less."""

AGAIN = 0.25
"""How often a launch is killed before it has saved anything, right after another one was killed."""


@dataclass
class Chain:
    """What came of one chain. `struck` counts by phase, `generated` how often each step was generated over all
    launches."""

    setting: Setting
    seed: int
    equal: bool = False
    tensors: int = 0
    differ: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    generated: Counter[int] = field(default_factory=Counter)

    @property
    def generated_again(self) -> int:
        return self.generated.total() - len(self.generated)

    def compared(self, undisturbed: Path, save: Path) -> None:
        """With the run that nobody disturbed. What is equal is removed, the rest stays to be looked at."""
        result = compare.runs(undisturbed, save)
        self.equal, self.tensors, self.differ = result.equal, result.tensors, result.differ
        if result.equal:
            shutil.rmtree(save)
        else:
            print(compare.table(result), flush=True)

    def counted(self) -> dict[str, int]:
        """What its kind counts besides."""
        return {}


Run = Callable[[Server, Setting, int, Path, int], Chain]


@dataclass
class Killed(Chain):
    """`in_a_row` counts kills of a launch that had saved nothing since the kill before it."""

    in_a_row: int = 0

    def counted(self) -> dict[str, int]:
        return {
            "in_a_row": self.in_a_row,
            "steps": len(self.generated),
            "generate_calls": self.generated.total(),
        }


def reference(server: Server, setting: Setting, directory: Path) -> Path:
    """The run that nobody disturbs; made once."""
    save = directory / "undisturbed"
    if not save.exists():
        launch = server.launch(save, str(setting), resume=False, log=directory / "undisturbed.txt")
        for _ in launch:
            pass
        if status := server.ended():
            raise SystemExit(f"{setting}: the undisturbed run ended with {status}, see {directory}/undisturbed.txt")
    return save


def run(server: Server, setting: Setting, seed: int, directory: Path, most: int = 1000) -> Killed:
    """Kills and resumes until the run is through, and compares.

    Args:
        most: After so many kills it is left alone.

    Raises:
        SystemExit: A launch that nobody killed ended badly.
    """
    undisturbed = reference(server, setting, directory)
    chance, one = random.Random(f"{seed} {setting}"), Killed(setting, seed)
    save, log = directory / f"killed-{seed}", directory / f"killed-{seed}.txt"
    shutil.rmtree(save, ignore_errors=True)
    save.mkdir()
    saved = True
    while True:
        plan = _plan(chance, again=one.struck.total() > 0) if one.struck.total() < most else None
        status, heard = launch(server, setting, save, log, one.generated, plan)
        if status == signal.SIGKILL and plan is not None:
            one.struck[plan[0]] += 1
            one.in_a_row += not saved
            saved = heard["save"] > 0
        elif status:
            tail = "".join(log.read_text().splitlines(keepends=True)[-20:])
            raise SystemExit(f"{setting}, seed {seed}: a launch ended with wait status {status}\n{tail}")
        else:
            break
    one.compared(undisturbed, save)
    return one


def _plan(chance: random.Random, *, again: bool) -> tuple[str, int, float]:
    """Which phase, its how manieth time in the launch, and how many seconds later."""
    if again and chance.random() < AGAIN:
        phase, most = chance.choice(("start", "rollout", "update")), 2
    else:
        phase, most = chance.choices(PHASES, [0, 4, 4, 4, 2])[0], 12
    nth = {"start": 1, "epoch": 1, "save": chance.randint(1, 3)}.get(phase, chance.randint(1, most))
    return phase, nth, LONGEST_S.get(phase, 0.06) * chance.random() ** 2


def launch(
    server: Server,
    setting: Setting,
    save: Path,
    log: Path,
    generated: Counter[int],
    plan: tuple[str, int, float] | None = None,
    strike: Callable[[int], object] = lambda pid: os.kill(pid, signal.SIGKILL),
) -> tuple[int, Counter[str]]:
    """One launch, struck as planned; its wait status, and how often it began each phase."""
    running = server.launch(save, str(setting), resume=True, log=log)
    heard: Counter[str] = Counter()
    for phase, step in running:
        heard[phase] += 1
        if phase == "update" and (step + 1) % tiny_sizes.STEPS_PER_EPOCH == 0:
            phase, heard["epoch"] = "epoch", heard["epoch"] + 1
        if phase == "generate":
            generated[step] += 1
        if plan and (phase, heard[phase]) == plan[:2]:
            time.sleep(plan[2])
            strike(running.pid)
            heard["struck"] += 1
    return server.ended(), heard
