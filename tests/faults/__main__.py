"""Runs the fault campaign and prints what was counted; exit code 1 when anything failed.

python -m faults                          everything: about half an hour on two cores
python -m faults --share 5                five percent of each part, drawn with --seed (today's date)
python -m faults --only dying --seed 3    one part
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from datetime import date

from faults import shim


def main() -> int:
    arguments = _arguments()
    if not shim.present():
        return _with_shim()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directories of the cases go
    from faults import campaign, cases

    if arguments.calls:
        with cases.open_room():
            print(json.dumps({str(scenario): cases.calls(scenario)[0] for scenario in campaign.every_scenario()}))
        return 0
    plan = campaign.Plan(
        share=arguments.share / 100,
        seed=arguments.seed,
        jobs=arguments.jobs,
        impatient=arguments.impatient,
        scenario=arguments.scenario,
        case=arguments.case,
    )
    chosen = arguments.only or list(campaign.PARTS)
    print(
        f"fault campaign: {arguments.share:g} % of {', '.join(chosen)}; --seed {plan.seed}", file=sys.stderr, flush=True
    )
    tallies = []
    with cases.open_room():
        for name in chosen:
            tallies.append(tally := campaign.run(name, plan))
            print(_line(tally), file=sys.stderr if arguments.json else sys.stdout, flush=True)
            if tally.failures and plan.impatient:
                break
    return _report(tallies, as_json=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=100, metavar="PERCENT", help="how much of each part (100)")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="what is drawn (today's date)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="PART,PART", help="some parts")
    parser.add_argument("--scenario", default="", metavar="TEXT", help="only scenarios whose name contains this")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (one for each core)")
    parser.add_argument("--impatient", action="store_true", help="end at the first failure")
    parser.add_argument("--calls", action="store_true", help="how many calls each scenario makes, as JSON")
    parser.add_argument("--json", action="store_true", help="counts on standard output as JSON")
    return parser.parse_args()


def _with_shim() -> int:
    """The same command with the shim loaded, single-threaded, so that forking is safe."""
    try:
        environment = shim.environment()
    except shim.Unavailable as reason:
        print(f"skipped, nothing was checked: {reason}")
        return 0
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.execve(sys.executable, [sys.executable, "-m", "faults", *sys.argv[1:]], {**environment, **threads})


def _line(tally: object) -> str:
    from faults.cases import Tally

    assert isinstance(tally, Tally)
    skipped = f"; skipped: {tally.skipped}" if tally.skipped else ""
    if skipped and not tally.cases:
        return f"  {tally.part:28} {skipped[2:]}"
    notes = "; ".join(f"{count} {what}" for what, count in tally.notes.items()) + skipped
    failed = f"failures: {len(tally.failures)}"
    lines = [f"  {tally.part:28} {tally.cases:6} {tally.unit:16} {failed:14} {tally.seconds:6.0f} s  {notes}"]
    return "\n".join([*lines, *(f"      {failure}" for failure in tally.failures[:20])])


def _report(tallies: list, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(tally) for tally in tallies], indent=1))
    failures = sum(len(tally.failures) for tally in tallies)
    skipped = [tally.part for tally in tallies if tally.skipped]
    print(f"failures: {failures}" + (f"; skipped: {', '.join(skipped)}" if skipped else ""), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
