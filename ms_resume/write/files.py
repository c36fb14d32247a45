"""One payload file: its header and digests from the tensors, its bytes through the one door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_resume import commit
from ms_resume.errors import Damaged
from ms_resume.ondisk import atomic, ckpt, names, payload
from ms_resume.records import Payload, Vote, Writer
from ms_resume.state import HostTensor, infos

if TYPE_CHECKING:
    from ms_resume.write import Snapshot
    from ms_resume.write.staging import Staged


def path_of(writer: Writer, snapshot: Snapshot, role: str) -> Path:
    """State is always safetensors: stock code never looks at it, and `.ckpt` has no place for plain values."""
    file_format = "safetensors" if role == "state" else snapshot.file_format
    return names.payload(writer.save, role, writer.rank, snapshot.position, file_format)


def size_of(snapshot: Snapshot, role: str) -> int:
    """Bytes of a role's tensors: about what its file will take."""
    if role in snapshot.staged:
        return max((info.end for info in snapshot.staged[role].placed(role).values()), default=0)
    return sum(len(tensor.data) for tensor in snapshot.held[role].values())


def write(writer: Writer, snapshot: Snapshot, role: str, path: Path) -> Payload:
    """Writes one payload durably; it is not part of a checkpoint until a vote names it.

    Raises:
        DiskError: Nothing of it is left.
        Superseded: Another writer's file stands in the way.
    """
    mark = payload.Mark(writer.attempt.attempt, snapshot.position, writer.rank, role)
    if path.suffix != ".ckpt" and role in snapshot.staged:
        content = _Pieces(snapshot.staged[role], role, mark, snapshot.written)
        commit.publish(writer, path, content)
        size, digest = content.size, content.digest
    else:
        tensors = snapshot.tensors(role)
        values = snapshot.values if role == "state" else {}
        chunks, digest = _ckpt_chunks(tensors) if path.suffix == ".ckpt" else _chunks(tensors, mark, values)
        commit.publish(writer, path, chunks)
        size = sum(len(chunk) for chunk in chunks)
    return Payload(role, path.relative_to(writer.save).as_posix(), size, digest, writer.attempt.attempt)


def unchanged_reference(writer: Writer, snapshot: Snapshot, previous: Vote | None) -> Payload | None:
    """The reference file that `previous` names, when it holds exactly the tensors of now and stands there whole."""
    named = previous.file("ref") if previous else None
    if named is None or "ref" not in snapshot.roles or named.path.endswith(".ckpt"):
        return None
    tensors = snapshot.tensors("ref")
    try:
        header = payload.read_header(writer.save / named.path)
    except (OSError, Damaged):
        return None
    if (header.digest, header.file_bytes) != (named.digest, named.bytes):
        return None
    same_layout = {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }
    return named if same_layout and dict(header.digests) == digests_of(tensors) else None


def digests_of(tensors: Mapping[str, HostTensor]) -> dict[str, str]:
    return {name: payload.digest_of(tensor.data) for name, tensor in tensors.items()}


class _Pieces:
    """A payload whose tensors are still being copied. Its header, which has their digests, comes last."""

    def __init__(self, staged: Staged, role: str, mark: payload.Mark, written: list[int]) -> None:
        self._staged, self._role, self._mark, self._written = staged, role, mark, written
        self._placed = staged.placed(role)
        none = dict.fromkeys(self._placed, payload.digest_of(b""))
        self._data_start = len(payload.header_block(self._placed, none, mark, {}))
        self.size = self._data_start + max((info.end for info in self._placed.values()), default=0)

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        for at, view in self._staged.pieces(self._role):
            yield self._data_start + at, view
        yield 0, memoryview(self._header)

    def wrote(self, count: int) -> None:
        self._written.append(count)

    @property
    def digest(self) -> str:
        return payload.digest_of(self._header)

    @cached_property
    def _header(self) -> bytes:
        return payload.header_block(self._placed, self._staged.digests(self._role), self._mark, {})


def _chunks(
    tensors: Mapping[str, HostTensor], mark: payload.Mark, values: Mapping[str, Any]
) -> tuple[list[atomic.Chunk], str]:
    placed = payload.lay_out({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    block = payload.header_block(placed, digests_of(tensors), mark, values)
    return [block, *(tensors[name].data for name in placed)], payload.digest_of(block)


def _ckpt_chunks(tensors: Mapping[str, HostTensor]) -> tuple[list[atomic.Chunk], str]:
    described = infos(tensors)
    content = b"".join(ckpt.encode((name, described[name], tensor.data) for name, tensor in tensors.items()))
    return [content], payload.digest_of(content)
