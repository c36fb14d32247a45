"""The benchmark of saving runs, and says all it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_save


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At its smallest size, in this process; what waits of ours beside the raw disk."""
    report = tmp_path / "results" / "save"
    monkeypatch.setattr(bench_save, "_alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(bench_save, "training", lambda *given: {"waits": 0.125})
    words = ["--sizes", "64K", "--tensors", "8", "--rounds", "2", "--only", "raw direct,waits"]
    monkeypatch.setattr(sys, "argv", ["bench_save.py", *words, "--report", str(report)])

    assert bench_save.main() == 0
    results = json.loads(report.with_suffix(".json").read_text())
    [size] = results["saves"]
    assert [len(row["durable"]) for row in size["rows"] if not row["skipped"]] == [2, 2, 2]
    assert results["training"] == [{"bytes": 1 << 16, "added_s": {"waits": 0.125}}]
    shown = capsys.readouterr().out
    for text in (bench_save.RAW, "ms_resume, waits", "0.0625 MiB in 8 tensors", "waits 0.1250 s"):
        assert text in shown
        assert text in report.with_suffix(".md").read_text()
