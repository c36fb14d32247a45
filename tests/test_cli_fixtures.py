"""What stock MindRLHF leaves behind, healthy and broken, through `ms-resume locate --json`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import stock_trees
from command import Called, call

Build = Callable[[Path], None]

FOUND = [
    # tree               position   passed over               said in a warning
    (stock_trees.f1, [0, 10], [], ""),
    (stock_trees.f2, [1, 0], [], "garbage after the first object: 'rs\"}'"),
    (stock_trees.f3, [0, 10], [], "train/rank_1/meta.json: torn"),
    (stock_trees.f3b, [0, 10], [], "train/rank_1/meta.json: empty"),
    (stock_trees.f3c, [0, 10], [], "train/rank_1/meta.json: missing"),
    (stock_trees.f4, [0, 5], [([0, 10], "torn", [1])], "train/rank_0/meta.json: says 0_10"),
    (stock_trees.f5, [0, 5], [([0, 10], "damaged", [1])], "meta.json: says 0_10, the files say 0_5"),
    (stock_trees.f6, [0, 5], [([0, 10], "torn", [0, 1])], "train/rank_0/meta.json: says 0_10"),
    (stock_trees.f9, [0, 10], [], ""),
]  # fmt: skip  # one table


@pytest.mark.parametrize(("build", "position", "rejected", "warning"), FOUND, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("deep", [(), ("--deep",)], ids=["plain", "deep"])
def test_the_newest_whole_one_is_found(
    build: Build,
    position: list[int],
    rejected: list[tuple[list[int], str, list[int]]],
    warning: str,
    deep: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Position, what was passed over and by whose fault, and a warning where stock code would fail."""
    build(tmp_path / "save")

    called = call(capsys, "locate", tmp_path / "save", "--json", *deep)

    assert (called.code, called.json["position"]) == (0, position)
    assert [(r["position"], r["kind"], r["ranks"]) for r in called.json["rejected"]] == rejected
    assert warning in "\n".join(called.json["warnings"])
    assert bool(called.json["warnings"]) == bool(warning)
    _assert_files_of(called, position, tmp_path / "save")


NOT_FOUND = [
    # tree        positions         what the reasons must say
    (stock_trees.f6b, [[0, 10], [0, 5]], ["no optimizer directory"]),
    (stock_trees.f6c, [[0, 10], [0, 5]], ["optimizer: rank 1 has none"]),
    (stock_trees.f8, [[0, 10], [0, 5]], ["rank 1 has 0_5", "rank 0 has 0_10"]),
]


@pytest.mark.parametrize(("build", "positions", "said"), NOT_FOUND, ids=lambda v: getattr(v, "__name__", ""))
def test_nothing_to_resume_says_why(
    build: Build,
    positions: list[list[int]],
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 10 with a row for each position; --json has the error and all keys of a success."""
    build(tmp_path / "save")

    called = call(capsys, "locate", tmp_path / "save", "--json")

    assert (called.code, called.json["exit_code"], called.json["error"]) == (10, 10, "NothingToResume")
    assert (called.json["position"], called.json["files"]) == (None, [])
    assert [rejection["position"] for rejection in called.json["rejected"]] == positions
    for text, rejection in zip(said, called.json["rejected"], strict=False):
        assert text in rejection["reason"]


def test_nothing_to_resume_for_people_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is data, on standard output; the error and what to do are talk, on standard error."""
    stock_trees.f8(tmp_path / "save")

    called = call(capsys, "locate", tmp_path / "save")

    assert called.code == 10
    assert "0_10      torn     1      policy: rank 1 has 0_5\n" in called.out
    assert "0_5       torn     0      policy: rank 0 has 0_10\n" in called.out
    assert "no whole checkpoint among 2 positions" in called.err
    assert "--allow_fresh_start" in called.err


def test_the_installed_command_gives_the_same(tmp_path: Path) -> None:
    """A process of its own, as an operator's script starts it."""
    stock_trees.f4(tmp_path / "save")
    words = [sys.executable, "-m", "ms_resume.cli", "locate", "save", "--json"]

    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["position"] == [0, 5]


def test_a_flipped_byte_is_found_where_weights_stand_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock files have no digest: plain locate takes 0_10, --deep sees that the optimizer's copy differs."""
    stock_trees.f1(tmp_path / "save")
    _flip_last_byte_of(stock_trees.payload_path(tmp_path / "save", "policy", 1, (0, 10)), "model.w")

    assert call(capsys, "locate", tmp_path / "save", "--json").json["position"] == [0, 10]
    deep = call(capsys, "locate", tmp_path / "save", "--json", "--deep").json
    assert deep["position"] == [0, 5]
    assert "weight 'model.w' differs from the policy file's" in deep["rejected"][0]["reason"]


def _flip_last_byte_of(path: Path, name: str) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    end = json.loads(content[8 : 8 + length])[name]["data_offsets"][1]
    content[8 + length + end - 1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def _assert_files_of(called: Called, position: list[int], save: Path) -> None:
    at = (position[0], position[1])
    assert {(file["rank"], file["role"], file["path"]) for file in called.json["files"]} == {
        (rank, role, str(stock_trees.payload_path(save, role, rank, at)))
        for rank in (0, 1)
        for role in stock_trees.DIRECTORIES
    }
    assert (called.json["layout"], called.json["world_size"], called.json["attempt"]) == ("mindrlhf", 2, None)


@pytest.mark.parametrize("command", ["ls", "locate", "verify"])
def test_a_layout_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not MindRLHF's names that are missing."""
    stock_trees.f1(tmp_path / "save")
    called = call(capsys, command, tmp_path / "save", "--layout", "mindspeed-ms")
    told = call(capsys, command, tmp_path / "save", "--layout", "mindspeed-ms", "--json")

    assert (called.code, told.code) == (10, 10)
    assert f"{tmp_path / 'save'}: holds no mindspeed-ms checkpoint\n" in called.err
    assert "leave --layout out" in told.json["hint"]
    assert "policy_model" not in called.err
