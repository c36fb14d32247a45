"""`make leave`: 150 signals to single processes, then 50 to workers of msrun; half an hour."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from exact import campaign as runs
from exact import settings
from exact.campaign import Wanted
from exact.settings import Setting

from leave import campaign, ranks
from leave.campaign import RESULTS

OF_A_CHAIN = 17
"""Of msrun: as many as its run has room for."""


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    directory = args.directory or Path(tempfile.mkdtemp(prefix="leave-"))
    print(f"seed {args.seed}, in {directory}", flush=True)
    chosen = (Setting.parse(args.only),) if args.only else tuple(settings.pairwise())
    lines: list[dict[str, Any]] = []
    if args.signals:
        done = campaign.singles(Wanted(args.signals, args.seed, chosen, directory / "single", args.results))
        lines += [{"kind": "single", "signals": one.asked.total(), "equal": one.equal} for one in done]
    for number in range(-(-args.ranks // OF_A_CHAIN)):
        signals = min(OF_A_CHAIN, args.ranks - number * OF_A_CHAIN)
        first, here = directory / "msrun-0", directory / f"msrun-{number}"
        line = ranks.chain(signals, args.seed + number, here, reuse=first if number else None)
        runs.record(args.results, line)
        lines.append(line)
        print(f"msrun, seed {line['seed']}: {signals} signals, equal: {line['equal']}, {line['seconds']} s", flush=True)
    print(runs.summary(lines, "signals"))
    if args.results:
        print(f"with all earlier runs:\n{runs.summary(runs.read(args.results), 'signals')}")
    equal = all(line["equal"] for line in lines)
    if equal and args.directory is None:
        shutil.rmtree(directory)
    return 0 if equal else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m leave", description=__doc__)
    parser.add_argument("--signals", type=int, default=150, help="to single processes")
    parser.add_argument("--ranks", type=int, default=50, help="signals to workers of msrun")
    parser.add_argument("--only", metavar="SETTING", help="such as jit/Adam/ckpt/list")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")))
    parser.add_argument("--directory", type=Path, help="kept; else a temporary one, removed where all is equal")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines are added here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
