"""Stage 4 of 6: is what is on disk what was saved?

    reads    every payload of a checkpoint: headers always, every byte when `deep`
    gives    what is wrong, file by file, with rank, role, tensor, and reason

Pure reader. Every byte is read once, by one thread for each core, in pieces: memory does not grow with the checkpoint.
Loading checks digests again, on the bytes it places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ms_resume.errors import Damaged
from ms_resume.layouts import mindrlhf
from ms_resume.ondisk import ckpt, payload, reading, sums, torchzip
from ms_resume.progress import Progress
from ms_resume.records import Checkpoint, Found, Payload, Rejection

_NO_WEIGHTS = frozenset((*mindrlhf.POSITION_TENSORS, "global_step"))
"""What policy and optimizer files hold beside their tensors, and a reference does not."""

_COMPARED = ("policy", "optimizer")
"""Both hold the weights."""

_BATCH_BYTES = 8 << 20
"""Of tensors of one file, which one thread reads one after the other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one file. `kind`: damaged, or not finite."""

    path: str
    rank: int
    role: str
    reason: str
    tensor: str = ""
    kind: str = "damaged"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    checkpoint: Checkpoint, *, deep: bool = False, finite: bool = False, progress: Progress | None = None
) -> list[Finding]:
    """Everything that is wrong with a checkpoint that `locate` found complete; empty when it is valid.

    Args:
        deep: Also every byte against its digest (ours), CRC (where stock saved one, and torch), and, for stock, the
            weights in the policy file against those in the optimizer file: unequal ones are two generations mixed.
        finite: Deep, and NaN and infinities in policy, optimizer and ref are found. They are no damage, and a resume
            takes them; state may hold them by right. What torch saved is not looked through: only its pickle says
            where numbers are.
        progress: Called from any thread.
    """
    if not (deep or finite):
        return [finding for file in checkpoint.files for finding in _failure(file, _open, checkpoint, file)]
    findings: list[Finding] = []
    mixed: list[Finding] = []
    with sums.threads() as threads:
        policy: _Reading | None = None
        reader = _Reader(checkpoint, threads, finite, progress or (lambda count: None))
        for begun in reader.read_all():
            findings += begun.findings()
            if begun.file.role == "policy":
                policy = begun
            elif begun.file.role == "optimizer" and policy and not checkpoint.votes:
                mixed += _mixed_generations(begun, policy)
    findings += _without_crc(reader.has_crc) if not checkpoint.votes else []
    return findings if any(finding.kind == "damaged" for finding in findings) else mixed + findings


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


def header_as_voted(path: Path, expected: Payload) -> payload.Header:
    """The header of one of our payloads, which must be the one its vote names.

    Raises:
        Damaged: Header and vote disagree, or the position is not the same in name, header, and tensors.
    """
    with reading.opened(path) as file:
        header = payload.parse_header(path, file)
        if header.mark is None:
            raise Damaged(f"{path}: has no ms_resume mark, the vote names it as ours", path=str(path))
        if header.digest != expected.digest:
            said = f"its header has digest {header.digest}, the vote says {expected.digest}"
            raise Damaged(f"{path}: {said}", path=str(path))
        if (header.mark.attempt, header.mark.role) != (expected.attempt, expected.role):
            said = f"{header.mark.role} of attempt {header.mark.attempt}"
            raise Damaged(f"{path}: is the {said}, the vote says {expected.role} of {expected.attempt}", path=str(path))
        _check_positions(file, header, header.mark)
    return header


def _named(checkpoint: Checkpoint, file: Found) -> Payload:
    at = bisect_left(checkpoint.votes, file.rank, key=lambda vote: vote.rank)
    named = checkpoint.votes[at].file(file.role)
    assert named is not None  # the files of a checkpoint of ours come from its votes
    return named


def _check_positions(file: BinaryIO, header: payload.Header, mark: payload.Mark) -> None:
    """Name, header, and 0-d tensors must say one position; the message gives all of them."""
    said = {"name": names_position(header.path), "header": str(mark.position)}
    if mark.role == "policy":
        said["tensors"] = str(mindrlhf.position_in(file, header))
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{where} {position}" for where, position in said.items())
        raise Damaged(f"{header.path}: its positions differ: {listed}", path=str(header.path))


def names_position(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _open(checkpoint: Checkpoint, file: Found) -> mindrlhf.Source | torchzip.Contents:
    """What a payload says of itself. Raises Damaged where it is not the file that it should be."""
    if torchzip.is_named(file.path):
        return torchzip.read(file.path)
    if checkpoint.votes and file.path.suffix != ".ckpt":
        return header_as_voted(file.path, _named(checkpoint, file))
    source = mindrlhf.read(file.path)
    if file.role == "ref" and not checkpoint.votes and (strangers := _NO_WEIGHTS & source.tensors.keys()):
        raise Damaged(f"{file.path}: holds {', '.join(sorted(strangers))}, so it is another role's file")
    return source


def _failure(file: Found, work: Callable[..., object], *arguments: Any) -> list[Finding]:
    """Nothing, or why `work` on that file ended early."""
    try:
        work(*arguments)
        return []
    except Damaged as error:
        return [Finding(str(file.path), file.rank, file.role, error.message, error.fields.get("tensor", ""))]
    except OSError as error:
        return [Finding(str(file.path), file.rank, file.role, f"{file.path}: {error.strerror}")]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One payload while threads read it, and what they sum up of its tensors, by name: `digests` of each by itself,
    `running` where the file is read in one go."""

    file: Found
    finite: bool
    damage: list[Finding] = field(default_factory=list)
    parts: list[Future[list[Finding]]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, sums.NotFinite] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """In the order of the file, each once: all parts of a file that is gone say the same."""
        damage = dict.fromkeys([*self.damage, *(finding for part in self.parts for finding in part.result())])
        return [*damage] or [_not_finite(self.file, *counted) for counted in self.counts.items() if counted[1].found]

    def all_digests(self) -> dict[str, str]:
        return {**self.digests, **{name: digest.hexdigest() for name, digest in self.running.items()}}

    def sinks(self, name: str, dtype: str, *, digest: bool) -> list[sums.Sink]:
        """The same ones each time: a large tensor lies in several pieces."""
        found: list[sums.Sink] = []
        if digest:
            found.append(self.running.setdefault(name, xxhash.xxh3_128()).update)
        if self.finite and sums.is_float(dtype):
            found.append(self.counts.setdefault(name, sums.NotFinite(dtype)).update)
        return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads every byte of one checkpoint."""

    checkpoint: Checkpoint
    threads: sums.Threads
    finite: bool
    tell: Progress
    has_crc: dict[Found, bool] = field(default_factory=dict)

    def read_all(self) -> Iterator[_Reading]:
        """In order. No more files are open than keep all threads at work."""
        under_way: deque[_Reading] = deque()
        for file in self.checkpoint.files:
            under_way.append(begun := _Reading(file, self.finite and file.role != "state"))
            begun.damage.extend(_failure(file, self._begin, begun))
            if len(under_way) > 2 * self.threads.count:
                yield under_way.popleft()
        yield from under_way

    def _begin(self, begun: _Reading) -> None:
        source, file = _open(self.checkpoint, begun.file), begun.file
        each = [self.threads.check, lambda piece: self.tell(len(piece))]
        if isinstance(source, torchzip.Contents):
            begun.parts.append(self.threads.submit(_failure, file, torchzip.check, source, each))
            return
        compared = not self.checkpoint.votes and file.role in _COMPARED

        def sinks(name: str, digest: bool = compared) -> list[sums.Sink]:
            return [*each, *begun.sinks(name, source.tensors[name].dtype, digest=digest)]

        if isinstance(source, ckpt.Contents):
            self.has_crc[file] = source.has_crc
            expected = _named(self.checkpoint, file) if self.checkpoint.votes else None
            work = partial(_failure, file, check_ckpt, source, expected, each, sinks)
            begun.parts.append(self.threads.submit(work))
        elif payload.CRC_KEY in source.metadata:
            self.has_crc[file] = True
            work = partial(_failure, file, payload.check_crc, source, sinks)
            begun.parts.append(self.threads.submit(work))
        else:
            self.has_crc[file] = False
            work = partial(_check_tensors, begun, source, partial(sinks, digest=False))
            begun.parts.extend(self.threads.submit(work, names) for names in _batches(source))


def _batches(header: payload.Header) -> Iterator[list[str]]:
    """The names of tensors that lie one after the other: of a few large ones, or of many small ones."""
    batch, filled = [], 0
    for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
        batch.append(name)
        filled += info.end - info.begin
        if filled >= _BATCH_BYTES:
            yield batch
            batch, filled = [], 0
    yield batch


def _check_tensors(
    begun: _Reading, header: payload.Header, sinks: sums.OfTensor, names: Sequence[str]
) -> list[Finding]:
    """One damaged tensor does not hide the next."""
    found: list[Finding] = []

    def check(opened: BinaryIO, name: str) -> None:
        begun.digests[name] = payload.check_tensor(opened, header, name, sinks(name))

    def read() -> None:
        with reading.opened(header.path) as opened:
            for name in names:
                found.extend(_failure(begun.file, check, opened, name))

    failed = _failure(begun.file, read)
    return [*found, *failed]


def check_ckpt(
    contents: ckpt.Contents,
    expected: Payload | None,
    each: Sequence[sums.Sink],
    sinks: sums.OfTensor,
) -> None:
    """Reads it once. Our digest is that of the whole file, MindSpore's CRC comes before its trailer.

    Args:
        each: Takes every piece of the file, `sinks(name)` those of a tensor.

    Raises:
        Damaged: The digest, or without a vote the CRC, does not hold.
    """
    digest, crc = xxhash.xxh3_128(), sums.Crc()
    summed = [digest.update] if expected else [crc.update] if contents.has_crc else []
    whole = [*each, *summed]
    with reading.opened(contents.path) as file:
        ckpt.sum_up(file, contents, contents.file_bytes if expected else contents.records_end, whole, sinks)
    if expected and (found := digest.hexdigest()) != expected.digest:
        raise Damaged(f"{contents.path}: its bytes have digest {found}, the vote says {expected.digest}")
    if not expected:
        ckpt.compare_crc(contents.path, crc.value, contents.crc)


def _without_crc(has_crc: Mapping[Found, bool]) -> Iterator[Finding]:
    """A job saves all files of a position with a CRC, or none. A `.ckpt` that was cut where a record ends parses."""
    known = {(names_position(file.path), file.path.suffix) for file, has in has_crc.items() if has}
    for file, has in has_crc.items():
        if not has and (names_position(file.path), file.path.suffix) in known:
            reason = f"{file.path}: has no CRC, other files of its position have one: its end is lost"
            yield Finding(str(file.path), file.rank, file.role, reason)


def _not_finite(file: Found, name: str, count: sums.NotFinite) -> Finding:
    reason = f"{file.path}: tensor {name!r}: {count.nan} NaN and {count.infinite} infinite values"
    return Finding(str(file.path), file.rank, file.role, reason, name, "not finite")


def _mixed_generations(optimizer: _Reading, policy: _Reading) -> Iterator[Finding]:
    """The first weight that is not the same in both files of a rank."""
    ours, theirs = optimizer.all_digests(), policy.all_digests()
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            path = str(optimizer.file.path)
            differs = f"weight {name!r} differs from the policy file's"
            reason = f"{path}: {differs}: two generations mixed, or one of the files is damaged"
            yield Finding(path, optimizer.file.rank, "optimizer", reason, name)
            return
