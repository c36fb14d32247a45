"""From the YAML file of a training that failed to the one that goes on: which checkpoint, which names, which text.

    reads    the YAML file, and every byte of the checkpoint that it takes
    writes   {name}_recovery_{timestamp}.yaml beside it, in which `resume_from_checkpoint` and `output_dir` are others

The newest whole checkpoint in `output_dir` is taken. Where a training died before its first save there is none: then
the one that it had itself started from, which a recovery of a recovery needs.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ms_resume import locate, progress, verify
from ms_resume.errors import DiskError, NothingToResume, UsageError
from ms_resume.layouts import huggingface
from ms_resume.ondisk import atomic
from ms_resume.records import Checkpoint, Located, Rejection
from ms_resume.recover import text

_SUFFIX = re.compile(r"(?:_recovery_\d{8}_\d{6}(?:_\d+)?)+", re.ASCII)


@dataclass(frozen=True)
class Failed:
    """What the YAML file of a training says."""

    document: text.Document
    output_dir: str
    started_from: str | None
    """The checkpoint-N that it went on from itself."""
    uses_deepspeed: bool


@dataclass(frozen=True)
class Plan:
    """What a recovery would be. Nothing of it is on disk yet."""

    failed: Failed
    located: Located
    yaml: Path
    log: Path
    checkpoint: str
    output_dir: str
    text: str


def read(path: Path) -> Failed:
    """Raises UsageError where the file is not one to recover from."""
    document = text.read(path)
    output_dir = text.string(document, "output_dir")
    if not output_dir.strip("/"):
        raise UsageError(f"{path}: output_dir is {output_dir}", hint="give a training a directory of its own")
    started_from = document.values.get("resume_from_checkpoint")
    if started_from is not None and not isinstance(started_from, (str, bool)):
        text.string(document, "resume_from_checkpoint")
    named = started_from if isinstance(started_from, str) and started_from.strip() else None
    return Failed(document, output_dir, named, bool(document.values.get("deepspeed")))


def make(failed: Failed, located: Located, now: datetime) -> Plan:
    """The recovery of a training from the checkpoint that `newest` found.

    Raises:
        UsageError: The text cannot be changed.
        DiskError: There is no place for another output directory.
    """
    suffix = next(_free(failed, now))
    output_dir = _other_dir(failed, suffix)
    if not atomic.writable(Path(output_dir)):
        raise DiskError(
            f"{output_dir}: cannot be made: {Path(output_dir).parent} cannot be written",
            hint="make it writable for this user, or change output_dir",
        )
    checkpoint = os.path.join(located.save, f"checkpoint-{step_of(located)}")
    changes = {"output_dir": output_dir, "resume_from_checkpoint": checkpoint}
    yaml = _beside(failed, suffix)
    return Plan(
        failed=failed,
        located=located,
        yaml=yaml,
        log=yaml.with_suffix(".log"),
        checkpoint=checkpoint,
        output_dir=output_dir,
        text=text.replaced(failed.document, changes, after="output_dir"),
    )


def write(plan: Plan) -> Plan:
    """Writes the YAML file, durably and in nobody's place: of two at once one gets another name.

    Returns:
        The plan as it was written.
    """
    try:
        atomic.publish(plan.yaml, [plan.text.encode()], f"{os.getpid()}")
    except FileExistsError:
        return write(make(plan.failed, plan.located, datetime.now()))
    return plan


def newest(failed: Failed, *, line: Sequence[Located] = (), limit: int | None = None) -> Located:
    """The newest whole checkpoint, every byte of it read, and why newer ones are passed over.

    Args:
        line: What the trainings before this one went on from, oldest first: their directories are looked in last.
        limit: Newer steps are passed over.

    Raises:
        NothingToResume: There is none; the message has why.
        UsageError: `output_dir` is a file.
    """
    rejected: list[Rejection] = []
    for holding, left in _holdings(failed, line, limit):
        located = locate.newest(holding, check=_check, excluded=left)
        rejected += located.rejected
        if located.checkpoint is not None:
            return Located(holding.save, located.checkpoint, tuple(rejected), located.warnings)
    raise _nothing(failed, rejected)


def before(failed: Failed, line: Sequence[Located], step: int) -> int | None:
    """The step of the newest checkpoint before `step` that is whole by names and headers."""
    for holding, left in _holdings(failed, line, step - 1):
        located = locate.newest(holding, excluded=left)
        if located.checkpoint is not None:
            return located.checkpoint.position.step
    return None


def step_of(located: Located) -> int:
    assert located.checkpoint is not None  # `newest` gives no other
    return located.checkpoint.position.step


def started_at(failed: Failed) -> int | None:
    """The step of the checkpoint that it went on from itself."""
    return None if failed.started_from is None else huggingface.step_of(Path(failed.started_from).name)


def _holdings(
    failed: Failed, line: Sequence[Located], limit: int | None
) -> Iterator[tuple[huggingface.Checkpoints, list[Rejection]]]:
    """The directories to look in, each once, with what in them does not count."""
    seen: set[Path] = set()
    for directory, most in _places(failed, line):
        if directory not in seen:
            seen.add(directory)
            holding = huggingface.take(directory, uses_deepspeed=failed.uses_deepspeed)
            later = _newer(holding, most, "newer than what was gone on from")
            yield holding, [*later, *_newer(holding, limit, "nothing that went on from it made progress")]


def _newer(holding: huggingface.Checkpoints, limit: int | None, reason: str) -> list[Rejection]:
    newer = [position for position in holding.positions if limit is not None and position.step > limit]
    return [Rejection(position, "passed over", reason) for position in newer]


def _places(failed: Failed, line: Sequence[Located]) -> Iterator[tuple[Path, int | None]]:
    """Directories with checkpoints, and the newest step that counts there."""
    output_dir = Path(failed.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"{output_dir}: is a file, expected the output_dir of a training", hint="correct output_dir")
    if output_dir.is_dir():
        yield output_dir, None
    if failed.started_from is not None:
        origin = Path(failed.started_from)
        if (step := started_at(failed)) is not None and origin.parent.is_dir():
            yield origin.parent, step
    for located in reversed(line):
        if located.save.is_dir():
            yield located.save, step_of(located)


def _check(checkpoint: Checkpoint) -> Rejection | None:
    size_bytes = sum(found.path.lstat().st_size for found in checkpoint.files)
    with progress.shown(f"checking checkpoint-{checkpoint.position.step}", size_bytes) as tell:
        return verify.rejection(checkpoint, verify.check(checkpoint, deep=True, progress=tell))


def _nothing(failed: Failed, rejected: list[Rejection]) -> NothingToResume:
    output_dir = failed.output_dir
    if rejected:
        first = rejected[0]
        newest_is = f"checkpoint-{first.position.step} is {first.kind} ({first.reason})"
        said = f"no whole checkpoint among {len(rejected)}, {newest_is}"
        hint = f"`ms-resume ls {output_dir}` shows each; correct what failed, and start the file anew"
    else:
        said = "has no checkpoint-N in it" if Path(output_dir).is_dir() else "does not exist"
        hint = "a training that failed before its first save (save_steps) starts anew; is output_dir right?"
    return NothingToResume(f"{output_dir}: {said}", hint=hint, rejected=[each.to_json() for each in rejected])


def _free(failed: Failed, now: datetime) -> Iterator[str]:
    """Suffixes of which neither file nor directory exists yet."""
    stamp = f"_recovery_{now:%Y%m%d_%H%M%S}"
    for number in itertools.count(1):
        suffix = stamp if number == 1 else f"{stamp}_{number}"
        yaml = _beside(failed, suffix)
        taken = (yaml, yaml.with_suffix(".log"), Path(_other_dir(failed, suffix)))
        if not any(os.path.lexists(path) for path in taken):
            yield suffix


def _beside(failed: Failed, suffix: str) -> Path:
    path = failed.document.path
    return path.with_name(_bare(path.stem) + suffix + ".yaml")


def _other_dir(failed: Failed, suffix: str) -> str:
    return _bare(failed.output_dir.rstrip("/")) + suffix


def _bare(name: str) -> str:
    """Without the suffix of a recovery: those of a recovery's recovery do not pile up."""
    match = _SUFFIX.search(name)
    return name[: match.start()] if match and match.end() == len(name) else name
