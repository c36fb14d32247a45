"""Layouts known by sight and not read: a wrong directory gets its name for an answer, not "nothing found"."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.ondisk import reading


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a directory holds instead of a save directory, by what it was recognised, and what to do."""

    layout: str
    evidence: Path
    advice: str


_ABOVE = "give the directory above it: its optimizer directory is expected beside it"
_PART = "give the directory above it"
_WEIGHTS_ONLY = "they hold no optimizer state: a run can start from such weights, not resume from them"

_KINDS = (
    ("MindRLHF's train directory without its optimizer", "rank_[0-9]*/policy_model_rank_*", _ABOVE),
    ("only the optimizer directory of a save directory", "rank_[0-9]*/optimizer_rank_*", _PART),
    ("only the ref directory of a save directory", "rank_[0-9]*/ref_rank_*", _PART),
    ("only the state directory of a save directory", "rank_[0-9]*/state_rank_*", _PART),
    ("the files of one rank", "*_rank_[0-9]*-[0-9]*_[0-9]*.[cs]*", "give the directory two above it"),
    ("a Hugging Face Trainer checkpoint", "trainer_state.json", _PART),
    ("a Hugging Face model", "model*.safetensors*", _WEIGHTS_ONLY),
)
"""(what it is, a glob pattern that tells, what to do); the narrower pattern stands above the wider one."""


def recognise(directory: Path) -> Foreign | None:
    """What `directory` holds, by names alone; None where nothing is known."""
    for layout, pattern, advice in _KINDS:
        if (evidence := next(_matching(directory, Path(pattern).parts), None)) is not None:
            return Foreign(layout, evidence.relative_to(directory), advice)
    return None


def _matching(directory: Path, parts: tuple[str, ...], *, given: bool = True) -> Iterator[Path]:
    """As `glob` does, but behind no symbolic link that lies in the directory."""
    try:
        for name in fnmatch.filter(reading.listed(directory, follow=given), parts[0]):
            if len(parts) == 1:
                yield directory / name
            else:
                yield from _matching(directory / name, parts[1:], given=False)
    except Damaged:
        return
