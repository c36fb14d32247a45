"""Stage 1 of 6: one rank's training state becomes closed, synced payload files, then a vote.

    reads    a `Snapshot`: this rank's tensors by role, as they are now
    writes   <role>/rank_R/<prefix>_rank_R-E_S.safetensors, and through `commit` the vote and meta.json

`save` is the order in which a checkpoint comes to be; each line is durable before the next.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ms_resume import commit, ownership
from ms_resume.errors import DiskError, MsResumeError, UsageError
from ms_resume.ondisk import direct, names
from ms_resume.records import Payload, Position, Vote, Writer
from ms_resume.state import HostTensor, infos
from ms_resume.write import files, readback, room
from ms_resume.write.replicas import Replicas
from ms_resume.write.staging import Staged, Staging

_SMALL_FILES = 6
"""Votes, `meta.json` files and temp files that a save may add to its payloads."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One rank's state at one position: policy, optimizer, state, and ref where there is one. What is not `staged` is
    held: views of live memory, or copies. `taken` is set when live memory is not needed any more."""

    position: Position
    global_step: int
    held: Mapping[str, Mapping[str, HostTensor]]
    values: Mapping[str, Any] = field(default_factory=dict)
    file_format: str = "safetensors"
    staged: Mapping[str, Staged] = field(default_factory=dict)
    read_back: bool = False
    replicas: Replicas = field(default_factory=Replicas)
    written: list[int] = field(default_factory=list)
    """Grows with the bytes of each piece that was written."""

    taken: threading.Event = field(default_factory=threading.Event)

    @property
    def roles(self) -> list[str]:
        return [*self.staged, *self.held]

    def tensors(self, role: str) -> Mapping[str, HostTensor]:
        """Waits for those that are being copied."""
        return self.staged[role].tensors(role) if role in self.staged else self.held[role]

    def stage(self, role: str) -> Snapshot:
        """The same with a copy of what is held of `role`, for this save alone. Returns when it is made."""
        held = dict(self.held)
        tensors = held.pop(role)
        staged = Staging({role: infos(tensors)}).take(
            {role: {name: partial(tensors.__getitem__, name) for name in tensors}}
        )
        staged.wait()
        return replace(self, held=held, staged={**self.staged, role: staged})


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. `fresh` is false when the position stood already; `bytes` is what it wrote."""

    vote: Vote
    fresh: bool
    bytes: int
    warnings: tuple[str, ...]


def size_of(snapshot: Snapshot) -> int:
    """Bytes of all tensors, in all files: what a save writes at most, but for headers."""
    return sum(files.size_of(snapshot, role) for role in snapshot.roles)


def save(
    writer: Writer,
    snapshot: Snapshot,
    about: Mapping[str, Any],
    previous: Vote | None,
    make_room: Callable[[], None] | None = None,
) -> Saved:
    """Saves and commits this rank's part of a checkpoint.

    Args:
        about: What the vote says besides: `steps_per_epoch`, `layout`, `parallel`, `config`, `model_config`,
            `metrics`, `tool`.
        previous: This rank's vote in a live, complete checkpoint: its reference is named again while unchanged.
        make_room: Removes older checkpoints, when there is too little room for this one.

    Raises:
        DiskError: The position does not count; every older checkpoint is as it was, and training may go on.
        UsageError: The same; a tensor is not what it was at the start of the run.
        Superseded: A newer attempt owns the directory; nothing more may be written by this process.
    """
    with _reported():
        return _save(writer, snapshot, about, previous, make_room)


def _save(
    writer: Writer,
    snapshot: Snapshot,
    about: Mapping[str, Any],
    previous: Vote | None,
    make_room: Callable[[], None] | None,
) -> Saved:
    ownership.assert_owner(writer)
    if standing := commit.standing_vote(writer, snapshot.position):
        return Saved(standing, False, 0, tuple(_record_meta(writer, standing)))
    reference = files.unchanged_reference(writer, snapshot, previous)
    if snapshot.staged:
        if reference is None and "ref" in snapshot.held:
            snapshot = snapshot.stage("ref")
        snapshot.taken.set()
    due = [role for role in snapshot.roles if role != "ref" or reference is None]
    paths = {role: files.path_of(writer, snapshot, role) for role in due}
    own = [role for role in due if snapshot.replicas.writes(role)]
    size = sum(files.size_of(snapshot, role) for role in own)
    room.check(writer.save, size, len(due) + _SMALL_FILES, ranks=writer.world_size, make=make_room)
    commit.retract(writer, snapshot.position, paths.values())
    with _all_or_none(writer, snapshot, paths):
        written = _write(writer, snapshot, {role: paths[role] for role in own})
        others = {role: path for role, path in paths.items() if role not in own}
        linked, warnings = snapshot.replicas.link(writer, snapshot, others)  # now that none waits for this rank's own
        written += _write(writer, snapshot, {role: path for role, path in others.items() if role not in linked})
        for file in written if snapshot.read_back else ():
            readback.check(writer.save / file.path, file)
        if reference is not None and not commit.in_place(writer.save, reference):
            raise DiskError(
                f"{writer.save / reference.path}: the reference went away while it was to be named again",
                hint="save again: it is written then",
                path=str(writer.save / reference.path),
                errno=errno.ENOENT,
            )
        vote = _vote(writer, snapshot, [*written, *linked.values(), *filter(None, [reference])], about)
        commit.cast(writer, vote)
    return Saved(vote, True, sum(file.bytes for file in written), (*warnings, *_record_meta(writer, vote)))


def _write(writer: Writer, snapshot: Snapshot, paths: Mapping[str, Path]) -> list[Payload]:
    """Large files beside each other: while one waits for its last digests the disk has the other."""
    large = [role for role in paths if files.size_of(snapshot, role) >= direct.LARGE]
    with ThreadPoolExecutor(max(1, len(large)), "ms_resume payload") as pool:
        begun = [pool.submit(files.write, writer, snapshot, role, paths[role]) for role in large]
        alone = [files.write(writer, snapshot, role, path) for role, path in paths.items() if role not in large]
        return [file.result() for file in begun] + alone


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """A read that fails (a stale handle of a network file system) ends a save like a write that fails."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{error.filename}: {error.strerror or error}",
            hint="nothing that was saved is harmed; look at the disk, then save again",
            path=str(error.filename),
            errno=error.errno,
        ) from error


@contextlib.contextmanager
def _all_or_none(writer: Writer, snapshot: Snapshot, paths: Mapping[str, Path]) -> Iterator[None]:
    """Retention runs after a save that worked, so what did fit would keep a full disk full."""
    try:
        yield
    except (DiskError, UsageError):
        if not names.vote(writer.save, snapshot.position, writer.rank).exists():  # else it may count: its sync failed
            with contextlib.suppress(MsResumeError):  # the error that brought us here is the one to report
                for path in paths.values():
                    commit.clear(writer, path, proven=True)
        raise


def _vote(writer: Writer, snapshot: Snapshot, named: list[Payload], about: Mapping[str, Any]) -> Vote:
    return Vote(
        position=snapshot.position,
        global_step=snapshot.global_step,
        rank=writer.rank,
        world_size=writer.world_size,
        attempt=writer.attempt.attempt,
        files=tuple(sorted(named, key=lambda file: list(names.DIRECTORIES).index(file.role))),
        created_at=ownership.now(),
        **about,
    )


def _record_meta(writer: Writer, vote: Vote) -> list[str]:
    """Stock code would combine the weights of a checkpoint without moments with older moments."""
    if vote.file("optimizer") is None:
        return []
    return commit.record_meta(writer, {file.role: writer.save / file.path for file in vote.files})
