"""Tells why the names of A do not fit those of B, and writes the name map that would make them fit.

    $ ms-resume explain model.safetensors --against names.json --write-map map.yaml
    file  model.safetensors (3 tensors)
    net   names.json, policy (3 parameters)
    0 of 3 parameters match
        missing model.layers.0.attention.wq.weight (nearest in the file: model.layers.0.self_attn.q_proj.weight)
        ...
        likely cause: Hugging Face names in the file, MindFormers names in the net (3: ...)
        a name map mends 3 of these 3 parameters:
          ...
    wrote map.yaml: give it to the load, or look at it with `--name-map map.yaml`

Each is a `.safetensors` or `.ckpt` file, a checkpoint (SAVE for its newest, SAVE@E_S), a Hugging Face directory, or a
list of names: text, JSON, what `ms-resume show --json` prints, or what a live net was dumped to
(`ms_resume.load.names.listing.dump(path, policy=net)`). Exit code 0 where everything fits, 30 where not. Headers are
read, values are not. docs/loading.md has the name map's rules.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ms_resume.cli import sides, tables
from ms_resume.cli.sides import Side
from ms_resume.errors import NamesMismatch, UsageError
from ms_resume.load.names import listing
from ms_resume.load.names.match import Gaps, LoadReport, match
from ms_resume.load.names.name_map import NameMap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="A", help="what would be loaded")
    parser.add_argument("--against", metavar="B", required=True, help="what it would be loaded into")
    sides.add_arguments(parser)
    parser.add_argument("--name-map", metavar="FILE", help="a name map to apply to A first")
    parser.add_argument("--write-map", metavar="FILE", help="write the suggested name map there; never overwrites")
    for option, about in (
        ("--allow-missing", "names of B that A may lack"),
        ("--allow-unexpected", "names of A that B may lack"),
    ):
        parser.add_argument(option, metavar="PATTERN", action="append", default=[], help=f"{about}; again for more")
    parser.add_argument("--widen", action="store_true", help="take a narrower dtype where no value is lost by it")
    parser.add_argument(
        "--narrow",
        metavar="PATTERN=DTYPE",
        action="append",
        default=[],
        help="round tensors of that name to a narrower dtype: '*=BF16'; again for more",
    )
    parser.add_argument("--all", action="store_true", help="every name that does not fit, and what is nearest to it")


def run(args: argparse.Namespace) -> None:
    if args.name_map and args.write_map:
        raise UsageError("--name-map and --write-map together", hint="look at the one map before another is written")
    net = sides.side(args.against, args.role, args.rank)
    file = sides.side(args.file, args.role or (None if Path(args.file).is_file() else net.role), args.rank)
    role = args.role or net.role or file.role
    mapped = _mapped(file, Path(args.name_map), role) if args.name_map else file
    gaps = Gaps(tuple(args.allow_missing), tuple(args.allow_unexpected), args.widen, _narrow(args.narrow))
    report = match(mapped.tensors, net.tensors, gaps, role)
    document = {"file": file.said, "net": net.said, "role": role, **report.to_json()}
    if not args.json:
        _show(file, net, report, everything=args.all)
    if args.write_map:
        _write(Path(args.write_map), file, net, report, quiet=args.json)
    if not report.clean:
        raise _refused(file, net, report, args, document)
    if args.json:
        print(json.dumps(document))


def _narrow(words: list[str]) -> dict[str, str]:
    found = {}
    for word in words:
        pattern, _, dtype = word.rpartition("=")
        if not pattern:
            raise UsageError(f"--narrow {word}: expected PATTERN=DTYPE", hint="for example --narrow '*=BF16'")
        found[pattern] = dtype
    return found


def _mapped(file: Side, path: Path, role: str | None) -> Side:
    plan = NameMap.read(path).plan(file.tensors, role, file.said)
    return replace(file, tensors={name: recipe.info for name, recipe in plan.items()})


def _show(file: Side, net: Side, report: LoadReport, *, everything: bool) -> None:
    tables.facts(
        [("file", f"{file.said} ({len(file.tensors)} tensors)"), ("net", f"{net.said} ({report.total} parameters)")]
    )
    first, *rest = report.lines()
    tables.lines([first, *(f"    {line}" for line in rest)])
    if everything and (rows := list(_rows(report))):
        tables.show(("fate", "in the file", "in the net"), rows)


def _rows(report: LoadReport) -> Iterator[tuple[str, str, str]]:
    yield from (("missing", f"({report.nearest[n]}?)" if n in report.nearest else "-", n) for n in report.missing)
    yield from (("unexpected", name, "-") for name in report.unexpected)
    yield from (("shape", f"{name} {list(saved)}", str(list(wanted))) for name, saved, wanted in report.wrong_shape)
    yield from (("dtype", f"{name} {saved}", wanted) for name, saved, wanted in report.wrong_dtype)


def _write(path: Path, file: Side, net: Side, report: LoadReport, *, quiet: bool) -> None:
    name_map = report.diagnosis.name_map
    if name_map is None:
        why = "there is nothing to mend" if report.clean else "no mapping of names would mend this"
        raise UsageError(f"{path}: not written, {why}", hint=_advice(report) or "load it as it is")
    about = [f"Names of {file.said} to those of {net.said}.", *(cause.said for cause in report.diagnosis.causes)]
    comment = "".join(f"# {' '.join(tables.printable(line).split())}\n" for line in about)
    listing.write(path, (comment + name_map.text()).encode())
    if not quiet:
        tables.lines([f"wrote {path}: give it to the load, or look at it with `--name-map {path}`"])


def _refused(
    file: Side, net: Side, report: LoadReport, args: argparse.Namespace, document: dict[str, Any]
) -> NamesMismatch:
    hint = _advice(report) or "give the file that this net was saved to"
    if report.diagnosis.name_map is not None and not args.write_map:
        hint = "`--write-map FILE` writes the name map, with which a load takes it"
    return NamesMismatch(
        f"{file.said}: does not fit {net.said}, {len(report.matched)} of {report.total} parameters match",
        hint=hint,
        **document,
    )


def _advice(report: LoadReport) -> str:
    """What can be done about the first reason that says so."""
    return next((cause.advice for cause in report.diagnosis.causes if cause.advice), "")
