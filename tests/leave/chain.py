"""One run that is asked to leave, leaves, goes on, and is asked again, until it is through."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from exact import chain, tiny_sizes
from exact.chain import Chain
from exact.launches import Server
from exact.settings import Setting

from leave import standing

PHASES = {"load": 2, "compile": 2, "rollout": 4, "update": 4, "save": 4, "evaluation": 2, "epoch": 1}
"""What a launch does when it is asked, by weight. `compile`: in the first update of a launch."""

WORDS = {"load": "start", "compile": "update", "evaluation": "evaluate"}
"""What the trainer calls them."""

LONGEST_S = {"load": 0.5, "compile": 0.5}
"""From a phase's beginning to the signal; of the others 0.06 s, more often less."""


@dataclass
class Asked(Chain):
    """`late` counts signals that came when the run was at its end."""

    late: int = 0

    def counted(self) -> dict[str, int]:
        return {"steps_lost": self.generated_again, "late": self.late}


def run(server: Server, setting: Setting, seed: int, directory: Path, most: int = 1000) -> Asked:
    """Asks and goes on until the run is through, and compares.

    Args:
        most: After so many signals it is left alone.

    Raises:
        SystemExit: A launch ended otherwise than it should, or left something else than a whole checkpoint of where
            it was.
    """
    undisturbed = chain.reference(server, setting, directory)
    chance, one = random.Random(f"leave {seed} {setting}"), Asked(setting, seed)
    save, log = directory / f"asked-{seed}", directory / f"asked-{seed}.txt"
    shutil.rmtree(save, ignore_errors=True)
    save.mkdir()
    while True:
        plan = _plan(chance, new=not one.generated) if one.struck.total() < most else None
        word = (WORDS.get(plan[0], plan[0]), *plan[1:]) if plan else None
        strike = partial(_strike, signal.SIGTERM)
        status, heard = chain.launch(server, setting, save, log, one.generated, word, strike)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            one.late += heard["struck"]
            break
        where = f"{setting}, seed {seed}, asked in {plan}"
        if code != 50 or plan is None or not heard["struck"]:
            tail = "".join(log.read_text().splitlines(keepends=True)[-20:])
            raise SystemExit(f"{where}: a launch ended with {code}\n{tail}")
        one.struck[plan[0]] += 1
        standing.check(save, divmod(len(one.generated), tiny_sizes.STEPS_PER_EPOCH), where)
    one.compared(undisturbed, save)
    return one


def _plan(chance: random.Random, *, new: bool) -> tuple[str, int, float]:
    """Which phase, its how manieth time in the launch, and how many seconds later. A run without a step is not asked
    before it has one: it would have nothing to save."""
    phase = chance.choices([*PHASES], [0 if new and name == "load" else weight for name, weight in PHASES.items()])[0]
    nth = {"load": 1, "compile": 1, "save": chance.randint(1, 2), "evaluation": 1, "epoch": 1}
    return phase, nth.get(phase, chance.randint(1, 6)), LONGEST_S.get(phase, 0.06) * chance.random() ** 2


def _strike(number: int, pid: int) -> None:
    os.kill(pid, number)
