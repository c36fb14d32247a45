"""The command of a campaign: single processes are struck, then workers of msrun; each chain is a line of results."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact import campaign, settings
from exact.campaign import Wanted
from exact.chain import Run
from exact.settings import Setting


@dataclass(frozen=True, slots=True)
class Campaign:
    """What strikes, what a strike is called, and how many there are when nobody says another number."""

    name: str
    what: str
    of_single: int
    of_ranks: int
    of_a_chain: int
    """Of msrun: as many as its run has room for."""
    run: Run
    ranks: Callable[..., dict[str, Any]]
    results: Path


def main(wanted: Campaign, description: str | None, arguments: list[str]) -> int:
    args = _parse(wanted, description, arguments)
    directory = args.directory or Path(tempfile.mkdtemp(prefix=f"{wanted.name}-"))
    print(f"seed {args.seed}, in {directory}", flush=True)
    chosen = (Setting.parse(args.only),) if args.only else tuple(settings.pairwise())
    lines: list[dict[str, Any]] = []
    single = getattr(args, wanted.what)
    if single:
        done = campaign.singles(
            Wanted(single, args.seed, chosen, directory / "single", args.results, wanted.what), wanted.run
        )
        lines += [{"kind": "single", wanted.what: one.struck.total(), "equal": one.equal} for one in done]
    for number in range(-(-args.ranks // wanted.of_a_chain)):
        strikes = min(wanted.of_a_chain, args.ranks - number * wanted.of_a_chain)
        first, here = directory / "msrun-0", directory / f"msrun-{number}"
        line = wanted.ranks(strikes, args.seed + number, here, reuse=first if number else None)
        campaign.record(args.results, line)
        lines.append(line)
        told = f"{strikes} {wanted.what}, equal: {line['equal']}, {line['seconds']} s"
        print(f"msrun, seed {line['seed']}: {told}", flush=True)
    print(campaign.summary(lines, wanted.what))
    if args.results:
        print(f"with all earlier runs:\n{campaign.summary(campaign.read(args.results), wanted.what)}")
    equal = all(line["equal"] for line in lines)
    if equal and args.directory is None:
        shutil.rmtree(directory)
    return 0 if equal else 1


def _parse(wanted: Campaign, description: str | None, arguments: list[str]) -> argparse.Namespace:
    what, of_single, of_ranks = wanted.what, wanted.of_single, wanted.of_ranks
    parser = argparse.ArgumentParser(prog=f"python -m {wanted.name}", description=description)
    parser.add_argument(f"--{what}", type=int, default=of_single, metavar="N", help="of single processes")
    parser.add_argument("--ranks", type=int, default=of_ranks, metavar="N", help=f"{what} of workers of msrun")
    parser.add_argument("--only", metavar="SETTING", help="such as jit/Adam/ckpt/list")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")))
    parser.add_argument("--directory", type=Path, help="kept; else a temporary one, removed where all is equal")
    parser.add_argument("--results", type=Path, default=wanted.results, help="lines are added here")
    return parser.parse_args(arguments)
