"""Whether the campaign would notice: each of `mutations.MUTANTS` must make a part of it fail.

A mutant is a copy of the package with one text replaced, first on PYTHONPATH of a narrow run of the campaign, which on
the package as it is must pass: the other parts see to that, and where a run draws more than they do, it is made here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import ms_resume
from faults import cases
from faults.cases import Tally
from faults.mutations import MUTANTS, Look, Mutant

if TYPE_CHECKING:
    from faults.campaign import Plan

PACKAGE = Path(ms_resume.__file__).parent
WIDER = tuple(Look(part) for part in ("power_model", "dying", "interleaving", "failing", "two_writers"))
"""Asked of a mutant that its own looks do not catch."""
_HANGS_AFTER_S = 400


def run(plan: Plan) -> Tally:
    """Each mutant on its own, as many at once as `plan` has jobs."""
    tally, unchanged = Tally("mutants", "mutants"), Unchanged()
    with ThreadPoolExecutor(plan.jobs) as pool:
        proof = unchanged if plan.share >= 1 else None
        for failure in pool.map(lambda mutant: check(mutant, proof), plan.draw(MUTANTS)):
            tally.add(failure)
    tally.notes = {"runs without a change": len(unchanged.runs)}
    return tally


@dataclass
class Unchanged:
    """What the looks that draw more than the campaign say of the package as it is: each is asked once."""

    runs: dict[Look, Future[str]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def says(self, look: Look) -> str:
        if look.share <= 100:
            return ""
        with self.lock:
            first = look not in self.runs
            answer = self.runs.setdefault(look, Future())
        if first:
            with package() as top:
                answer.set_result(failure(look, top))
        return answer.result()


def check(mutant: Mutant, unchanged: Unchanged | None, wider: tuple[Look, ...] = WIDER) -> str:
    """Empty when the campaign fails on account of `mutant`; else what is wrong with the campaign, or with the list.

    Args:
        unchanged: Left out in a share of the campaign, whose other parts look at the package as it is.
    """
    with package(mutant) as top:
        for look in (*mutant.looks, *wider):
            if failure(look, top):
                wrong = unchanged.says(look) if unchanged else ""
                return f"{mutant}: {look} fails without it, too: {wrong}" if wrong else ""
    return f"{mutant}: survives"


def failure(look: Look, top: Path) -> str:
    """The first thing that a part of the campaign has to say of the package in `top`."""
    command = [sys.executable, "-m", "faults", "--only", look.part, "--scenario", look.scenario, "--case", look.case]
    command += ["--share", str(look.share), "--seed", "0", "--jobs", "1", "--impatient", "--json"]
    path = os.pathsep.join(filter(None, (str(top), os.environ.get("PYTHONPATH"))))
    run = subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = run.communicate(timeout=_HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # with what it has forked
        run.wait()
        return f"{look}: hangs"
    if run.returncode not in (0, 1) or not out.startswith("["):
        raise RuntimeError(f"{look}: the campaign broke down: {said[-2000:]}")
    (tally,) = json.loads(out)
    if not tally["cases"] and not tally["failures"]:
        raise RuntimeError(f"{look}: nothing was looked at: {tally['skipped']}")
    return str(tally["failures"][0]) if tally["failures"] else ""


@contextlib.contextmanager
def package(mutant: Mutant | None = None) -> Iterator[Path]:
    """A directory with a copy of the package, for PYTHONPATH."""
    with tempfile.TemporaryDirectory(prefix="mutant_", dir=cases.room()) as top:
        copy = Path(shutil.copytree(PACKAGE, Path(top) / PACKAGE.name))
        if mutant:
            (copy / mutant.file).write_text(mutated(mutant))
        yield Path(top)


def mutated(mutant: Mutant) -> str:
    """The text of its file. Raises ValueError where the code has changed, so that the list must follow."""
    text = (PACKAGE / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant}: its text is there {text.count(mutant.old)} times, expected once")
    return text.replace(mutant.old, mutant.new)
