"""A thousand ranks are said in ranges: a verdict stays a line, whatever the size of the job."""

from __future__ import annotations

from pathlib import Path

import own_trees
import pytest
import stock_trees
from command import call
from runs import tiny_run

RANKS = 1024
Capture = pytest.CaptureFixture[str]


def stock(save: Path, *, without: dict[str, set[int]]) -> None:
    """0_10 by names alone, but for the ranks that lack a role; what those have instead is 0_5."""
    for role in stock_trees.DIRECTORIES:
        for rank in range(RANKS):
            path = stock_trees.payload_path(save, role, rank, (0, 5 if rank in without.get(role, ()) else 10))
            path.parent.mkdir(parents=True)
            path.touch()


def test_stock_ranks_that_lack_a_file(tmp_path: Path, capsys: Capture) -> None:
    """Those that have the same instead are one part of the reason; --json has each rank's number."""
    stock(tmp_path / "save", without={"policy": {3, *range(7, RANKS)}})
    stock_trees.payload_path(tmp_path / "save", "policy", 5, (0, 10)).unlink()

    called = call(capsys, "locate", tmp_path / "save")
    rejected = call(capsys, "locate", tmp_path / "save", "--json").json["rejected"]

    assert "0_10      torn     3, 5, 7-1023  policy: rank 3, 7-1023 has 0_5; rank 5 has none\n" in called.out
    assert rejected[0]["ranks"] == [3, 5, *range(7, RANKS)]


def test_stock_ranks_that_have_something_else_each(tmp_path: Path, capsys: Capture) -> None:
    """Only the first few are told."""
    save = tmp_path / "save"
    stock_trees.healthy(save, (0, 10), ranks=range(12))
    for rank in range(12):
        path = stock_trees.payload_path(save, "optimizer", rank, (0, 10))
        path.rename(stock_trees.payload_path(save, "optimizer", rank, (0, rank)))

    rejected = call(capsys, "locate", save, "--json").json["rejected"]
    [reason] = [row["reason"] for row in rejected if row["position"] == [0, 10]]

    assert reason.startswith("optimizer: rank 0 has 0_0; rank 1 has 0_1; ")
    assert reason.endswith("; rank 7 has 0_7; ...")


def test_votes_of_ours(tmp_path: Path, capsys: Capture) -> None:
    """Two votes of a job of 1,024 ranks; and payloads without any."""
    tiny_run(tmp_path / "save").ok()
    for rank in (0, 1):
        own_trees.edit_vote(tmp_path / "save", "1_0", rank, lambda vote: vote.update(world_size=RANKS))
    for rank in (0, 1):
        own_trees.vote_path(tmp_path / "save", "0_5", rank).unlink()

    listed = call(capsys, "ls", tmp_path / "save").out
    located = call(capsys, "locate", tmp_path / "save").out

    assert "1_0 is torn: no vote of rank 2-1023 (of 1024 ranks, attempt 000001-" in listed
    assert "0_5 is torn: payloads of rank 0, 1 without a vote\n" in listed
    assert "1_0       torn     2-1023  no vote" in located


def test_warnings_that_are_alike(tmp_path: Path, capsys: Capture) -> None:
    """One line for all ranks whose meta.json says the same, beginning with the first of them."""
    stock_trees.healthy(tmp_path / "save", (0, 5), ranks=range(12))
    for rank in (0, *range(4, 12)):
        stock_trees.set_meta(tmp_path / "save", "policy", rank, b"")

    called = call(capsys, "locate", tmp_path / "save")

    said = "train/rank_0/meta.json: empty; stock code could not resume from it (rank 4-11 likewise)"
    assert called.err == f"ms-resume: warning: {said}\n"
