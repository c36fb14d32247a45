"""One payload file: its header and digests from the tensors, its bytes through the one door."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ms_resume import commit
from ms_resume.errors import Damaged
from ms_resume.ondisk import atomic, ckpt, names, payload
from ms_resume.records import Payload, Vote, Writer
from ms_resume.state import HostTensor, infos

if TYPE_CHECKING:
    from ms_resume.write import Snapshot


def path_of(writer: Writer, snapshot: Snapshot, role: str) -> Path:
    """State is always safetensors: stock code never looks at it, and `.ckpt` has no place for plain values."""
    file_format = "safetensors" if role == "state" else snapshot.file_format
    return names.payload(writer.save, role, writer.rank, snapshot.position, file_format)


def write(writer: Writer, snapshot: Snapshot, role: str, path: Path) -> Payload:
    """Writes one payload durably; it is not part of a checkpoint until a vote names it.

    Raises:
        DiskError: Nothing of it is left.
        Superseded: Another writer's file stands in the way.
    """
    tensors = snapshot.roles[role]
    if path.suffix == ".ckpt":
        chunks, digest = _ckpt_chunks(tensors)
    else:
        chunks, digest = _safetensors_chunks(writer, snapshot, role)
    commit.publish(writer, path, chunks)
    relative = path.relative_to(writer.save).as_posix()
    return Payload(role, relative, sum(len(chunk) for chunk in chunks), digest, writer.attempt.attempt)


def unchanged_reference(writer: Writer, snapshot: Snapshot, previous: Vote | None) -> Payload | None:
    """The reference file that `previous` names, when it holds exactly the tensors of now and stands there whole."""
    named = previous.file("ref") if previous else None
    tensors = snapshot.roles.get("ref")
    if named is None or tensors is None or named.path.endswith(".ckpt"):
        return None
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


def _safetensors_chunks(writer: Writer, snapshot: Snapshot, role: str) -> tuple[list[atomic.Chunk], str]:
    tensors = snapshot.roles[role]
    placed = payload.lay_out({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    mark = payload.Mark(writer.attempt.attempt, snapshot.position, writer.rank, role)
    values = snapshot.values if role == "state" else {}
    block = payload.header_block(placed, digests_of(tensors), mark, values)
    return [block, *(tensors[name].data for name in placed)], payload.digest_of(block)


def _ckpt_chunks(tensors: Mapping[str, HostTensor]) -> tuple[list[atomic.Chunk], str]:
    described = infos(tensors)
    content = b"".join(ckpt.encode((name, described[name], tensor.data) for name, tensor in tensors.items()))
    return [content], payload.digest_of(content)
