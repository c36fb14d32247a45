"""Which checkpoint to go on from: rank 0 locates and hands it out, every rank checks that it sees the same.

Nothing is loaded and nothing is written here.
"""

from __future__ import annotations

import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ms_resume import layouts, locate, verify
from ms_resume.errors import Disagreement, NothingToResume, UsageError
from ms_resume.framework.group import Group
from ms_resume.layouts import mindrlhf, survey
from ms_resume.layouts.survey import Survey
from ms_resume.ondisk import mounts, names, payload, reading, votes
from ms_resume.records import Checkpoint, Located, Position, Rejection, Vote, in_ranges
from ms_resume.resume import agree, disks
from ms_resume.resume.disks import Offer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint to go on from, as rank 0 hands it out; `position` is None for a fresh start."""

    save: Path
    position: Position | None
    attempt: str | None = None
    layout: str = ""
    world_size: int = 0
    votes_digest: str = ""
    templates: tuple[tuple[str, str], ...] = ()
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mine:
    """One rank's part of the choice: its files by role, and its vote (None for a stock checkpoint)."""

    files: dict[str, Path]
    vote: Vote | None


def choose(save: Path, ref_dir: Path | None, steps_per_epoch: int, excluded: Sequence[Rejection]) -> Choice:
    """Rank 0's part. Raises NothingToResume, with a table, when there is none but there once was, or may have been."""
    _check_exists(save)
    located = locate.latest(
        save, ref_dir=ref_dir, steps_per_epoch=steps_per_epoch, check=verify.headers, excluded=excluded
    )
    if located.checkpoint is None:
        if excluded or not locate.never_whole(survey.take(save, ref_dir)):
            raise nothing(located)
        _check_foreign(save)
        return Choice(save, None, rejected=located.rejected, warnings=located.warnings)
    return _choice(located, located.checkpoint)


def choose_at(save: Path, position: Position, ref_dir: Path | None, steps_per_epoch: int) -> Choice:
    """Rank 0's part where a position was asked for: that one, or the error that says why not."""
    _check_exists(save)
    located = locate.at(save, position, ref_dir=ref_dir, steps_per_epoch=steps_per_epoch, check=verify.headers)
    assert located.checkpoint is not None  # `at` raises where there is none
    return _choice(located, located.checkpoint)


