"""Every name in a save directory is spelt and parsed here, as a whole name: `step-300.tmp-old` is not step 300.

<save>/<role dir>/rank_R/<prefix>_rank_R-E_S.<format>      payloads, MindRLHF's own names
<save>/commits/E_S/rank_R.json                             votes
<save>/commits/attempts/NNNNNN.json                        attempt records
<save>/rollouts/rank_R/rollouts_rank_R-E_S.<attempt>.log   finished rollouts of the steps since (E, S)
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ms_resume.records import Position

DIRECTORIES = {"policy": "train", "optimizer": "optimizer", "ref": "ref", "state": "state"}
PREFIXES = {"policy": "policy_model", "optimizer": "optimizer", "ref": "ref", "state": "state"}
FORMATS = ("safetensors", "ckpt")
META = "meta.json"
LATEST = "latest"
SAVE_NOW = "save_now"
STOP_NOW = "stop_now"

MOST_RANKS = 1 << 18
"""More than any job has: a number above it is no rank, so that a list of those that are missing stays small."""

NUMBER = r"(?:0|[1-9]\d{0,17})"
"""Up to 18 digits, as many as 64 bits hold: Python refuses to convert very long ones."""

_PAYLOAD = re.compile(
    rf"(?P<prefix>.+)_rank_(?P<rank>{NUMBER})-(?P<epoch>{NUMBER})_(?P<step>{NUMBER})\.(?P<format>ckpt|safetensors)",
    re.ASCII,
)
_PAYLOAD_END = re.compile(rf"({NUMBER})_({NUMBER})\.(?:ckpt|safetensors)", re.ASCII)
_LONGEST_END = 64
_RANK_DIR = re.compile(rf"rank_({NUMBER})", re.ASCII)
_VOTE = re.compile(rf"rank_({NUMBER})\.json", re.ASCII)
_POSITION = re.compile(rf"({NUMBER})_({NUMBER})", re.ASCII)
_RECORD = re.compile(r"(\d{6,18})\.json", re.ASCII)
_ATTEMPT_NAME = r"\d{6,18}-[0-9a-f]{16}"
_ATTEMPT = re.compile(_ATTEMPT_NAME, re.ASCII)
_DELETED = re.compile(rf"({NUMBER})_({NUMBER})\.deleted-({_ATTEMPT_NAME})(?:\.\d+)?", re.ASCII)
_PART = re.compile(rf"\.(?P<final>.+)\.(?P<attempt>{_ATTEMPT_NAME})\.part", re.ASCII)
_ROLLOUTS = re.compile(rf"rollouts_rank_({NUMBER})-({NUMBER})_({NUMBER})\.{_ATTEMPT_NAME}\.log", re.ASCII)
_RETIRED = re.compile(rf"\.(?P<final>.+)\.(?P<attempt>{_ATTEMPT_NAME})\.retired", re.ASCII)


@dataclass(frozen=True, slots=True)
class PayloadName:
    prefix: str
    rank: int
    position: Position
    format: str


def rank_dir(save: Path, role: str, rank: int) -> Path:
    return save / DIRECTORIES[role] / f"rank_{rank}"


def payload(save: Path, role: str, rank: int, position: Position, file_format: str = "safetensors") -> Path:
    return rank_dir(save, role, rank) / f"{payload_start(role, rank)}{position}.{file_format}"


def payload_start(role: str, rank: int) -> str:
    """How the names of all payloads of one rank and role begin."""
    return f"{PREFIXES[role]}_rank_{rank}-"


@lru_cache
def parse_payload_end(end: str) -> Position | None:
    """The position in what follows `payload_start`; the same few for every role and rank."""
    match = _PAYLOAD_END.fullmatch(end)
    return Position(int(match[1]), int(match[2])) if match else None


def parse_payload(name: str) -> PayloadName | None:
    """The parts of a payload's file name, or None for any other name."""
    if match := _PAYLOAD.fullmatch(name):
        position = Position(int(match["epoch"]), int(match["step"]))
        return PayloadName(match["prefix"], int(match["rank"]), position, match["format"])
    return None


def parse_payload_path(path: str, role: str, rank: int) -> Position | None:
    """The position of a payload, from its path in the save directory; None where that is not its place in the tree."""
    if role not in DIRECTORIES or not path.startswith(
        start := f"{DIRECTORIES[role]}/rank_{rank}/{payload_start(role, rank)}"
    ):
        return None
    end = path[len(start) :]
    return parse_payload_end(end) if len(end) < _LONGEST_END else None


