"""Attempt records, `commits/attempts/NNNNNN.json`, and what follows from them: which checkpoints are live.

Going back is one new record, not many renames. The newest record owns the directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.ondisk import names, reading, seal
from ms_resume.records import Attempt, DeadStock, Origin, Position

_WORDS = ("host", "boot_id", "pid_namespace", "created_at", "label", "weights")


@dataclass(frozen=True, slots=True)
class Line:
    """The line of the newest attempt: itself, then those it descends from, each up to where it was left.

    `bounds` maps an attempt to its last live position, None for no bound; `stock_origin` is the stock checkpoint that
    the oldest of them went on from.
    """

    bounds: Mapping[str, Position | None]
    dead_stock: tuple[DeadStock, ...] = ()
    stock_origin: Position | None = None

    def starts_from_stock(self, position: Position) -> bool:
        """Whether the line begins at the stock checkpoint of `position`: no attempt on it has saved there."""
        return position == self.stock_origin

    def holds(self, attempt: str, position: Position) -> bool:
        """Whether a checkpoint of `attempt` at `position` is live."""
        if attempt not in self.bounds:
            return False
        bound = self.bounds[attempt]
        return bound is None or position <= bound

    def dead_stock_at(self, save: Path, position: Position) -> bool:
        """Whether stock's files at `position` are those that an attempt went back past, or one rank's still are.

        A stock job that died while it saved the position again leaves both generations there.
        """
        dead = next((dead for dead in self.dead_stock if dead.position == position), None)
        return dead is not None and any(_unchanged(save, *file) for file in dead.files)


def newest_ordinal(save: Path) -> int:
    """0 when there is no record."""
    return max(_ordinals(save), default=0)


def read_all(save: Path) -> list[Attempt]:
    """Every record, oldest first.

    Raises:
        Damaged: A record cannot be read. Nothing can be said about which checkpoints are live until it is repaired:
            going on without it could resurrect what was left behind.
    """
    return [_read(names.attempt_record(save, ordinal)) for ordinal in sorted(_ordinals(save))]


def line_of(records: Sequence[Attempt]) -> Line:
    """The live line of the last record in `records`."""
    by_name = {record.attempt: record for record in records}
    bounds: dict[str, Position | None] = {}
    dead: list[DeadStock] = []
    name, bound, stock_origin = (records[-1].attempt if records else None), None, None
    while name is not None and name not in bounds:
        bounds[name] = bound
        record = by_name.get(name)  # None when it was lost: what went on from it still says how far it is live
        origin = record.origin if record else None
        dead += record.dead_stock if record else ()
        if origin is None or origin.save is not None:
            break
        bound = min(bound, origin.position) if bound else origin.position
        name, stock_origin = origin.attempt, origin.position
    return Line(bounds, tuple(dead), stock_origin if name is None else None)


def encode(attempt: Attempt) -> bytes:
    return seal.encode(document(attempt))


def document(attempt: Attempt) -> dict[str, Any]:
    """The record as plain JSON."""
    plain = asdict(attempt)
    origin = plain.pop("origin")
    if origin is not None:
        position = origin.pop("position")
        origin = {"epoch": position["epoch"], "step": position["step"], **origin}
    plain["dead_stock"] = [
        {"epoch": dead.position.epoch, "step": dead.position.step, "files": [list(file) for file in dead.files]}
        for dead in attempt.dead_stock
    ]
    return {"format": "ms_resume/1", "attempt": plain.pop("attempt"), "from": origin, **plain}


def _read(path: Path) -> Attempt:
    try:
        attempt = decode(seal.decode(reading.content(path)))
        if f"{attempt.ordinal:06d}.json" != path.name:
            raise ValueError(f"it says it is attempt {attempt.attempt}")
        return attempt
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        why = error.fields["reason"] if isinstance(error, Damaged) else error
        raise Damaged(
            f"{path}: not an attempt record ({why}), so it cannot be said which checkpoints are live",
            hint="restore that file from a backup, or move it away to return to the attempt before it",
            path=str(path),
        ) from None


def decode(document: Mapping[str, Any]) -> Attempt:
    """Raises ValueError, KeyError, TypeError or AttributeError where it is not a record."""
    known: dict[str, Any] = {key: _word(document[key]) for key in _WORDS if key in document}
    known |= {key: reading.whole(document[key]) for key in ("pid", "pid_start") if key in document}
    dead = tuple(_dead_stock(entry) for entry in document.get("dead_stock", ()))
    return Attempt(
        attempt=_name(document["attempt"]),
        origin=None if document["from"] is None else _origin(document["from"]),
        world_size=reading.whole(document["world_size"], most=names.MOST_RANKS),
        dead_stock=dead,
        **known,
    )


def _origin(document: Mapping[str, Any]) -> Origin:
    attempt, save = document["attempt"], document.get("save")
    return Origin(
        position=_position(document),
        attempt=None if attempt is None else _name(attempt),
        save=None if save is None else _word(save),
    )


def _dead_stock(document: Mapping[str, Any]) -> DeadStock:
    files = tuple((path, reading.whole(size), _mtime(mtime)) for path, size, mtime in document["files"])
    if wrong := [path for path, _, _ in files if not names.stays_inside(path)]:
        raise ValueError(f"it names {reading.brief(wrong[0])}, outside the save directory")
    return DeadStock(_position(document), files)


def _mtime(value: object) -> int:
    return reading.whole(value, least=-(1 << 63))  # a file may be older than 1970


def _position(document: Mapping[str, Any]) -> Position:
    return Position(reading.whole(document["epoch"]), reading.whole(document["step"]))


def _name(value: object) -> str:
    if not names.is_attempt(value):
        raise ValueError(f"{reading.brief(value)} is no attempt")
    return str(value)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reading.brief(value)} is no text")
    return value


def _ordinals(save: Path) -> list[int]:
    found = map(names.parse_attempt_record, reading.listed(names.attempts(save)))
    return [ordinal for ordinal in found if ordinal is not None]


def _unchanged(save: Path, path: str, size: int, mtime_ns: int) -> bool:
    file = save / path
    try:
        if not Path(os.path.realpath(file.parent)).is_relative_to(os.path.realpath(save)):
            return True  # behind a link, where nothing is looked at
        status = file.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return True  # gone, or renamed aside by a save of ours: it cannot come alive
    return (status.st_size, status.st_mtime_ns) == (size, mtime_ns)
