"""The parts of the campaign, and how each is drawn from, spread over the cores, and counted."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from faults import (
    dying,
    failing,
    full_disk,
    images,
    interleaving,
    mutants,
    node_local,
    power_model,
    protocol,
    scenarios,
    standing,
    trainer,
    two_writers,
)
from faults.cases import Tally
from faults.scenarios import Scenario
from faults.shim import Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much of each part is run: `share` of its cases, drawn with `seed`, on `jobs` processes; `impatient` ends a
    part at its first failure; `scenario` and `case` leave those whose name contains it."""

    share: float = 1.0
    seed: int = 0
    jobs: int = 2
    impatient: bool = False
    scenario: str = ""
    case: str = ""

    def named(self, cases: Iterable[T]) -> list[T]:
        return [case for case in cases if self.scenario in str(case)]

    def picked(self, cases: Iterable[T]) -> list[T]:
        return [case for case in cases if self.case in str(case)]

    def draw(self, cases: Sequence[T], share: float | None = None) -> list[T]:
        there, share = self.picked(cases), self.share if share is None else share
        if share >= 1:
            return there
        few = max(1, round(len(there) * share)) if there else 0
        return random.Random(self.seed).sample(there, few)

    def spread(self, check: Callable[[T], str], cases: Sequence[T], tally: Tally) -> None:
        """Checks every case, in processes that are forked from this one; what was wrong goes into `tally`."""
        context = multiprocessing.get_context("fork")
        at_once = 1 if self.impatient else max(1, min(8, len(cases) // (4 * self.jobs)))
        with ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            for failure in pool.map(check, cases, chunksize=at_once):
                tally.add(failure)
                if failure and self.impatient:
                    pool.shutdown(wait=True, cancel_futures=True)
                    return


def every_scenario() -> list[Scenario]:
    return [scenario for world_size in (1, 2, 3) for scenario in scenarios.of_size(world_size)]


def in_one_process(*world_sizes: int) -> list[Scenario]:
    """Those in which a stopped process is the whole job."""
    return [s for n in world_sizes for s in scenarios.of_size(n) if not s.name.endswith("the others")]


def run_dying(plan: Plan) -> Tally:
    """SIGKILL at every call, then at random again in the recovery."""
    tally = Tally("dying at every point", "kill points")
    chosen = plan.named(every_scenario())
    single = plan.draw(list(dying.points(s for s in chosen if s.world_size < 3)))
    three_ranks = plan.picked(dying.points(s for s in chosen if s.world_size == 3))
    single += random.Random(plan.seed).sample(three_ranks, round(len(three_ranks) * plan.share / 3))
    double = dying.pairs(chosen, round(400 * plan.share * len(chosen) / len(every_scenario())), plan.seed)
    double = plan.picked(double)
    plan.spread(dying.check, [*single, *double], tally)
    tally.notes = {"killed once": len(single), "killed again in the recovery": len(double)}
    return tally


def run_node_local(plan: Plan) -> Tally:
    """SIGKILL at every call of a start or save where nodes have disks of their own."""
    tally = Tally("dying on disks of nodes", "kill points")
    plan.spread(node_local.check, plan.draw(list(dying.points(plan.named(node_local.scenarios())))), tally)
    return tally


def run_failing(plan: Plan) -> Tally:
    """Every call fails, for one reason or another."""
    tally = Tally("failing at every point", "injected errors")
    points = plan.draw(list(failing.points(plan.named(scenarios.of_size(1)))))
    two_ranks = plan.picked(failing.points(plan.named(scenarios.of_size(2))))
    points += random.Random(plan.seed).sample(two_ranks, round(len(two_ranks) * plan.share / 8))
    plan.spread(failing.check, points, tally)
    patient = scenarios.of_size(2) if plan.share == 1 and not plan.impatient else []
    stalled = list(failing.stalls(patient, every=29))  # all at once: half a minute
    for failure in stalled:
        tally.add(failure)
    tally.notes = {"errors and short writes": len(points), "stalls of 30 s": len(stalled)}
    return tally


def run_interleaving(plan: Plan) -> Tally:
    """A zombie at every call, its successor at random ones; a rank that is slow while another one prunes."""
    tally = Tally("interleavings", "orders")
    everywhere = in_one_process(1, 2, 3)
    chosen = plan.named(everywhere)
    zombies = plan.draw(list(interleaving.zombies(s for s in chosen if s.world_size < 3)))
    count = round(800 * plan.share * len(chosen) / len(everywhere))
    zombies += plan.picked(interleaving.in_between(chosen, count, plan.seed))
    late = plan.named(s for s in scenarios.of_size(2) if s.name in _SLOW)
    slow = plan.draw(list(interleaving.slow_ranks(late, calls=45)))
    small = plan.named(in_one_process(1, 2))
    takers = plan.draw(list(interleaving.takers(s for s in small if s.name in _TAKES and s.world_size == 1)))
    late = plan.draw(list(interleaving.late(s for s in small if s.name == "a save, with retention")))
    plan.spread(interleaving.check, zombies, tally)
    plan.spread(interleaving.check_slow, slow, tally)
    plan.spread(interleaving.check_taker, takers, tally)
    plan.spread(interleaving.check_late, late, tally)
    tally.notes = {"zombies": len(zombies), "slow ranks": len(slow), "takers": len(takers), "late saves": len(late)}
    return tally


_SLOW = (
    "a save, with retention",
    "a save with a new reference",
    "a torn position saved again",
    "an abandoned position saved again",
)


_TAKES = ("a torn position saved again", "an abandoned position saved again")


_STATES = 11_500
"""That all scenarios have together, about."""


def run_power_model(plan: Plan) -> Tally:
    """States of the directory after a power cut; a share of it takes some states of some scenarios."""
    tally = Tally("power loss, enumerated", "states")
    there = plan.named(s for n in (1, 2, 3) for s in (*scenarios.of_size(n), *power_model.unsynced(n)))
    chosen = plan.draw(there, 2 * plan.share)
    tally.failures += (loose := [wrong for scenario in chosen if (wrong := power_model.loose_ends(scenario))])
    if loose and plan.impatient:
        return tally
    found = [case for scenario in chosen for case in power_model.states(scenario, budget=9, seed=plan.seed)]
    few = len(found) if plan.share >= 1 else min(len(found), round(_STATES * plan.share))
    found = sorted(random.Random(plan.seed).sample(found, few), key=str)  # one recording after the other
    plan.spread(power_model.check, found, tally)
    tally.notes = {"points": len({(case.scenario, case.world_size, case.point) for case in found})}
    tally.notes["stretches where each step ends durably"] = len(chosen) - len(loose)
    return tally


def run_images(plan: Plan) -> Tally:
    return images.run(plan.seed, plan.share, jobs=plan.jobs)


def run_full_disk(plan: Plan) -> Tally:
    tally = Tally("full disks", "cases")
    kinds, tally.skipped = images.available()
    plan.spread(full_disk.check, plan.draw(full_disk.all_cases(kinds)) if kinds else [], tally)
    return tally


def run_protocol(plan: Plan) -> Tally:
    if plan.share < 1:
        raise Unavailable("a share of a model proves nothing; tests/test_protocol.py explores small ones")
    return protocol.run()


PARTS: dict[str, Callable[[Plan], Tally]] = {
    "standing": standing.run,
    "dying": run_dying,
    "node_local": run_node_local,
    "failing": run_failing,
    "interleaving": run_interleaving,
    "protocol": run_protocol,
    "two_writers": two_writers.run,
    "power_model": run_power_model,
    "images": run_images,
    "full_disk": run_full_disk,
    "trainer": trainer.run,
    "mutants": mutants.run,
}


def run(name: str, plan: Plan) -> Tally:
    """One part; one that cannot run here is skipped, and says why."""
    began = time.monotonic()
    try:
        tally = PARTS[name](plan)
    except Unavailable as reason:
        tally = Tally(name, "", skipped=str(reason))
    except AssertionError as error:  # a scenario fails although nobody disturbs it
        tally = Tally(name, "", failures=[str(error)])
    tally.seconds = time.monotonic() - began
    return tally