def given(path: Path) -> tuple[Path, Position | None]:
    """The save directory that a path leads to which a person gave, and the position, where it names one.

    Raises:
        UsageError: It leads nowhere, or to nothing that a resume takes.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        what = f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "does not exist"
        raise UsageError(f"--checkpoint_path {path}: {what}; expected {_ACCEPTED}", hint="check the path") from None
    if not real.is_dir():
        name, role = names.parse_payload(real.name), real.parent.parent.name
        if name is None or real.parent.name != f"rank_{name.rank}" or role not in _OF_POSITION:
            raise _not_taken(path, "a file that is no checkpoint of MindRLHF's or ours")
        return real.parent.parent.parent, name.position
    if real.parent.name == names.commits(Path()).name and (position := names.parse_vote_dir(real.name)):
        return real.parent.parent, position
    save = real.parent if real.name in _OF_POSITION and not survey.take(real).positions else real
    if not survey.take(save).positions:
        other = layouts.stranger(save)
        raise _not_taken(path, f"holds {other.layout if other else 'no checkpoint'}")
    return save, None


_ACCEPTED = "a save directory, <save>/commits/E_S, <save>/train, or a file of a position"
_OF_POSITION = {names.DIRECTORIES[role] for role in ("policy", "optimizer", "state")}
"""Not `ref`: its file may be of an older position than those that name it."""


def _not_taken(path: Path, what: str) -> UsageError:
    return UsageError(
        f"--checkpoint_path {path}: {what}; expected {_ACCEPTED}",
        hint=f"`ms-resume ls` shows what is there; --pretrained_checkpoint {shlex.quote(str(path))} begins a new run "
        "from weights alone",
    )


def at_global_step(save: Path, wanted: int, ref_dir: Path | None, steps_per_epoch: int) -> Position:
    """The position whose votes say that it is that of a global step; a stock one's is counted.

    Of several the live one counts, else the newest: then the error for it says why it cannot be had.

    Raises:
        NothingToResume: There is none; the nearest whole ones are named.
    """
    _check_exists(save)
    surveyed = survey.take(save, ref_dir, steps_per_epoch)
    steps = {position: _global_step(surveyed, position, steps_per_epoch) for position in surveyed.positions}
    here = [position for position, step in steps.items() if step == wanted]
    whole = [position for position in here if isinstance(layouts.judge(surveyed, position), Checkpoint)]
    if here:
        return (whole or here)[0]
    raise _no_step(surveyed, wanted, steps)


_NEAREST = 2


def _no_step(surveyed: Survey, wanted: int, steps: Mapping[Position, int]) -> NothingToResume:
    below = sorted((position for position, step in steps.items() if step < wanted), key=steps.__getitem__, reverse=True)
    above = sorted((position for position, step in steps.items() if step > wanted), key=steps.__getitem__)
    near: list[Position] = []
    for side in (below, above):
        whole = (position for position in side if isinstance(layouts.judge(surveyed, position), Checkpoint))
        near += itertools.islice(whole, _NEAREST)
    said = ", ".join(f"{steps[position]} ({position})" for position in sorted(near, key=steps.__getitem__))
    return NothingToResume(
        f"{surveyed.save}: no checkpoint of global step {wanted}, {f'the nearest are {said}' if said else 'nor any'}",
        hint="give one of those to --resume_from, or auto for the newest" if said else "look with `ms-resume ls`",
        nearest=[steps[position] for position in near],
    )


def _global_step(surveyed: Survey, position: Position, steps_per_epoch: int) -> int:
    found, _ = votes.read_all(names.vote_dir(surveyed.save, position), limit=1)
    counted = position.epoch * steps_per_epoch + position.step
    if position.normal(steps_per_epoch) != position:
        counted -= steps_per_epoch  # stock code's final form names the end of the epoch before
    return next((vote.global_step for vote in found.values()), counted)


def _check_exists(save: Path) -> None:
    if not save.exists():
        raise UsageError(
            f"{save}: does not exist, expected the save directory to resume from",
            hint="check the path; for a first start leave --resume_training out",
        )


def _check_foreign(save: Path) -> None:
    """A fresh start beside checkpoints that this version does not read would be taken for a resume."""
    if found := layouts.stranger(save):
        raise UsageError(
            f"{save}: holds {found.layout} ({found.evidence}), expected what MindRLHF or ms_resume saved there",
            hint=found.advice,
        )


def nothing(located: Located) -> NothingToResume:
    rows = [f"  {rejection.position}  {rejection.kind}: {rejection.reason}" for rejection in located.rejected]
    rows += [f"  {warning}" for warning in located.warnings]
    return NothingToResume(
        f"{located.save}: no whole checkpoint to resume from\n" + ("\n".join(rows) or "  it is empty"),
        hint="look with `ms-resume ls`; --allow_fresh_start begins anew beside what is there",
        rejected=[rejection.to_json() for rejection in located.rejected],
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What one rank has on a disk of its own, newest first; `empty` when nothing was ever saved there."""

    offers: tuple[Offer, ...]
    empty: bool


def held(save: Path, rank: int, ref_dir: Path | None, steps_per_epoch: int) -> Held:
    _check_exists_or_new(save)
    if not save.exists():
        return Held((), empty=True)
    surveyed = survey.take(save, ref_dir, steps_per_epoch)
    return Held(tuple(disks.offers(surveyed, rank)), not (surveyed.positions or surveyed.deleted))


def held_to_json(held: Held) -> list[Any]:
    return [[disks.to_json(offer) for offer in held.offers], held.empty]


def held_from_json(data: list[Any]) -> Held:
    offers, empty = data
    return Held(tuple(disks.from_json(entry) for entry in offers), empty)


