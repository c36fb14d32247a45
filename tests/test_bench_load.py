"""The benchmark of loading runs, and its rows load what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_load
import load_rows
import save_rows

ROWS = [row for row in load_rows.rows() if not row.needs]
"""The others need MindSpore, which does not go into this process, or are not installed here."""


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At its smallest size; values are compared before anything is timed."""
    report = tmp_path / "results" / "load"
    lacking = save_rows.Row("another tool", ("no_such_tool",), ROWS[0].make)
    monkeypatch.setattr(load_rows, "rows", lambda: [*ROWS, lacking])
    monkeypatch.setattr(
        sys, "argv", ["bench_load.py", "--sizes", "64K", "--tensors", "8", "--rounds", "2", "--report", str(report)]
    )

    assert bench_load.main() == 0
    [results] = json.loads(report.with_suffix(".json").read_text())["loads"]
    assert [len(row["cold"]) for row in results["rows"]] == [len(row["warm"]) for row in results["rows"]]
    assert [len(row["warm"]) for row in results["rows"]] == [2] * len(ROWS) + [0]
    shown = capsys.readouterr().out
    for text in (*[row.name for row in ROWS], "no_such_tool is not installed", "A deep check reads at"):
        assert text in shown
        assert text in report.with_suffix(".md").read_text()


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over all sizes takes an hour, and may be ended before."""
    report, measure = tmp_path / "load", bench_load.measure
    monkeypatch.setattr(bench_load, "measure", lambda size, tensors, *rest: measure(size, 16 // (8 - tensors), *rest))
    monkeypatch.setattr(load_rows, "rows", lambda: ROWS[:1])
    words = ["bench_load.py", "--sizes", "64K", "--tensors", "4,8", "--rounds", "1", "--report", str(report)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ZeroDivisionError):
        bench_load.main()

    assert len(json.loads(report.with_suffix(".json").read_text())["loads"]) == 1
    assert report.with_suffix(".md").read_text().count("## ") == 1


def test_a_row_that_loads_something_else_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of nothing is fast."""
    copies = next(row for row in ROWS if row.name == "memcpy")
    monkeypatch.setattr(load_rows, "rows", lambda: [copies])
    monkeypatch.setattr(np, "copyto", lambda target, source: None)
    with pytest.raises(SystemExit, match="was not loaded"):
        bench_load.measure(1 << 16, 4, 1, tmp_path, "")
