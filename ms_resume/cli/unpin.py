"""Lets go of a position that was pinned: retention and prune may take it.

    $ ms-resume unpin save 0_5
    save: 0_5 is not pinned any more

Nothing is removed now: a running job does that after its next save, or `ms-resume prune`.
"""

from __future__ import annotations

import argparse

from ms_resume import retention
from ms_resume.cli import directory, pin, tables
from ms_resume.errors import UsageError
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pin.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    save, position = survey.take(directory.find(args.save)).save, args.position
    pinned = retention.pinned(save)
    if position not in pinned:
        others = f"pinned are {tables.positions(pinned)}" if pinned else "nothing is"
        raise UsageError(f"{save}: {position} is not pinned, {others}", hint=f"`ms-resume ls {save}` marks what is")
    atomic.remove(names.pins(save) / str(position))
    pin.report(args, save, position, f"{position} is not pinned any more", changed=True)
    directory.tell_each_node(args, "or the others keep their part of it")
