"""Checks that what is on disk is what was saved: headers always, every byte with --deep.

    $ ms-resume verify save --deep
    position  verdict  detail
    1_5       damaged  every byte of 8 files, 52.0 KiB
    position  rank  role       tensor    reason
    1_5       0     optimizer  adam_m.w  save/optimizer/rank_0/optimizer_rank_0-1_5.safetensors: tensor ...
    ms-resume: save: damaged: 1_5 (save/optimizer/rank_0/optimizer_rank_0-1_5.safetensors: tensor ...
      -> a resume passes it over; `ms-resume locate --deep save` shows what it takes instead

With --finite also NaN and infinite values in policy, optimizer and ref. They are no damage: a resume takes them.

Exit code 21 when one is damaged, else 20 when one is torn, 21 when one is not finite, 10 when there is none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume import locate, verify
from ms_resume.cli import directory, progress, tables
from ms_resume.errors import Damaged, MsResumeError, NothingToResume, Torn
from ms_resume.layouts import Holding
from ms_resume.records import Checkpoint, Position, Rejection
from ms_resume.verify import Finding


@dataclass(frozen=True, slots=True)
class Result:
    """What was found out about one position. `verdict`: valid, damaged, not finite, torn, or abandoned."""

    judged: Checkpoint | Rejection
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        if isinstance(self.judged, Rejection):
            return self.judged.kind
        kinds = {finding.kind for finding in self.findings}
        return next((kind for kind in ("damaged", "not finite") if kind in kinds), "valid")

    @property
    def reason(self) -> str:
        if isinstance(self.judged, Rejection):
            return self.judged.reason
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        return self.findings[0].reason + more if self.findings else ""

    def to_json(self) -> dict[str, Any]:
        whole = self.judged if isinstance(self.judged, Checkpoint) else None
        return {
            "position": self.judged.position.to_json(),
            "verdict": self.verdict,
            "attempt": self.judged.attempt,
            "layout": whole.layout if whole else None,
            "world_size": whole.world_size if whole else None,
            "files": len(whole.files) if whole else None,
            "bytes": progress.size_bytes(whole) if whole else None,
            "reason": self.reason,
            "ranks": list(self.judged.ranks) if isinstance(self.judged, Rejection) else [],
            "findings": [finding.to_json() for finding in self.findings],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory.add_arguments(parser)
    directory.add_kinds(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--position",
        metavar="E_S",
        type=Position.parse,
        help="this one (the newest complete one when left out)",
    )
    which.add_argument("--all", action="store_true", help="every position")
    parser.add_argument("--deep", action="store_true", help="read every byte and check it against its digest")
    parser.add_argument("--finite", action="store_true", help="--deep, and find NaN and infinite values")


def run(args: argparse.Namespace) -> None:
    holding = directory.holding(args)
    save, deep = holding.save, args.deep or args.finite
    results = [_check(judged, deep, args.finite) for judged in _chosen(holding, args)]
    document = {"save": str(save), "deep": deep, "positions": [result.to_json() for result in results]}
    if not args.json:
        _show(results, deep)
    if (error := failure(save, results, document, asked=args.position is not None)) is not None:
        raise error
    if args.json:
        print(json.dumps(document))


def failure(save: Path, results: Sequence[Result], document: dict[str, Any], *, asked: bool) -> MsResumeError | None:
    """The worst of what was found, as the error to end with; None when all is well.

    Args:
        asked: One position was asked for: then it is no comfort that it was left behind on purpose.
    """
    passed = f"a resume passes it over; `ms-resume locate --deep {save}` shows what it takes instead"
    taken = f"a resume takes it all the same; `ms-resume verify --all --finite {save}` shows which one is finite"
    kinds: dict[str, type[MsResumeError]] = {"damaged": Damaged, "torn": Torn, "not finite": Damaged}
    if asked:
        kinds["abandoned"] = NothingToResume
    for kind, error in kinds.items():
        if of_kind := [result for result in results if result.verdict == kind]:
            listed = ", ".join(str(result.judged.position) for result in of_kind)
            return error(
                f"{save}: {kind}: {listed} ({of_kind[0].reason})",
                hint=taken if kind == "not finite" else passed,
                **document,
            )
    return None


def _chosen(holding: Holding, args: argparse.Namespace) -> list[Checkpoint | Rejection]:
    if args.position is not None:
        return [_judge(holding, args.position)]
    verdicts = list(locate.verdicts(holding)) if args.all else _to_newest_whole(holding)
    if not verdicts or not (args.all or isinstance(verdicts[-1], Checkpoint)):
        rejected = [verdict for verdict in verdicts if isinstance(verdict, Rejection)]
        raise directory.nothing(holding.save, rejected, holding.NAME)
    return verdicts if args.all else verdicts[-1:]


def _to_newest_whole(holding: Holding) -> list[Checkpoint | Rejection]:
    passed: list[Checkpoint | Rejection] = []
    for verdict in locate.verdicts(holding):
        passed.append(verdict)
        if isinstance(verdict, Checkpoint):
            break
    return passed


def _judge(holding: Holding, position: Position) -> Checkpoint | Rejection:
    if position in holding.positions:
        return holding.judge(position)
    if not holding.positions:
        raise directory.nothing(holding.save, (), holding.NAME)
    there = ", ".join(map(str, holding.positions[:8])) + (", ..." if len(holding.positions) > 8 else "")
    raise NothingToResume(f"{holding.save}: no position {position}, there are {there}", hint="give one of these")


def _check(judged: Checkpoint | Rejection, deep: bool, finite: bool) -> Result:
    if isinstance(judged, Rejection):
        return Result(judged)
    if not deep:
        return Result(judged, tuple(verify.check(judged)))
    with progress.shown(judged) as tell:
        return Result(judged, tuple(verify.check(judged, deep=True, finite=finite, progress=tell)))


def _show(results: Sequence[Result], deep: bool) -> None:
    how = "every byte" if deep else "the headers"
    tables.show(("position", "verdict", "detail"), [_summary(result, how) for result in results])
    rows = [
        (str(r.judged.position), str(f.rank), f.role, f.tensor or "-", f.reason) for r in results for f in r.findings
    ]
    if rows:
        tables.show(("position", "rank", "role", "tensor", "reason"), rows)
    for result in results:
        if isinstance(result.judged, Checkpoint):
            tables.warn(result.judged.warnings)


def _summary(result: Result, how: str) -> tuple[str, str, str]:
    found = result.judged
    if isinstance(found, Rejection):
        return str(found.position), result.verdict, found.reason
    told = f"{how} of {len(found.files)} files, {tables.size(progress.size_bytes(found))}"
    return str(found.position), result.verdict, told
