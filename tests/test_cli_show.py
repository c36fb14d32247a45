"""`ms-resume show`: what is in one file, ours or anybody's, whole or not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import own_trees
import pytest
import stock_trees
from command import call, in_terminal
from runs import tiny_run
from safetensors.numpy import save_file
from test_architecture import loaded_after
from test_cli import MODULE

from ms_resume.ondisk import ckpt, payload, votes
from ms_resume.records import TensorInfo

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save).ok()
    return save


@pytest.fixture
def policy(finished: Path, tmp_path: Path) -> Path:
    """Rank 1's policy of 1_0, in a save directory of its own."""
    save = Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))
    return own_trees.payload_path(save, "1_0", 1, "policy")


def ckpt_file(path: Path, at: tuple[int, int] = (0, 10)) -> Path:
    """As MindSpore writes it, CRC last."""
    held = {"w": np.ones((2, 3), np.float32), "epoch_num": np.int64(at[0]), "step_num": np.int64(at[1])}
    dtypes = {"float32": "F32", "int64": "I64"}
    tensors = [(n, TensorInfo(dtypes[str(v.dtype)], v.shape), memoryview(v.tobytes())) for n, v in held.items()]
    path.write_bytes(b"".join(ckpt.encode(tensors)))
    return path


class TestOurs:
    """With mark and digests."""

    def test_keys(self, policy: Path, capsys: Capture) -> None:
        """What a script gets: all that the header says, and no more."""
        shown = call(capsys, "show", policy, "--json").json
        vote = votes.read(own_trees.vote_path(policy.parents[2], "1_0", 1)).file("policy")

        assert vote is not None
        tensors = shown.pop("tensors")
        assert shown.pop("metadata").keys() == {"format", "ms_resume", "attempt", "epoch", "step", "rank", "role"}
        assert shown == {
            "file": str(policy),
            "kind": "safetensors",
            "bytes": vote.bytes,
            "position": [1, 0],
            "positions": {"name": [1, 0], "header": [1, 0], "tensors": [1, 0]},
            "rank": 1,
            "role": "policy",
            "attempt": vote.attempt,
            "digest": vote.digest,
            "crc": False,
            "records": [],
        }
        assert [(t["name"], t["dtype"], t["shape"], t["bytes"]) for t in tensors] == [
            ("w", "F32", [3, 4], 48),
            ("epoch_num", "I64", [], 8),
            ("step_num", "I64", [], 8),
            ("bias", "F16", [3], 6),
        ]
        header = payload.read_header(policy)
        assert {t["name"]: t["digest"] for t in tensors} == header.digests

    def test_a_file_that_a_replica_wrote(self, policy: Path, capsys: Capture) -> None:
        """A hard link: it is this rank's, and the header names who wrote it."""
        other = policy.parents[1] / "rank_7" / policy.name.replace("rank_1", "rank_7")
        other.parent.mkdir()
        os.link(policy, other)

        assert "rank      7 (written by rank 1)\n" in call(capsys, "show", other).out
        assert call(capsys, "show", other, "--json").json["rank"] == 7

    def test_one_that_was_put_aside(self, policy: Path, capsys: Capture) -> None:
        """Known by its first bytes, and by its mark."""
        aside = policy.rename(policy.with_name(f".{policy.name}.000002-0000000000000000.retired"))
        shown = call(capsys, "show", aside, "--json").json

        assert (shown["kind"], shown["position"], shown["positions"]) == (
            "safetensors",
            [1, 0],
            {"header": [1, 0], "tensors": [1, 0]},
        )
        assert (shown["rank"], shown["role"]) == (1, "policy")

    def test_neither_mindspore_nor_numpy(self, policy: Path) -> None:
        """Nor the tables, without a terminal."""
        assert loaded_after(f"from ms_resume import cli; assert cli.main(['show', {str(policy)!r}]) == 0") == set()


