"""What a campaign is asked for, and what it tells: a line for each part, the first failures, and how many in all."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date

from faults.campaign import Plan
from faults.cases import Tally, open_room


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command line asks for. From here on SIGTERM lets the directories of the cases go, too."""
    parser.add_argument("--share", type=float, default=100, metavar="PERCENT", help="how much of each part (100)")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="what is drawn (today's date)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="PART,PART", help="some parts")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (one for each core)")
    parser.add_argument("--json", action="store_true", help="counts on standard output as JSON")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return parser.parse_args()


def run(
    campaign: str, part: Callable[[str, Plan], Tally], parts: Iterable[str], plan: Plan, asked: argparse.Namespace
) -> int:
    """Runs the parts that were asked for, or all. Gives the exit code: 1 when anything failed."""
    chosen = asked.only or list(parts)
    print(
        f"{campaign} campaign: {asked.share:g} % of {', '.join(chosen)}; --seed {plan.seed}",
        file=sys.stderr,
        flush=True,
    )
    tallies = []
    with open_room():
        for name in chosen:
            tallies.append(tally := part(name, plan))
            print(_line(tally), file=sys.stderr if asked.json else sys.stdout, flush=True)
            if tally.failures and plan.impatient:
                break
    if asked.json:
        print(json.dumps([asdict(tally) for tally in tallies], indent=1))
    failures = sum(len(tally.failures) for tally in tallies)
    skipped = [tally.part for tally in tallies if tally.skipped]
    print(f"failures: {failures}" + (f"; skipped: {', '.join(skipped)}" if skipped else ""), file=sys.stderr)
    return 1 if failures else 0


def _line(tally: Tally) -> str:
    skipped = f"; skipped: {tally.skipped}" if tally.skipped else ""
    if skipped and not tally.cases:
        return f"  {tally.part:28} {skipped[2:]}"
    notes = "; ".join(f"{count} {what}" for what, count in tally.notes.items()) + skipped
    failed = f"failures: {len(tally.failures)}"
    lines = [f"  {tally.part:28} {tally.cases:6} {tally.unit:16} {failed:14} {tally.seconds:6.0f} s  {notes}"]
    return "\n".join([*lines, *(f"      {failure}" for failure in tally.failures[:20])])
