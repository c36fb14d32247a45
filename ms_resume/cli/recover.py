"""Makes the YAML file with which a failed training of LLaMA-Factory goes on; --run also runs it.

    $ ms-resume recover a.yaml
    a_recovery_20250115_143022.yaml: goes on from out/checkpoint-1000 in out_recovery_20250115_143022
    passed over:
    step  verdict  reason
    1500  torn     out/checkpoint-1500/trainer_state.json: No such file or directory
      -> llamafactory-cli train a_recovery_20250115_143022.yaml

The newest checkpoint in `output_dir` that is whole, every byte of it read; where there is none, the one that the
training had itself started from. Every other line of the file stays as it is. With --run a recovery that fails is
recovered in turn: at once after progress, then later and later, then from one checkpoint back.

Exit code 10 when there is no whole checkpoint, 60 when it gave up, 61 while the training is still alive.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ms_resume.cli import tables
from ms_resume.errors import DirectoryInUse
from ms_resume.recover import leftovers, plan, running
from ms_resume.recover.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FAILED.yaml", help="the file that `llamafactory-cli train` was given")
    parser.add_argument("--run", action="store_true", help="run it, and the recovery of that one where it fails too")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be written and run; do neither")


def run(args: argparse.Namespace) -> None:
    path = Path(args.file)
    failed = plan.read(path)
    if alive := leftovers.find(path):
        listed = ", ".join(map(str, alive[:4]))
        hint = f"let it end, or `launch/kill_npu_process.sh {path}`"
        raise DirectoryInUse(f"{path}: its training is still alive: {listed}", hint=hint)
    if args.run:
        running.check_command()
    made = plan.make(failed, plan.newest(failed), datetime.now())
    if not args.dry_run:
        made = plan.write(made)
    if not args.json:
        _show(made, args.dry_run, args.run)
    ran = running.until_done(made, _say) if args.run and not args.dry_run else []
    if args.json:
        print(json.dumps(document(made, ran, dry_run=args.dry_run)))


def document(made: Plan, ran: Sequence[tuple[Plan, int]], *, dry_run: bool) -> dict[str, Any]:
    """What `--json` prints; docs/format.md lists the keys."""
    return {
        "file": str(made.failed.document.path),
        "dry_run": dry_run,
        "yaml": str(made.yaml),
        "log": str(made.log),
        "checkpoint": made.checkpoint,
        "output_dir": made.output_dir,
        "rejected": [rejection.to_json() for rejection in made.located.rejected],
        "warnings": list(made.located.warnings),
        "ran": [{"yaml": str(one.yaml), "code": code} for one, code in ran],
    }


def _show(made: Plan, dry_run: bool, is_run: bool) -> None:
    would = "would go on" if dry_run else "goes on"
    print(f"{made.yaml}: {would} from {made.checkpoint} in {made.output_dir}")
    if made.located.rejected:
        print("passed over:")
        rows = [(str(each.position.step), each.kind, each.reason) for each in made.located.rejected]
        tables.show(("step", "verdict", "reason"), rows)
    tables.warn(made.located.warnings)
    if not is_run:
        print(f"  -> {running.COMMAND} train {made.yaml}")
    sys.stdout.flush()


def _say(text: str) -> None:
    print(f"ms-resume: {text}", file=sys.stderr, flush=True)
