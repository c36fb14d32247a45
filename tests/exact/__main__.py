"""`make exact`: 400 kills of single processes, then 100 of workers of msrun; about 40 minutes."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from exact import campaign, ranks, settings
from exact.campaign import RESULTS, Wanted
from exact.settings import Setting

KILLS_OF_A_CHAIN = 10
"""Of msrun: as many as its run has room for."""


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    directory = args.directory or Path(tempfile.mkdtemp(prefix="exact-"))
    print(f"seed {args.seed}, in {directory}", flush=True)
    chosen = (Setting.parse(args.only),) if args.only else tuple(settings.pairwise())
    lines: list[dict[str, object]] = []
    if args.kills:
        done = campaign.singles(Wanted(args.kills, args.seed, chosen, directory / "single", args.results))
        lines += [{"kind": "single", "kills": one.kills.total(), "equal": one.equal} for one in done]
    for number in range(-(-args.ranks // KILLS_OF_A_CHAIN)):
        kills = min(KILLS_OF_A_CHAIN, args.ranks - number * KILLS_OF_A_CHAIN)
        first, here = directory / "msrun-0", directory / f"msrun-{number}"
        line = ranks.chain(kills, args.seed + number, here, reuse=first if number else None)
        campaign.record(args.results, line)
        print(f"msrun, seed {line['seed']}: {kills} kills, equal: {line['equal']}, {line['seconds']} s", flush=True)
        lines.append(line)
    print(campaign.summary(lines))
    if args.results:
        print(f"with all earlier runs:\n{campaign.summary(campaign.read(args.results))}")
    equal = all(line["equal"] for line in lines)
    if equal and args.directory is None:
        shutil.rmtree(directory)
    return 0 if equal else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m exact", description=__doc__)
    parser.add_argument("--kills", type=int, default=400, help="of single processes")
    parser.add_argument("--ranks", type=int, default=100, help="kills of workers of msrun")
    parser.add_argument("--only", metavar="SETTING", help="such as jit/Adam/ckpt/list")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")))
    parser.add_argument("--directory", type=Path, help="kept; else a temporary one, removed where all is equal")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines are added here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