def choose_common(
    save: Path, held: Sequence[Held], wanted: Position | None, excluded: Sequence[Rejection]
) -> Choice | None:
    """The newest checkpoint of which every rank has its part; a fresh start where no disk has anything; or None."""
    known = {rejection.position: rejection for rejection in excluded}
    for offers in disks.common(rank.offers for rank in held):
        first = offers[0]
        if first.position in known or wanted not in (None, first.position):
            continue
        digests = [offer.digest for offer in offers]
        rejected = tuple(_not_common(held, known, newer_than=first.position))
        votes_digest = _combined(digests) if all(digests) else ""
        return Choice(
            save, first.position, first.attempt, first.layout, first.world_size, votes_digest, rejected=rejected
        )
    fresh = wanted is None and not excluded and all(rank.empty for rank in held)
    return Choice(save, None) if fresh else None


def begun(save: Path, rank: int, ref_dir: Path | None, steps_per_epoch: int) -> disks.Begun | None:
    """What this rank knows of saves that were cut short, where there is no checkpoint of which all have their part."""
    if not save.exists():
        return disks.Begun()
    return disks.begun(survey.take(save, ref_dir, steps_per_epoch), rank)


def fresh_common(save: Path, held: Sequence[Held]) -> Choice:
    """A fresh start beside what was never whole."""
    return Choice(save, None, rejected=tuple(_not_common(held, {})))


def nothing_common(save: Path, held: Sequence[Held], excluded: Sequence[Rejection]) -> NothingToResume:
    known = {rejection.position: rejection for rejection in excluded}
    return nothing(Located(save, None, tuple(_not_common(held, known))))


def stock_files(choice: Choice, rank: int, ref_dir: Path | None, steps_per_epoch: int) -> tuple[tuple[str, str], ...]:
    """This rank's files of a stock checkpoint, by role; a vote names its own."""
    if choice.position is None or choice.votes_digest:
        return ()
    found = mindrlhf.judge(survey.take(choice.save, ref_dir, steps_per_epoch), choice.position, (rank,))
    assert isinstance(found, Checkpoint)  # this rank has offered it
    return tuple((role, str(path)) for role, path in found.of_rank(rank).items())


def _not_common(
    held: Sequence[Held], known: Mapping[Position, Rejection], newer_than: Position | None = None
) -> Iterator[Rejection]:
    """Positions of which some ranks have nothing, newest first."""
    ranks = {rank: entry.offers for rank, entry in enumerate(held)}
    for position in sorted({offer.position for offers in ranks.values() for offer in offers}, reverse=True):
        if newer_than is not None and position <= newer_than:
            return
        without = disks.missing(ranks, position)
        reason = (
            f"rank {in_ranges(without)} has nothing of it" if without else "the ranks have it of different attempts"
        )
        yield known.get(position) or Rejection(position, "torn", reason, without)


def _check_exists_or_new(save: Path) -> None:
    """A node that is new has no directory yet: the others say whether there should be one."""
    if save.exists() and not save.is_dir():
        raise UsageError(f"{save}: is a file, expected a save directory", hint="check the path")


def to_json(choice: Choice) -> dict[str, Any]:
    return {
        "save": str(choice.save),
        "position": choice.position.to_json() if choice.position else None,
        "attempt": choice.attempt,
        "layout": choice.layout,
        "world_size": choice.world_size,
        "votes_digest": choice.votes_digest,
        "templates": choice.templates,
        "rejected": [rejection.to_json() for rejection in choice.rejected],
        "warnings": choice.warnings,
    }


def from_json(data: dict[str, Any]) -> Choice:
    rejected = (
        Rejection(Position(*entry["position"]), entry["kind"], entry["reason"], tuple(entry["ranks"]))
        for entry in data["rejected"]
    )
    return Choice(
        save=Path(data["save"]),
        position=Position(*data["position"]) if data["position"] else None,
        attempt=data["attempt"],
        layout=data["layout"],
        world_size=data["world_size"],
        votes_digest=data["votes_digest"],
        templates=tuple((role, path) for role, path in data["templates"]),
        rejected=tuple(rejected),
        warnings=tuple(data["warnings"]),
    )


