"""Runs the damage campaign and prints what was counted; exit code 1 when anything failed.

python -m damage                        everything: more than 10,000 damaged checkpoints and 1,000 whole ones
python -m damage --share 5              five percent of each part, drawn with --seed (today's date)
python -m damage --only ours --seed 3   one part
"""

from __future__ import annotations

import argparse
import sys

from faults import telling
from faults.campaign import Plan

from damage import campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m damage", description=__doc__.splitlines()[0])
    parser.add_argument("--tree", default="", metavar="TEXT", help="only trees whose name contains this")
    asked = telling.parse(parser)
    plan = Plan(asked.share / 100, asked.seed, asked.jobs, scenario=asked.tree, case=asked.case)
    return telling.run("damage", campaign.run, campaign.PARTS, plan, asked)


if __name__ == "__main__":
    sys.exit(main())
