"""Two runs side by side: every tensor of their last checkpoints, and every line of their metrics but the seconds.

python examples/grpo_arithmetic/compare.py RUN_A RUN_B      exit 0 when they are equal, 1 when not
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic.metrics import LINES
from ms_resume import locate
from ms_resume.load.source import Source
from ms_resume.records import Checkpoint

ROLES = ("policy", "optimizer", "ref", "state")


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of thing that was compared, how many of it, and the names of those that differ."""

    what: str
    compared: int
    differing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    rows: tuple[Row, ...]
    tensors: int
    differ: int

    @property
    def equal(self) -> bool:
        return all(row.compared and not row.differing for row in self.rows)


def runs(a: Path, b: Path) -> Result:
    """Compares the newest whole checkpoint and the metrics of two runs.

    Raises:
        SystemExit: A run has no whole checkpoint, or they ended at different positions.
    """
    first, second = _last(a), _last(b)
    if (first.position, first.world_size) != (second.position, second.world_size):
        raise SystemExit(f"{a} ended at {first.position}, {b} at {second.position}: nothing to compare")
    rows = [_tensors(first, second, role) for role in ROLES]
    rows.append(_values(first, second))
    lines = steps(a), steps(b)
    rows.append(_lines("data order", *lines, ["prompts"]))
    rows.append(_lines("rewards", *lines, ["reward", "right"]))
    rows.append(_lines("losses", *lines, ["loss", "kl", "lr", "loss_scale"]))
    rows.append(_lines("counters", *lines, sorted(lines[0][0].keys() - {"seconds"})))
    return Result(tuple(rows), sum(row.compared for row in rows[:4]), sum(len(row.differing) for row in rows[:4]))


def table(result: Result) -> str:
    """The rows for people."""
    lines = [f"{'compared':<32} {'count':>6} {'differ':>6}  first that differs"]
    for row in result.rows:
        first = row.differing[0] if row.differing else "-"
        lines.append(f"{row.what:<32} {row.compared:>6} {len(row.differing):>6}  {first}")
    return "\n".join(lines)


def steps(run: Path) -> list[dict[str, Any]]:
    """The metrics of each step, without the seconds it took."""
    found = []
    for line in (run / "metrics" / LINES).read_text().splitlines():
        entry = json.loads(line)
        entry.pop("seconds")
        found.append(entry)
    return found


def steps_per_epoch(run: Path) -> int | None:
    """As the newest checkpoint says."""
    return _last(run).votes[0].steps_per_epoch


def _last(run: Path) -> Checkpoint:
    found = locate.latest(run).checkpoint
    if found is None:
        raise SystemExit(f"{run} has no whole checkpoint")
    return found


def _pairs(a: Checkpoint, b: Checkpoint, role: str) -> Iterator[tuple[int, Source, Source]]:
    for rank in range(a.world_size):
        yield rank, Source(a.of_rank(rank)[role]), Source(b.of_rank(rank)[role])


def _tensors(a: Checkpoint, b: Checkpoint, role: str) -> Row:
    compared, differing = 0, []
    for rank, left, right in _pairs(a, b, role):
        for name in sorted(left.tensors.keys() | right.tensors.keys()):
            compared += 1
            if not _same(left, right, name):
                differing.append(f"rank {rank}: {name}")
    return Row(f"{role} tensors, {a.world_size} ranks", compared, tuple(differing))


def _same(left: Source, right: Source, name: str) -> bool:
    if name not in left.tensors or name not in right.tensors:
        return False
    one, other = left.read(name), right.read(name)
    return (one.dtype, one.shape, bytes(one.data)) == (other.dtype, other.shape, bytes(other.data))


def _values(a: Checkpoint, b: Checkpoint) -> Row:
    """Random state, loss scale, cursor, and counters, as plain values of the state payload."""
    compared, differing = 0, []
    for rank, left, right in _pairs(a, b, "state"):
        for name in sorted(left.values.keys() | right.values.keys()):
            compared += 1
            if left.values.get(name) != right.values.get(name):
                differing.append(f"rank {rank}: {name}")
    return Row("components of state", compared, tuple(differing))


def _lines(what: str, a: list[dict[str, Any]], b: list[dict[str, Any]], keys: list[str]) -> Row:
    longest = max(len(a), len(b))
    differing = [
        f"step {index}"
        for index in range(longest)
        if index >= len(a) or index >= len(b) or any(a[index].get(k) != b[index].get(k) for k in keys)
    ]
    return Row(f"{what}, steps", longest, tuple(differing))


if __name__ == "__main__":
    outcome = runs(Path(sys.argv[1]), Path(sys.argv[2]))
    print(table(outcome))
    sys.exit(0 if outcome.equal else 1)
