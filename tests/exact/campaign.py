"""Chains over all settings until there were enough strikes; each chain is a line in `benchmarks/results/NAME.jsonl`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from exact import chain
from exact.chain import Chain, Run
from exact.launches import Server, server
from exact.settings import Setting


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many strikes, in which settings, drawn from which seed. `most` ends each chain after so many."""

    strikes: int
    seed: int
    settings: tuple[Setting, ...]
    directory: Path
    results: Path | None
    what: str = "kills"
    most: int = 1000


def singles(wanted: Wanted, run: Run = chain.run, starts: Server | None = None) -> list[Chain]:
    """Strikes at single processes, setting after setting, and from the beginning again until there are enough.

    Args:
        starts: Goes on after it; a server of its own when left out.
    """
    done: list[Chain] = []
    chance = random.Random(wanted.seed)
    with nullcontext(starts) if starts else server() as running:
        while (left := wanted.strikes - sum(one.struck.total() for one in done)) > 0:
            setting = wanted.settings[len(done) % len(wanted.settings)]
            began, seed = time.monotonic(), chance.randrange(10**6)
            directory = wanted.directory / str(setting).replace("/", "-")
            directory.mkdir(parents=True, exist_ok=True)
            one = run(running, setting, seed, directory, min(left, wanted.most))
            done.append(one)
            line = _line(one, wanted.what, time.monotonic() - began)
            verdict = "equal" if one.equal else f"DIFFERS ({one.differ} of {one.tensors} tensors)"
            told = f"{one.struck.total()} {wanted.what}, {verdict}, {line['seconds']:.0f} s"
            print(f"{setting}, seed {seed}: {told}", flush=True)
            record(wanted.results, line)
    return done


def record(results: Path | None, line: dict[str, Any]) -> None:
    """Adds a line: runs add up."""
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def summary(lines: Iterable[dict[str, Any]], what: str = "kills") -> str:
    """How many strikes of each kind were followed by a run that ended bit for bit as the undisturbed one."""
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


def _line(one: Chain, what: str, seconds: float) -> dict[str, Any]:
    return {
        "kind": "single",
        "setting": str(one.setting),
        "ranks": 1,
        "seed": one.seed,
        what: one.struck.total(),
        "in": dict(one.struck),
        "equal": one.equal,
        "tensors": one.tensors,
        "differ": one.differ,
        **one.counted(),
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(),
    }
