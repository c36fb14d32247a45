"""Our own layout: a position counts by its votes, and by nothing else.

Complete: for one (attempt, world size) the votes of all ranks are there, and each file they name exists with its size.
Live: its attempt is on the line of the newest attempt record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts.survey import MOST_LISTED, Survey
from ms_resume.ondisk import abreast, names, payload, reading, votes
from ms_resume.records import Checkpoint, Payload, Position, Rejection, Vote, in_ranges

NAME = "ms_resume"
_UNKNOWN = "unknown"


def claims(survey: Survey, position: Position) -> bool:
    return has_part(survey, position) and not _saved_over(survey, position)


def has_part(survey: Survey, position: Position) -> bool:
    """Whether votes, or a payload, of a position are ours, whatever else lies there: retention's concern."""
    there = position in survey.payloads
    if position in survey.voted and (not there or votes.any_in(names.vote_dir(survey.save, position))):
        return True
    files = survey.payloads[position] if there else {}
    if any(has_mark(path) for path in files.values()):
        return True
    # A `.ckpt` cannot carry our mark: where we have been at work, it is stock's only if stock's own records name it,
    # or one of ours says that an attempt started from it.
    if not survey.has_commits or not _only_ckpt(files.values()):
        return False
    return not (survey.line.starts_from_stock(position) or _named_by_every_meta(survey, position))


@abreast.uncollected()
def judge(survey: Survey, position: Position) -> Checkpoint | Rejection:
    found, damaged = votes.read_all(names.vote_dir(survey.save, position))
    if not found:
        reason = str(damaged[0]) if damaged else _without_votes(survey, position)
        writer = next(_marked_by(survey, position), None)
        return Rejection(position, "damaged" if damaged else "torn", reason, (), writer)
    (attempt, world_size), group = _largest_group(survey, found)
    if not survey.line.holds(attempt, position):
        return Rejection(position, "abandoned", _why_abandoned(survey, attempt), (), attempt)
    absent = (rank for rank in range(world_size) if rank not in group)
    if missing := tuple(rank for rank in absent if not survey.is_elsewhere(position, rank)):
        reason = _missing(missing, world_size, attempt, damaged)
        return Rejection(position, "torn", reason, missing[:MOST_LISTED], attempt)
    if rejection := _check_files(survey.save, position, group):
        return replace(rejection, attempt=attempt)
    return Checkpoint(
        save=survey.save,
        layout=NAME,
        position=position,
        world_size=world_size,
        attempt=attempt,
        votes=tuple(group[rank] for rank in sorted(group)),
        warnings=_strangers(position, found, group),
    )


def is_live(survey: Survey, vote: Vote) -> bool:
    return survey.line.holds(vote.attempt, vote.position)


def missing_file(save: Path | str, vote: Vote) -> tuple[str, str] | None:
    """Kind and reason of the first file of a vote that is not there, or has another size."""
    return next((trouble for file in vote.files if (trouble := _check_file(save, file))), None)


def never_whole(survey: Survey, position: Position) -> bool:
    """Whether a torn position never had all its votes, and belongs to attempts that are on record."""
    found, _ = votes.read_all(names.vote_dir(survey.save, position))
    whole = any(len(group) == world_size for (_, world_size), group in _groups(found).items())
    return not whole and writers(survey, position) <= {record.attempt for record in survey.records}


def writers(survey: Survey, position: Position) -> set[str]:
    """The attempts that voted or wrote a payload there; `unknown` stands for what cannot be read."""
    found, damaged = votes.read_all(names.vote_dir(survey.save, position))
    unread = {_UNKNOWN} if damaged else set()
    return {vote.attempt for vote in found.values()} | set(_marked_by(survey, position)) | unread


def has_mark(path: Path) -> bool:
    """Whether a payload says that we wrote it. An unreadable one does not."""
    try:
        return payload.read_header(path).mark is not None
    except (Damaged, OSError):
        return False


def _saved_over(survey: Survey, position: Position) -> bool:
    """Whether stock code has saved the position again, over the files that votes name. All of them: where it died
    meanwhile, both generations are there."""
    if position not in survey.voted:
        return False
    there = False
    for role in ("policy", "optimizer"):
        for rank in survey.ranks[role]:
            path = survey.payloads.path(position, role, rank)
            if path is not None and not _is_stocks(path):
                return False  # mostly at the first one
            there = there or path is not None
    return there


