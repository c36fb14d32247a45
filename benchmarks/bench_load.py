"""How fast a verified load is: cold and warm, its peak memory, beside a load and copy that verifies nothing.

    python benchmarks/bench_load.py [--sizes 64M,1G] [--rounds N] [--only TEXT] [--directory DIR] [--report FILE]
    python benchmarks/bench_load.py --only "deep check" --sizes 256M,1G     # a deep check beside reading alone

Cold: the page cache was told to drop the files just before. Predicted: warm at most 1.7 times safetensors + copy, one
fifth of `mindspore.load_checkpoint` with CRC, no memory; cold what the disk gives. A deep check reads at 0.8 of what
reading alone reaches, which is said below the table. Rows are interleaved, in another order each round; ratios are of
medians. `make bench-load` installs the other tools into an environment of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import load_rows
from bench_save import TOOLS, UNITS, memory, settle
from reports import Report
from save_rows import Row, State, timed


@dataclass
class Measured:
    """Seconds, one for each round; bytes of memory beyond what was there before a cold load."""

    name: str
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    skipped: str = ""


def measure(size: int, tensors: int, rounds: int, top: Path, only: str) -> list[Measured]:
    """Every row once a round, cold and then warm, and once before as a warm-up, after which its values are compared."""
    state = State.of(size, tensors)
    rows = [row for row in load_rows.rows() if only in row.name]
    found = [Measured(row.name, skipped=row.missing()) for row in rows]
    able = [(row, m) for row, m in zip(rows, found, strict=True) if not m.skipped]
    with contextlib.ExitStack() as stack:
        bench = [(m, stack.enter_context(_on_the_bench(row, top / row.name, state))) for row, m in able]
        for number in range(rounds):
            for measured, on_the_bench in random.Random(number).sample(bench, len(bench)):
                if not measured.skipped:
                    _load_once(measured, *on_the_bench)
    return found


@contextlib.contextmanager
def _on_the_bench(row: Row, directory: Path, state: State) -> Iterator[tuple[load_rows.Load, load_rows.Held, Path]]:
    directory.mkdir()
    with row.make(directory, state) as (load, held):
        settle()
        _drop(directory.parent)  # as for `_load_once`: MindSpore may refuse what the page cache leaves no room for
        load()
        for name, array in held().items():
            if not np.array_equal(array, state.once[name]):
                raise SystemExit(f"{row.name}: {name} was not loaded")
        yield load, held, directory


def _load_once(measured: Measured, load: load_rows.Load, held: load_rows.Held, directory: Path) -> None:
    held()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    settle()
    _drop(directory.parent)
    before = memory("VmRSS")
    try:
        measured.cold.append(timed(load))
        measured.peak_bytes = max(measured.peak_bytes, memory("VmHWM") - before)
        settle()
        measured.warm.append(timed(load))
    except ValueError as error:
        # MindSpore 2.10 takes what the page cache holds for memory that nobody can have, and refuses a `.ckpt` then.
        measured.skipped = f"failed: {str(error)[:60]}"


def _drop(directory: Path) -> None:
    """Out of the page cache, where nobody has them mapped."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


HEADINGS = ("load", "cold s", "of copy", "warm s", "of copy", "warm GiB/s", "memory")


def lines(size: int, found: list[Measured]) -> list[tuple[str, ...]]:
    """Medians (minima) in seconds; *of copy* is the row's median divided by that of safetensors + copy; memory by
    bytes loaded."""
    copy = next((m for m in found if m.name == load_rows.COPY and m.warm), None)
    return [_line(m, size, copy) if m.warm else (m.name, m.skipped, *[""] * 5) for m in found]


def of_reading(found: list[Measured]) -> str:
    """How fast a deep check reads, by how fast reading alone is; empty where one of them was not measured."""
    by_name = {m.name: m for m in found if m.warm}
    if not {load_rows.READING, load_rows.DEEP} <= by_name.keys():
        return ""
    alone, deep = by_name[load_rows.READING], by_name[load_rows.DEEP]
    cold, warm = (
        statistics.median(one) / statistics.median(other)
        for one, other in ((alone.cold, deep.cold), (alone.warm, deep.warm))
    )
    return f"A deep check reads at {cold:.2f} of what reading alone reaches, {warm:.2f} when warm; the goal is 0.8."


def _line(m: Measured, size: int, copy: Measured | None) -> tuple[str, ...]:
    def seconds(times: list[float]) -> str:
        return f"{statistics.median(times):.4f} ({min(times):.4f})"

    def ratio(times: list[float], others: list[float] | None) -> str:
        return f"{statistics.median(times) / statistics.median(others):.2f}" if others else ""

    return (
        m.name,
        seconds(m.cold),
        ratio(m.cold, copy and copy.cold),
        seconds(m.warm),
        ratio(m.warm, copy and copy.warm),
        f"{size / 2**30 / statistics.median(m.warm):.2f}",
        f"{m.peak_bytes / size:.2f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_load.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="64M,256M,1G", help="bytes of one load (64M,256M,1G)")
    parser.add_argument("--tensors", default="64,2048", help="few large, or many small ones (64,2048)")
    parser.add_argument("--rounds", type=int, default=9, help="of each row (9)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--directory", type=Path, help="on the disk that is measured (a temporary one)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="tables to FILE.md, all numbers to FILE.json, after each size"
    )
    arguments = parser.parse_args()
    report = Report("bench-load", arguments.report, TOOLS)
    report.results["loads"] = []
    for text in arguments.sizes.split(","):
        size = int(text[:-1]) * UNITS[text[-1]]
        for tensors in map(int, arguments.tensors.split(",")):
            with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
                found = measure(size, tensors, arguments.rounds, Path(top), arguments.only)
            title = f"{size / 2**20:g} MiB in {tensors} tensors, {arguments.rounds} rounds"
            report.results["loads"].append({"bytes": size, "tensors": tensors, "rows": [asdict(m) for m in found]})
            report.table(title, HEADINGS, lines(size, found))
            if said := of_reading(found):
                report.say(said)
            report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
