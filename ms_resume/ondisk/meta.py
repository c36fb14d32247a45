"""MindRLHF's `meta.json`: three keys, written as stock code does but atomically, and read as far as it goes.

Stock code does not truncate the old file, so that a shorter record leaves garbage behind the first JSON object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.ondisk import names, reading
from ms_resume.records import Position

_LIMIT = 64 << 10
_TOO_LARGE = 10**18
_LONGEST_NAME = 255
"""What file systems allow."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What a `meta.json` says. `trouble` is empty where stock code would read the same."""

    position: Position | None
    file: str = ""
    trouble: str = ""


def encode(position: Position, file: str) -> bytes:
    return json.dumps({"last_epoch": position.epoch, "last_step": position.step, "last_ckpt_file": file}).encode()


def read(rank_dir: Path) -> Meta:
    try:
        text = reading.content(rank_dir / names.META, _LIMIT).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return Meta(None, trouble="missing")
    except Damaged as error:
        return Meta(None, trouble=error.fields["reason"])
    if not text.strip("\0 \n"):
        return Meta(None, trouble="empty")
    try:
        document, end = json.JSONDecoder().raw_decode(text)
        epoch, step, file = document["last_epoch"], document["last_step"], document["last_ckpt_file"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Meta(None, trouble="torn")
    if type(epoch) is not int or type(step) is not int or type(file) is not str:
        return Meta(None, trouble="its values have the wrong types")
    if not 0 <= min(epoch, step) <= max(epoch, step) < _TOO_LARGE or len(file) > _LONGEST_NAME:
        return Meta(None, trouble="its values are out of all bounds")
    return Meta(Position(epoch, step), file, _trouble(text[end:], file, Position(epoch, step)))


def _trouble(rest: str, file: str, position: Position) -> str:
    if rest.strip():
        return f"garbage after the first object: {rest[:40]!r}"
    name = names.parse_payload(file)
    if name is not None and name.position != position:
        return f"it says {position} and names {file}"
    return ""