def _is_stocks(path: Path) -> bool:
    """Whether a payload can be read, and does not say that we wrote it, which a `.ckpt` never does."""
    try:
        return path.suffix == ".safetensors" and payload.read_header(path).mark is None
    except (Damaged, OSError):
        return False


def _marked_by(survey: Survey, position: Position) -> Iterator[str]:
    for path in survey.payloads.get(position, {}).values():
        try:
            mark = payload.read_header(path).mark
        except (Damaged, OSError):
            mark = None
        yield mark.attempt if mark else _UNKNOWN


def _groups(found: Mapping[int, Vote]) -> dict[tuple[str, int], dict[int, Vote]]:
    groups: dict[tuple[str, int], dict[int, Vote]] = defaultdict(dict)
    for rank, vote in found.items():
        groups[vote.attempt, vote.world_size][rank] = vote
    return groups


def _largest_group(survey: Survey, found: Mapping[int, Vote]) -> tuple[tuple[str, int], dict[int, Vote]]:
    """The votes of one (attempt, world size): live ones before others, then the most complete."""
    groups = _groups(found)

    def weight(key: tuple[str, int]) -> tuple[bool, float, str]:
        position = next(iter(groups[key].values())).position
        return survey.line.holds(key[0], position), len(groups[key]) / key[1], key[0]

    best = max(groups, key=weight)
    return best, groups[best]


def _check_files(save: Path, position: Position, group: Mapping[int, Vote]) -> Rejection | None:
    ranks, top = sorted(group), str(save)
    troubles = abreast.each(lambda rank: missing_file(top, group[rank]), ranks, save)
    for rank, trouble in zip(ranks, troubles, strict=True):
        if trouble:
            kind, reason = trouble
            return Rejection(position, kind, reason, (rank,))
    return None


def _check_file(save: Path | str, file: Payload) -> tuple[str, str] | None:
    try:
        size = reading.size(f"{save}/{file.path}")
    except (FileNotFoundError, NotADirectoryError):
        return "torn", f"{file.path}: missing, the vote names it"
    except Damaged as error:
        return "damaged", error.message
    if size != file.bytes:
        return "damaged", f"{file.path}: {size} bytes, the vote says {file.bytes}"
    return None


def _missing(missing: tuple[int, ...], world_size: int, attempt: str, damaged: list[Damaged]) -> str:
    reason = f"no vote of rank {in_ranges(missing)} (of {world_size} ranks, attempt {attempt})"
    return f"{reason}; {damaged[0]}" if damaged else reason


def _without_votes(survey: Survey, position: Position) -> str:
    if position in survey.deleted:
        return "retention has deleted it"
    ranks = in_ranges(rank for _, rank in survey.payloads.get(position, {}))
    return f"payloads of rank {ranks} without a vote"


def _why_abandoned(survey: Survey, attempt: str) -> str:
    newest = survey.records[-1] if survey.records else None
    if newest is None:
        return f"attempt {attempt} has no record in commits/attempts"
    start = f"went on from {newest.origin.position}" if newest.origin else "started fresh"
    return f"attempt {attempt} was left behind: attempt {newest.attempt} {start}"


def _strangers(position: Position, found: Mapping[int, Vote], group: Mapping[int, Vote]) -> tuple[str, ...]:
    others: dict[str, list[int]] = defaultdict(list)
    for rank in found.keys() - group.keys():
        others[found[rank].attempt].append(rank)
    said = ", ".join(f"rank {in_ranges(ranks)} (attempt {attempt})" for attempt, ranks in sorted(others.items()))
    return (f"{position}: votes that belong to another save are ignored: {said}",) if others else ()


def _only_ckpt(files: Collection[Path]) -> bool:
    return bool(files) and all(path.suffix == ".ckpt" for path in files)


def _named_by_every_meta(survey: Survey, position: Position) -> bool:
    ranks = survey.ranks["policy"]
    return bool(ranks) and all(survey.said("policy", rank).position == position for rank in ranks)
