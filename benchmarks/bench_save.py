"""How fast a save is: blocked time, time to durable, peak memory, and what a save adds to the wall time of training.

    python benchmarks/bench_save.py [--sizes 16M,1G] [--rounds N] [--only TEXTS] [--directory DIR] [--report FILE]

All rows of one size are interleaved, in another order each round; ratios are of medians. `make bench-save` installs the
other tools into an environment of their own; without them their rows say so.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from reports import Report
from save_rows import Finish, Row, Save, State, checkpointing, rows

os.environ.setdefault("GLOG_v", "3")  # MindSpore warns of every save
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
RAW = "raw direct write + fsync"
ALL_AT_ONCE = 1 << 30
"""Bytes up to which the copies of all rows fit into memory beside each other."""


@dataclass
class Measured:
    """Seconds, one for each round; bytes of memory beyond what was there before the row was made."""

    name: str
    blocked: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    disk_bytes: int = 0
    peak_bytes: int = 0
    skipped: str = ""


def measure(size: int, tensors: int, rounds: int, top: Path, only: str) -> list[Measured]:
    """Every row once a round, in another order each time, and once before as a warm-up; each in its own directory."""
    state = State.of(size, tensors)
    found = [
        Measured(row.name, skipped=row.missing()) for row in rows() if any(text in row.name for text in only.split(","))
    ]
    able = [(row, m) for row in rows() for m in found if row.name == m.name and not m.skipped]
    with contextlib.ExitStack() as stack:
        bench = [stack.enter_context(_on_the_bench(row, m, top / row.name, state)) for row, m in able]
        for number in range(rounds + 1):
            for save_once in random.Random(number).sample(bench, len(bench)):
                save_once(number)
    return found


@contextlib.contextmanager
def _on_the_bench(row: Row, measured: Measured, directory: Path, state: State) -> Iterator[Callable[[int], None]]:
    """Yields what saves once in the round that it is given; round 0 is not counted. Where all rows together have no
    room in memory, a row is made anew for each round, and warmed up each time."""
    directory.mkdir()
    before = memory("VmRSS")
    if state.bytes <= ALL_AT_ONCE:
        with row.make(directory, state) as (save, finish):
            held = memory("VmRSS") - before
            yield lambda number: _save_once(row, measured, directory, save, finish, held, number)
        return

    def anew(number: int) -> None:
        before = memory("VmRSS")
        with row.make(directory, state) as (save, finish):
            held = memory("VmRSS") - before
            for of_pair in (0, number):
                _save_once(row, measured, directory, save, finish, held, of_pair, step=2 * number + (of_pair > 0))
        gc.collect()  # what rows leave in cycles is gigabytes
        shutil.rmtree(directory)
        directory.mkdir()

    yield lambda number: anew(number) if number else None


def _save_once(
    row: Row, measured: Measured, directory: Path, save: Save, finish: Finish, held: int, number: int, step: int = 0
) -> None:
    settle()
    before = memory("VmRSS")
    began = time.perf_counter()
    blocked = save(1 + (step or number))
    finish()
    if not row.synced:
        _sync(directory)
    durable = time.perf_counter() - began
    if number:
        measured.blocked.append(blocked)
        measured.durable += [durable] if row.durable else []
        measured.peak_bytes = max(measured.peak_bytes, held + memory("VmHWM") - before)
        measured.disk_bytes = measured.disk_bytes or _bytes_in(directory)
    if not row.name.startswith("ms_resume"):
        _empty(directory)


def training(size: int, saves: int, rollout_s: float, top: Path) -> dict[str, float]:
    """Seconds that a save adds to a run of rollouts and updates, by how it is made; each run is timed as a whole."""
    steps, state = 3 * saves, State.of(size, 64)
    walls: dict[str, list[float]] = {"none": [], "waits": [], "copies": [], "behind": []}
    for number in range(3):
        for how in random.Random(number).sample(sorted(walls), len(walls)):
            directory = top / f"training-{number}-{how}"
            settle()
            with checkpointing(directory, state) as checkpointer:
                walls[how].append(_train(checkpointer, state, how, steps, rollout_s))
            shutil.rmtree(directory, ignore_errors=True)
    alone = statistics.median(walls.pop("none"))
    return {how: (statistics.median(wall) - alone) / saves for how, wall in walls.items()}


def _train(checkpointer: Any, state: State, how: str, steps: int, rollout_s: float) -> float:
    matrix = np.ones((512, 512), np.float32)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        if step % 3 == 0 and how != "none":
            (checkpointer.save if how == "waits" else checkpointer.begin)(0, step)
            if how == "copies":
                checkpointer.fence()
        until = time.perf_counter() + rollout_s
        while time.perf_counter() < until:  # a rollout: this process computes, and mostly waits for a device
            matrix @ matrix
            time.sleep(0.02)
        checkpointer.fence()
        for array in (*state.weights.values(), *state.moments.values()):
            array += 1e-6
    return time.perf_counter() - began


def settle() -> None:
    """What others left for the disk to do is done; the peak of memory is counted anew."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _sync(directory: Path) -> None:
    """Every file and directory: what the tool synced itself costs nothing again."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name == "orbax":  # its manager is open: it keeps the directory, and nothing else
            for step in path.iterdir():
                shutil.rmtree(step, ignore_errors=True)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


TOOLS = ("ms_resume", "numpy", "mindspore", "torch", "safetensors", "torchsnapshot", "orbax-checkpoint")
HEADINGS = ("save", "blocked s", "s/GiB", "durable s", "of raw", "memory")


def lines(size: int, found: list[Measured]) -> list[tuple[str, ...]]:
    """Medians (minima) in seconds; *of raw* is the raw write's median divided by the row's; memory by bytes saved."""
    raw = next((statistics.median(m.durable) for m in found if m.name == RAW and m.durable), None)
    return [_line(m, size, raw) if m.blocked else (m.name, m.skipped, *[""] * 4) for m in found]


def _line(m: Measured, size: int, raw: float | None) -> tuple[str, ...]:
    blocked, durable = statistics.median(m.blocked), statistics.median(m.durable) if m.durable else None
    return (
        m.name,
        f"{blocked:.4f} ({min(m.blocked):.4f})",
        f"{blocked / (size / 2**30):.4f}",
        f"{durable:.3f} ({min(m.durable):.3f})" if durable else "-",
        f"{raw / durable:.2f}" if raw and durable else "",
        f"{m.peak_bytes / size:.2f}",
    )


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: what the tools keep of one size is memory that the next one lacks. One that is killed
    for its memory is an error."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_save.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="16M,256M,1G,4G", help="bytes on the disk of one save (16M,256M,1G,4G)")
    parser.add_argument("--tensors", default="64,2048", help="few large, or many small ones (64,2048)")
    parser.add_argument("--rounds", type=int, default=0, help="of each row (9 up to 1G, 3 above)")
    parser.add_argument("--only", default="", metavar="TEXTS", help="rows whose name contains one")
    parser.add_argument("--directory", type=Path, help="on the disk that is measured (a temporary one)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="tables to FILE.md, all numbers to FILE.json")
    parser.add_argument("--no-training", action="store_true", help="leaves out what a save adds to training")
    arguments = parser.parse_args()
    report = Report("bench-save", arguments.report, TOOLS)
    report.results |= {"saves": [], "training": []}
    for text in arguments.sizes.split(","):
        size = int(text[:-1]) * UNITS[text[-1]]
        for tensors in map(int, arguments.tensors.split(",")):
            rounds = arguments.rounds or (9 if size <= ALL_AT_ONCE else 3)
            with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
                found = _alone(measure, size, tensors, rounds, Path(top), arguments.only)
            report.results["saves"].append({"bytes": size, "tensors": tensors, "rows": [asdict(m) for m in found]})
            title = f"{size / 2**20:g} MiB in {tensors} tensors, {rounds} rounds"
            report.table(title, HEADINGS, lines(size, found))
        if not arguments.no_training and size <= ALL_AT_ONCE:
            with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
                added = _alone(training, size, 4, 0.5 + size / 2**30, Path(top))
            report.results["training"].append({"bytes": size, "added_s": added})
            said = ", ".join(f"{how} {seconds:.4f} s" for how, seconds in added.items())
            report.say(f"Each save of {text} adds to the wall time of training: {said}.")
        report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
