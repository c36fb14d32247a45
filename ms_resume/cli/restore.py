"""Brings an abandoned position back: a resume goes on from it, and what was saved since is abandoned instead.

    $ ms-resume restore save 2_0
    save: a resume takes 2_0 from now on (attempt 000004-...)
    brought back  2_0, 1_5
    abandoned     1_2, 1_1

It writes one attempt record, as a start does, and meta.json; no checkpoint is moved or removed. --dry-run shows what
would be. Exit code 61 while a job owns the directory; 10, 20 or 21 where the position is not there, torn, or damaged.

On node-local disks type it on each node with --storage local, first with --dry-run: a resume takes what is live on all
of them, and before the last one was restored it would go back to an older position.
"""

from __future__ import annotations

import argparse
import json

from ms_resume import locate, repair
from ms_resume.cli import directory, tables
from ms_resume.layouts import SaveDirectory, survey
from ms_resume.layouts.survey import Survey
from ms_resume.records import Checkpoint, Position


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_position(parser)
    directory.add_storage(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be brought back; write nothing")


def run(args: argparse.Namespace) -> None:
    now, ref_dir, opened = directory.take(args), directory.optional(args.ref_dir), None
    is_local = directory.is_local(args)
    if args.dry_run:
        then = repair.foreseen(now.save, args.position, ref_dir=ref_dir, is_local=is_local)
    else:
        opened = repair.restore(now.save, args.position, ref_dir=ref_dir, is_local=is_local)
        then = survey.take(now.save, ref_dir, is_local=is_local)
    before, after = _live(now), _live(then)
    document = {
        "save": str(now.save),
        "dry_run": args.dry_run,
        "position": args.position.to_json(),
        "attempt": opened.attempt if opened else None,
        "restored": [position.to_json() for position in sorted(after - before, reverse=True)],
        "abandoned": [position.to_json() for position in sorted(before - after, reverse=True)],
    }
    directory.tell_each_node(args, "or a resume goes back to what was live before and after on all of them")
    if args.json:
        print(json.dumps(document))
        return
    if opened:
        print(f"{now.save}: a resume takes {args.position} from now on (attempt {opened.attempt})")
    elif len(then.records) > len(now.records):
        print(f"{now.save}: a resume would take {args.position}; nothing was written")
    else:
        print(f"{now.save}: a resume takes {args.position} already")
    rows = [("brought back", tables.positions(after - before)), ("abandoned", tables.positions(before - after))]
    tables.facts([(name, said) for name, said in rows if said])


def _live(surveyed: Survey) -> set[Position]:
    return {
        verdict.position
        for verdict in locate.verdicts(SaveDirectory(surveyed))
        if isinstance(verdict, Checkpoint) or verdict.kind != "abandoned"
    }
