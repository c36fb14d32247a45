"""Runs the fault campaign and prints what was counted; exit code 1 when anything failed.

python -m faults                          everything: about half an hour on two cores
python -m faults --share 5                five percent of each part, drawn with --seed (today's date)
python -m faults --only dying --seed 3    one part
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from faults import campaign, cases, node_local, shim, telling


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="", metavar="TEXT", help="only scenarios whose name contains this")
    parser.add_argument("--impatient", action="store_true", help="end at the first failure")
    parser.add_argument("--calls", action="store_true", help="how many calls each scenario makes, as JSON")
    asked = telling.parse(parser)
    if not shim.present():
        return _with_shim()
    if asked.calls:
        with cases.open_room():
            every = [*campaign.every_scenario(), *node_local.scenarios()]
            print(json.dumps({str(scenario): cases.calls(scenario)[0] for scenario in every}))
        return 0
    plan = campaign.Plan(asked.share / 100, asked.seed, asked.jobs, asked.impatient, asked.scenario, asked.case)
    return telling.run("fault", campaign.run, campaign.PARTS, plan, asked)


def _with_shim() -> int:
    """The same command with the shim loaded, single-threaded, so that forking is safe."""
    try:
        environment = shim.environment()
    except shim.Unavailable as reason:
        print(f"skipped, nothing was checked: {reason}")
        return 0
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.execve(sys.executable, [sys.executable, "-m", "faults", *sys.argv[1:]], {**environment, **threads})


if __name__ == "__main__":
    sys.exit(main())
