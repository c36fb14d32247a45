"""What is left, looked at by a new process: it must be one of the states that may be there, to the last bit.

The judge is a user: it starts a run with the real Checkpointer, compares everything that was restored, trains, saves
again, and closes. Whatever was cut short before, that works, without a warning, and leaves no temp file behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from faults import hints
from faults.job import Job
from faults.processes import in_child
from faults.scenarios import NOTHING, Candidate, Expected
from ms_resume import locate, verify
from ms_resume.errors import MsResumeError
from ms_resume.ondisk import names
from ms_resume.records import Checkpoint, Position


def look(save: Path, world_size: int, expected: Expected, **start: object) -> str:
    """What is wrong with `save`, in one sentence; empty when nothing is. Goes on with the run there.

    Args:
        start: Further arguments of `Checkpointer.start`, such as take_over.
    """
    end = in_child(lambda tell: fallen(save, expected.stand) or _look(save, world_size, expected.candidates, start))
    if end.kind == "returned":
        return str(end.value)
    return f"the judge {end.kind}: {end.value}"


def found(save: Path) -> str:
    """The position that a start would go on from, as E_S; empty without one."""
    checkpoint = locate.latest(save).checkpoint if save.is_dir() else None
    return str(checkpoint.position) if checkpoint else ""


def damaged(save: Path) -> str:
    """What is wrong with the bytes of the newest checkpoint that counts; empty when nothing is."""
    checkpoint = locate.latest(save).checkpoint if save.is_dir() else None
    findings = verify.check(checkpoint, deep=True) if checkpoint else []
    return f"{checkpoint.position} counts and is damaged: {findings[0].reason}" if checkpoint and findings else ""


def fallen(save: Path, stand: Sequence[str]) -> str:
    """Which of the checkpoints that had to stay whole is not; empty when all are."""
    found = {str(found.position): found for found in locate.every(save)} if stand else {}
    for position in stand:
        there = found.get(position)
        if not isinstance(there, Checkpoint):
            return f"{position} had to stay whole: {there.reason if there else 'it is gone'}"
        if findings := verify.check(there, deep=True):
            return f"{position} had to stay whole: {findings[0].reason}"
    return ""


def _look(save: Path, world_size: int, candidates: list[Candidate], start: dict[str, object]) -> str:
    job = Job(save, world_size, tag=3)
    try:
        restored = job.start(resume=save.is_dir(), **start)
    except MsResumeError as error:
        return f"a start fails: {type(error).__name__}: {error}"
    at = str(job.position) if job.position != Position(0, 0) else ""
    if not may_be((at, restored if at else ()), candidates):
        allowed = ", ".join(position or "nothing" for position, _ in candidates)
        return f"found {at or 'nothing'}, which is not as it was saved; allowed: {allowed}; {job.said[0]}"
    return _save_again(job, save)


def may_be(state: Candidate, candidates: list[Candidate]) -> bool:
    return state in candidates or (state == NOTHING and NOTHING in candidates)


def _save_again(job: Job, save: Path) -> str:
    step, stood = job.position.step + 2, _whole(save)
    job.train()
    try:
        job.save(step)
    except MsResumeError as error:
        return f"the save after it fails: {type(error).__name__}: {error}"
    checkpoint = locate.latest(save).checkpoint
    if checkpoint is None or checkpoint.position != Position(0, step):
        return f"saved 0_{step} after it, found {checkpoint.position if checkpoint else 'nothing'}"
    if bad := damaged(save):
        return f"saved 0_{step} after it; {bad}"
    if warnings := [text for text in job.said[1:] if "warning" in text]:  # the first text is the banner
        return f"the save after it warns: {warnings[0]}"
    if left := sorted((*save.rglob("*.part"), *save.rglob("*.safetensors.*.retired"))):
        return f"a temp file stays behind: {left[0].relative_to(save)}"
    return hints.after_a_save(save, f"0_{step}", checkpoint.votes) or _pruned(job, stood)


def _whole(save: Path) -> int:
    """How many checkpoints of ours."""
    return sum(isinstance(found, Checkpoint) and bool(found.votes) for found in locate.every(save))


def _pruned(job: Job, stood: int) -> str:
    """Retention keeps two, and of the others nothing but references that are named still, and what is not ours."""
    if (whole := _whole(job.save_dir)) != min(stood + 1, 2):
        return f"of {stood} whole checkpoints and a new one {whole} are left"
    for deleted in job.save_dir.glob("commits/*.deleted-*"):
        position = names.parse_deleted_dir(deleted.name)
        files = [*deleted.iterdir()]
        files += job.save_dir.glob(f"[!r]*/rank_*/*-{position}.ckpt")
        files += filter(hints.author, job.save_dir.glob(f"[!r]*/rank_*/*-{position}.safetensors"))
        if files and not names.vote_dir(job.save_dir, position or Position(0, 0)).exists():
            return f"retention leaves {files[0].relative_to(job.save_dir)}"
    return ""
