"""The SAVE that a person typed: which directory it means, and what is there where it holds no checkpoint."""

from __future__ import annotations

import argparse
import heapq
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ms_resume import layouts
from ms_resume.errors import MsResumeError, NothingToResume, UsageError
from ms_resume.layouts import Holding, SaveDirectory, survey
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import names, reading
from ms_resume.records import Position, Rejection

_BESIDE_TRAIN = ("optimizer", "ref", "commits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SAVE, and what belongs to it."""
    parser.add_argument("save", metavar="SAVE", help="the save directory, which holds train/ and optimizer/")
    parser.add_argument("--ref-dir", metavar="D", help="where the reference lies, if not in SAVE/ref")


def add_kinds(parser: argparse.ArgumentParser) -> None:
    """How what is in SAVE is to be looked at."""
    known = ", ".join(layouts.NAMES)
    parser.add_argument("--layout", choices=layouts.NAMES, metavar="NAME", help=f"how it lies there: {known}")
    add_storage(parser)


def add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        choices=("shared", "local"),
        default="shared",
        help="local: SAVE is one node's own disk; the votes of ranks that have nothing here count as cast",
    )


def add_position(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("position", metavar="E_S", type=Position.parse, help="a position, as `ms-resume ls` shows it")


def find(text: str) -> Path:
    """The save directory that `text` means: `SAVE/train`, as MindRLHF wants it, is taken for SAVE."""
    save = Path(text)
    here = Path(os.path.abspath(save))
    beside = any((here.parent / name).is_dir() for name in _BESIDE_TRAIN)
    if here.name != names.DIRECTORIES["policy"] or (here / here.name).is_dir() or not beside:
        return save
    above = save.parent if save.name == here.name else here.parent
    print(f"ms-resume: {save} is the train directory of {above}: looking at {above}", file=sys.stderr)
    return above


def holding(args: argparse.Namespace) -> Holding:
    """What lies in the SAVE of a command line, by looking, or as `--layout` says."""
    ref_dir = optional(args.ref_dir)
    return layouts.find(find(args.save), ref_dir=ref_dir, layout=args.layout, is_local=is_local(args))


def take(args: argparse.Namespace) -> Survey:
    """What lies in the SAVE of a command that wants something to be there. Raises where there is no checkpoint."""
    surveyed = survey.take(find(args.save), optional(args.ref_dir), is_local=is_local(args))
    if not surveyed.positions:
        raise nothing(surveyed.save, ())
    return surveyed


def is_local(args: argparse.Namespace) -> bool:
    return bool(args.storage == "local")


def tell_each_node(args: argparse.Namespace, why: str) -> None:
    """What changed one node's own disk is half of something."""
    if is_local(args):
        print(f"ms-resume: this is one node's disk: type the same on each node, {why}", file=sys.stderr)


def optional(text: str | None) -> Path | None:
    """Raises UsageError where there is no such directory: a misspelt one must not read as "no reference"."""
    if text is None or Path(text).is_dir():
        return None if text is None else Path(text)
    what = "is a file" if Path(text).exists() else "does not exist"
    raise UsageError(
        f"{text}: {what}, expected the directory of the reference (rank_0/, rank_1/, ...)",
        hint="check --ref-dir",
    )


def nothing(
    save: Path, rejected: Sequence[Rejection], layout: str = SaveDirectory.NAME, /, **fields: Any
) -> MsResumeError:
    """Why there is no whole checkpoint of `layout` in `save`: none of the positions is, or there are none."""
    if rejected:
        return NothingToResume(
            f"{save}: no whole checkpoint among {len(rejected)} positions, newest is {rejected[0].position} "
            f"({rejected[0].reason})",
            hint="a trainer begins anew only with --allow_fresh_start, beside what is there",
            **fields,
        )
    if layout != SaveDirectory.NAME:
        return NothingToResume(
            f"{save}: holds no {layout} checkpoint",
            hint="leave --layout out: what lies there is found by looking",
            **fields,
        )
    if (seen := layouts.stranger(save)) is not None:
        return UsageError(
            f"{save}: holds {seen.layout} ({seen.evidence}), expected a save directory of ms_resume or "
            "MindRLHF, with train/, optimizer/ and ref/",
            hint=seen.advice,
            path=str(save),
        )
    found = heapq.nsmallest(6, reading.listed(save, follow=True))
    held = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    said = f"has no checkpoint in it (it holds {held})" if found else "is empty"
    return NothingToResume(
        f"{save}: {said}, expected train/rank_R/policy_model_rank_R-E_S.safetensors and its like",
        hint="check the path; a run that has not saved yet has nothing to resume",
        **fields,
    )
