"""How long it takes to find the newest whole checkpoint, and how many system calls: among many, and of many ranks.

    python benchmarks/bench_locate.py [--trees ours:1000x8,...] [--rounds N] [--directory DIR] [--report FILE]

Expected: 50 ms among 1,000 checkpoints of 8 ranks, 1 s among 20 of 10,000. Each rank's directories are listed, each
vote of the newest position is read, each file that it names is looked at; that alone is the row *floor*. Older
checkpoints are names in those lists, so there are as many calls, but for the lists, which come 32 KiB at a time.

Rows of one tree are interleaved, in another order each round. Calls are counted by strace, where it is installed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import large_trees
from reports import Report

from ms_resume import locate, verify

TREES = "ours:1000x8,ours:20x1000,ours:20x10000,stock:1000x8"
COUNTED = "ours:10x8,ours:100x8,ours:1000x8,stock:10x8,stock:100x8,stock:1000x8,ours:20x1000"
MAKERS = {"ours": large_trees.ours, "stock": large_trees.stock}
COMMAND = [sys.executable, "-m", "ms_resume.cli", "locate"]
CALLS = ("openat", "getdents64", "newfstatat", "read")
"""Shown apart; `newfstatat` is every stat."""

HEADINGS = ("row", "s", "processor s", "by floor")
HEADINGS_OF_CALLS = ("tree", "all calls", *CALLS)


@dataclass
class Measured:
    """Seconds, one for each round."""

    name: str
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def rows(tree: large_trees.Tree) -> dict[str, Callable[[], object]]:
    return {
        "floor": lambda: floor(tree, headers=False),
        "locate.latest": lambda: locate.latest(tree.save),
        "floor, and the headers": lambda: floor(tree, headers=True),
        "locate.latest, checks the headers": lambda: locate.latest(tree.save, check=verify.headers),
        "ms-resume locate": lambda: subprocess.run([*COMMAND, str(tree.save)], capture_output=True, check=True),
    }


def floor(tree: large_trees.Tree, *, headers: bool) -> None:
    """Lists, looks, opens and reads as often as every search must, and thinks nothing of it."""
    for directory in tree.listed:
        os.listdir(directory)
    for path in tree.looked_at:
        os.stat(path)
    for path in (*tree.read, *(tree.opened if headers else ())):
        with open(path, "rb", buffering=0) as file:
            file.read()


def measure(tree: large_trees.Tree, rounds: int) -> list[Measured]:
    """Every row once a round, in another order each time, and once before as a warm-up."""
    work = rows(tree)
    found = {name: Measured(name) for name in work}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(sorted(found), len(found)):
            before, began = _processor_s(), time.perf_counter()
            work[name]()
            wall, processor = time.perf_counter() - began, _processor_s() - before
            if number:
                found[name].wall.append(wall)
                found[name].processor.append(processor)
    return list(found.values())


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def count_calls(save: Path) -> dict[str, int]:
    """System calls of `locate.latest` alone: those of a process that runs it twice, less those of one that runs it
    once."""
    once, twice = (_calls(save, times) for times in (1, 2))
    return {call: twice[call] - once.get(call, 0) for call in twice}


def _calls(save: Path, times: int) -> dict[str, int]:
    code = "import pathlib, sys\nfrom ms_resume import locate\n" + "locate.latest(pathlib.Path(sys.argv[1]))\n" * times
    with tempfile.NamedTemporaryFile("r") as report:
        strace = ["strace", "-f", "-c", "-e", "trace=%file,%desc", "-o", report.name]
        subprocess.run([*strace, sys.executable, "-c", code, str(save)], check=True, capture_output=True)
        lines = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", report.read(), re.MULTILINE)
    return {call: int(count) for count, call in lines if call not in ("total", "mmap")}  # memory comes as it likes


def lines(found: list[Measured]) -> list[tuple[str, ...]]:
    """Medians (minima) of the wall, medians of the processor time, and that divided by the floor before it."""
    made, of_floor = [], 0.0
    for one in found:
        processor = statistics.median(one.processor)
        of_floor = processor if one.name.startswith("floor") else of_floor
        wall = f"{statistics.median(one.wall):.4f} ({min(one.wall):.4f})"
        made.append((one.name, wall, f"{processor:.4f}", f"{processor / of_floor:.1f}"))
    return made


def lines_of_calls(counted: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    return [
        (tree, str(sum(calls.values())), *(str(calls.get(call, 0)) for call in CALLS))
        for tree, calls in counted.items()
    ]


def make(text: str, top: Path) -> large_trees.Tree:
    """The tree that `ours:1000x8` means: kind, checkpoints, ranks."""
    kind, _, size = text.partition(":")
    checkpoints, ranks = map(int, size.split("x"))
    return MAKERS[kind](top / text.replace(":", "-"), checkpoints, ranks)


def _in_words(text: str) -> str:
    kind, _, size = text.partition(":")
    checkpoints, ranks = map(int, size.split("x"))
    return f"{checkpoints:,} checkpoints of {ranks:,} ranks, {'stock' if kind == 'stock' else 'ms_resume'}"


def _listed(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_locate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--trees", default=TREES, help=f"kind:CHECKPOINTSxRANKS, to be timed ({TREES})")
    parser.add_argument("--counted", default=COUNTED, help=f"those whose system calls are counted ({COUNTED})")
    parser.add_argument("--rounds", type=int, default=9, help="of each row (9)")
    parser.add_argument("--directory", type=Path, help="on the disk that is measured (a temporary one)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="tables to FILE.md, all numbers to FILE.json")
    arguments = parser.parse_args()
    report = Report("bench-locate", arguments.report)
    trees: dict[str, Any] = {}
    calls: dict[str, dict[str, int]] = {}
    report.results |= {"trees": trees, "calls": calls}
    for text in _listed(arguments.trees):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
            found = measure(make(text, Path(top)), arguments.rounds)
        trees[text] = [asdict(one) for one in found]
        report.table(f"{_in_words(text)}, {arguments.rounds} rounds", HEADINGS, lines(found))
    for text in _listed(arguments.counted) if shutil.which("strace") else []:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
            calls[_in_words(text)] = count_calls(make(text, Path(top)).save)
    if calls:
        report.table("System calls of one `locate.latest`", HEADINGS_OF_CALLS, lines_of_calls(calls))
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
