"""Stage 3 of 6: the newest whole checkpoint in a save directory, and why each newer one is not it.

    reads    names, attempt records, votes; what is inside a file only where its layout has no votes
    gives    a `Located`

"Newest" is by position among live checkpoints, never by a clock. `meta.json` and `latest` are hints: the files decide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ms_resume import layouts
from ms_resume.layouts import survey
from ms_resume.layouts.survey import Survey
from ms_resume.records import Checkpoint, Located, Position, Rejection

Check = Callable[[Checkpoint], Rejection | None]
"""A further condition on a complete checkpoint, such as `verify.check`."""


def latest(
    save: Path,
    *,
    ref_dir: Path | None = None,
    steps_per_epoch: int | None = None,
    check: Check | None = None,
    excluded: Collection[Rejection] = (),
) -> Located:
    """The newest whole checkpoint. Cost does not grow with checkpoints older than it.

    Args:
        ref_dir: Where a stock job keeps its reference, if not in `<save>/ref`.
        steps_per_epoch: For reading the final position of a stock job.
        check: Asked of each complete checkpoint, newest first, until one passes.
        excluded: Positions known to be bad, with the reason.

    Raises:
        UsageError: `save` is not a directory.
        Damaged: An attempt record cannot be read.
    """
    surveyed = survey.take(save, ref_dir, steps_per_epoch)
    known = {rejection.position: rejection for rejection in excluded}
    rejected: list[Rejection] = []
    for verdict in verdicts(surveyed, known):
        outcome = (check(verdict) if check else None) or verdict if isinstance(verdict, Checkpoint) else verdict
        if isinstance(outcome, Checkpoint):
            return Located(save, outcome, tuple(rejected), outcome.warnings)
        rejected.append(outcome)
    return Located(save, None, tuple(rejected))


def every(save: Path, *, ref_dir: Path | None = None) -> list[Checkpoint | Rejection]:
    """The verdict on each position, newest first."""
    return list(verdicts(survey.take(save, ref_dir)))


def verdicts(surveyed: Survey, known: dict[Position, Rejection] | None = None) -> Iterator[Checkpoint | Rejection]:
    for position in surveyed.positions:
        deleted = position in surveyed.deleted and position not in surveyed.voted
        if deleted and layouts.ours.claims(surveyed, position):
            continue  # retention has spoken; its payloads are on their way out
        if known and position in known:
            yield known[position]
        else:
            yield layouts.judge(surveyed, position)


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
