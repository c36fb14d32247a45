"""Directories as stock jobs leave them, in files that MindSpore itself wrote: both formats, with and without CRC."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import stock_trees
from command import call
from conformance import trees
from conformance.trees import NUMBERS, RANKS, TREES
from mindspore import Tensor
from test_cli_fixtures import FOUND, NOT_FOUND

from ms_resume.load import warm
from ms_resume.ondisk import ckpt

Capture = pytest.CaptureFixture[str]
KINDS = [(ending, crc) for ending in ("safetensors", "ckpt") for crc in (False, True)]


def mindspore_saves(arrays: Mapping[str, np.ndarray], path: Path, crc: bool = False, **_: Any) -> None:
    held = [{"name": name, "data": Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(held, str(path), integrated_save=False, crc_check=crc, format=path.suffix[1:])


@pytest.fixture(params=KINDS, ids=[f"{ending}{', CRC' if crc else ''}" for ending, crc in KINDS])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bool]:
    """stock_trees builds with MindSpore, in this format."""
    ending, crc = request.param
    named = stock_trees.payload_path

    def payload_path(save: Path, role: str, rank: int, at: tuple[int, int]) -> Path:
        return named(save, role, rank, at).with_suffix(f".{ending}")

    def save_file(arrays: Mapping[str, np.ndarray], path: Path, metadata: object) -> None:
        mindspore_saves(arrays, path, crc)

    monkeypatch.setattr(stock_trees, "payload_path", payload_path)
    monkeypatch.setattr(stock_trees, "save_file", save_file)
    return ending, crc


@pytest.mark.parametrize("build", [row[0] for row in FOUND], ids=lambda build: build.__name__)
def test_what_is_found(build: Callable[[Path], None], kind: object, tmp_path: Path, capsys: Capture) -> None:
    """F1 to F6 and F9: position, and what is passed over."""
    position, rejected = next((row[1], row[2]) for row in FOUND if row[0] is build)
    build(tmp_path / "save")
    for deep in ((), ("--deep",)):
        called = call(capsys, "locate", tmp_path / "save", "--json", *deep)

        assert (called.code, called.json["position"]) == (0, position)
        assert [(r["position"], r["kind"], r["ranks"]) for r in called.json["rejected"]] == rejected


@pytest.mark.parametrize(("build", "positions", "said"), NOT_FOUND)
def test_what_is_not_found(
    build: Callable[[Path], None], positions: object, said: list[str], kind: object, tmp_path: Path, capsys: Capture
) -> None:
    """F6b, F6c, F8: exit 10, and what each rank has."""
    build(tmp_path / "save")
    called = call(capsys, "locate", tmp_path / "save", "--json")

    assert called.code == 10
    assert [rejection["position"] for rejection in called.json["rejected"]] == positions
    assert all(text in rejection["reason"] for text, rejection in zip(said, called.json["rejected"], strict=False))


def test_f5b_cut_between_two_records(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut that leaves whole records, of the policy and of the optimizer."""
    monkeypatch.setattr(
        stock_trees, "payload_path", lambda *a, named=stock_trees.payload_path: named(*a).with_suffix(".ckpt")
    )
    monkeypatch.setattr(stock_trees, "save_file", lambda arrays, path, metadata: mindspore_saves(arrays, path))
    stock_trees.f1(tmp_path / "save")
    for role in ("policy", "optimizer"):
        path = stock_trees.payload_path(tmp_path / "save", role, 1, (0, 10))
        whole = path.read_bytes()
        ends = [end for end in range(1, len(whole)) if _is_record_end(tmp_path / "cut.ckpt", whole[:end])]
        path.chmod(0o600)
        for end in ends:
            path.write_bytes(whole[:end])
            called = call(capsys, "locate", tmp_path / "save", "--json")

            assert called.json["position"] == [0, 5], (role, end)
            assert called.json["rejected"][0]["ranks"] == [1]
            assert path.name in called.json["rejected"][0]["reason"]
        path.write_bytes(whole)
        assert len(ends) >= 3
    assert call(capsys, "locate", tmp_path / "save", "--json").json["position"] == [0, 10]


