"""Keeps a position: retention and prune leave it, until it is unpinned.

    $ ms-resume pin save 0_5
    save: 0_5 is pinned

A running job heeds it from its next save on. A pin does not bring an abandoned position back, nor does it keep one from
a save at the same position. It is an empty file, SAVE/pins/E_S. On node-local disks (--storage local) it keeps this
node's part: type it on each node.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ms_resume import layouts, locate, retention
from ms_resume.cli import directory, tables
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, names
from ms_resume.records import Position, Rejection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_position(parser)
    directory.add_storage(parser)


def run(args: argparse.Namespace) -> None:
    surveyed = directory.take(args)
    save, position = surveyed.save, locate.named(surveyed, args.position)
    new = position not in retention.pinned(save)
    atomic.make_dirs(names.pins(save))
    atomic.make_empty(names.pins(save) / str(position))
    now = survey.take(save, directory.optional(args.ref_dir), is_local=directory.is_local(args))
    judged = layouts.judge(now, position)
    if isinstance(judged, Rejection):
        if position in now.deleted - now.voted:  # maybe just now, by a job that had looked for pins before
            atomic.remove(names.pins(save) / str(position))
            raise locate.refusal(save, judged)
        tables.warn([f"{position} is {judged.kind}: {judged.reason}"])
    report(args, save, position, f"{position} is pinned" + ("" if new else " already"), changed=new)
    directory.tell_each_node(args, "or the other nodes' retention takes their part of it")


def report(args: argparse.Namespace, save: Path, position: Position, said: str, *, changed: bool) -> None:
    """What pin and unpin tell."""
    if args.json:
        pinned = [other.to_json() for other in sorted(retention.pinned(save), reverse=True)]
        print(json.dumps({"save": str(save), "position": position.to_json(), "changed": changed, "pinned": pinned}))
    else:
        print(f"{save}: {said}")
