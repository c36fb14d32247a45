"""Disks that are really full: an ext4 and an xfs image with N KiB or N inodes left, while a run saves or starts.

Wherever the disk is full, a save works or raises a DiskError that names path and cause, the checkpoints that were there
keep every byte, and nothing of a failed save stays: neither a temp file nor a payload that no vote names. Once there is
room again the same process saves, and a new one goes on from that, bit for bit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faults import images, judge, scenarios
from faults.cases import Tally
from faults.images import Image
from faults.job import Job
from faults.processes import Tell, in_child
from faults.scenarios import Scenario
from ms_resume.errors import DiskError
from ms_resume.ondisk import names, votes
from ms_resume.records import Position

_FEW_INODES = {"ext4": ("-N", "256"), "xfs": ("-i", "maxpct=2")}
_OLDEST, _OLD, _FAILED, _LATER = (Position(0, step) for step in (2, 4, 6, 8))
_SAVES = ("save", "save with a new reference", "save again at the same position")


@dataclass(frozen=True)
class Case:
    """What a run does with so much `left` of space (KiB) or inodes: one of `_SAVES`, or a start."""

    kind: str
    world_size: int
    does: str
    left: int
    of: str

    def __str__(self) -> str:
        return f"{self.does}, {self.world_size} ranks, on {self.kind} with {self.left} {self.of} left"

    @property
    def scenario(self) -> Scenario:
        return scenarios.named("a save, with retention", self.world_size)

    @property
    def options(self) -> tuple[str, ...]:
        return _FEW_INODES[self.kind] if self.of == "inodes" else ()


def all_cases(kinds: Sequence[str] = images.KINDS) -> list[Case]:
    """From nothing left to a little more than a save takes."""
    return [
        Case(kind, world_size, does, left, of)
        for kind in kinds
        for world_size in (1, 2)
        for does in (*_SAVES, "start")
        for of, limits in _limits(kind, world_size).items()
        for left in limits[: 8 if does == "start" else None]
    ]


def _limits(kind: str, world_size: int) -> dict[str, range]:
    """xfs makes no file below some 100 KiB, because it sets that much aside for every new name."""
    space = range(0, 72 * world_size, 4) if kind == "ext4" else range(88, 112 + 80 * world_size, 8)
    return {"KiB": space, "inodes": range(7 * world_size + 1)}


def check(case: Case) -> str:
    """What is wrong in that case; empty when nothing is."""
    content, expected = images.prepared(case.kind, case.scenario, case.options)
    with Image(case.kind, content) as image:
        save, filler = image.at / "case" / "save", Filler(image.at / "filler", case)
        does = _starts if case.does == "start" else _saves
        end = in_child(lambda tell: does(case, save, filler, tell))
        filler.remove()
        wrong = str(end.value) if end.kind == "returned" else f"{end.kind}: {end.value}"
        wrong = wrong or judge.look(save, case.world_size, expected.hear(*end.told))
        return f"{case}: {wrong}" if wrong else ""


def run(kinds: Sequence[str] = images.KINDS, jobs: int = 2) -> Tally:
    """All cases, spread over processes. A file system that cannot be had here is named in `skipped`."""
    tally = Tally("full disks", "cases")
    began = time.monotonic()
    kinds, tally.skipped = images.available(kinds)
    for wrong in images.spread(check, all_cases(kinds), jobs):
        tally.add(wrong)
    tally.seconds = time.monotonic() - began
    return tally


class Filler:
    """Takes all the space or all the inodes of a file system but what the case leaves."""

    def __init__(self, top: Path, case: Case) -> None:
        self._top, self._case = top, case

    def fill(self) -> None:
        self._top.mkdir()
        if self._case.of == "inodes":
            _take_inodes(self._top, self._case.left)
        else:
            _take_space(self._top / "space", self._case.left)

    def remove(self) -> None:
        for path in self._top.iterdir() if self._top.exists() else ():
            os.truncate(path, 0)  # xfs gives the blocks of an unlinked file back later
            path.unlink()
        if self._top.exists():
            self._top.rmdir()


def _take_space(path: Path, left_kib: int) -> None:
    with open(path, "wb") as file:
        size = 0
        for step in (1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
        file.truncate(max(0, size - left_kib * 1024))
        os.fsync(file.fileno())


def _take_inodes(top: Path, left: int) -> None:
    made: list[Path] = []
    try:
        while True:
            made.append(top / f"{len(made)}")
            made[-1].touch()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        made.pop()
    for path in made[len(made) - left :]:
        path.unlink()
    os.sync()


def _saves(case: Case, save: Path, filler: Filler, tell: Tell) -> str:
    job = Job(save, case.world_size, tag=7)
    job.start()
    digests = job.train(new_reference="reference" in case.does)
    newest, both = standing(save, _OLD), standing(save, _OLDEST, _OLD)
    filler.fill()
    tell(("will", str(_FAILED), digests))
    said, failed = _save_each(job)
    # Once the new one is whole, retention takes the oldest.
    wrong = said or _left(save, failed) or _changed(save, both if failed else newest)
    if wrong:
        return wrong
    if not failed:
        tell(("did", str(_FAILED), digests))
    at = _FAILED if "same" in case.does else _LATER
    return _save_later(job, filler, at, tell)


def _save_each(job: Job) -> tuple[str, list[int]]:
    """What is wrong with an error that a save raised; and the ranks whose saves failed."""
    failed = []
    for number, rank in enumerate(job.ranks):
        try:
            rank.save(_FAILED.step)
        except DiskError as error:
            failed.append(number)
            if str(job.save_dir) not in error.message or os.strerror(errno.ENOSPC) not in error.message:
                return f"the error names no path or no cause: {error.message}", failed
    return "", failed


def _save_later(job: Job, filler: Filler, at: Position, tell: Tell) -> str:
    """There is room again: the same process goes on, or saves once more what could not be saved."""
    filler.remove()
    digests = job.train() if at != _FAILED else job.digests()
    warned = len(job.said)
    tell(("will", str(at), digests))
    job.save(at.step)
    tell(("did", str(at), digests))
    if len(job.said) > warned:
        return f"with room again a save says {job.said[warned]}"
    found = judge.found(job.save_dir)
    return "" if found == str(at) else f"saved {at} with room again, found {found or 'nothing'}"


def _starts(case: Case, save: Path, filler: Filler, tell: Tell) -> str:
    before, job = standing(save, _OLDEST, _OLD), Job(save, case.world_size, tag=7)
    filler.fill()
    try:
        job.start()
    except DiskError as error:
        if str(save) not in error.message or os.strerror(errno.ENOSPC) not in error.message:
            return f"the error names no path or no cause: {error.message}"
        return _parts(save) or _changed(save, before)
    return _parts(save) or _changed(save, before) or _save_later(job, filler, _LATER, tell)


def standing(save: Path, *positions: Position) -> dict[Path, bytes]:
    """Every byte of these checkpoints: votes, and what they name."""
    standing = {}
    for directory in (names.vote_dir(save, position) for position in positions):
        found, _ = votes.read_all(directory)
        paths = [directory / f"rank_{rank}.json" for rank in found]
        for path in (*paths, *(save / file.path for vote in found.values() for file in vote.files)):
            standing[path] = path.read_bytes()
    return standing


def _changed(save: Path, before: dict[Path, bytes]) -> str:
    """The first file of an old checkpoint that is not as it was."""
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            return f"an old checkpoint was changed: {path.relative_to(save)}"
    return ""


def _left(save: Path, failed: list[int]) -> str:
    """What a save that failed left behind: temp files, or payloads that no vote names."""
    if wrong := _parts(save):
        return wrong
    for rank in failed:
        for role in names.DIRECTORIES:
            path = names.payload(save, role, rank, _FAILED)
            if path.exists():
                return f"a payload of the failed save stays behind: {path.relative_to(save)}"
    return ""


def _parts(save: Path) -> str:
    left = sorted(save.rglob("*.part"))
    return f"a temp file stays behind: {left[0].relative_to(save)}" if left else ""
