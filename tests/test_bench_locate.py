"""The benchmark of `locate` runs, and what it looks at is what it says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ms_resume import locate, verify

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_locate
import large_trees


@pytest.mark.parametrize("make", [large_trees.ours, large_trees.stock])
def test_the_trees_are_checkpoints(make: Callable[[Path, int, int], large_trees.Tree], tmp_path: Path) -> None:
    """The newest is whole to its last byte, and what a search must look at is all there; so is the one before it."""
    tree = make(tmp_path / "save", 4, 3)
    newest = locate.latest(tree.save, check=verify.headers)

    assert newest.checkpoint is not None
    assert (str(newest.checkpoint.position), newest.checkpoint.world_size, newest.warnings) == ("0_4", 3, ())
    assert verify.check(newest.checkpoint, deep=True) == []
    assert set(tree.opened) == {str(file.path) for file in newest.checkpoint.files}
    bench_locate.floor(tree, headers=True)
    Path(tree.opened[0]).unlink()
    before = locate.latest(tree.save, check=verify.headers)
    assert [str(rejection.position) for rejection in before.rejected] == ["0_4"]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At its smallest size; the number of system calls is that of what was asked about."""
    report = tmp_path / "results" / "locate"
    sizes = ["--trees", "ours:3x2,stock:3x2", "--counted", "ours:3x2,ours:30x2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_locate.py", *sizes, "--report", str(report)])

    assert bench_locate.main() == 0
    results = json.loads(report.with_suffix(".json").read_text())
    assert all(len(row["wall"]) == 2 for tree in results["trees"].values() for row in tree)
    shown = capsys.readouterr().out
    for text in (*[row["name"] for row in results["trees"]["ours:3x2"]], "3 checkpoints of 2 ranks, stock"):
        assert text in shown
        assert text in report.with_suffix(".md").read_text()
    if shutil.which("strace"):
        few, many = results["calls"].values()
        assert few == many
        assert sum(few.values()) > few["openat"] > 10
