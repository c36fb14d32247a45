"""What a person does to a save directory between two runs: bring an abandoned position back, mend `meta.json`, prune.

    reads    what `locate` reads
    writes   an attempt record (`restore`); `meta.json`, and what was broken in its place under another name;
             what retention takes away (`prune`)

All are refused while a job owns the directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ms_resume import commit, layouts, locate, ownership, removal, retention, verify
from ms_resume.errors import Damaged, DiskError, NothingToResume, UsageError
from ms_resume.layouts import SaveDirectory, ours, survey
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import atomic, meta, names, reading, votes
from ms_resume.records import Attempt, Checkpoint, Origin, Position, Rejection, Writer
from ms_resume.retention import Keep, Plan

_NOBODY = Attempt(f"{0:06d}-{0:016x}", None, 0)
"""Where no attempt is on record; the next start sweeps its temp files."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One `meta.json` that names `position` now.

    `said` and `says` are what it held before and holds now; `kept` is where the broken one lies.
    """

    path: Path
    trouble: str
    position: Position
    said: str
    says: str
    kept: Path | None = None


def restore(save: Path, position: Position, *, ref_dir: Path | None = None, is_local: bool = False) -> Attempt | None:
    """Brings an abandoned position back: the next resume goes on from it, and what is newer is abandoned instead.

    The new attempt record is this process's; when that has ended, the directory is free.

    Args:
        is_local: It is one node's own disk. A resume takes what is live on all of them: until each one's part was
            restored that is what was live before and after, an older position.

    Returns:
        The record; None when a resume takes this position already, and at most a `meta.json` had to follow.

    Raises:
        DirectoryInUse: A job is running there.
        NothingToResume, Torn, Damaged: The position is not there, or not whole.
        UsageError: It is live, and so is a newer one.
        DiskError: Without a record nothing was changed; with one it is restored, and running this again does the rest.
    """
    after, surveyed = _enter(save, ref_dir, is_local)
    checkpoint = _whole(surveyed, locate.named(surveyed, position))
    opened = None
    if _is_taken(surveyed, checkpoint):
        _sync_records(surveyed)
    else:
        opened = _open(surveyed, checkpoint, after)
    writers = _writers(checkpoint, opened or _known(surveyed, after))
    for writer in writers:
        _record(writer, checkpoint.of_rank(writer.rank))
    if checkpoint.votes:
        commit.point_latest(writers[0], checkpoint.position)
    return opened


def foreseen(save: Path, position: Position, *, ref_dir: Path | None = None, is_local: bool = False) -> Survey:
    """The directory as `restore` would leave it, with what lies aside left there. Nothing is written; raises what
    `restore` raises before it writes."""
    ownership.check_free(save)
    surveyed = survey.take(save, ref_dir, is_local=is_local)
    checkpoint = _whole(surveyed, locate.named(surveyed, position))
    if _is_taken(surveyed, checkpoint):
        return surveyed
    origin = Origin(checkpoint.position, checkpoint.attempt)
    record = replace(_NOBODY, origin=origin, dead_stock=tuple(ownership.passed_stock(surveyed, origin)))
    return replace(surveyed, records=(*surveyed.records, record))


def repair(save: Path, *, ref_dir: Path | None = None, is_local: bool = False) -> list[Rewritten]:
    """Rewrites each `meta.json` that is broken, or names another checkpoint than the one that a resume takes.

    Of a stock checkpoint only broken ones: what stock code wrote whole is its own say.

    Args:
        is_local: It is one node's own disk: the newest of which its ranks have their part is named, as a save leaves
            it. A resume that finds that other nodes lack theirs rewrites what it passes over.

    Raises:
        DirectoryInUse: A job is running there.
        NothingToResume: There is no whole checkpoint to name.
        DiskError: What was rewritten is whole; running this again does the rest.
    """
    after, surveyed = _enter(save, ref_dir, is_local)
    checkpoint = _to_name(surveyed)
    rewritten: list[Rewritten] = []
    for writer in _writers(checkpoint, _known(surveyed, after)):
        due = _due(writer, checkpoint)
        rewritten += [replace(entry, kept=_keep(writer, entry.path)) for entry in due.values()]
        _record(writer, {role: path for role, path in checkpoint.of_rank(writer.rank).items() if role in due})
    return rewritten


def broken(save: Path, *, ref_dir: Path | None = None, is_local: bool = False) -> list[Rewritten]:
    """What `repair` would rewrite, and how, with what lies aside left there. Nothing is written; raises what `repair`
    raises before it writes."""
    ownership.check_free(save)
    checkpoint = _to_name(survey.take(save, ref_dir, is_local=is_local))
    return [entry for writer in _writers(checkpoint, _NOBODY) for entry in _due(writer, checkpoint).values()]


def _to_name(surveyed: Survey) -> Checkpoint:
    """What a resume takes, so that `meta.json` should name it."""
    checkpoint = locate.newest(SaveDirectory(surveyed), check=verify.headers).checkpoint
    if checkpoint is None:
        save = surveyed.save
        raise NothingToResume(
            f"{save}: no whole checkpoint that {names.META} could name", hint=f"`ms-resume ls {save}` has why"
        )
    return checkpoint


@dataclass(frozen=True, slots=True)
class Prunable:
    """What `prune` would do: by which rules, with which positions, and which files go with each."""

    surveyed: Survey
    keep: Keep
    plan: Plan
    files: Mapping[Position, list[Path]]


def prunable(save: Path, keep: Keep) -> Prunable:
    """Writes nothing. A job may be running there: then its own retention is at work."""
    surveyed = survey.take(save)
    keep = _with_sound(surveyed, keep)
    plan = retention.plan(surveyed, keep)
    last = surveyed.records[-1] if surveyed.records else _NOBODY
    return Prunable(surveyed, keep, plan, retention.leaving(Writer(save, last, 0, 0), surveyed, plan.gone))


def prune(save: Path, keep: Keep) -> list[Position]:
    """Does what retention does after a save, for all ranks, in the name of the job that has ended. Decides anew.

    Returns:
        The positions that went. What was left of those taken out before goes with them.

    Raises:
        DirectoryInUse: A job is running there, or has started meanwhile; it finds a position whole or gone.
        DiskError: Running this again does the rest.
    """
    after, surveyed = _enter(save)
    attempt = _known(surveyed, after)
    first = Writer(save, attempt, 0, attempt.world_size)
    keep = _with_sound(surveyed, keep)
    try:
        gone = retention.sweep(first, surveyed, keep)
        for rank in retention.ranks(surveyed):
            retention.remove_payloads(replace(first, rank=rank))
        retention.sweep(first, survey.take(save), keep)  # the directories that are empty now
    except DiskError:
        ownership.assert_owner(first)  # a job that started just now sweeps what was put aside here
        raise
    return gone


def _with_sound(surveyed: Survey, keep: Keep) -> Keep:
    """The newest two that a resume can take stay: those that count by their votes may be damaged, all of them."""
    whole = (verdict for verdict in locate.verdicts(SaveDirectory(surveyed)) if isinstance(verdict, Checkpoint))
    sound = (checkpoint.position for checkpoint in whole if verify.headers(checkpoint) is None)
    return replace(keep, always=frozenset(islice(sound, retention.NEVER_FEWER_THAN)))


def _enter(save: Path, ref_dir: Path | None = None, is_local: bool = False) -> tuple[int, Survey]:
    """As a start does: the directory must be free; what a worker that was killed held in its hands goes back first."""
    after = ownership.check_free(save)
    removal.put_back(save)
    return after, survey.take(save, ref_dir, is_local=is_local)


def _whole(surveyed: Survey, position: Position) -> Checkpoint:
    """The checkpoint at `position`, live or not. Raises the error that says why there is none."""
    judged = layouts.judge(surveyed, position)
    if isinstance(judged, Rejection):
        judged = _judge_as_if_live(surveyed, judged)
    if isinstance(judged, Checkpoint):
        judged = verify.headers(judged) or judged
    if isinstance(judged, Rejection):
        raise locate.refusal(surveyed.save, judged)
    return judged


def _judge_as_if_live(surveyed: Survey, rejected: Rejection) -> Checkpoint | Rejection:
    """As it will be judged when a record names it."""
    position, attempt = rejected.position, None
    if ours.claims(surveyed, position):
        found, _ = votes.read_all(names.vote_dir(surveyed.save, position))
        if not found:
            return rejected  # of ours without a vote: a record must not make stock's of it
        attempt = found[min(found)].attempt  # a disk's first rank has a part in every complete group
    restored = replace(_NOBODY, origin=Origin(position, attempt))
    return layouts.judge(replace(surveyed, records=(*surveyed.records, restored)), position)


def _is_taken(surveyed: Survey, checkpoint: Checkpoint) -> bool:
    taken = locate.newest(SaveDirectory(surveyed), check=verify.headers).checkpoint
    same = taken is not None and (taken.position, taken.attempt) == (checkpoint.position, checkpoint.attempt)
    if not same and isinstance(layouts.judge(surveyed, checkpoint.position), Checkpoint):
        raise UsageError(
            f"{surveyed.save}: {checkpoint.position} is not abandoned, a newer one is live",
            hint="to go on from it: Checkpointer.start(resume=True, position=...)",
        )
    return same


def _open(surveyed: Survey, checkpoint: Checkpoint, after: int) -> Attempt:
    origin = Origin(checkpoint.position, checkpoint.attempt)
    return ownership.open_attempt(surveyed, origin, checkpoint.world_size, after=after)


def _known(surveyed: Survey, after: int) -> Attempt:
    """The record of the job that has ended, not simply the last one: a job that has just started is not written for."""
    return next((record for record in surveyed.records if record.ordinal == after), _NOBODY)


def _sync_records(surveyed: Survey) -> None:
    """A first try that was killed may have named its record and not synced the name."""
    for directory in (names.attempts(surveyed.save), names.commits(surveyed.save), surveyed.save):
        if surveyed.records:
            atomic.sync_dir(directory)


def _writers(checkpoint: Checkpoint, attempt: Attempt) -> list[Writer]:
    ranks = sorted({file.rank for file in checkpoint.files})  # on a node's own disk these are not all
    return [Writer(checkpoint.save, attempt, rank, checkpoint.world_size) for rank in ranks]


def _due(writer: Writer, checkpoint: Checkpoint) -> dict[str, Rewritten]:
    """What is wrong with this rank's `meta.json`, by role."""
    due = {}
    for role, file in checkpoint.of_rank(writer.rank).items():
        named = names.parse_payload(file.name)
        assert named is not None  # roles map to payload names
        directory = names.rank_dir(writer.save, role, writer.rank)
        said = meta.read(directory)
        other = f"names {said.file}" if checkpoint.votes and said.file != file.name else ""
        if role != "state" and file.is_relative_to(writer.save) and (trouble := said.trouble or other):
            says = meta.encode(named.position, file.name).decode()
            due[role] = Rewritten(directory / names.META, trouble, named.position, _text(directory / names.META), says)
    return due


def _text(path: Path) -> str:
    try:
        return reading.content(path).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError, Damaged):
        return ""


def _keep(writer: Writer, path: Path) -> Path | None:
    """A copy of a broken one, so that a `meta.json` is there at every moment; a whole one has nothing worth keeping."""
    if meta.read(path.parent).trouble in ("", "missing"):
        return None
    content = reading.content(path)  # raises where it is no file, or too large to be copied
    ownership.assert_owner(writer)
    kept = names.broken(path)
    try:
        atomic.publish(kept, [content], writer.attempt.attempt)
    except DiskError:
        ownership.assert_owner(writer)  # a job that started just now sweeps what is being written here
        raise
    return kept


def _record(writer: Writer, files: Mapping[str, Path]) -> None:
    failed = commit.record_meta(writer, dict(files))
    if failed:
        ownership.assert_owner(writer)  # as above
        raise DiskError(failed[0], hint="run this again when the disk has recovered: it writes what is lacking")