def stays_inside(path: str) -> bool:
    """Whether a path in a save directory can name something in it, as far as the name alone tells."""
    parts = path.split("/")
    long = len(path.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts)
    return not (long or path.startswith("/") or "\0" in path or ".." in parts)


def parse_rank_dir(name: str) -> int | None:
    match = _RANK_DIR.fullmatch(name)
    return rank if match and (rank := int(match[1])) < MOST_RANKS else None


def rollouts_dir(save: Path, rank: int) -> Path:
    return save / "rollouts" / f"rank_{rank}"


def rollouts(save: Path, rank: int, position: Position, attempt: str) -> Path:
    return rollouts_dir(save, rank) / f"rollouts_rank_{rank}-{position}.{attempt}.log"


def parse_rollouts(name: str, rank: int) -> Position | None:
    """The position from which a log of this rank's rollouts counts; None for any other name."""
    match = _ROLLOUTS.fullmatch(name)
    return Position(int(match[2]), int(match[3])) if match and int(match[1]) == rank else None


def commits(save: Path) -> Path:
    return save / "commits"


def vote_dir(save: Path, position: Position) -> Path:
    return commits(save) / str(position)


def vote(save: Path, position: Position, rank: int) -> Path:
    return vote_dir(save, position) / f"rank_{rank}.json"


def parse_vote(name: str) -> int | None:
    match = _VOTE.fullmatch(name)
    return rank if match and (rank := int(match[1])) < MOST_RANKS else None


def parse_vote_dir(name: str) -> Position | None:
    match = _POSITION.fullmatch(name)
    return Position(int(match[1]), int(match[2])) if match else None


def deleted_dir(save: Path, position: Position, attempt: str) -> Path:
    return commits(save) / f"{position}.deleted-{attempt}"


def parse_deleted_dir(name: str) -> Position | None:
    match = _DELETED.fullmatch(name)
    return Position(int(match[1]), int(match[2])) if match else None


def may_hold_votes(name: str) -> bool:
    """Whether a directory in `commits` is a position's, taken out, or on its way."""
    return any(parse(name) is not None for parse in (parse_vote_dir, parse_deleted_dir, parse_retired))


def attempts(save: Path) -> Path:
    return commits(save) / "attempts"


def attempt_record(save: Path, ordinal: int) -> Path:
    return attempts(save) / f"{ordinal:06d}.json"


def heartbeat(save: Path, ordinal: int) -> Path:
    return attempts(save) / f"{ordinal:06d}.heartbeat"


def parse_attempt_record(name: str) -> int | None:
    match = _RECORD.fullmatch(name)
    return int(match[1]) if match else None


def is_attempt(text: object) -> bool:
    """Whether `text` can be the name of an attempt, from which its ordinal is read."""
    return isinstance(text, str) and _ATTEMPT.fullmatch(text) is not None


def pins(save: Path) -> Path:
    return save / "pins"


def part(final: Path, attempt: str) -> Path:
    """The temp file of `final`: hidden, and with an ending that nobody takes for a checkpoint."""
    return final.with_name(f".{final.name}.{attempt}.part")


def parse_part(name: str) -> tuple[str, str] | None:
    """(final name, attempt) of a temp file of ours."""
    match = _PART.fullmatch(name)
    return (match["final"], match["attempt"]) if match else None


def retired(path: Path, attempt: str) -> Path:
    """Where `attempt` puts a file for the moment in which it looks at what it is about to remove."""
    return path.with_name(f".{path.name}.{attempt}.retired")


def parse_retired(name: str) -> tuple[str, str] | None:
    """(final name, attempt) of a file that was about to be removed."""
    match = _RETIRED.fullmatch(name)
    return (match["final"], match["attempt"]) if match else None


def superseded(path: Path, attempt: str) -> Path:
    """A free name beside `path` for a foreign file that is in the way."""
    aside = path.with_name(f"{path.name}.superseded-{attempt}")
    return next(
        free for n in itertools.count() if not (free := aside.with_name(f"{aside.name}.{n}") if n else aside).exists()
    )


def broken(path: Path) -> Path:
    """A free name beside `path` for what stood there before it was repaired."""
    return next(free for n in itertools.count(1) if not (free := path.with_name(f"{path.name}.broken-{n}")).exists())
