"""Makes the YAML file with which a failed training of LLaMA-Factory goes on; --run also runs it.

    $ ms-resume recover a.yaml
    a_recovery_20250115_143022.yaml: goes on from out/checkpoint-1000 in out_recovery_20250115_143022
    passed over:
    step  verdict  reason
    1500  torn     out/checkpoint-1500/trainer_state.json: No such file or directory
      -> llamafactory-cli train a_recovery_20250115_143022.yaml

The newest checkpoint in `output_dir` that is whole, every byte of it read; where there is none, the one that the
training had itself started from. Every other line of the file stays as it is. With --run a recovery that fails is
recovered in turn, as `ms-resume run` would: by the same rules it says why, and by the same policy whether it is tried
again, when, and from which checkpoint.

Exit code 10 when there is no whole checkpoint, 60 when it gave up, 61 while the training is still alive.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_resume.cli import tables
from ms_resume.errors import DirectoryInUse

if TYPE_CHECKING:
    from ms_resume.recover.plan import Plan
    from ms_resume.recover.running import Ran
    from ms_resume.supervisor.evidence import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FAILED.yaml", help="the file that `llamafactory-cli train` was given")
    parser.add_argument("--run", action="store_true", help="run it, and the recovery of that one where it fails too")
    parser.add_argument("--exit-code", type=_exit_code, metavar="N", help="how it ended: says why, by FAILED.log")
    parser.add_argument("--log-from", type=int, default=0, metavar="BYTE", help="where in FAILED.log its output begins")
    parser.add_argument("--rules", metavar="FILE", help="a site's own rules for why it failed, asked before ours")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be written and run; do neither")


def _exit_code(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 256:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected what a failure ends with, 1 to 255")
    return int(text)


def run(args: argparse.Namespace) -> None:
    from ms_resume.recover import leftovers, plan, retry, running  # here: other commands need neither them nor YAML
    from ms_resume.supervisor import rules
    from ms_resume.supervisor.leftovers import told

    path = Path(args.file)
    table = rules.read(Path(args.rules) if args.rules else None)
    failure = None
    if args.exit_code is not None:
        code = retry.plain(args.exit_code)
        failure = retry.why(code, path.with_suffix(".log"), table, begin=args.log_from)
        _say(f"{path}: {running.told(failure, code)}")
    failed = plan.read(path)
    if alive := leftovers.find(path):
        listed = ", ".join(map(told, alive[:4]))
        hint = f"let it end, or `launch/kill_npu_process.sh {path}`"
        raise DirectoryInUse(f"{path}: its training is still alive: {listed}", hint=hint)
    if args.run:
        running.check_command()
    made = plan.make(failed, plan.newest(failed), datetime.now())
    if not args.dry_run:
        made = plan.write(made)
    if not args.json:
        _show(made, "would go on" if args.dry_run else "goes on")
        if not args.run:
            print(f"  -> {running.COMMAND} train {made.yaml}")
        sys.stdout.flush()
    ran = running.until_done(made, table, _say, failure=failure) if args.run and not args.dry_run else []
    if args.json:
        print(json.dumps(document(made, failure, ran, dry_run=args.dry_run)))


def document(made: Plan, failure: Failure | None, ran: Sequence[Ran], *, dry_run: bool) -> dict[str, Any]:
    """What `--json` prints; docs/format.md lists the keys."""
    return {
        "file": str(made.failed.document.path),
        "dry_run": dry_run,
        "class": failure.kind if failure else None,
        "yaml": str(made.yaml),
        "log": str(made.log),
        "checkpoint": made.checkpoint,
        "output_dir": made.output_dir,
        "rejected": [rejection.to_json() for rejection in made.located.rejected],
        "warnings": list(made.located.warnings),
        "ran": [one.to_json() for one in ran],
    }


def _show(made: Plan, goes_on: str) -> None:
    print(f"{made.yaml}: {goes_on} from {made.checkpoint} in {made.output_dir}")
    if made.located.rejected:
        print("passed over:")
        rows = [(str(each.position.step), each.kind, each.reason) for each in made.located.rejected]
        tables.show(("step", "verdict", "reason"), rows)
    tables.warn(made.located.warnings)


def _say(text: str) -> None:
    print(f"ms-resume: {text}", file=sys.stderr, flush=True)
