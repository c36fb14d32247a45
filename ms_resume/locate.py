"""Stage 3 of 6: the newest whole checkpoint in a save directory, and why each newer one is not it.

    reads    names, attempt records, votes; what is inside a file only where its layout has no votes
    gives    a `Located`

"Newest" is by position among live checkpoints, never by a clock. `meta.json` and `latest` are hints: the files decide.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from itertools import takewhile
from pathlib import Path

from ms_resume import layouts
from ms_resume.errors import Damaged, MsResumeError, NothingToResume, Torn
from ms_resume.layouts import Holding, SaveDirectory, survey
from ms_resume.layouts.survey import Survey
from ms_resume.records import Checkpoint, Located, Position, Rejection

Check = Callable[[Checkpoint], Rejection | None]
"""A further condition on a complete checkpoint, such as `verify.check`."""

_LOOK = "`ms-resume ls` shows what is there; without a position a resume takes the newest whole one"


def latest(
    save: Path,
    *,
    ref_dir: Path | None = None,
    steps_per_epoch: int | None = None,
    check: Check | None = None,
    excluded: Collection[Rejection] = (),
) -> Located:
    """The newest whole checkpoint that a resume can take: ours, or stock MindRLHF's. Cost does not grow with
    checkpoints older than it.

    Args:
        ref_dir: Where a stock job keeps its reference, if not in `<save>/ref`.
        steps_per_epoch: For reading the final position of a stock job.
        check: Asked of each complete checkpoint, newest first, until one passes.
        excluded: Positions known to be bad, with the reason.

    Raises:
        UsageError: `save` is not a directory.
        Damaged: An attempt record cannot be read.
    """
    return newest(SaveDirectory(survey.take(save, ref_dir, steps_per_epoch)), check=check, excluded=excluded)


def newest(holding: Holding, *, check: Check | None = None, excluded: Collection[Rejection] = ()) -> Located:
    """The newest whole checkpoint of any layout, and why each newer position is not it."""
    known = {rejection.position: rejection for rejection in excluded}
    rejected: list[Rejection] = []
    for verdict in verdicts(holding, known):
        outcome = _checked(verdict, check)
        if isinstance(outcome, Checkpoint):
            return Located(holding.save, outcome, tuple(rejected), outcome.warnings)
        rejected.append(outcome)
    return Located(holding.save, None, tuple(rejected))


def at(
    save: Path,
    wanted: Position,
    *,
    ref_dir: Path | None = None,
    steps_per_epoch: int | None = None,
    check: Check | None = None,
) -> Located:
    """The live whole checkpoint at `wanted` and at no other position; newer whole ones are rejected as left behind.

    Raises:
        NothingToResume: Nothing is there, or it is abandoned.
        Torn, Damaged: What is there is not whole; an attempt record that cannot be read is `Damaged` as well.
        UsageError: `save` is not a directory.
    """
    surveyed = survey.take(save, ref_dir, steps_per_epoch)
    position = named(surveyed, wanted)
    found = _checked(layouts.judge(surveyed, position), check)
    if isinstance(found, Rejection):
        raise refusal(save, found)
    newer = takewhile(lambda verdict: verdict.position != position, verdicts(SaveDirectory(surveyed)))
    return Located(save, found, tuple(_left_behind(verdict, position) for verdict in newer), found.warnings)


def named(surveyed: Survey, wanted: Position) -> Position:
    """The position that `wanted` means: itself, or stock code's final (epochs, steps per epoch) for (epochs, 0).

    Raises:
        NothingToResume: There is no such position; the message lists those that are there.
    """
    known = surveyed.positions
    meant = [position for position in known if position.normal(surveyed.steps_per_epoch) == wanted]
    if wanted in known or meant:
        return wanted if wanted in known else meant[0]
    there = SaveDirectory(surveyed).positions  # without those that retention has deleted
    listed = ", ".join(map(str, there[:8])) + (", ..." if len(there) > 8 else "")
    held = f"there are {listed}" if there else "there is none"
    raise NothingToResume(f"{surveyed.save}: no position {wanted}, {held}", hint=_LOOK)


def refusal(save: Path, rejection: Rejection) -> MsResumeError:
    """The error for a position that was asked for by name and cannot be had."""
    kinds: dict[str, type[MsResumeError]] = {"torn": Torn, "damaged": Damaged}
    back = f"`ms-resume restore {shlex.quote(str(save))} {rejection.position}` brings it back"
    return kinds.get(rejection.kind, NothingToResume)(
        f"{save}: {rejection.position} is {rejection.kind}: {rejection.reason}",
        hint=back if rejection.kind == "abandoned" else _LOOK,
        rejected=[rejection.to_json()],
    )


def every(save: Path, *, ref_dir: Path | None = None) -> list[Checkpoint | Rejection]:
    """The verdict on each position, newest first."""
    return list(verdicts(SaveDirectory(survey.take(save, ref_dir))))


def verdicts(holding: Holding, known: dict[Position, Rejection] | None = None) -> Iterator[Checkpoint | Rejection]:
    for position in holding.positions:
        yield known[position] if known and position in known else holding.judge(position)


def never_whole(surveyed: Survey) -> bool:
    """Whether nothing here was ever a whole checkpoint, so that a fresh start loses nothing.

    True without payloads, or with only torn ones of attempts that started fresh themselves. A position with all its
    votes was whole once, whatever has become of its files; so was one that retention deleted.
    """
    fresh = {record.attempt for record in surveyed.records if record.origin is None}
    if surveyed.deleted or len(fresh) < len(surveyed.records):
        return False
    return all(_torn_start(surveyed, position) for position in surveyed.positions)


def _torn_start(surveyed: Survey, position: Position) -> bool:
    return layouts.ours.claims(surveyed, position) and layouts.ours.never_whole(surveyed, position)


def _checked(verdict: Checkpoint | Rejection, check: Check | None) -> Checkpoint | Rejection:
    return (check(verdict) if check and isinstance(verdict, Checkpoint) else None) or verdict


def _left_behind(verdict: Checkpoint | Rejection, position: Position) -> Rejection:
    if isinstance(verdict, Rejection):
        return verdict
    return Rejection(verdict.position, "left behind", f"{position} was asked for", (), verdict.attempt)