def _is_record_end(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        return bool(ckpt.read(path).tensors)
    except Exception:  # noqa: BLE001  # whatever it says, it is not whole
        return False


def test_f5c_a_flipped_bit(kind: tuple[str, bool], tmp_path: Path, capsys: Capture) -> None:
    """Found by every byte's CRC; without one where the weights of policy and optimizer differ."""
    stock_trees.f1(tmp_path / "save")
    path = stock_trees.payload_path(tmp_path / "save", "policy", 1, (0, 10))
    content = bytearray(path.read_bytes())
    at = content.index(np.full((2, 3), np.float32(10.125)).tobytes())
    content[at + 5] ^= 4
    path.chmod(0o600)
    path.write_bytes(content)

    assert call(capsys, "locate", tmp_path / "save", "--json").json["position"] == [0, 10]
    deep = call(capsys, "locate", tmp_path / "save", "--json", "--deep")
    assert deep.json["position"] == [0, 5]
    assert deep.json["rejected"][0]["ranks"] == [1]


def test_f7_the_final_save_has_no_reference(kind: object, tmp_path: Path, capsys: Capture) -> None:
    """That of the save before it counts, and it is said."""
    stock_trees.healthy(tmp_path, (9, 495), (10, 500))
    for rank in RANKS:
        stock_trees.payload_path(tmp_path, "ref", rank, (10, 500)).unlink()
        stock_trees.set_meta(tmp_path, "ref", rank, stock_trees.meta_bytes("ref", rank, (9, 495)))
    called = call(capsys, "locate", tmp_path, "--json")

    assert called.json["position"] == [10, 500]
    assert "the reference is that of 9_495" in "".join(called.json["warnings"])


def test_f10_two_formats(tmp_path: Path, capsys: Capture) -> None:
    """One position of each: the newer one, whichever it is."""
    for step, ending in ((5, "ckpt"), (10, "safetensors")):
        for role, rank in itertools.product(stock_trees.DIRECTORIES, RANKS):
            path = stock_trees.payload_path(tmp_path, role, rank, (0, step)).with_suffix(f".{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            mindspore_saves(stock_trees.tensors(role, rank, (0, step)), path)
            stock_trees.set_meta(tmp_path, role, rank, stock_trees.meta_bytes(role, rank, (0, 10)))
    assert call(capsys, "locate", tmp_path, "--json").json["position"] == [0, 10]

    for rank in RANKS:
        stock_trees.payload_path(tmp_path, "policy", rank, (0, 10)).unlink()
    assert call(capsys, "locate", tmp_path, "--json").json["position"] == [0, 5]


def test_f11_another_number_of_ranks(kind: object, tmp_path: Path, capsys: Capture) -> None:
    """Four of them: what a job of two or eight is told about, before it starts."""
    stock_trees.healthy(tmp_path, (0, 5), ranks=range(4))

    assert call(capsys, "locate", tmp_path, "--json").json["world_size"] == 4


@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize(
    "name", [name for name, tree in TREES.items() if name != "ours" and tree.layout not in warm.NOT_TAKEN]
)  # those are torch's
def test_f12_to_f14_other_layouts(
    name: str, crc: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, with every byte read; then cut, and passed over."""

    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        mindspore_saves(arrays, path, crc)

    monkeypatch.setattr(trees, "write", write)
    monkeypatch.setattr(stock_trees, "save_file", lambda arrays, path, metadata: mindspore_saves(arrays, path, crc))
    tree = TREES[name]
    tree.build(tmp_path / "save")
    checked = call(capsys, "verify", tmp_path / "save", "--all", "--deep", "--json")

    assert [row["verdict"] for row in checked.json["positions"]] == [tree.kind or "valid"] * len(NUMBERS)
    path = tree.file(tmp_path / "save", 3, 1)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) * 2 // 3])
    called = call(capsys, "locate", tmp_path / "save", "--deep", "--json")
    assert (called.json["rejected"][0]["kind"], called.json["rejected"][0]["ranks"]) == ("damaged", [1])
    assert called.json["position"] == (None if tree.kind else tree.position(2).to_json())
    shutil.rmtree(tmp_path / "save")
