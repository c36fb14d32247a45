"""What a kill, a bad disk, or a wrong hand does to a save directory that a real run left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ms_resume.ondisk import names, payload, seal, votes
from ms_resume.records import Position


def payload_path(save: Path, at: str, rank: int, role: str) -> Path:
    return names.payload(save, role, rank, Position.parse(at))


def vote_path(save: Path, at: str, rank: int) -> Path:
    return names.vote(save, Position.parse(at), rank)


def edit_vote(save: Path, at: str, rank: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` work on the vote's JSON object; its digest is right again afterwards."""
    path = vote_path(save, at, rank)
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(seal.encode(document))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flips one bit; a negative offset counts from the end."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def flip_tensor(path: Path, name: str) -> None:
    """Flips one bit of one tensor."""
    header = payload.read_header(path)
    flip(path, header.data_start + header.tensors[name].begin)


def forge(
    save: Path,
    at: str,
    rank: int,
    role: str,
    *,
    mark: dict[str, Any] | None = None,
    scalars: dict[str, int] | None = None,
) -> None:
    """Rewrites a payload with another mark or other scalars, all digests right, and lets the vote name it."""
    path = payload_path(save, at, rank, role)
    header = payload.read_header(path)
    assert header.mark is not None
    with open(path, "rb") as file:
        data = {name: bytes(payload.read_tensor(file, header, name)) for name in header.tensors}
    data |= {name: value.to_bytes(8, "little") for name, value in (scalars or {}).items()}
    digests = {name: payload.digest_of(content) for name, content in data.items()}
    block = payload.header_block(header.tensors, digests, replace(header.mark, **(mark or {})), header.values)
    in_order = sorted(header.tensors, key=lambda name: header.tensors[name].begin)
    path.write_bytes(block + b"".join(data[name] for name in in_order))
    vote = votes.read(vote_path(save, at, rank))
    files = tuple(
        replace(file, digest=payload.digest_of(block), bytes=path.stat().st_size) if file.role == role else file
        for file in vote.files
    )
    vote_path(save, at, rank).write_bytes(votes.encode(replace(vote, files=files)))
