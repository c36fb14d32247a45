"""`make supervise`: ten disturbances of a run under msrun, what each cost, and whether the end is that of a run that
nobody disturbed; fresh starts beside them, and what watching costs. About ten minutes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ms_resume.framework import version
from supervised import campaign, cost
from supervised.job import Row, pair

HEADINGS = (
    "fault", "taken for", "then", "noticed after, s", "started again after, s", "first step after, s",
    "of it the start, s", "steps lost",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    top = args.directory or Path(tempfile.mkdtemp(prefix="supervise-"))
    print(f"in {top}", flush=True)
    rows, held = campaign.run(top, lambda text: print(text, flush=True))
    pairs = [pair(top, f"pair{number}") for number in range(args.pairs)]
    fresh, again = ([both[which] for both in pairs] for which in (0, 1))
    ratio = statistics.median(again) / statistics.median(fresh)
    share = cost.of_watching(top / "cost", args.watch)
    results: dict[str, Any] = {
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
        "held": held,
        "fresh_start_s": fresh,
        "start_again_s": again,
        "ratio": ratio,
        "watching": {"ranks": cost.RANKS, "seconds": args.watch, "share_of_a_core": share},
    }
    text = report(results, rows)
    print(text)
    if args.report:
        args.report.with_suffix(".md").write_text(text)
        args.report.with_suffix(".json").write_text(json.dumps(results) + "\n")
    if all(held.values()) and args.directory is None:
        shutil.rmtree(top)
    return 0 if all(held.values()) else 1


def versions() -> dict[str, Any]:
    return {"python": sys.version.split()[0], "cores": os.cpu_count(), "mindspore": version.installed("mindspore")}


def report(results: dict[str, Any], rows: list[Row]) -> str:
    tools = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    lines = ["# Results of `make supervise`", "", f"{tools}. Seconds from the fault.", ""]
    lines += [_cells(HEADINGS), "|---" * len(HEADINGS) + "|"]
    for row in rows:
        numbers = [row.noticed_s, row.started_s, row.stepped_s, row.start_s]
        told = ["" if number is None else f"{number:.2f}" for number in numbers]
        lost = "" if row.lost_steps is None else str(row.lost_steps)
        lines.append(_cells((row.fault, row.kind, row.then, *told, lost)))
    held = ", ".join(f"{what}: {'yes' if so else 'no'}" for what, so in results["held"].items())
    again, fresh = results["start_again_s"], results["fresh_start_s"]
    ranks, seconds, share = results["watching"].values()
    lines += [
        "",
        f"At the end: {held}.",
        "",
        f"From a start to its first step, median (least) of {len(fresh)}, in turn: "
        f"fresh {statistics.median(fresh):.2f} s ({min(fresh):.2f}), "
        f"again after a kill {statistics.median(again):.2f} s ({min(again):.2f}), {results['ratio']:.2f} times.",
        "",
        f"Watching {ranks} ranks for {seconds} s took {share:.5f} of a core.",
        "",
    ]
    return "\n".join(lines)


def _cells(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m supervised", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="fresh starts, each compared with the start after a kill")
    parser.add_argument("--watch", type=int, default=180, help="seconds of watching eight ranks")
    parser.add_argument("--directory", type=Path, help="empty, kept; else a temporary one, removed where all is well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the table to FILE.md, all numbers to FILE.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
