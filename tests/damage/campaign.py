"""The parts of the campaign: damaged trees of ours, damaged stock trees, and whole ones."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

from faults.campaign import Plan
from faults.cases import Tally
from faults.shim import Unavailable

from damage import judge, kinds, stock, trees, wholes
from damage.judge import Case
from damage.kinds import Kind
from damage.trees import Tree

PER_KIND = 50
"""Cases of each kind and each tree."""


def run_ours(plan: Plan) -> Tally:
    """Each rank's payloads, votes, and records."""
    made = [trees.ours(world_size, form) for world_size in (1, 2, 3) for form in ("safetensors", "ckpt")]
    return _damaged("ours, damaged", plan, made, kinds.OURS)


def run_stock(plan: Plan) -> Tally:
    """Files that MindSpore wrote, with a CRC in one form or the other."""
    return _damaged("stock with CRC, damaged", plan, stock.trees("crc"), kinds.STOCK)


def run_plain(plan: Plan) -> Tally:
    """Files without a CRC: what stands twice is found, and what does not parse."""
    return _damaged("stock without CRC, damaged", plan, stock.trees("plain"), kinds.PLAIN)


def run_whole(plan: Plan) -> Tally:
    """Nothing is wrong, and nothing is said."""
    tally = Tally("whole ones", "trees")
    chosen = plan.draw(wholes.of_ours(plan.seed))
    try:
        stock = wholes.of_stock(plan.seed, plan.share)
    except Unavailable as reason:
        stock, tally.skipped = [], f"stock: {reason}"
    plan.spread(wholes.check, [*chosen, *stock], tally)
    tally.notes = {"ours": len(chosen), "stock": len(stock)}
    return tally


PARTS: dict[str, Callable[[Plan], Tally]] = {
    "ours": run_ours,
    "stock": run_stock,
    "plain": run_plain,
    "whole": run_whole,
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


def _damaged(part: str, plan: Plan, made: Iterable[Tree], of: Mapping[str, Kind]) -> Tally:
    tally, ended = Tally(part, "cases"), Counter[str]()
    judge.TREES.update({tree.name: tree for tree in made})
    there = [case for tree in plan.named(judge.TREES.values()) if tree in made for case in _cases(tree, of, plan.seed)]
    with ProcessPoolExecutor(plan.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        drawn = plan.draw(there)
        for case, (how, wrong) in zip(drawn, pool.map(judge.check, drawn, chunksize=8), strict=True):
            if how == "not drawn":
                continue
            tally.add(wrong)
            ended[how] += 1
            if how == "no damage":
                ended[f"{how} by {case.kind}"] += 1
    tally.notes = dict(sorted(ended.items()))
    return tally


def _cases(tree: Tree, of: Mapping[str, Kind], seed: int) -> Iterator[Case]:
    for kind in of:
        for number in range(PER_KIND * kinds.WEIGHTS.get(kind, 1)):
            yield Case(tree.name, kind, number, seed)
