"""Side by side: the same kills over the saves of other tools and of this one, and what their readers then find.

`make faults-peers` runs it in an environment that has the tools (the extra `bench`) and puts the table into
docs/durability.md. A tool that is not installed is a row that says so. It ends with 1 where a save of ms_resume left
anything but the old state or the new one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from faults import peer_savers, peer_traces, shim
from faults.peer_points import COUNT, NEW, OLD, SHOOT, UNUSABLE, WRONG, Row
from faults.peer_syncs import Syncs

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
_STREAMS = Path(__file__).with_name("streams.c")
_ROW_ENDS_AFTER_S = 600
_QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "GLOG_v": "3"}
"""A tool's own threads would only make the order of calls less repeatable; no accelerator is looked for."""
_EMPTY_DOCUMENT = f"# Durability: what survives what\n\nWhat a kill in the middle of a save leaves.\n\n{BEGIN}\n{END}\n"
_HEAD = [
    *("save", "the reader takes", "calls", "kill points", "old", "new", "unusable", "silently wrong"),
    *("syncs", "files synced", "directories synced", "calls seen"),
]
_LEGEND = """\
{versions}.

One rank, 3 MB in six tensors of random float32. Each save is killed with SIGKILL before each call that changes
something on disk, and once more after half of the bytes of each write. Then a process that has nothing but the
directory chooses by the rule in the second column, and loads.

* *old*: exactly the state before the save. *new*: exactly the one that was being saved. *unusable*: the reader fails,
  and a human has to find out why and what to load instead. *silently wrong*: the reader returns without an error, and
  what it gives is neither.
* *syncs*: calls of fsync and fdatasync in one save. *files synced*: of the files that the save wrote, those that were
  on the disk to their last byte when the save began to count. *directories synced*: of the directories that got or lost
  an entry until then, those that were synced when the save returned. A kill needs neither; a power loss does.
* *calls seen*: of the calls that strace saw in one save, those that the shim saw too, so that a kill came before each
  of them; without those that failed. Chmod is not counted."""
