"""A checkpoint of another number of ranks: refused with both numbers, or, of data-parallel replicas, gone on with.

Replicas have the same weights and moments, which is not believed but seen in the digests of their headers. Each rank
takes the place of one of them; what only one rank had, its random state, starts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ms_resume.errors import LayoutMismatch
from ms_resume.load.warm import DATA_PARALLEL
from ms_resume.ondisk import names, payload, votes
from ms_resume.records import ROLES, Position, Vote
from ms_resume.resume.choice import Choice
from ms_resume.resume.restore import Settled

if TYPE_CHECKING:
    from ms_resume.resume.session import Job


def check(chosen: Choice, world_size: int, allowed: str, *, is_shared: bool) -> bool:
    """Whether the checkpoint is of another number of ranks, and may be gone on with.

    Raises:
        LayoutMismatch: It is, and was not allowed, or each rank's files lie on its own node's disk.
    """
    if chosen.world_size == world_size:
        return False
    both = (
        f"{chosen.save}: checkpoint {chosen.position} was made by {chosen.world_size} ranks, this job has {world_size}"
    )
    numbers = {"found": chosen.world_size, "expected": world_size}
    if allowed and not is_shared:
        raise LayoutMismatch(
            f"{both}, and each node has a disk of its own, which lacks the others' files",
            hint=f"start it with {chosen.world_size} workers, or copy the checkpoint to a directory that all share",
            **numbers,
        )
    if not allowed:
        raise LayoutMismatch(
            both,
            hint=f"start it with {chosen.world_size} workers; where they were data-parallel replicas, "
            f"--allow_world_size {DATA_PARALLEL} goes on with {world_size}, not bit for bit",
            **numbers,
        )
    return True


def check_replicas(chosen: Choice) -> None:
    """Raises LayoutMismatch where a rank that saved had other weights or moments than rank 0: those are no replicas.

    What stock code saved has no digests: there the word of whoever allowed it counts.
    """
    assert chosen.position is not None
    if not chosen.votes_digest:
        return
    first: dict[str, Mapping[str, str]] = {}
    for rank in range(chosen.world_size):
        vote = votes.read(names.vote(chosen.save, chosen.position, rank))
        for role in ROLES[:3]:
            held = _digests(chosen, vote, role)
            other = first.setdefault(role, held)
            if held == other:
                continue
            differ = sorted(name for name in held.keys() | other.keys() if held.get(name) != other.get(name))
            raise LayoutMismatch(
                f"{chosen.save}: checkpoint {chosen.position}: rank {rank}'s {role} is not rank 0's (first: "
                f"{differ[0]}): the {chosen.world_size} ranks were no data-parallel replicas",
                hint=f"start it with {chosen.world_size} workers and the strategy that it was made with",
                ranks=(rank,),
            )


def _digests(chosen: Choice, vote: Vote, role: str) -> Mapping[str, str]:
    file = vote.file(role)
    if file is None:
        return {}
    if file.path.endswith(".ckpt"):
        return {"the whole file": file.digest}  # nothing in it is of one rank alone
    return payload.read_header(chosen.save / file.path).digests


def without_own(settled: Settled) -> Settled:
    """Without the states that are one rank's own."""
    return replace(settled, states={name: state for name, state in settled.states.items() if name not in _own(settled)})


def check_place(position: Position, vote: Vote | None, steps_per_epoch: int, settled: Settled) -> None:
    """Raises LayoutMismatch where nothing says which step of an epoch with other steps it is."""
    saved = vote.steps_per_epoch if vote else steps_per_epoch
    if saved != steps_per_epoch and position.step and not any(_cursors(settled)):
        raise LayoutMismatch(
            f"checkpoint {position} was made with {saved} steps per epoch, this job has {steps_per_epoch}, and no "
            "component knows how many samples were done (ms_resume.Cursor does)",
            hint="give it as many samples a step of all ranks as before, or go on from the end of an epoch",
            found=saved,
            expected=steps_per_epoch,
        )


def place_of(job: Job, chosen: Choice, position: Position, vote: Vote | None, settled: Settled) -> Position:
    """The position of this job that the restored cursors stand at.

    Raises:
        LayoutMismatch: It is an earlier one than that of the checkpoint, and would be saved beside it.
    """
    if not vote or vote.steps_per_epoch == job.steps_per_epoch or not position.step:
        return position
    cursors = list(_cursors(settled))
    left = min(cursor.steps_left for cursor in cursors)
    found = Position(position.epoch, job.steps_per_epoch - left) if left else Position(position.epoch + 1, 0)
    if found < position and chosen.save == job.save:
        raise LayoutMismatch(
            f"{job.save}: checkpoint {position}, of {vote.steps_per_epoch} steps per epoch, is {found} of this job's "
            f"{job.steps_per_epoch}: what it saves would count as older than what it went on from",
            hint="save to another directory: --resume --checkpoint_path OLD with --save_checkpoint_dir NEW",
        )
    for cursor in cursors if not left else ():
        cursor.seek(found.epoch, 0)
    return found


def told(chosen: Choice, world_size: int, at: Position, settled: Settled) -> list[str]:
    """What the banner says of it."""
    moved = f"; {chosen.position} is {at} here" if at != chosen.position else ""
    lines = [
        f"not bit-identical: saved by {chosen.world_size} ranks, this job has {world_size}, each in the place of a "
        f"data-parallel replica{moved}"
    ]
    if own := _own(settled):
        lines.append(f"{', '.join(own)}: each rank's own, as the trainer built it")
    return lines


def _own(settled: Settled) -> list[str]:
    return sorted(name for name, component in settled.components.items() if getattr(component, "of_rank", False))


def _cursors(settled: Settled) -> Iterator[Any]:
    restored = (settled.components[name] for name in settled.states)
    return (component for component in restored if hasattr(component, "steps_left") and hasattr(component, "seek"))
