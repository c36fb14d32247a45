"""Lists every position in SAVE, newest first, and marks the one that a resume would take.

    $ ms-resume ls save
        position  verdict   layout     attempt  ranks  size      roles
        2_0       torn      ms_resume  000002   2      43.9 KiB  policy optimizer state
    ->  1_5       complete  ms_resume  000002   2      52.0 KiB  policy optimizer ref state
        1_0       complete  ms_resume  000002   2      52.0 KiB  policy optimizer ref state
        0_5       complete  ms_resume  000001   2      52.0 KiB  policy optimizer ref state
    2_0 is torn: no vote of rank 1 (of 2 ranks, attempt 000002-...)

Sizes count what a resume reads. Headers are checked down to the one that is marked, bytes are not: `verify --deep`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ms_resume import layouts, locate, retention, verify
from ms_resume.cli import directory, progress, tables
from ms_resume.cli.locate import check
from ms_resume.layouts import Holding
from ms_resume.records import ROLES, Checkpoint, Position, Rejection

_COLUMNS = ("", "position", "verdict", "layout", "attempt", "ranks", "size", "roles")


@dataclass(frozen=True, slots=True)
class Row:
    """One position. `bytes` is what a resume would read of a complete one, what lies there of another."""

    position: Position
    verdict: str
    taken: bool
    layout: str
    attempt: str | None
    world_size: int | None
    roles: tuple[str, ...]
    bytes: int
    reason: str = ""
    ranks: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    pinned: bool = False

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in Row.__slots__}
        return {**plain, "position": self.position.to_json()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_kinds(parser)


def run(args: argparse.Namespace) -> None:
    holding = directory.holding(args)
    pinned = retention.pinned(holding.save)
    rows = [replace(row, pinned=row.position in pinned) for row in list_rows(holding)]
    if not rows:
        raise directory.nothing(holding.save, (), holding.NAME)
    if args.json:
        print(json.dumps({"save": str(holding.save), "positions": [row.to_json() for row in rows]}))
    else:
        tables.show(_COLUMNS, map(_cells, rows))
        for row in rows:
            if row.reason:
                print(f"{row.position} is {row.verdict}: {row.reason}")
        tables.warn(warning for row in rows for warning in row.warnings)


def list_rows(holding: Holding) -> Iterator[Row]:
    """Every position, newest first. As in a resume, headers are checked down to the one that it takes."""
    taken = False
    for verdict in locate.verdicts(holding):
        if isinstance(verdict, Rejection):
            yield _of_rejection(holding, verdict)
        elif passed_over := verify.weights_only(verdict) if taken else check(verdict, deep=False):
            yield _of_rejection(holding, passed_over)
        else:
            yield _of_checkpoint(verdict, taken=not taken)
            taken = True


def _of_checkpoint(found: Checkpoint, *, taken: bool) -> Row:
    return Row(
        position=found.position,
        verdict="complete",
        taken=taken,
        layout=found.layout,
        attempt=found.attempt,
        world_size=found.world_size,
        roles=_in_order({file.role for file in found.files}),
        bytes=progress.size_bytes(found),
        warnings=found.warnings if taken else (),  # what is wrong beside an older one changes nothing
    )


def _of_rejection(holding: Holding, rejection: Rejection) -> Row:
    position = rejection.position
    files, about = holding.files(position), layouts.about(holding, position)
    return Row(
        position=position,
        verdict=rejection.kind,
        taken=False,
        layout=about.layout,
        attempt=rejection.attempt or about.attempt,
        world_size=about.world_size,
        roles=_in_order({role for role, _ in files}),
        bytes=sum(map(_size_now, files.values())),
        reason=rejection.reason,
        ranks=rejection.ranks,
    )


def _size_now(path: Path) -> int:
    """0 of a file that went away after it was listed: a job that is running clears its torn positions."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _in_order(roles: set[str]) -> tuple[str, ...]:
    return (*(role for role in ROLES if role in roles), *sorted(roles - {*ROLES}))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        "->" if row.taken else "",
        str(row.position),
        row.verdict + (", pinned" if row.pinned else ""),
        row.layout,
        "-" if row.attempt is None else row.attempt.partition("-")[0],
        "-" if row.world_size is None else str(row.world_size),
        tables.size(row.bytes),
        " ".join(row.roles) or "-",
    )