_FAIRNESS = """\
To be fair: what overwrites is at its weakest here. DCP overwrites by default, and warns that it does. In MindSpore
too a new name is safe from kills; it is the same position saved again that is not. That the newest directory counts
is no rule of DCP's: scripts do that which look for the highest number. DCP writes one file for each rank; the row
with a file for each tensor stands for a job of several ranks that overwrites. A save of ms_resume holds more than the
tensors (half of them twice, as MindRLHF has it, a state, a vote, `meta.json` files), so it makes more calls. All
tools have their default options, but for what a row names."""


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    numbers = [n for n, target in enumerate(peer_savers.targets()) if arguments.only.lower() in target.name.lower()]
    with tempfile.TemporaryDirectory(prefix="ms_resume_peers_", dir=_memory()) as room:
        rows = run(numbers, Path(room), arguments.jobs)
    if arguments.write:
        write(Path(arguments.write), rows)
    print(json.dumps([asdict(row) for row in rows], indent=1) if arguments.json else "\n".join(text(rows)))
    return int(any(row.name.startswith(peer_savers.OURS) and _failed(row) for row in rows))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    parser.add_argument("--write", metavar="FILE", help="put the table between the markers in FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="rows at a time")
    arguments = parser.parse_args(argv)
    if arguments.write and arguments.only:
        parser.error("--write with --only would throw the other rows away")
    return arguments


def _memory() -> str | None:
    """Where a kill costs no time of a disk; what is in the page cache survives a kill on a disk as it does here."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _failed(row: Row) -> bool:
    return bool(row.outcomes[UNUSABLE] or row.outcomes[WRONG] or (row.skipped and row.versions))


def run(numbers: list[int], room: Path, jobs: int) -> list[Row]:
    try:
        preload = f"{_build_streams(room)}:{shim.build()}"
    except shim.Unavailable as why:
        return [Row(peer_savers.targets()[n].name, skipped=str(why)) for n in numbers]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(partial(_run_row, room=room, preload=preload), numbers))


def _build_streams(room: Path) -> Path:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise shim.Unavailable("no C compiler (cc, gcc, clang) on PATH")
    built = room / "streams.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(_STREAMS), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise shim.Unavailable(f"{compiler} cannot build {_STREAMS.name}: {done.stderr.strip()[:300]}")
    return built


def _run_row(number: int, room: Path, preload: str) -> Row:
    target = peer_savers.targets()[number]
    try:
        versions = {name: importlib.metadata.version(name) for name in target.needs}
    except importlib.metadata.PackageNotFoundError as missing:
        return _say(Row(target.name, skipped=f"not installed: {missing.name}"))
    row = _work(SHOOT, number, room, ["env", f"LD_PRELOAD={preload}"])
    row.versions = versions
    if not row.skipped and shutil.which("strace"):
        _trace(row, number, room, preload)
    return _say(row)


def _trace(row: Row, number: int, room: Path, preload: str) -> None:
    output = room / f"strace_{number}"
    traced = _work(COUNT, number, room, peer_traces.command(output, preload))
    if not traced.skipped:
        with open(output, errors="replace") as lines:
            row.traced = dict(peer_traces.kinds(lines, _case(room, COUNT, number)))
        row.traced_made = traced.made


def _case(room: Path, work: str, number: int) -> Path:
    return room / f"{work}_{number}" / "case"


def _work(work: str, number: int, room: Path, before: list[str]) -> Row:
    """One process that has the tool in it; whatever becomes of it gives a row."""
    place = _case(room, work, number).parent
    place.mkdir()
    command = [*before, sys.executable, "-m", "faults.peer_points", str(number), str(place), work]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **_QUIET, "PYTHONPATH": path}
    skipped = Row(peer_savers.targets()[number].name)
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=_ROW_ENDS_AFTER_S
        )
    except subprocess.TimeoutExpired:
        skipped.skipped = f"took longer than {_ROW_ENDS_AFTER_S} s"
        return skipped
    result = place / f"{work}.json"
    if not result.exists():
        skipped.skipped = f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"
        return skipped
    found = json.loads(result.read_text())
    shutil.rmtree(place, ignore_errors=True)
    return Row(**found | {"syncs": Syncs(**found["syncs"])})


def _say(row: Row) -> Row:
    print(f"{row.name}: {f'skipped: {row.skipped}' if row.skipped else f'{row.seconds:.0f} s'}", file=sys.stderr)
    return row


# -- the table


def cells(row: Row) -> list[str]:
    if row.skipped:
        return [row.name, f"skipped: {row.skipped}", *[""] * (len(_HEAD) - 2)]
    syncs = row.syncs
    return [
        row.name,
        row.newest,
        *(str(count) for count in (row.calls, row.points)),
        *(str(row.outcomes[outcome]) for outcome in (OLD, NEW, UNUSABLE, WRONG)),
        str(syncs.calls),
        f"{syncs.files_synced} of {syncs.files}",
        f"{syncs.directories_synced} of {syncs.directories}" if syncs.directories else "none changed",
        _seen(row),
    ]


def unseen(row: Row) -> Counter[str]:
    return Counter(row.traced or {}) - Counter(row.traced_made)


def _seen(row: Row) -> str:
    if row.traced is None:
        return "not checked"
    total = sum(row.traced.values())
    return f"{total - sum(unseen(row).values())} of {total}"


def remarks(rows: list[Row]) -> Iterator[str]:
    """What the figures of a row do not say."""
    for row in rows:
        if missed := unseen(row):
            what = ", ".join(f"{count} {kind}" for kind, count in sorted(missed.items()))
            yield f"{row.name}: the shim does not see {what}, made without the C library: no kill comes right before it"
        if row.not_reached:
            yield (
                f"{row.name}: the number of calls differs from save to save; "
                f"{row.not_reached} more points were not reached, because that save made fewer"
            )


def markdown(rows: list[Row]) -> list[str]:
    table = [_HEAD, ["---"] * len(_HEAD), *(cells(row) for row in rows)]
    lines = [_LEGEND.format(versions=_versions(rows)), "", *(f"| {' | '.join(line)} |" for line in table), ""]
    return [*lines, *(f"* {remark}." for remark in remarks(rows)), "", _FAIRNESS]


def _versions(rows: list[Row]) -> str:
    found = {name: version for row in rows for name, version in row.versions.items()}
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    return ", ".join([python, *(f"{name} {version}" for name, version in found.items())])


def text(rows: list[Row]) -> Iterator[str]:
    table = [_HEAD, *(cells(row) for row in rows if not row.skipped)]
    widths = [max(len(line[n]) for line in table) for n in range(len(_HEAD))]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield from (f"{row.name}: skipped: {row.skipped}" for row in rows if row.skipped)
    yield from remarks(rows)
    for row in rows:
        yield from (f"{row.name}: {count} times {reason}" for reason, count in row.reasons.items())
    yield _versions(rows)


def write(document: Path, rows: list[Row]) -> None:
    """Replaces what stands between the markers; makes the document where there is none."""
    there = document.read_text() if document.exists() else _EMPTY_DOCUMENT
    before, begin, rest = there.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} lacks the markers {BEGIN} and {END}")
    document.write_text(before + begin + "\n" + "\n".join(markdown(rows)) + "\n" + end + after)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
