"""Chains over all settings until enough kills have struck; each chain is a line in `benchmarks/results/exact.jsonl`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from exact import chain, settings
from exact.chain import Chain
from exact.launches import TOP, server
from exact.settings import Setting

RESULTS = TOP / "benchmarks" / "results" / "exact.jsonl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many kills, in which settings, drawn from which seed. `most` ends each chain after so many kills."""

    kills: int
    seed: int
    settings: tuple[Setting, ...]
    directory: Path
    results: Path | None = RESULTS
    most: int = 1000


def singles(wanted: Wanted) -> list[Chain]:
    """Kills of single processes, setting after setting, and from the beginning again until there are enough."""
    done: list[Chain] = []
    chance = random.Random(wanted.seed)
    with server() as running:
        while sum(one.kills.total() for one in done) < wanted.kills:
            for setting in wanted.settings:
                began, seed = time.monotonic(), chance.randrange(10**6)
                directory = wanted.directory / str(setting).replace("/", "-")
                directory.mkdir(parents=True, exist_ok=True)
                one = chain.run(running, setting, seed, directory, wanted.most)
                done.append(one)
                tell(one, time.monotonic() - began)
                record(wanted.results, _line(one, time.monotonic() - began))
                if sum(one.kills.total() for one in done) >= wanted.kills:
                    break
    return done


def tell(one: Chain, seconds: float) -> None:
    verdict = "equal" if one.equal else f"DIFFERS ({one.differ} of {one.tensors} tensors)"
    print(f"{one.setting}, seed {one.seed}: {one.kills.total()} kills, {verdict}, {seconds:.0f} s", flush=True)


def record(results: Path | None, line: dict[str, Any]) -> None:
    """Adds a line: runs add up."""
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read(results: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def summary(lines: Iterable[dict[str, Any]], what: str = "kills") -> str:
    """How many kills of each kind were followed by a run that ended bit for bit as the undisturbed one."""
    found = list(lines)
    rows = []
    for kind in ("single", "msrun"):
        of_kind = [line for line in found if line["kind"] == kind]
        struck = sum(line[what] for line in of_kind)
        equal = sum(line[what] for line in of_kind if line["equal"])
        rows.append(f"{kind}: {equal} of {struck} {what} bit-identical, {len(of_kind)} chains")
    return "\n".join(rows)


def versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("mindspore", "numpy")}


def _line(one: Chain, seconds: float) -> dict[str, Any]:
    return {
        "kind": "single",
        "setting": str(one.setting),
        "ranks": 1,
        "seed": one.seed,
        "kills": one.kills.total(),
        "in": dict(one.kills),
        "in_a_row": one.in_a_row,
        "equal": one.equal,
        "tensors": one.tensors,
        "differ": one.differ,
        "steps": len(one.generated),
        "generate_calls": one.generated.total(),
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(),
    }


def everything(kills: int, seed: int, directory: Path) -> Wanted:
    return Wanted(kills, seed, tuple(settings.pairwise()), directory)