class TestOthers:
    """Without a mark: what the name says, where it is MindRLHF's, and what is inside."""

    def test_stock(self, tmp_path: Path, capsys: Capture) -> None:
        """Role and rank by the name; no attempt, no digests."""
        stock_trees.f1(tmp_path / "save")
        path = stock_trees.payload_path(tmp_path / "save", "policy", 1, (0, 10))

        called = call(capsys, "show", path)
        shown = call(capsys, "show", path, "--json").json

        assert "position  0_10 (name, tensors)\nrank      1\nrole      policy\nmetadata  format: ms\n" in called.out
        assert "dtype  shape   size  tensor\n" in called.out
        assert (shown["position"], shown["attempt"], shown["digest"], shown["crc"]) == ([0, 10], None, None, False)
        assert {tensor["digest"] for tensor in shown["tensors"]} == {None}

    def test_anybody_s(self, tmp_path: Path, capsys: Capture) -> None:
        """A model from elsewhere, with a CRC as MindSpore writes it there."""
        path = tmp_path / "model-00001-of-00002.safetensors"
        save_file({"a.b": np.zeros((2, 0), np.float32)}, path, metadata={"format": "pt", "crc_num": "12"})
        shown = call(capsys, "show", path, "--json").json

        assert [shown[key] for key in ("position", "positions", "rank", "role", "crc")] == [None, {}, None, None, True]
        assert shown["metadata"] == {"format": "pt", "crc_num": "12"}
        assert shown["tensors"] == [{"name": "a.b", "dtype": "F32", "shape": [2, 0], "bytes": 0, "digest": None}]

    def test_another_tool_s_numbers_are_no_position(self, tmp_path: Path, capsys: Capture) -> None:
        """MindFormers counts from 1 in the name, and over all epochs inside: that is no damage."""
        path = tmp_path / "llama_7b_rank_0-3_2.safetensors"
        save_file({"epoch_num": np.array(3), "step_num": np.array(12)}, path)
        shown = call(capsys, "show", path, "--json")

        assert (shown.code, shown.json["positions"], shown.json["rank"]) == (0, {"tensors": [3, 12]}, None)

    @pytest.mark.parametrize("with_crc", [True, False])
    @pytest.mark.parametrize("name", ["policy_model_rank_2-0_10.ckpt", "policy_model_rank_2-0_10.ckpt.superseded-x"])
    def test_ckpt(self, tmp_path: Path, capsys: Capture, with_crc: bool, name: str) -> None:
        """Whether it has a CRC is said; under another ending it is known by its first byte."""
        path = ckpt_file(tmp_path / name)
        if not with_crc:
            path.write_bytes(path.read_bytes()[:-17])
        shown = call(capsys, "show", path, "--json").json

        assert (shown["kind"], shown["crc"], shown["positions"]["tensors"]) == ("ckpt", with_crc, [0, 10])
        assert [(t["name"], t["dtype"], t["shape"], t["bytes"]) for t in shown["tensors"]] == [
            ("w", "F32", [2, 3], 24),
            ("epoch_num", "I64", [], 8),
            ("step_num", "I64", [], 8),
        ]
        assert f"CRC       {'yes' if with_crc else 'no'}\n" in call(capsys, "show", path).out

    def test_names_that_would_move_the_cursor(self, tmp_path: Path, capsys: Capture) -> None:
        """Escaped; what is no text is no name: such a header is damaged."""
        path = tmp_path / "model.safetensors"
        header = json.dumps({"a\x1b[2J\x7f": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)

        assert call(capsys, "show", path).out.endswith("U8     [0]    0 B   a\\x1b[2J\\x7f\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 5000)


def another_position(path: Path) -> None:
    own_trees.forge(path.parents[2], "1_0", 1, "policy", scalars={"step_num": 3})


def a_flipped_step(path: Path) -> None:
    own_trees.flip_tensor(path, "step_num")


def a_mark_of_tomorrow(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"ms_resume":"1"', b'"ms_resume":"2"'))


DAMAGES: list[tuple[Callable[[Path], None], str, bool]] = [
    # what happened to it  what is said                                      whether the header can still be read
    (cut, "4165 bytes, its header says 4166", True),
    (cut_in_the_header, "100 bytes, not a safetensors file", False),
    (empty, "0 bytes, not a safetensors file", False),
    (garbage, "5000 bytes, not a safetensors file", False),
    (another_position, "its positions differ: name 1_0, header 1_0, tensors 1_3", True),
    (a_flipped_step, "tensor 'step_num': its bytes have digest", True),
    (a_mark_of_tomorrow, "format version '2' of ms_resume", False),
]


@pytest.mark.parametrize(("damage", "said", "readable"), DAMAGES)
def test_a_damaged_file(
    damage: Callable[[Path], None], said: str, readable: bool, policy: Path, capsys: Capture
) -> None:
    """Exit 21, with all that could be read of it, for people and for scripts."""
    damage(policy)
    called = call(capsys, "show", policy)
    shown = call(capsys, "show", policy, "--json")

    assert (called.code, shown.code, shown.json["exit_code"]) == (21, 21, 21)
    assert called.err.startswith(f"ms-resume: {policy}: ")
    assert said in called.err
    assert said in shown.json["message"]
    assert "\nrank      1\nrole      policy\n" in called.out
    assert [t["name"] for t in shown.json["tensors"]] == (["w", "epoch_num", "step_num", "bias"] if readable else [])
    assert (shown.json["attempt"] is not None) == readable


@pytest.mark.parametrize("with_crc", [True, False])
def test_a_damaged_ckpt(tmp_path: Path, capsys: Capture, with_crc: bool) -> None:
    """Its name tells the position; one that was cut has lost its CRC, one with other bytes has not. What stands before
    the damage is shown."""
    path = ckpt_file(tmp_path / "optimizer_rank_0-0_10.ckpt")
    content = path.read_bytes()
    path.write_bytes(b"\xff" + content[1:] if with_crc else content[:-40])
    called = call(capsys, "show", path, "--json")
    told = call(capsys, "show", path).out

    assert (called.code, called.json["error"]) == (21, "Damaged")
    assert "does not parse to its end" in called.json["message"]
    assert [tensor["name"] for tensor in called.json["tensors"]] == ([] if with_crc else ["w", "epoch_num"])
    assert f"tensors   {0 if with_crc else 2} of {0 if with_crc else 32} B, as far as it can be read\n" in told
    assert (called.json["position"], called.json["role"], called.json["crc"]) == ([0, 10], "optimizer", with_crc)


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.mkdir(), "is a directory, expected one .safetensors or .ckpt file"),
    (lambda path: None, "does not exist, expected a .safetensors or .ckpt file"),
    (lambda path: os.mkfifo(path), "is not a regular file"),
    (lambda path: path.write_text('{"last_epoch": 0}'), "neither a safetensors file nor a .ckpt"),
    (lambda path: path.touch(), "neither a safetensors file nor a .ckpt"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_is_no_payload(make: Callable[[Path], object], said: str, tmp_path: Path, capsys: Capture) -> None:
    """Exit 2 with what to type; a pipe is not waited for."""
    make(tmp_path / "thing")
    called = call(capsys, "show", tmp_path / "thing")
    shown = call(capsys, "show", tmp_path / "thing", "--json")

    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"ms-resume: {tmp_path}/thing: {said}")
    assert "\n  -> " in called.err
    assert said in shown.json["message"]


def test_many_tensors_on_a_terminal(tmp_path: Path) -> None:
    """The first ones, and how many there are; --all and a pipe have them all."""
    path = tmp_path / "model.safetensors"
    save_file({f"layer.{n:03}": np.zeros(1, np.float32) for n in range(40)}, path, metadata={"long": "x" * 300})
    words = [*MODULE, "show", path.name]
    shown = in_terminal(words, tmp_path, columns=60)
    whole = in_terminal([*words, "--all"], tmp_path, columns=60)

    assert "layer.031" in shown
    assert "layer.032" not in shown
    assert shown.endswith("... and 8 more tensors; --all shows them\n")
    assert ("x" * 194 + "..." in shown.replace("\n", ""), "x" * 201 in shown) == (True, False)
    assert "layer.039" in whole
    assert "x" * 300 in whole


def test_digests_on_a_terminal(policy: Path) -> None:
    """Twelve digits tell files apart; --all has the rest, to be found again in what `verify` says."""
    digest = payload.read_header(policy).digests["w"]
    words = [*MODULE, "show", str(policy)]

    assert f" {digest[:12]}  w" in in_terminal(words, policy.parent, columns=100)
    assert f" {digest}  w" in in_terminal([*words, "--all"], policy.parent, columns=100)
