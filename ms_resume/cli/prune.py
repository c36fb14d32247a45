"""Shows which positions retention would take away, why the others stay, and with --yes takes them.

    $ ms-resume prune save --keep-last 2
    position  verdict   what   frees     why
    2_0       torn      stays  0 B       not older than 1_0, the oldest of the newest 2 complete ones
    1_5       complete  stays  0 B       one of the newest 2 complete ones
    1_0       complete  stays  0 B       one of the newest 2 complete ones
    0_5       complete  goes   43.9 KiB  older than 1_0, the oldest of the newest 2 complete ones
    1 position would go, 43.9 KiB freed; nothing was removed: --yes does it

Rules are those of a running job: MS_RESUME_KEEP_LAST (or --keep-last), MS_RESUME_KEEP_EVERY and MS_RESUME_KEEP_BEST,
never fewer than two, no pinned one, nothing of stock code's. --yes is refused with exit code 61 while a job owns the
directory. The newest two that a resume can take stay, whatever the rules say; bytes are not read: `verify --deep`.
With --storage local it is refused: from one node's disk nobody can tell what is whole on all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume import repair, retention, settings
from ms_resume.cli import directory, tables
from ms_resume.errors import UsageError
from ms_resume.records import Position
from ms_resume.retention import Keep, Standing


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one position, and why; `bytes` is what goes with it."""

    position: Position
    verdict: str
    goes: bool
    bytes: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in Row.__slots__}, "position": self.position.to_json()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_storage(parser)
    parser.add_argument("--keep-last", metavar="N", type=int, help="complete ones that stay; 1 means 2, 0 all")
    parser.add_argument("--yes", action="store_true", help="remove what the plan shows")


def run(args: argparse.Namespace) -> None:
    save = directory.take(args).save
    if directory.is_local(args):
        raise UsageError(
            f"{save}: one node's disk does not show what is whole on all nodes, the only whole one might go",
            hint="a job knows it from all ranks: started with MS_RESUME_STORAGE=local and MS_RESUME_KEEP_LAST=N it "
            "prunes the disks of all nodes as it begins, and after each save",
        )
    chosen = settings.from_environment(**({} if args.keep_last is None else {"keep_last": args.keep_last}))
    keep = Keep(chosen.keep_last, chosen.keep_every, chosen.keep_best)
    rows = list_rows(save, keep)
    if args.yes:
        repair.prune(save, keep)
    if args.json:
        kept = {"last": keep.last, "every": keep.every, "best": keep.best}
        plan = {"save": str(save), "keep": kept, "done": args.yes, "positions": [row.to_json() for row in rows]}
        print(json.dumps(plan))
    else:
        _show(rows, args.yes)


def list_rows(save: Path, keep: Keep) -> list[Row]:
    """Every position, newest first, and what becomes of it."""
    found = repair.prunable(save, keep)
    surveyed, standing, pins = found.surveyed, found.plan.standing, retention.pinned(save)
    of = {entry.position: entry for entry in standing}
    rows = []
    for position in surveyed.positions:
        entry, files = of.get(position), found.files.get(position, [])
        if entry is None:
            rows.append(Row(position, "stock", False, 0, "not of ms_resume: never removed"))
        elif position in found.plan.gone:
            rows.append(Row(position, _verdict(entry), True, _freed(files), why_gone(entry, standing, keep)))
        elif position not in surveyed.deleted - surveyed.voted:
            rows.append(Row(position, _verdict(entry), False, 0, why_kept(entry, standing, found.keep, pins)))
        elif files:
            rows.append(Row(position, "deleted", True, _freed(files), "taken out before, files of it are left"))
    return rows


def why_gone(entry: Standing, standing: Sequence[Standing], keep: Keep) -> str:
    """For people: by which rule a position may go."""
    last, oldest = _newest(standing, keep)
    if oldest is not None and entry.position < oldest:
        return f"older than {oldest}, the oldest of the newest {last} complete ones"
    if entry.state == "weights":
        return f"not one of the newest {last} of weights alone"
    return "torn, and its attempt has gone on past it"


def why_kept(entry: Standing, standing: Sequence[Standing], keep: Keep, pins: Iterable[Position]) -> str:
    """For people: by which rule a position stays."""
    last, oldest = _newest(standing, keep)
    alike = sorted((other.position for other in standing if other.state == entry.state), reverse=True)
    if entry.position in pins:
        return "pinned"
    if keep.last <= 0:
        return "all are kept"
    if oldest is None and entry.state != "weights":
        return "nothing goes while fewer than 2 are complete"
    if entry.whole and entry.position in alike[:last]:
        return f"one of the newest {last} {'complete ones' if entry.complete else 'of weights alone'}"
    if entry.position in retention.wanted(standing, Keep(keep.last, every=keep.every)):
        return f"its global step {entry.global_step} is one of every {keep.every}"
    if entry.position in retention.wanted(standing, keep):
        return f"the best by {keep.best}"
    if entry.position in keep.always:
        return "one of the newest 2 that a resume can take: their headers are valid"
    if entry.whole or oldest is None or entry.position < oldest:
        return "a meta.json in train names it"
    return f"not older than {oldest}, the oldest of the newest {last} complete ones"


def _newest(standing: Sequence[Standing], keep: Keep) -> tuple[int, Position | None]:
    """How many complete ones stay, and the oldest of them; None where too few are complete."""
    last = max(keep.last, retention.NEVER_FEWER_THAN)
    complete = sorted((entry.position for entry in standing if entry.complete), reverse=True)
    return last, complete[:last][-1] if len(complete) >= retention.NEVER_FEWER_THAN else None


def _verdict(entry: Standing) -> str:
    return {"live": "complete", "weights": "weights"}.get(entry.state, entry.state)


def _freed(paths: Iterable[Path]) -> int:
    """Bytes of files none of whose names stays: replicas share files."""
    names: dict[tuple[int, int], int] = {}
    freed = 0
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:  # a job that is running was faster
            continue
        file = (status.st_dev, status.st_ino)
        names[file] = names.get(file, 0) + 1
        freed += status.st_size if names[file] == status.st_nlink else 0
    return freed


def _show(rows: Sequence[Row], done: bool) -> None:
    columns = ("position", "verdict", "what", "frees", "why")
    told = [(str(r.position), r.verdict, "goes" if r.goes else "stays", tables.size(r.bytes), r.reason) for r in rows]
    tables.show(columns, told)
    going = [row for row in rows if row.goes]
    what = f"{len(going)} {'position' if len(going) == 1 else 'positions'}"
    freed = f"{tables.size(sum(row.bytes for row in going))} freed"
    if not going:
        print("nothing to prune")
    else:
        print(f"{what} went, {freed}" if done else f"{what} would go, {freed}; nothing was removed: --yes does it")