def confirm(group: Group, choice: Choice, timeout_s: float) -> Mine:
    """Every rank opens its own vote, or that of the replica whose place it takes where another number of ranks saved;
    all of them must be the votes that rank 0 judged.

    Raises:
        Disagreement: They are not, or a rank cannot see its files. Nothing was loaded.
    """
    assert choice.position is not None  # there is something to confirm
    wait_s = visibility_s(choice.save, timeout_s)
    owner = group.rank % choice.world_size
    mine, told = agree.together(group, lambda: _open_mine(choice, owner, wait_s), lambda pair: pair[1])
    if choice.votes_digest and choice.world_size > group.world_size:  # nobody's vote is left out
        rest = range(group.world_size, choice.world_size)
        others, _ = agree.together(group, lambda: [_vote_digest(choice, rank, wait_s) for rank in rest])
        told = [*told, *([digest, choice.attempt] for digest in others)]
    digests = [digest for digest, _ in told[: choice.world_size]]
    if choice.votes_digest and (seen := _combined(digests)) != choice.votes_digest:
        raise Disagreement(
            f"{choice.save}: the ranks do not see the votes of {choice.position} that rank 0 judged: those are of "
            f"attempt {choice.attempt} and have digest {choice.votes_digest}; {_views(told)}, with digest {seen}",
            hint="check that all nodes mount the same save directory, then start again",
            votes=digests,
        )
    return mine[0]


def _views(told: list[list[str]]) -> str:
    """Whose votes the ranks opened."""
    alike: dict[str, list[int]] = {}
    for rank, (_, attempt) in enumerate(told):
        alike.setdefault(attempt, []).append(rank)
    return ", ".join(f"rank {in_ranges(ranks)} opened attempt {attempt}'s" for attempt, ranks in alike.items())


def visibility_s(save: Path, timeout_s: float) -> float:
    """How long a file that rank 0 has seen may stay unseen on this node: not at all on a disk of its own."""
    return timeout_s if mounts.is_network(save) else 0.0


def wait_for(path: Path, look: Callable[[], T], wait_s: float) -> T:
    """Looks until the network file system shows what rank 0 has seen. Raises Disagreement where it never does."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return look()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Disagreement(
                    f"{path}: {error.strerror}, rank 0 saw it" + (f" (waited {wait_s:.0f} s)" if wait_s else ""),
                    hint="check that this node mounts the same save directory, then start again",
                ) from error
        time.sleep(0.5)


def _choice(located: Located, checkpoint: Checkpoint) -> Choice:
    vote_files = [names.vote(located.save, checkpoint.position, vote.rank) for vote in checkpoint.votes]
    digest = _combined([payload.digest_of(reading.content(path)) for path in vote_files]) if vote_files else ""
    first = checkpoint.of_rank(0)
    return Choice(
        save=located.save,
        position=checkpoint.position,
        attempt=checkpoint.attempt,
        layout=checkpoint.layout,
        world_size=checkpoint.world_size,
        votes_digest=digest,
        templates=() if vote_files else tuple((role, str(path)) for role, path in first.items()),
        rejected=located.rejected,
        warnings=located.warnings,
    )


def _combined(digests: list[str]) -> str:
    return payload.digest_of("".join(digests).encode())


def _open_mine(choice: Choice, rank: int, wait_s: float) -> tuple[Mine, tuple[str, str]]:
    """This rank's part, and what the others are told of its vote: the digest, and its attempt."""
    assert choice.position is not None
    if not choice.votes_digest:
        files = {role: _of_rank(Path(path), rank) for role, path in choice.templates}
        for path in files.values():
            wait_for(path, path.stat, wait_s)
        return Mine(files, None), ("", "")
    path = names.vote(choice.save, choice.position, rank)
    content = wait_for(path, partial(reading.content, path), wait_s)
    vote = votes.decode(path, content)
    files = {file.role: choice.save / file.path for file in vote.files}
    for file in files.values():
        wait_for(file, file.stat, wait_s)
    return Mine(files, vote), (payload.digest_of(content), vote.attempt)


def _vote_digest(choice: Choice, rank: int, wait_s: float) -> str:
    assert choice.position is not None
    path = names.vote(choice.save, choice.position, rank)
    return payload.digest_of(wait_for(path, partial(reading.content, path), wait_s))


def _of_rank(path: Path, rank: int) -> Path:
    """Rank 0's file as the same file of another rank."""
    name = names.parse_payload(path.name)
    assert name is not None
    return path.parent.parent / f"rank_{rank}" / f"{name.prefix}_rank_{rank}-{name.position}.{name.format}"
