"""Stage 4 of 6: is what is on disk what was saved?

    reads    every payload of a checkpoint: headers always, every byte when `deep`
    gives    what is wrong, file by file, with rank, role, tensor, and reason

Pure reader. Loading checks digests again, on the bytes it places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.layouts import mindrlhf
from ms_resume.ondisk import ckpt, payload
from ms_resume.progress import Progress
from ms_resume.records import Checkpoint, Found, Payload, Rejection


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one file."""

    path: str
    rank: int
    role: str
    reason: str
    tensor: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(checkpoint: Checkpoint, *, deep: bool = False, progress: Progress | None = None) -> list[Finding]:
    """Everything that is wrong with a checkpoint that `locate` found complete; empty when it is valid.

    Args:
        deep: Also every byte against its digest (ours), CRC (where stock saved one), and, for stock, the weights in
            the policy file against those in the optimizer file: unequal ones are two generations mixed.
    """
    tell = progress or (lambda count: None)
    findings = [finding for file in checkpoint.files for finding in check_file(checkpoint, file, deep, tell)]
    if deep and checkpoint.layout == mindrlhf.NAME and not findings:
        findings = list(_mixed_generations(checkpoint))
    return findings


def rejection(checkpoint: Checkpoint, findings: list[Finding]) -> Rejection | None:
    """The checkpoint's findings as the reason to pass it over."""
    if not findings:
        return None
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    ranks = tuple(sorted({finding.rank for finding in findings}))
    return Rejection(checkpoint.position, "damaged", findings[0].reason + more, ranks)


def headers(checkpoint: Checkpoint) -> Rejection | None:
    """Why a resume passes a complete checkpoint over before it reads it."""
    return weights_only(checkpoint) or rejection(checkpoint, check(checkpoint))


def weights_only(checkpoint: Checkpoint) -> Rejection | None:
    """Whole, and yet not one to resume from."""
    if not checkpoint.votes or all(vote.file("optimizer") for vote in checkpoint.votes):
        return None
    return Rejection(checkpoint.position, "weights only", "saved without optimizer: only a warm start takes it")


def check_file(checkpoint: Checkpoint, file: Found, deep: bool, progress: Progress) -> Iterator[Finding]:
    """What is wrong with one payload."""
    try:
        if checkpoint.votes:
            expected = _named(checkpoint, file)
            for count in _check_ours(file.path, expected, deep):
                progress(count)
        else:
            for count in _check_stock(file.path, deep):
                progress(count)
    except Damaged as error:
        yield Finding(str(file.path), file.rank, file.role, error.message, error.fields.get("tensor", ""))
    except OSError as error:
        yield Finding(str(file.path), file.rank, file.role, f"{file.path}: {error.strerror}")


def header_as_voted(path: Path, expected: Payload) -> payload.Header:
    """The header of one of our payloads, which must be the one its vote names.

    Raises:
        Damaged: Header and vote disagree, or the position is not the same in name, header, and tensors.
    """
    header = payload.read_header(path)
    if header.mark is None:
        raise Damaged(f"{path}: has no ms_resume mark, the vote names it as ours", path=str(path))
    if header.digest != expected.digest:
        raise Damaged(f"{path}: its header has digest {header.digest}, the vote says {expected.digest}", path=str(path))
    if (header.mark.attempt, header.mark.role) != (expected.attempt, expected.role):
        said = f"{header.mark.role} of attempt {header.mark.attempt}"
        raise Damaged(f"{path}: is the {said}, the vote says {expected.role} of {expected.attempt}", path=str(path))
    _check_positions(header)
    return header


def _named(checkpoint: Checkpoint, file: Found) -> Payload:
    vote = next(vote for vote in checkpoint.votes if vote.rank == file.rank)
    named = vote.file(file.role)
    assert named is not None  # the files of a checkpoint of ours come from its votes
    return named


def _check_positions(header: payload.Header) -> None:
    """Name, header, and 0-d tensors must say one position; the message gives all of them."""
    assert header.mark is not None
    from_name = names_position(header.path)
    said = {"name": from_name, "header": str(header.mark.position)}
    if header.mark.role == "policy":
        with open(header.path, "rb") as file:
            inside = [payload.read_tensor(file, header, name) for name in mindrlhf.POSITION_TENSORS]
        said["tensors"] = "_".join(str(int.from_bytes(data, "little", signed=True)) for data in inside)
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{where} {position}" for where, position in said.items())
        raise Damaged(f"{header.path}: its positions differ: {listed}", path=str(header.path))


def names_position(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _check_ours(path: Path, expected: Payload, deep: bool) -> Iterable[int]:
    if path.suffix == ".ckpt":
        contents = ckpt.read(path)
        if deep and (found := payload.digest_of(path.read_bytes())) != expected.digest:
            raise Damaged(f"{path}: its bytes have digest {found}, the vote says {expected.digest}")
        yield sum(length for pieces in contents.pieces.values() for _, length in pieces) if deep else 0
        return
    header = header_as_voted(path, expected)
    if deep:
        yield from payload.check_digests(header)


def _check_stock(path: Path, deep: bool) -> Iterable[int]:
    """A stock safetensors file has no digest: its weights are compared across files instead."""
    held = mindrlhf.tensors(path)
    if deep and path.suffix == ".ckpt":
        ckpt.check_crc(path)
        yield path.stat().st_size
    elif deep:
        header = payload.read_header(path)
        with open(path, "rb") as file:
            for name in held:
                yield len(payload.read_tensor(file, header, name))


def _mixed_generations(checkpoint: Checkpoint) -> Iterator[Finding]:
    for rank in range(checkpoint.world_size):
        paths = checkpoint.of_rank(rank)
        policy, optimizer = (_Stock(paths[role]) for role in ("policy", "optimizer"))
        for name in sorted(policy.held.keys() & optimizer.held.keys()):
            if policy.digest(name) != optimizer.digest(name):
                reason = f"{paths['optimizer']}: weight {name!r} differs from the policy file's: two generations mixed"
                yield Finding(str(paths["optimizer"]), rank, "optimizer", reason, name)
                break


class _Stock:
    """Tensors of one stock file, for as long as they are compared."""

    def __init__(self, path: Path) -> None:
        self.source = ckpt.read(path) if path.suffix == ".ckpt" else payload.read_header(path)
        self.held = self.source.tensors

    def digest(self, name: str) -> str:
        if isinstance(self.source, ckpt.Contents):
            return payload.digest_of(ckpt.read_tensor(self.source, name))
        with open(self.source.path, "rb") as file:
            return payload.digest_of(payload.read_tensor(file, self.source, name))
