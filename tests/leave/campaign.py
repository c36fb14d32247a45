"""Chains over all settings until enough signals have come; each is a line in `benchmarks/results/leave.jsonl`."""

from __future__ import annotations

import random
import time
from typing import Any

from exact import campaign
from exact.campaign import Wanted
from exact.launches import TOP, server

from leave import chain
from leave.chain import Chain

RESULTS = TOP / "benchmarks" / "results" / "leave.jsonl"


def singles(wanted: Wanted) -> list[Chain]:
    """Signals to single processes, setting after setting, and from the beginning again until there are enough."""
    done: list[Chain] = []
    chance = random.Random(wanted.seed)
    with server() as running:
        while (left := wanted.kills - sum(one.asked.total() for one in done)) > 0:
            setting = wanted.settings[len(done) % len(wanted.settings)]
            began, seed = time.monotonic(), chance.randrange(10**6)
            directory = wanted.directory / str(setting).replace("/", "-")
            directory.mkdir(parents=True, exist_ok=True)
            one = chain.run(running, setting, seed, directory, min(left, wanted.most))
            done.append(one)
            seconds = time.monotonic() - began
            verdict = "equal" if one.equal else f"DIFFERS ({one.differ} of {one.tensors} tensors)"
            print(f"{setting}, seed {seed}: {one.asked.total()} signals, {verdict}, {seconds:.0f} s", flush=True)
            campaign.record(wanted.results, _line(one, seconds))
    return done


def _line(one: Chain, seconds: float) -> dict[str, Any]:
    return {
        "kind": "single",
        "setting": str(one.setting),
        "ranks": 1,
        "seed": one.seed,
        "signals": one.asked.total(),
        "in": dict(one.asked),
        "equal": one.equal,
        "tensors": one.tensors,
        "differ": one.differ,
        "steps_lost": one.lost,
        "late": one.late,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **campaign.versions(),
    }
