"""Shows what is in one file: whose payload it is, and its tensors, of any `.safetensors`, `.ckpt`, or `.pt` of torch.

    $ ms-resume show save/train/rank_0/policy_model_rank_0-1_5.safetensors
    file      save/train/rank_0/policy_model_rank_0-1_5.safetensors
    kind      safetensors, of ms_resume
    size      4.1 KiB (4166 bytes)
    position  1_5 (name, header, tensors)
    rank      0
    role      policy
    attempt   000002-...
    digest    ...
    metadata  format: ms
    tensors   4 of 70 B
    dtype  shape   size  digest                            tensor
    F32    [3, 4]  48 B  0c4d93df519c26e0f4e9a2857c20ac12  w
    I64    []      8 B   bdc94bce2eda264dbc08dc21994df8a2  epoch_num
    I64    []      8 B   bece7561abd0b38b64b5c1b28fbe6b34  step_num
    F16    [3]     6 B   d549b1ebc4f70c3a3f4ece58ec0e5d0b  bias

A terminal gets the first tensors, and digests cut short; --all, or a pipe, all of them. The header is read, the bytes
of the tensors are not: `verify --deep` checks those. Exit code 21 for a damaged file, after what could be read of it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ms_resume.cli import tables
from ms_resume.errors import Damaged, UsageError
from ms_resume.layouts import mindrlhf
from ms_resume.ondisk import ckpt, names, payload, reading, torchzip
from ms_resume.records import Position, TensorInfo

_ROLES = {prefix: role for role, prefix in names.PREFIXES.items()}
_IN_MARK = ("ms_resume", "attempt", "epoch", "step", "rank", "role", "digests")
_TENSORS_SHOWN = 32
_DIGITS_SHOWN = 12
_VALUE_SHOWN = 200


@dataclass(frozen=True)
class Contents:
    """What could be read of one file; a fact that it does not tell is None, or empty.

    `inside` is the position in its 0-d tensors.
    """

    path: Path
    kind: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None
    mark: payload.Mark | None = None
    has_crc: bool = False
    inside: Position | None = None
    whole: bool = True
    records: tuple[torchzip.Record, ...] = ()

    @property
    def named(self) -> names.PayloadName | None:
        """Only a name of MindRLHF's: the numbers in others mean other things."""
        named = names.parse_payload(self.path.name)
        return named if named and named.prefix in _ROLES else None

    @property
    def positions(self) -> dict[str, Position]:
        """What is said of the position, by where."""
        named, mark = self.named, self.mark
        said = {"name": named and named.position, "header": mark and mark.position, "tensors": self.inside}
        return {where: position for where, position in said.items() if position}

    @property
    def rank(self) -> int | None:
        """Whose it is. Who wrote it may be another one: replicas link each other's files."""
        return self.named.rank if self.named else self.mark.rank if self.mark else None

    @property
    def role(self) -> str | None:
        return self.mark.role if self.mark else _ROLES[self.named.prefix] if self.named else None

    @property
    def bytes(self) -> int:
        return reading.size(self.path)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints; docs/format.md lists the keys."""
        position = next(iter(self.positions.values()), None)
        return {
            "file": str(self.path),
            "kind": self.kind,
            "bytes": self.bytes,
            "position": position.to_json() if position else None,
            "positions": {where: said.to_json() for where, said in self.positions.items()},
            "rank": self.rank,
            "role": self.role,
            "attempt": self.mark.attempt if self.mark else None,
            "digest": self.digest,
            "crc": self.has_crc,
            "metadata": {key: value for key, value in self.metadata.items() if key != "digests"},
            "tensors": [
                {
                    "name": name,
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "bytes": _size(info),
                    "digest": self.digests.get(name),
                }
                for name, info in self.tensors.items()
            ],
            "records": [{"name": one.name, "bytes": one.bytes, "crc": f"{one.crc:08x}"} for one in self.records],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a payload, or any other .safetensors, .ckpt or .pt file")
    parser.add_argument("--all", action="store_true", help="every tensor, and nothing cut short")


def run(args: argparse.Namespace) -> None:
    contents, damaged = read(_file(args.file))
    document = contents.to_json()
    if not args.json:
        _show(contents, briefly=sys.stdout.isatty() and not args.all)
    if damaged is not None:
        raise Damaged(
            damaged.message,
            hint="a resume passes its checkpoint over; bring the file back from a copy where there is one",
            **{**damaged.fields, **document},
        )
    if args.json:
        print(json.dumps(document))


def read(path: Path) -> tuple[Contents, Damaged | None]:
    """What is in a file, and what is wrong with it."""
    found = kind(path)
    if found == "torch":
        return _torch(path)
    try:
        contents, source = _whole(path) if found == "safetensors" else _whole_ckpt(path)
    except Damaged as damaged:
        return replace(_rest(path) if found == "safetensors" else _rest_of_ckpt(path), whole=False), damaged
    try:
        if all(_is_number(contents.tensors.get(name)) for name in mindrlhf.POSITION_TENSORS):
            contents = replace(contents, inside=mindrlhf.position_inside(source))
    except Damaged as damaged:
        return contents, damaged
    if len(set(contents.positions.values())) > 1:
        return contents, Damaged(f"{path}: its positions differ: {_listed(contents)}")
    return contents, None


def _torch(path: Path) -> tuple[Contents, Damaged | None]:
    try:
        return Contents(path, "torch", has_crc=True, records=torchzip.read(path).records), None
    except Damaged as damaged:
        return Contents(path, "torch"), damaged


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise UsageError(
            f"{path}: is a directory, expected one .safetensors or .ckpt file",
            hint=f"`ms-resume ls {path}` shows what is in a save directory, `ms-resume locate {path}` names its files",
        )
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}, expected a .safetensors or .ckpt file", hint="check the path")
    return path.resolve() if path.is_symlink() else path  # a person gave it, so a link is followed


def kind(path: Path) -> str:
    """By its ending; by its first bytes where it has another one, as what was put aside has."""
    if path.suffix in (".safetensors", ".ckpt"):
        return path.suffix[1:]
    if torchzip.is_named(path):
        return "torch"
    with reading.opened(path) as file:
        begin = file.read(9)
    if begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= payload.HEADER_LIMIT:
        return "safetensors"
    if begin.startswith((b"PK\3\4", torchzip.OLD_MAGIC[:9])):
        return "torch"
    if begin[:1] == b"\n":  # the first field of a protobuf message, with a length
        return "ckpt"
    raise UsageError(
        f"{path}: neither a safetensors file nor a .ckpt, nor what torch saves, by its name and its first bytes",
        hint="`ms-resume show` reads payloads; `ms-resume ls` and `ms-resume locate` read votes and records",
    )


def _whole(path: Path) -> tuple[Contents, mindrlhf.Source]:
    header = payload.read_header(path)
    digest = header.digest if header.mark else None  # without digests in it a header does not tell the bytes
    has_crc = payload.CRC_KEY in header.metadata
    contents = Contents(
        path, "safetensors", header.metadata, header.tensors, header.digests, digest, header.mark, has_crc
    )
    return contents, header


def _whole_ckpt(path: Path) -> tuple[Contents, mindrlhf.Source]:
    held = ckpt.read(path)
    return Contents(path, "ckpt", tensors=held.tensors, has_crc=held.has_crc), held


def _rest(path: Path) -> Contents:
    """What a damaged safetensors file still tells: one that was cut has its header."""
    with reading.opened(path) as file:
        most = min(payload.HEADER_LIMIT, file.seek(0, 2) - 8)
        file.seek(0)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        block = prefix + file.read(length) if length <= most else b""
    try:
        tensors, digests = payload.described(path, block)
    except Damaged:
        return Contents(path, "safetensors")
    metadata = reading.parse(block[8:]).get("__metadata__", {})
    mark = None
    if "ms_resume" in metadata:
        position = Position(int(metadata["epoch"]), int(metadata["step"]))
        mark = payload.Mark(metadata["attempt"], position, int(metadata["rank"]), metadata["role"])
    digest = payload.digest_of(block) if mark else None
    return Contents(path, "safetensors", metadata, tensors, digests, digest, mark)


def _rest_of_ckpt(path: Path) -> Contents:
    """Its tensors down to where it no longer parses; a file that was cut has no CRC."""
    held, _ = ckpt.walked(path)
    tensors = {name: info for name, info in held.tensors.items() if ckpt.has_all(held, name)}
    return Contents(path, "ckpt", tensors=tensors, has_crc=held.has_crc)


def _is_number(info: TensorInfo | None) -> bool:
    return info is not None and info.dtype in ("I32", "I64") and info.shape in ((), (1,))


def _size(info: TensorInfo) -> int:
    return payload.item_bytes(info.dtype) * math.prod(info.shape)


def _listed(contents: Contents) -> str:
    return ", ".join(f"{where} {position}" for where, position in contents.positions.items())


def _show(contents: Contents, *, briefly: bool) -> None:
    tables.facts(_facts(contents, briefly))
    shown = list(contents.tensors.items())[: _TENSORS_SHOWN if briefly else None]
    columns = ("dtype", "shape", "size", *(("digest",) if contents.digests else ()), "tensor")
    rows = []
    for name, info in shown:
        digest = contents.digests.get(name, "-")[: _DIGITS_SHOWN if briefly else None]
        told = (info.dtype, str(list(info.shape)), tables.size(_size(info)))
        rows.append((*told, *((digest,) if contents.digests else ()), name))
    if rows:
        tables.show(columns, rows)
    records = contents.records[: _TENSORS_SHOWN if briefly else None]
    if records:
        tables.show(
            ("size", "CRC", "record"), [(tables.size(one.bytes), f"{one.crc:08x}", one.name) for one in records]
        )
    if len(records) < len(contents.records):
        print(f"... and {len(contents.records) - len(records)} more records; --all shows them")
    if len(shown) < len(contents.tensors):
        print(f"... and {len(contents.tensors) - len(shown)} more tensors; --all shows them")


def _facts(contents: Contents, briefly: bool) -> list[tuple[str, str]]:
    mark, said = contents.mark, contents.positions
    agree = len(set(said.values())) == 1
    written = f" (written by rank {mark.rank})" if mark and mark.rank != contents.rank else ""
    crc = "yes" if contents.has_crc else "no"
    whole = sum(map(_size, contents.tensors.values()))
    facts = [
        ("file", str(contents.path)),
        ("kind", contents.kind + (", of ms_resume" if mark else "")),
        ("size", tables.size(contents.bytes) + (f" ({contents.bytes} bytes)" if contents.bytes >= 1024 else "")),
        ("position", f"{next(iter(said.values()))} ({', '.join(said)})" if agree else _listed(contents)),
        ("rank", "" if contents.rank is None else f"{contents.rank}{written}"),
        ("role", contents.role or ""),
        ("attempt", mark.attempt if mark else ""),
        ("digest", contents.digest or ""),
        ("CRC", crc if contents.kind == "ckpt" or contents.has_crc else ""),
    ]
    for key, value in contents.metadata.items():
        if key not in (_IN_MARK if mark else ()):
            text = f"{key}: {value}"
            cut = briefly and len(text) > _VALUE_SHOWN
            facts.append(("metadata", text[:_VALUE_SHOWN] + "..." if cut else text))
    if contents.kind == "torch":
        facts.append(("records", f"{len(contents.records)}; which tensors they are only the pickle in it says, unread"))
    else:
        so_far = "" if contents.whole else ", as far as it can be read"
        facts.append(("tensors", f"{len(contents.tensors)} of {tables.size(whole)}{so_far}"))
    return [(fact, told) for fact, told in facts if told]
