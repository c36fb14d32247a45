"""Compares A and B tensor by tensor: equal, changed and by how much, or only in one of them.

    $ ms-resume diff save@0_5 save@1_0
    A  save@0_5
    B  save@1_0
    rank  role       verdict  largest  mean   differ   tensor
    0     optimizer  changed  ...  adam_m.w
    ...
    ... equal, ... changed, 0 only in A, 0 only in B

A and B are two checkpoints (SAVE for its newest, SAVE@E_S; all ranks and roles, or those of --rank and --role) or two
`.safetensors` or `.ckpt` files. Equal means bit for bit; NaN equals NaN. `largest` and `mean` are of the absolute
differences, `differ` is the share of elements. The position of a policy, which is stored as two tensors, is left out.
What is not equal is shown, with --all the rest as well. Exit code 0 if all is equal, 32 if not, 21 where a payload is
not what was saved. Reads every byte once, in pieces; the only inspection that needs NumPy.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume import progress
from ms_resume.cli import sides, tables
from ms_resume.cli.sides import Files
from ms_resume.errors import Different, UsageError
from ms_resume.layouts import mindrlhf
from ms_resume.load import compare
from ms_resume.load.compare import Difference, Stored
from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo

_PLACES = ("only in A", "only in B")
_CHANGED = ("changed", "another dtype", "another shape")
_VALUES = "(plain values) "


@dataclass(frozen=True)
class Row:
    """One tensor, or one plain value of a state, or a payload that only one side has."""

    rank: int | None
    role: str | None
    name: str
    verdict: str
    difference: Difference | None = None
    a: TensorInfo | None = None
    b: TensorInfo | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints; docs/format.md lists the keys."""
        far = self.difference
        return {
            "rank": self.rank,
            "role": self.role,
            "name": self.name,
            "verdict": self.verdict,
            "elements": far.elements if far else None,
            "differing": far.differing if far else None,
            "share": far.share if far else None,
            "largest": far.largest if far else None,
            "mean": far.mean if far else None,
            "not_finite": far.not_finite if far else None,
            "a": _described(self.a),
            "b": _described(self.b),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="A", help="a payload, SAVE, or SAVE@E_S")
    parser.add_argument("other", metavar="B", help="what to compare it with")
    sides.add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="equal tensors, too")


def run(args: argparse.Namespace) -> None:
    one, other = sides.files(args.file), sides.files(args.other)
    if (one.single is None) != (other.single is None):
        one, other = _narrowed(one, args), _narrowed(other, args)
    rows = list(_rows(one, other, args))
    counts = Counter(row.verdict for row in rows)
    document: dict[str, Any] = {
        "a": one.said,
        "b": other.said,
        "equal": counts["equal"] == len(rows),
        "counts": dict(counts),
        "tensors": [row.to_json() for row in rows],
    }
    summary = _summary(counts)
    if not args.json:
        _show(one, other, rows, summary, everything=args.all)
    if not document["equal"]:
        raise Different(f"{one.said} and {other.said} differ: {summary}", **document)
    if args.json:
        print(json.dumps(document))


def _narrowed(found: Files, args: argparse.Namespace) -> Files:
    """One payload of a checkpoint, to be held against one file."""
    place = args.role or "policy", args.rank or 0
    if found.single is None and place in found.by_place:
        return Files(f"{found.said}, {place[0]} of rank {place[1]}", single=found.by_place[place])
    return found


def _rows(one: Files, other: Files, args: argparse.Namespace) -> Iterator[Row]:
    if one.single is not None and other.single is not None:
        yield from _of_payloads(None, None, one.single, other.single)
        return
    places = sorted(one.by_place.keys() | other.by_place.keys(), key=lambda place: (place[1], place[0]))
    chosen = [place for place in places if args.role in (None, place[0]) and args.rank in (None, place[1])]
    if not chosen:
        raise UsageError(
            f"{one.said} and {other.said}: nothing to compare, neither has what --role and --rank choose",
            hint="`ms-resume locate` names the payloads of a checkpoint",
        )
    for place in chosen:
        role, rank = place
        if place not in one.by_place or place not in other.by_place:
            yield Row(rank, role, "(the payload)", _PLACES[place not in one.by_place])
        else:
            yield from _of_payloads(rank, role, one.by_place[place], other.by_place[place])


def _of_payloads(rank: int | None, role: str | None, one: Path, other: Path) -> Iterator[Row]:
    here, there = Stored(one), Stored(other)
    names = sorted((here.tensors.keys() | there.tensors.keys()) - set(mindrlhf.POSITION_TENSORS))
    total = payload.total(here.tensors.values()) + payload.total(there.tensors.values())
    with progress.shown(f"comparing {one.name}", total) as tell:
        for name in names:
            a, b = here.tensors.get(name), there.tensors.get(name)
            if a is None or b is None:
                yield Row(rank, role, name, _PLACES[a is None], a=a, b=b)
            elif (a.dtype, a.shape) != (b.dtype, b.shape):
                yield Row(rank, role, name, _CHANGED[1 if a.shape == b.shape else 2], a=a, b=b)
            else:
                far = compare.compare(here, there, name, tell)
                yield Row(rank, role, name, "changed" if far.differing else "equal", far, a, b)
    for key in sorted(here.values.keys() | there.values.keys()):
        if key not in here.values or key not in there.values:
            verdict = _PLACES[key not in here.values]
        else:
            verdict = "equal" if here.values[key] == there.values[key] else "changed"
        yield Row(rank, role, _VALUES + key, verdict)


def _summary(counts: Counter[str]) -> str:
    changed = sum(counts[verdict] for verdict in _CHANGED)
    missing = ", ".join(f"{counts[place]} {place}" for place in _PLACES)
    return f"{counts['equal']} equal, {changed} changed, {missing}"


def _show(one: Files, other: Files, rows: list[Row], summary: str, *, everything: bool) -> None:
    tables.facts([("A", one.said), ("B", other.said)])
    shown = [row for row in rows if everything or row.verdict != "equal"]
    placed = any(row.rank is not None for row in rows)
    columns = (*(("rank", "role") if placed else ()), "verdict", "largest", "mean", "differ", "tensor")
    if shown:
        tables.show(columns, [_cells(row, placed) for row in shown])
    tables.lines([summary])


def _cells(row: Row, placed: bool) -> tuple[str, ...]:
    far = row.difference
    where = (str(row.rank), row.role or "") if placed else ()
    name = row.name if row.verdict not in _CHANGED[1:] else f"{row.name} ({_short(row.a)} in A, {_short(row.b)} in B)"
    if far is None or not far.differing:
        return (*where, row.verdict, "-", "-", "-", name)
    odd = f" ({far.not_finite} not finite)" if far.not_finite else ""
    share = f"{100 * far.share:.3g} %" if far.share < 1 else "100.0 %"
    return (*where, row.verdict, _number(far.largest), _number(far.mean), share, name + odd)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _short(info: TensorInfo | None) -> str:
    return f"{info.dtype}{list(info.shape)}" if info else "-"


def _described(info: TensorInfo | None) -> dict[str, Any] | None:
    return {"dtype": info.dtype, "shape": list(info.shape)} if info else None
