"""Rewrites each meta.json that is broken, or names another checkpoint than a resume takes, for stock code.

    $ ms-resume repair save --dry-run
    save/train/rank_1/meta.json: torn
      says       {"last_epoch": 1, "last_s
      would say  {"last_epoch": 1, "last_step": 5, "last_ckpt_file": "policy_model_rank_1-1_5.safetensors"}
    1 file would be rewritten; nothing was written

A broken one is kept beside it as meta.json.broken-N. In a directory of stock code's only broken ones are rewritten.
On one node's own disk (--storage local) the newest is named of which this node's ranks have their part.
Exit code 61 while a job owns the directory, 10 where there is no whole checkpoint to name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ms_resume import repair
from ms_resume.cli import directory, tables
from ms_resume.repair import Rewritten

_FILES_SHOWN = 16
_TEXT_SHOWN = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_storage(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what each file says and would say; write nothing")


def run(args: argparse.Namespace) -> None:
    surveyed = directory.take(args)
    act = repair.broken if args.dry_run else repair.repair
    files = act(surveyed.save, ref_dir=directory.optional(args.ref_dir), is_local=directory.is_local(args))
    if args.json:
        document = {"save": str(surveyed.save), "dry_run": args.dry_run, "files": list(map(to_json, files))}
        print(json.dumps(document))
    elif files:
        _show(files, args.dry_run)
    else:
        print(f"{surveyed.save}: every meta.json is as it should be")


def to_json(file: Rewritten) -> dict[str, object]:
    """One entry of `files`."""
    return {
        "path": str(file.path),
        "trouble": file.trouble,
        "position": file.position.to_json(),
        "said": file.said,
        "says": file.says,
        "kept": str(file.kept) if file.kept else None,
    }


def _show(files: Sequence[Rewritten], dry_run: bool) -> None:
    before, after = ("says", "would say") if dry_run else ("said", "says now")
    shown = files[: _FILES_SHOWN if sys.stdout.isatty() else None]
    for file in shown:
        print(f"{file.path}: {file.trouble}")
        said = file.said if len(file.said) <= _TEXT_SHOWN else f"{file.said[:_TEXT_SHOWN]}..."
        rows = [(f"  {before}", said), (f"  {after}", file.says), ("  kept as", str(file.kept or ""))]
        tables.facts([(name, said) for name, said in rows if said])
    if len(shown) < len(files):
        print(f"... and {len(files) - len(shown)} more files; a pipe gets all")
    what = f"{len(files)} {'file' if len(files) == 1 else 'files'}"
    print(f"{what} would be rewritten; nothing was written" if dry_run else f"{what} rewritten")
