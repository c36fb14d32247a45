"""Shows which checkpoint a resume would take, its files, and why each newer one is passed over.

    $ ms-resume locate save --deep
    save: a resume takes 1_0 (layout ms_resume, attempt 000002-..., 2 ranks)
    rank  role       path
    0     policy     save/train/rank_0/policy_model_rank_0-1_0.safetensors
    0     optimizer  save/optimizer/rank_0/optimizer_rank_0-1_0.safetensors
    0     ref        save/ref/rank_0/ref_rank_0-0_5.safetensors
    0     state      save/state/rank_0/state_rank_0-1_0.safetensors
    1     policy     save/train/rank_1/policy_model_rank_1-1_0.safetensors
    1     optimizer  save/optimizer/rank_1/optimizer_rank_1-1_0.safetensors
    1     ref        save/ref/rank_1/ref_rank_1-0_5.safetensors
    1     state      save/state/rank_1/state_rank_1-1_0.safetensors
    passed over:
    position  verdict  ranks  reason
    2_0       torn     1      no vote of rank 1 (of 2 ranks, attempt 000002-...)
    1_5       damaged  0      save/optimizer/rank_0/optimizer_rank_0-1_5.safetensors: tensor 'adam_m.w': ...

Exit code 10 when there is none. Without --deep headers are checked; a resume checks every byte while it loads. Of what
MindFormers 1.0 saved it also says what to pass to MindFormers, and what that will not restore.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from ms_resume import layouts, locate, verify
from ms_resume.cli import directory, progress, tables
from ms_resume.layouts import mindformers
from ms_resume.layouts.mindrlhf import tensors
from ms_resume.layouts.ranked import MODEL
from ms_resume.records import Checkpoint, Located, Rejection, in_ranges

_FILES_SHOWN = 16

_NUMBERS = {
    "epoch_num": "the epoch",
    "step_num": "the step",
    "global_step": "the learning rate's step",
    "loss_scale": "the loss scale",
    "global_batch_size": "the batch size by which steps are scaled",
}
"""What MindFormers restores beside weights and moments."""

_NEVER = ("random state", "counters of metrics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_kinds(parser)
    parser.add_argument("--deep", action="store_true", help="read every byte and check it against its digest")


def run(args: argparse.Namespace) -> None:
    holding = directory.holding(args)
    located = locate.newest(holding, check=partial(check, deep=args.deep))
    if located.checkpoint is None:
        if not args.json:
            _show_rejected(located.rejected)
        raise directory.nothing(located.save, located.rejected, holding.NAME, **document(located))
    if args.json:
        print(json.dumps(document(located)))
    else:
        _show(located.save, located.checkpoint, located)


def check(checkpoint: Checkpoint, *, deep: bool) -> Rejection | None:
    """Why a resume would pass a complete checkpoint over, by its headers, or by every byte when `deep`."""
    if not deep:
        return verify.headers(checkpoint)
    with progress.shown(checkpoint) as tell:
        findings = verify.check(checkpoint, deep=True, progress=tell)
        return verify.weights_only(checkpoint) or verify.rejection(checkpoint, findings)


def document(located: Located) -> dict[str, Any]:
    """What `--json` prints; docs/format.md lists the keys."""
    found = located.checkpoint
    return {
        "save": str(located.save),
        "position": found.position.to_json() if found else None,
        "attempt": found.attempt if found else None,
        "world_size": found.world_size if found else None,
        "layout": found.layout if found else None,
        "files": [file.to_json() for file in found.files] if found else [],
        "rejected": [rejection.to_json() for rejection in located.rejected],
        "warnings": list(located.warnings),
        **({"mindformers": for_mindformers(found)} if found and found.layout == mindformers.NAME else {}),
    }


def for_mindformers(found: Checkpoint) -> dict[str, Any]:
    """What its configuration has to say to resume from `found`, every rank from that position, and what it leaves out.

    MindFormers takes 0 for a number that the file does not hold, without a word. It puts each rank's own number into
    the file name.
    """
    file = found.of_rank(0)[MODEL]
    held = tensors(file).keys()
    lost = [f"{what} (the file has no {name})" for name, what in _NUMBERS.items() if name not in held]
    return {
        "load_checkpoint": str(file.parent.parent),
        "resume_training": file.name,
        "load_ckpt_format": file.suffix.lstrip("."),
        "not_restored": [*_NEVER, *lost],
    }


def _show(save: object, found: Checkpoint, located: Located) -> None:
    attempt = f", attempt {found.attempt}" if found.attempt else ""
    what = "a resume takes" if found.layout in layouts.RESUMED else "the newest whole one is"
    print(f"{save}: {what} {found.position} (layout {found.layout}{attempt}, {found.world_size} ranks)")
    shown = found.files[:_FILES_SHOWN]
    tables.show(("rank", "role", "path"), [(str(file.rank), file.role, str(file.path)) for file in shown])
    if len(found.files) > len(shown):
        print(f"... and {len(found.files) - len(shown)} more files; --json lists all")
    _show_rejected(located.rejected)
    if found.layout == mindformers.NAME:
        *facts, (_, lost) = for_mindformers(found).items()
        print("for MindFormers:")
        tables.facts([*((f"  {name}", value) for name, value in facts), ("  not restored", ", ".join(lost))])
    tables.warn(located.warnings)


def _show_rejected(rejected: tuple[Rejection, ...]) -> None:
    if rejected:
        print("passed over:")
        rows = [(str(r.position), r.kind, in_ranges(r.ranks), r.reason) for r in rejected]
        tables.show(("position", "verdict", "ranks", "reason"), rows)
