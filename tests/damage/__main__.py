"""Runs the damage campaign and prints what was counted; exit code 1 when anything failed.

python -m damage                        everything: more than 10,000 damaged checkpoints and 1,000 whole ones
python -m damage --share 5              five percent of each part, drawn with --seed (today's date)
python -m damage --only ours --seed 3   one part
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from datetime import date

from faults.campaign import Plan
from faults.cases import Tally, open_room

from damage import campaign


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directories of the cases go
    plan = Plan(
        share=arguments.share / 100,
        seed=arguments.seed,
        jobs=arguments.jobs,
        scenario=arguments.tree,
        case=arguments.case,
    )
    chosen = arguments.only or list(campaign.PARTS)
    print(
        f"damage campaign: {arguments.share:g} % of {', '.join(chosen)}; --seed {plan.seed}",
        file=sys.stderr,
        flush=True,
    )
    tallies = []
    with open_room():
        for name in chosen:
            tallies.append(tally := campaign.run(name, plan))
            print(_line(tally), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    return _report(tallies, as_json=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m damage", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=100, metavar="PERCENT", help="how much of each part (100)")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="what is drawn (today's date)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="PART,PART", help="some parts")
    parser.add_argument("--tree", default="", metavar="TEXT", help="only trees whose name contains this")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (one for each core)")
    parser.add_argument("--json", action="store_true", help="counts on standard output as JSON")
    return parser.parse_args()


def _line(tally: Tally) -> str:
    skipped = f"skipped: {tally.skipped}; " if tally.skipped else ""
    notes = skipped + "; ".join(f"{count} {what}" for what, count in tally.notes.items())
    failed = f"failures: {len(tally.failures)}"
    lines = [f"  {tally.part:28} {tally.cases:6} {tally.unit:8} {failed:14} {tally.seconds:6.0f} s  {notes}"]
    return "\n".join([*lines, *(f"      {failure}" for failure in tally.failures[:20])])


def _report(tallies: list[Tally], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(tally) for tally in tallies], indent=1))
    failures = sum(len(tally.failures) for tally in tallies)
    skipped = [tally.part for tally in tallies if tally.skipped]
    print(f"failures: {failures}" + (f"; skipped: {', '.join(skipped)}" if skipped else ""), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
