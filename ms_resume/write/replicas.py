"""Files that data-parallel replicas have byte for byte: one of them writes each, the others give it a second name.

Nobody tells anybody anything. Whoever does not write a file waits until it stands under its writer's name, compares the
header, which has the digest of every tensor, with its own copies, and links it. Where none comes, or another one than
its own would be, a rank writes its own, and goes on so until the end of the job.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ms_resume import commit
from ms_resume.errors import Damaged, DiskError
from ms_resume.ondisk import names, payload
from ms_resume.records import Payload, Writer

if TYPE_CHECKING:
    from ms_resume.write import Snapshot

ROLES = ("policy", "optimizer", "ref")
"""What replicas have in common, in the order in which it is dealt out to them."""

_POLL_S = 0.05


class Replicas:
    """One rank's view of its replicas, from the start of the job to its end.

    Args:
        writers: As `deal` has them.
        patience_s: How long this rank waits for a file that another one writes.
    """

    def __init__(self, writers: Mapping[str, int] = MappingProxyType({}), patience_s: float = 0.0) -> None:
        self._writers, self._patience_s = dict(writers), patience_s

    def writes(self, role: str) -> bool:
        """Whether this rank writes its file of `role` itself."""
        return role not in self._writers

    def link(
        self, writer: Writer, snapshot: Snapshot, paths: Mapping[str, Path]
    ) -> tuple[dict[str, Payload], list[str]]:
        """Links the files that other ranks write. What cannot be linked is left out, with the reason, for good.

        Args:
            paths: By role, what this rank's own file would be called.

        Raises:
            Superseded: A newer attempt owns the directory.
        """
        linked, reasons = {}, []
        for role, path in paths.items():
            source = names.payload(writer.save, role, self._writers[role], snapshot.position)
            try:
                linked[role] = self._link(writer, snapshot, role, source, path)
            except (_NotShared, DiskError) as reason:
                said = reason.message if isinstance(reason, DiskError) else f"{source}: {reason}"
                reasons.append(f"{said}; from now on rank {writer.rank} writes its own {role}")
                del self._writers[role]
        return linked, reasons

    def _link(self, writer: Writer, snapshot: Snapshot, role: str, source: Path, path: Path) -> Payload:
        mark = payload.Mark(writer.attempt.attempt, snapshot.position, self._writers[role], role)
        header, staged = self._await(source, mark), snapshot.staged[role]
        if (header.tensors, header.digests) != (staged.placed(role), staged.digests(role)):
            raise _NotShared(f"is not what rank {writer.rank} has, which the strategy calls a replica")
        commit.share(writer, source, path)
        relative = path.relative_to(writer.save).as_posix()
        shared = Payload(role, relative, header.file_bytes, header.digest, mark.attempt)
        if not commit.in_place(writer.save, shared):
            commit.clear(writer, path, proven=True)
            raise _NotShared("was taken away while it was linked")
        return shared

    def _await(self, source: Path, mark: payload.Mark) -> payload.Header:
        """The header of the file of this very save, when it is there."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                header = payload.read_header(source)
            except (OSError, Damaged):
                header = None
            if header is not None and header.mark == mark:
                return header
            if time.monotonic() > until:
                raise _NotShared(f"rank {mark.rank} did not write it within {self._patience_s:g} s")
            time.sleep(_POLL_S)


class _NotShared(Exception):
    """Why this rank writes a file itself."""


def deal(parallel: Mapping[str, Any], rank: int, world_size: int) -> dict[str, int]:
    """The roles of `rank` that another rank writes, and which.

    Args:
        parallel: The job's strategy, as it stands in votes. One that names no replicas deals nothing.
    """
    replicas = {role: _replicas(parallel, role, rank, world_size) for role in ROLES}
    writers = {role: ranks[ROLES.index(role) % len(ranks)] for role, ranks in replicas.items()}
    return {role: writer for role, writer in writers.items() if writer != rank}


def _replicas(parallel: Mapping[str, Any], role: str, rank: int, world_size: int) -> tuple[int, ...]:
    """The ranks that have the same tensors as `rank`, as the strategy says; itself alone where it does not say so.

    MindSpore counts ranks stage by stage (https://www.mindspore.cn/docs/en/r2.7.0/features/parallel/pipeline_parallel.html)
    and within a stage replica by replica. A job that counts otherwise is told by the digests, and shares nothing.
    """
    cut = (parallel.get("ref") if role == "ref" else None) or parallel.get("actor") or {}
    replicas, stages = cut.get("data_parallel", 1), cut.get("pipeline_stage", 1)
    within = cut.get("model_parallel", 1) * cut.get("context_parallel", 1)
    cut_further = parallel.get("enable_parallel_optimizer") or cut.get("expert_parallel", 1) != 1
    if cut_further or replicas * stages * within != world_size:
        return (rank,)
    stage = rank // (replicas * within) * (replicas * within)
    return tuple(stage + replica * within + rank % within for replica in range(replicas))
