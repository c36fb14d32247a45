"""The parts of the campaign, and how each is drawn from, spread over the cores, and counted."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from faults import dying, failing, interleaving, scenarios
from faults.cases import Tally
from faults.scenarios import Scenario
from faults.shim import Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much of each part is run: `share` of its cases, drawn with `seed`, on `jobs` processes."""

    share: float = 1.0
    seed: int = 0
    jobs: int = 2

    def draw(self, cases: Sequence[T]) -> list[T]:
        if self.share >= 1:
            return list(cases)
        count = max(1, round(len(cases) * self.share))
        return random.Random(self.seed).sample(list(cases), count)

    def spread(self, check: Callable[[T], str], cases: Iterable[T], tally: Tally) -> None:
        """Checks every case, in processes that are forked from this one; what was wrong goes into `tally`."""
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            for failure in pool.map(check, cases, chunksize=8):
                tally.add(failure)


def every_scenario() -> list[Scenario]:
    return [scenario for world_size in (1, 2, 3) for scenario in scenarios.of_size(world_size)]


def run_dying(plan: Plan) -> Tally:
    """SIGKILL at every call, then at random again in the recovery."""
    tally = Tally("dying at every point", "kill points")
    single = plan.draw(list(dying.points(every_scenario())))
    double = dying.pairs(every_scenario(), round(1200 * plan.share), plan.seed)
    plan.spread(dying.check, [*single, *double], tally)
    tally.notes = {"calls killed once": len(single), "killed again in the recovery": len(double)}
    return tally


def run_failing(plan: Plan) -> Tally:
    """Every call fails, for one reason or another."""
    tally = Tally("failing at every point", "injected errors")
    points = plan.draw([point for n in (1, 2) for point in failing.points(scenarios.of_size(n))])
    plan.spread(failing.check, points, tally)
    patient = scenarios.of_size(2) if plan.share == 1 else []  # all stalls at once take half a minute
    stalled = list(failing.stalls(patient, every=29))
    for failure in stalled:
        tally.add(failure)
    tally.notes = {"errors and short writes": len(points), "stalls of 30 s": len(stalled)}
    return tally


def run_interleaving(plan: Plan) -> Tally:
    """A zombie at every call, its successor at random ones; a rank that is slow while another one prunes."""
    tally = Tally("interleavings", "orders")
    zombies = plan.draw([zombie for n in (1, 2) for zombie in interleaving.zombies(scenarios.of_size(n))])
    zombies += interleaving.in_between(every_scenario(), round(1500 * plan.share), plan.seed)
    slow = plan.draw(list(interleaving.slow_ranks([s for s in scenarios.of_size(2) if s.name in _SLOW], calls=45)))
    plan.spread(interleaving.check, zombies, tally)
    plan.spread(interleaving.check_slow, slow, tally)
    tally.notes = {"zombies": len(zombies), "slow ranks": len(slow)}
    return tally


_SLOW = (
    "a save, with retention",
    "a save with a new reference",
    "a torn position saved again",
    "an abandoned position saved again",
)

PARTS: dict[str, Callable[[Plan], Tally]] = {
    "dying": run_dying,
    "failing": run_failing,
    "interleaving": run_interleaving,
}


def run(name: str, plan: Plan) -> Tally:
    """One part; one that cannot run here is skipped, and says why."""
    began = time.monotonic()
    try:
        tally = PARTS[name](plan)
    except Unavailable as reason:
        tally = Tally(name, "", skipped=str(reason))
    tally.seconds = time.monotonic() - began
    return tally
