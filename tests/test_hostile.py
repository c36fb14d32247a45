"""Save directories made by an enemy: a verdict or one clear error, never a trace, a wait, a look outside, much memory.

Each case was found by hand or by `test_fuzz.py` and went wrong once, or is the neighbour of one that did.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import own_trees
import pytest
import stock_trees
import xxhash
from runs import tiny_run

from ms_resume import cli, locate, ownership
from ms_resume.errors import Damaged, UsageError
from ms_resume.layouts import survey
from ms_resume.load.source import Source
from ms_resume.ondisk import ckpt, meta, names, payload, reading, seal, sums, votes
from ms_resume.records import Checkpoint, Position, Rejection, TensorInfo
from ms_resume.settings import Settings

P = Position.parse
Capture = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """A directory of ours with 0_5 and 1_0 of two ranks."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A directory of stock MindRLHF with 0_5 and 0_10 of two ranks."""
    stock_trees.f1(tmp_path / "stock")
    return tmp_path / "stock"


# Things that are no files


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.fixture(params=hostile.NO_FILES)
def no_file(request: pytest.FixtureRequest) -> tuple[Spoil, str]:
    return hostile.NO_FILES[request.param]


def put(path: Path, make: Spoil) -> None:
    path.unlink()
    make(path)


class TestNoFile:
    """In the place of a file: said by its kind, not opened, not waited for."""

    def test_as_a_vote(self, save: Path, capsys: Capture, no_file: tuple[Spoil, str]) -> None:
        make, said = no_file
        put(names.vote(save, P("1_0"), 1), make)
        told = hostile.look_at_all(capsys, save)

        assert told["locate"][0] == 0
        assert said in told["locate"][1]
        assert "a resume takes 0_5" in told["locate"][1]

    def test_as_an_attempt_record(self, save: Path, capsys: Capture, no_file: tuple[Spoil, str]) -> None:
        """Then nothing can be said about which checkpoints are live."""
        make, said = no_file
        put(names.attempt_record(save, 1), make)

        for code, told in hostile.look_at_all(capsys, save).values():
            assert code == 21
            assert said in told

    def test_as_a_payload_that_a_vote_names(self, save: Path, capsys: Capture, no_file: tuple[Spoil, str]) -> None:
        make, said = no_file
        put(own_trees.payload_path(save, "1_0", 1, "policy"), make)
        told = hostile.look_at_all(capsys, save)

        assert "a resume takes 0_5" in told["locate"][1]
        assert said in told["locate"][1]

    @pytest.mark.parametrize("ending", names.FORMATS)
    def test_as_a_payload_of_stock(self, stock: Path, capsys: Capture, no_file: tuple[Spoil, str], ending: str) -> None:
        make, said = no_file
        path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
        path.unlink()
        make(path.with_suffix(f".{ending}"))
        told = hostile.look_at_all(capsys, stock)

        assert "a resume takes 0_5" in told["locate"][1]
        assert said in told["locate"][1]

    def test_as_meta_json(self, stock: Path, capsys: Capture, no_file: tuple[Spoil, str]) -> None:
        """A hint that cannot be read is a warning."""
        make, said = no_file
        put(stock_trees.meta_path(stock, "policy", 1), make)
        told = hostile.look_at_all(capsys, stock)

        assert "a resume takes 0_10" in told["locate"][1]
        assert f"train/rank_1/meta.json: {said}" in told["locate"][1]

    def test_to_load_from(self, save: Path, no_file: tuple[Spoil, str]) -> None:
        make, said = no_file
        path = own_trees.payload_path(save, "1_0", 1, "policy")
        put(path, make)
        with hostile.watched(save), pytest.raises(Damaged, match=said):
            Source(path)

    def test_as_a_heartbeat(self, save: Path, no_file: tuple[Spoil, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Watched on another machine: its owner does not beat."""
        monkeypatch.setattr(ownership, "_boot_id", lambda: "another machine")
        no_file[0](names.heartbeat(save, 1))
        with hostile.watched(save):
            assert ownership.check_free(save) == 1

    def test_as_meta_json_when_a_save_writes_it(self, save: Path, no_file: tuple[Spoil, str]) -> None:
        """The save does not wait for it; it takes its place, or says that it cannot."""
        put(save / "train" / "rank_0" / "meta.json", no_file[0])
        with hostile.watched(save, more=[save.parent, Path("/proc"), Path("/sys")]):
            tiny_run(save, epochs=2, resume=True).ok()

        assert str(locate.latest(save).checkpoint.position) == "2_0"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["train", "train/rank_1", "commits", "commits/attempts"])
def test_a_directory_that_is_a_link(save: Path, capsys: Capture, name: str) -> None:
    """What it names may lie outside: nothing there is looked at, and who made the link is told."""
    shutil.move(save / name, save.parent / "outside")
    (save / name).symlink_to(save.parent / "outside")

    for code, told in hostile.look_at_all(capsys, save).values():
        assert code == 21
        assert f"{name}: a symbolic link, expected a directory" in told


def test_a_vote_directory_that_is_a_link(save: Path, capsys: Capture) -> None:
    """Of one position: that one is damaged."""
    shutil.move(save / "commits" / "1_0", save.parent / "outside")
    (save / "commits" / "1_0").symlink_to(save.parent / "outside")
    told = hostile.look_at_all(capsys, save)

    assert "a resume takes 0_5" in told["locate"][1]
    assert "commits/1_0: a symbolic link, expected a directory" in told["locate"][1]


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
@pytest.mark.parametrize("name", ["train", "train/rank_1", "commits", "commits/1_0", "commits/attempts"])
def test_a_directory_that_is_none(save: Path, capsys: Capture, name: str, make: Spoil) -> None:
    """Nothing lies there."""
    shutil.rmtree(save / name)
    make(save / name)

    assert {code for code, _ in hostile.look_at_all(capsys, save).values()} <= {0, 10, 20}


def test_a_save_directory_may_be_a_link(save: Path, capsys: Capture) -> None:
    """A person gave it."""
    (save.parent / "here").symlink_to(save)

    assert hostile.look(capsys, save.parent / "here", "locate")[0] == 0


def test_a_reference_directory_may_be_a_link(stock: Path, capsys: Capture) -> None:
    """A person gave it."""
    shutil.move(stock / "ref", stock.parent / "reference")
    (stock.parent / "linked").symlink_to(stock.parent / "reference")
    where = str(stock.parent / "linked")

    told = hostile.look(capsys, stock, "locate", "--ref-dir", where, more=(stock.parent / "reference",))

    assert "a resume takes 0_10" in told[1]


def test_a_link_in_a_foreign_directory(tmp_path: Path, capsys: Capture) -> None:
    """What a directory is taken for does not depend on what lies outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "policy_model_rank_0-1_0.ckpt").touch()
    (tmp_path / "save").mkdir()
    (tmp_path / "save" / "rank_0").symlink_to(tmp_path / "outside")

    assert hostile.look(capsys, tmp_path / "save", "ls")[0] == 10


# JSON


@pytest.fixture(params=hostile.DOCUMENTS)
def document(request: pytest.FixtureRequest) -> bytes:
    return hostile.DOCUMENTS[request.param]


class TestJson:
    """That nobody wrote in earnest."""

    def test_as_a_vote(self, save: Path, capsys: Capture, document: bytes) -> None:
        names.vote(save, P("1_0"), 1).write_bytes(document)

        assert "a resume takes 0_5" in hostile.look_at_all(capsys, save)["locate"][1]

    def test_as_an_attempt_record(self, save: Path, capsys: Capture, document: bytes) -> None:
        names.attempt_record(save, 1).write_bytes(document)

        assert {code for code, _ in hostile.look_at_all(capsys, save).values()} == {21}

    def test_as_meta_json(self, stock: Path, capsys: Capture, document: bytes) -> None:
        path = stock_trees.meta_path(stock, "policy", 1)
        path.write_bytes(document)

        assert "a resume takes 0_10" in hostile.look_at_all(capsys, stock)["locate"][1]
        assert meta.read(path.parent).position is None

    def test_of_a_terabyte(self, save: Path, capsys: Capture) -> None:
        """Without a byte in it."""
        put(names.vote(save, P("1_0"), 1), _sparse)
        put(save / "train" / "rank_0" / "meta.json", _sparse)

        assert "a resume takes 0_5" in hostile.look_at_all(capsys, save)["locate"][1]


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ({"last_ckpt_file": "policy_model_rank_0-0_" + "1" * 5000 + ".safetensors"}, "out of all bounds"),
        ({"last_ckpt_file": "policy_model_rank_0-0_" + "1" * 200 + ".safetensors"}, ""),
        ({"last_epoch": -1}, "out of all bounds"),
        ({"last_epoch": 10**400}, "out of all bounds"),
        ({"last_step": True}, "wrong types"),
        ({"last_ckpt_file": "../../etc/passwd"}, ""),
        ({"last_ckpt_file": "/etc/passwd"}, ""),
        ({"last_ckpt_file": "\ud800"}, ""),
    ],
)
def test_values_of_meta_json(stock: Path, capsys: Capture, said: dict[str, Any], trouble: str) -> None:
    """A name in it is compared, never opened."""
    path = stock_trees.meta_path(stock, "policy", 1)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | said))

    assert "a resume takes 0_10" in hostile.look_at_all(capsys, stock)["locate"][1]
    assert trouble in meta.read(path.parent).trouble


# Votes and records


PATHS = [
    "/etc/passwd", "../x", "train/../../x", "train/rank_1/../../../x", "train/\0", "train/\ud800", "", ".", "train",
    "a/" * 9000, "train/rank_1/" + "x" * 9000, "train/rank_1/meta.json", "link/policy_model_rank_1-1_0.safetensors",
    "train/rank_1//policy_model_rank_1-1_0.safetensors", "./train/rank_1/policy_model_rank_1-1_0.safetensors",
    "train/rank_0/policy_model_rank_0-1_0.safetensors", "train/rank_1/policy_model_rank_1-0_5.safetensors",
    "optimizer/rank_1/optimizer_rank_1-1_0.safetensors", "train/rank_1/policy_model_rank_1-1_00.safetensors",
]  # fmt: skip  # one list


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:50])
def test_paths_in_a_vote(save: Path, capsys: Capture, path: str) -> None:
    """Only this rank's own payload of this role in its place, and of this position, can be named."""
    (save / "link").symlink_to(save / "train" / "rank_1")
    own_trees.edit_vote(save, "1_0", 1, lambda vote: vote["files"][0].update(path=path))

    assert "a resume takes 0_5" in hostile.look_at_all(capsys, save)["locate"][1]
    with pytest.raises(Damaged):
        votes.read(names.vote(save, P("1_0"), 1))


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 1 << 40}, {"world_size": 10**4000}, {"world_size": True}, {"world_size": 1}, {"rank": -1},
        {"parallel": 3}, {"metrics": []}, {"tool": "x"}, {"config": None}, {"layout": [1]}, {"created_at": {}},
        {"attempt": "x"}, {"attempt": "\ud800"}, {"attempt": "1\n-0123456789abcdef"}, {"steps_per_epoch": 10**4000},
        {"global_step": 1.0}, {"epoch": float("nan")}, {"step": float("inf")}, {"files": [{}]}, {"files": None},
    ],
    ids=lambda change: ascii(change)[:50],
)  # fmt: skip  # one list
def test_values_in_a_vote(save: Path, capsys: Capture, change: dict[str, Any]) -> None:
    """Of the wrong kind, or out of all bounds."""
    own_trees.edit_vote(save, "1_0", 1, lambda vote: vote.update(change))

    assert "a resume takes 0_5" in hostile.look_at_all(capsys, save)["locate"][1]
    with pytest.raises(Damaged):
        votes.read(names.vote(save, P("1_0"), 1))


@pytest.mark.parametrize("change", [{"bytes": -1}, {"bytes": 1.5}, {"bytes": True}, {"digest": "x"}, {"attempt": "x"}])
def test_values_of_a_file_in_a_vote(save: Path, change: dict[str, Any]) -> None:
    own_trees.edit_vote(save, "1_0", 1, lambda vote: vote["files"][0].update(change))

    with pytest.raises(Damaged):
        votes.read(names.vote(save, P("1_0"), 1))


def test_a_role_twice_in_a_vote(save: Path) -> None:
    """Which of the two is checked and which is loaded must not be a question."""
    own_trees.edit_vote(save, "1_0", 1, lambda vote: vote["files"].append(vote["files"][0]))

    with pytest.raises(Damaged, match="one for each role"):
        votes.read(names.vote(save, P("1_0"), 1))


def test_votes_of_a_world_that_nobody_has(save: Path, capsys: Capture) -> None:
    """The ranks that are missing are not all listed."""
    for rank in (0, 1):
        own_trees.edit_vote(save, "1_0", rank, lambda vote: vote.update(world_size=names.MOST_RANKS))
    told = hostile.look_at_all(capsys, save, megabytes=60)

    assert "a resume takes 0_5" in told["locate"][1]
    assert len(locate.latest(save).rejected[0].ranks) == survey.MOST_LISTED


@pytest.mark.parametrize("rank", [names.MOST_RANKS - 1, names.MOST_RANKS, 1 << 40, 10**200])
def test_a_rank_directory_that_nobody_has(stock: Path, capsys: Capture, rank: int) -> None:
    """Its number is a claim: nothing of that length is made."""
    (stock / "train" / f"rank_{rank}").mkdir()

    told = hostile.look_at_all(capsys, stock, megabytes=60)
    assert told["locate"][0] == (10 if rank < names.MOST_RANKS else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": "000001-\ud800"}, {"attempt": 3}, {"attempt": "000001-x"}, {"world_size": "2"},
        {"pid": "../../etc"}, {"pid": -1}, {"boot_id": []}, {"label": 3}, {"from": 3},
        {"from": {"epoch": 1.5, "step": 1, "attempt": None}},
        {"from": {"epoch": 10**400, "step": 1, "attempt": None}}, {"from": {"epoch": 0, "step": 5, "attempt": {}}},
        {"from": {"epoch": "0", "step": "5", "attempt": None}}, {"from": {"epoch": 0, "step": 5, "attempt": "x"}},
        {"from": {"epoch": 0, "step": 5, "attempt": None, "save": 3}},
        {"dead_stock": 3}, {"dead_stock": [3]}, {"dead_stock": [{"epoch": 0, "step": 5, "files": [["x", 1]]}]},
        {"dead_stock": [{"epoch": 0, "step": 5, "files": [["/etc/passwd", 1, 2]]}]},
        {"dead_stock": [{"epoch": 0, "step": 5, "files": [["train/../../x", 1, 2]]}]},
        {"dead_stock": [{"epoch": 0, "step": 5, "files": [["train/\0", 1, 2]]}]},
        {"dead_stock": [{"epoch": 0, "step": 5, "files": [["[" * 5000 + "/x", 1, 2]]}]},
    ],
    ids=lambda change: ascii(change)[:60],
)  # fmt: skip  # one list
def test_values_in_an_attempt_record(save: Path, capsys: Capture, change: dict[str, Any]) -> None:
    """Then nothing can be said about which checkpoints are live."""
    record = names.attempt_record(save, 1)
    record.write_bytes(seal.encode(json.loads(record.read_bytes()) | change))

    for code, told in hostile.look_at_all(capsys, save).values():
        assert code == 21
        assert "000001.json: not an attempt record" in told


@pytest.mark.parametrize("to", ["outside", "stock/link"])
def test_dead_stock_behind_a_link(stock: Path, tmp_path: Path, to: str) -> None:
    """A record that names a file behind a link learns nothing about it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"12345")
    (stock / "link").symlink_to(tmp_path / to)
    dead = attempts_with(dead_stock=[{"epoch": 0, "step": 10, "files": [["link/x", 4, 0]]}])
    names.attempts(stock).mkdir(parents=True)
    names.attempt_record(stock, 1).write_text(json.dumps(dead))

    assert isinstance(locate.latest(stock).rejected[0], Rejection)


def attempts_with(**change: Any) -> dict[str, Any]:
    return {"format": "ms_resume/1", "attempt": f"000001-{0:016x}", "from": None, "world_size": 2} | change


def test_a_vote_that_nobody_could_read_is_not_written(save: Path) -> None:
    """What the reader refuses, the writer does not write."""
    vote = votes.read(names.vote(save, P("1_0"), 1))
    large = {"metrics": {"rewards": "x" * reading.DOCUMENT_LIMIT}}

    with pytest.raises(UsageError, match="metrics"):
        votes.encode(type(vote)(**{name: getattr(vote, name) for name in type(vote).__slots__} | large))


# Headers


T = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MARK = {"ms_resume": "1", "attempt": f"000001-{0:016x}", "epoch": "0", "step": "5", "rank": "0", "role": "policy"}
HEADERS: dict[str, Any] = {
    "negative dimensions": {"w": T | {"shape": [-1, -1]}},
    "a dimension that is no whole number": {"w": T | {"shape": [1.0]}},
    "a dimension that is a truth": {"w": T | {"shape": [True]}},
    "a dimension that is text": {"w": T | {"shape": ["1"]}},
    "a shape that is text": {"w": T | {"shape": "1"}},
    "a shape that is an object": {"w": T | {"shape": {"1": 1}}},
    "an offset that is a truth": {"w": T | {"data_offsets": [False, 4]}},
    "dimensions of thousands of digits": {"w": T | {"shape": [9**4000] * 50}},
    "dimensions without end": {"w": T | {"shape": [1 << 60] * 100_000}},
    "dimensions that are too large together": {"w": T | {"shape": [1 << 62] * 64}},
    "a name of a megabyte": {"w" * (1 << 20): T},
    "a name that is no text": b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "a name twice": b'{"w": %b, "w": %b}' % ((json.dumps(T).encode(),) * 2),
    "a key that no reader knows": {"w": T | {"more": 10**400}},
    "an overlap": {"w": T, "v": T},
    "a gap": {"w": T | {"data_offsets": [4, 8]}},
    "behind the end": {"w": T | {"shape": [2], "data_offsets": [0, 8]}},
    "a deep entry": b'{"w": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deep metadata": b'{"__metadata__": ' + b"[" * 100_000,
    "metadata of numbers": {"__metadata__": {"format": 3}, "w": T},
    "a mark of numbers": {"__metadata__": {"ms_resume": 1}, "w": T},
    "deep digests": {"__metadata__": MARK | {"digests": "[" * 100_000}, "w": T},
    "digests of numbers": {"__metadata__": MARK | {"digests": '{"w": 3}'}, "w": T},
    "digests of pairs": {"__metadata__": MARK | {"digests": '[["w", "x"]]'}, "w": T},
    "an epoch of many digits": {"__metadata__": MARK | {"digests": '{"w": ""}', "epoch": "1" * 5000}, "w": T},
    "an epoch of other digits": {"__metadata__": MARK | {"digests": '{"w": ""}', "epoch": "\u0665"}, "w": T},
    "no attempt": {"__metadata__": MARK | {"digests": '{"w": ""}', "attempt": "x"}, "w": T},
    "a length of 2^60": struct.pack("<Q", 1 << 60) + bytes(100),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_none(stock: Path, capsys: Capture, case: str) -> None:
    """Of safetensors: damaged, whoever asks."""
    path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
    found = HEADERS[case]
    text = found if isinstance(found, bytes) else json.dumps(found).encode()
    path.chmod(0o600)
    path.write_bytes(text if case == "a length of 2^60" else struct.pack("<Q", len(text)) + text + bytes(4))

    with hostile.watched(stock), pytest.raises(Damaged):
        payload.read_header(path)
    assert hostile.look(capsys, path, "show")[0] == 21
    assert "a resume takes 0_5" in hostile.look_at_all(capsys, stock)["locate"][1]


def test_a_header_that_becomes_shorter(stock: Path) -> None:
    """Between the look at its size and the read: what is left of it is JSON still."""
    text = json.dumps({"w": T}).encode().ljust(500)
    content = struct.pack("<Q", len(text)) + text + bytes(4)

    class Shrunk(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            return len(content) if whence == 2 else super().seek(offset, whence)

    assert payload.parse_header(stock, io.BytesIO(content)).tensors
    with pytest.raises(Damaged, match="a moment ago"):
        payload.parse_header(stock, Shrunk(content[:200]))


def test_a_terabyte_that_a_header_describes(stock: Path, capsys: Capture) -> None:
    """It is there, without a byte in it: looking at headers takes no longer."""
    path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
    path.chmod(0o600)
    text = json.dumps({"w": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + (1 << 40))

    assert "no epoch_num and no step_num" in hostile.look(capsys, stock, "locate")[1]


def test_a_deep_check_holds_no_tensor_whole(stock: Path) -> None:
    """Of stock's, read for its own sake and to compare weights, either format: in pieces."""
    size = 64 << 20
    info = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({"w": info}).encode()
    path = stock / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)
    encoded = b"".join(ckpt.encode([("w", TensorInfo("U8", (size,)), memoryview(bytes(size)))]))
    (stock / "a.ckpt").write_bytes(encoded)
    tracemalloc.start()
    try:
        found = []
        for read in (_sum_up_payload, _sum_up_ckpt):
            digest = xxhash.xxh3_128()
            read(stock, digest.update)
            found.append(digest.hexdigest())
        ckpt.check_crc(stock / "a.ckpt")
        whole = payload.digest_file(stock / "a.ckpt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found == [payload.digest_of(bytes(size))] * 2
    assert whole == payload.digest_of(encoded)
    assert peak < 24 << 20


def _sum_up_payload(directory: Path, sink: sums.Sink) -> None:
    header = payload.read_header(directory / "a.safetensors")
    with reading.opened(header.path) as file:
        payload.check_tensor(file, header, "w", [sink])


def _sum_up_ckpt(directory: Path, sink: sums.Sink) -> None:
    contents = ckpt.read(directory / "a.ckpt")
    with reading.opened(contents.path) as file:
        ckpt.sum_up(file, contents, contents.records_end, [], lambda name: [sink])


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({}, "no epoch_num"),
        ({"epoch_num": ("F32", (1,))}, "expected a whole number"),
        ({"epoch_num": ("I64", (1 << 20,))}, "expected a whole number"),
        ({"epoch_num": ("I64", (0,))}, "expected a whole number"),
    ],
)
def test_a_policy_that_does_not_say_its_position(
    save: Path, capsys: Capture, tensor: dict[str, tuple[str, tuple[int, ...]]], said: str
) -> None:
    """All digests right, and the vote names it: whoever made it, it is damaged."""
    path = own_trees.payload_path(save, "1_0", 1, "policy")
    mark = payload.read_header(path).mark
    assert mark is not None
    held = payload.lay_out({"w": ("F32", (1,)), "step_num": ("I64", ()), **tensor})
    digests = {name: payload.digest_of(bytes(info.end - info.begin)) for name, info in held.items()}
    block = payload.header_block(held, digests, mark, {})
    path.write_bytes(block + bytes(max(info.end for info in held.values())))
    named = {"digest": payload.digest_of(block), "bytes": path.stat().st_size}
    own_trees.edit_vote(save, "1_0", 1, lambda vote: vote["files"][0].update(named))
    told = hostile.look_at_all(capsys, save)

    assert "a resume takes 0_5" in told["locate"][1]
    assert said in told["locate"][1]


@pytest.mark.parametrize("values", ["[", "[]", "3", "[" * 100_000, '{"a": "\\ud800"}'])
def test_plain_values_that_cannot_be_read(save: Path, values: str) -> None:
    """Of a state: where it is loaded, as elsewhere, damage is what it is."""
    path = own_trees.payload_path(save, "1_0", 1, "state")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["__metadata__"]["values"] = values
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    with pytest.raises(Damaged, match="plain values"):
        Source(path)


# .ckpt


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _record(name: bytes, dims: list[int], content: bytes = bytes(4), dtype: bytes = b"Float32") -> bytes:
    numbers = b"".join(b"\x08" + _varint(size) for size in dims)
    return _block(1, _block(1, name) + _block(2, numbers + _block(2, dtype) + _block(3, content)))


_INNER = _record(b"b", [1])
_SHORT = b"\x08" + _varint(len(_INNER)) + _block(2, b"UInt8") + b"\x1a" + _varint(len(_INNER))

CKPTS = {
    "a tensor that holds the next record": _block(1, _block(1, b"a") + _block(2, _SHORT)) + _INNER,
    "a number without end": b"\xff" * (8 << 20),
    "a length beyond the file": b"\x0a" + _varint(1 << 62),
    "a length of the field beyond its record": _block(1, b"\x0a\x7fw") + bytes(200),
    "a number beyond its record": _block(1, b"\x18\xff") + b"\x01" * 3,
    "a dimension below zero": _record(b"w", [(1 << 64) - 1, (1 << 64) - 1]),
    "dimensions that are too large together": _record(b"w", [1 << 62] * 60),
    "dimensions of thousands of digits": _record(b"w", [1 << 62] * 1000),
    "dimensions without end": _record(b"w", [1] * 200_000),
    "packed dimensions without end": _block(1, _block(1, b"w") + _block(2, _block(1, b"\1" * 100_000))),
    "a record of no name": _record(b"", [1]),
    "an empty record": _block(1, b""),
    "a name that is no text": _record(b"\xed\xa0\x80", [1]),
    "a name of a megabyte": _record(b"w" * (1 << 20), [1]),
    "a type of a megabyte": _record(b"w", [1], dtype=b"F" * (1 << 20)),
    "an unknown type": _record(b"w", [1], dtype=b"Float33"),
    "a tensor twice": _record(b"w", [1]) * 2,
    "a tensor twice, of two shapes": _record(b"w", [2]) + _record(b"w", [2, 1]),
    "a name twice in a record": _block(1, _block(1, b"a") + _block(1, b"b") + _block(2, b"")),
    "a tensor twice in a record": _block(1, _block(1, b"a") + _block(2, b"") + _block(2, _block(2, b"Bool"))),
    "fields without end": _block(
        1,
        _block(1, b"w")
        + _block(
            2, b"\x08\x01" + _block(2, b"UInt8") + _block(3, b"1") + b"".join(_block(n, b"") for n in range(9, 99))
        ),
    ),
    "another wire type": b"\x09" + bytes(8),
}


@pytest.mark.parametrize("case", CKPTS)
def test_ckpt_files_that_are_none(stock: Path, capsys: Capture, case: str) -> None:
    """Damaged, whoever asks."""
    path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
    path.unlink()
    path = path.with_suffix(".ckpt")
    path.write_bytes(CKPTS[case])

    with hostile.watched(stock), pytest.raises(Damaged):
        ckpt.read(path)
    assert hostile.look(capsys, path, "show")[0] == 21
    assert "a resume takes 0_5" in hostile.look_at_all(capsys, stock)["locate"][1]


def test_many_records_of_one_tensor(stock: Path) -> None:
    """As long as the file, not as its square."""
    path = stock / "a.ckpt"
    path.write_bytes(_record(b"w", [0, 1], b"") * 100_000)
    with hostile.watched(stock):
        assert len(ckpt.read(path).pieces["w"]) == 100_000


def test_nothing_but_names(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of them is not taken into memory."""
    monkeypatch.setattr(ckpt, "_WALK_LIMIT", 10_000)
    path = stock / "a.ckpt"
    path.write_bytes(b"".join(_record(b"w%d" % n, [1]) for n in range(1000)))

    with pytest.raises(Damaged, match="10000 bytes of names and shapes"):
        ckpt.read(path)


def test_a_ckpt_of_a_terabyte(stock: Path, capsys: Capture) -> None:
    """Of nothing, and of one tensor without a byte in it."""
    path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
    path.unlink()
    path = path.with_suffix(".ckpt")
    size = 1 << 40
    tensor = b"\x08" + _varint(size) + _block(2, b"UInt8") + b"\x1a" + _varint(size)
    inner = _block(1, b"w") + b"\x12" + _varint(len(tensor) + size) + tensor
    for start in (b"", b"\x0a" + _varint(len(inner) + size) + inner):
        path.write_bytes(start)
        os.truncate(path, len(start) + size)

        assert "a resume takes 0_5" in hostile.look(capsys, stock, "locate")[1]
    assert ckpt.read(path).tensors == {"w": TensorInfo("U8", (size,))}


def test_a_ckpt_that_becomes_shorter(stock: Path) -> None:
    """Between the look and the load."""
    path = stock / "a.ckpt"
    path.write_bytes(_record(b"w", [1000], bytes(4000)))
    contents = ckpt.read(path)
    os.truncate(path, 100)

    with pytest.raises(Damaged, match="bytes early"):
        ckpt.read_tensor(contents, "w")


# Names


@pytest.mark.parametrize("where", ["", "train", "train/rank_0", "commits", "commits/1_0", "commits/attempts"])
def test_names_that_are_no_text(save: Path, capsys: Capture, where: str) -> None:
    """Beside what is known, nobody minds."""
    (save / where / os.fsdecode(b"\xff\xfe")).touch()

    told = hostile.look_at_all(capsys, save)
    assert "a resume takes 1_0" in told["locate"][1]


def test_a_directory_whose_name_is_no_text(tmp_path: Path, finished: Path) -> None:
    """Printed as far as it can be, on any standard output, as text and as JSON."""
    odd = tmp_path / os.fsdecode(b"s\xe4ve")
    shutil.copytree(finished, odd, symlinks=True)
    for words in hostile.COMMANDS:
        for extra in ((), ("--json",)):
            ended = hostile.in_a_process(words[0], str(odd), *words[1:], *extra)

            assert (ended.returncode, ended.stderr) == (0, b"")
            assert b"s\\udce4ve" in ended.stdout or words[0] != "locate"


@pytest.mark.parametrize(("name", "code"), [(b"\xff", 10), (b"model-1\xff.safetensors", 2), (b"rank_0", 10)])
def test_a_directory_that_holds_what_is_no_text(tmp_path: Path, name: bytes, code: int) -> None:
    """And nothing else: what it holds is told."""
    (tmp_path / os.fsdecode(name)).mkdir()
    for extra in ((), ("--json",)):
        ended = hostile.in_a_process("ls", str(tmp_path), *extra)

        assert ended.returncode == code
        assert ascii(os.fsdecode(name))[1:-1].encode() in ended.stderr + ended.stdout


def test_junk_beside_everything(save: Path) -> None:
    """Names that are none of ours are not gathered: memory does not grow with them."""
    for where in ("train/rank_0", "commits", "commits/1_0", "commits/attempts"):
        for number in range(3000):
            (save / where / f"junk-{number:060d}").touch()
    assert locate.latest(save).checkpoint is not None
    tracemalloc.start()
    try:
        found = locate.latest(save).checkpoint
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found is not None
    assert peak < 200_000


def test_junk_beside_a_run(save: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is none of ours is listed, and never looked at: by a start, a save, retention, or a look for pins."""
    (save / "pins").mkdir()
    (save / "pins" / "0_5").touch()
    settings = Settings(keep_last=2, heartbeat_s=0)
    seen: list[str] = []
    for where in ("train/rank_0", "state/rank_1", "commits", "commits/1_0", "commits/attempts", "pins", "."):
        for number in range(300):
            (save / where / f"junk-{number}").touch()
    for name in (*CALLS, "listdir"):
        monkeypatch.setattr(os, name, _noted(getattr(os, name), seen))
    ranks = tiny_run(save, epochs=3, resume=True, settings=settings).ok()
    monkeypatch.undo()

    assert [str(rank.start) for rank in ranks] == ["1_0"] * 2
    left = {path.name for path in save.glob("commits/*_*") if names.parse_vote_dir(path.name)}
    assert left == {"0_5", "2_5", "3_0"}
    assert [path for path in seen if "junk-" in path] == []
    assert len(seen) > 100
    assert len([*save.glob("**/junk-*")]) == 7 * 300


def _noted(real: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        seen.append(str(path))
        return real(path, *args, **kwargs)

    return call


def test_pins_behind_a_link(save: Path, tmp_path: Path, capsys: Capture) -> None:
    """Nobody can tell what is pinned: an error, and nothing is pruned."""
    (tmp_path / "pins").mkdir()
    (save / "pins").symlink_to(tmp_path / "pins")
    for words in (("ls",), ("prune",)):
        code, said = hostile.look(capsys, save, *words)

        assert (code, "a symbolic link, expected a directory" in said) == (21, True)


def test_damaged_votes_are_not_kept(save: Path) -> None:
    """What is wrong with the first few is, and nothing of what was read of them."""
    for rank in range(2, 66):
        names.vote(save, P("1_0"), rank).write_bytes(b'{"format": "' + b"x" * (1 << 20))
    tracemalloc.start()
    try:
        found, damaged = votes.read_all(names.vote_dir(save, P("1_0")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (len(found), len(damaged)) == (2, 8)
    assert peak < 8 << 20


def test_two_formats_at_one_position(stock: Path) -> None:
    """The same one is taken whatever the order in which the file system lists them."""
    path = stock_trees.payload_path(stock, "policy", 1, (0, 10))
    path.with_suffix(".ckpt").write_bytes(b"")

    assert survey.take(stock).payloads[P("0_10")]["policy", 1] == path


# What changes meanwhile, and what cannot be read


CALLS = ("open", "lstat", "stat", "scandir")


class _Meddler:
    """Does something to what is looked at, just before the n-th look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, save: Path, at: int, act: Callable[[str], None]) -> None:
        self.looks, self._save, self._at, self._act = 0, str(save), at, act
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            text = os.fspath(path) if not isinstance(path, int) else ""
            if text.startswith(self._save + "/"):
                self.looks += 1
                if self.looks == self._at:
                    self._act(text)
            return real(path, *args, **kwargs)

        return call


def _vanish(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _becomes_a_fifo(path: str) -> None:
    _vanish(path)
    if os.path.isdir(os.path.dirname(path)):
        os.mkfifo(path)


def _becomes_shorter(path: str) -> None:
    if os.path.isfile(path):
        os.chmod(path, 0o600)
        os.truncate(path, os.path.getsize(path) // 2)


def _cannot_be_read(path: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


_DEEP = ("verify", "--all", "--deep")


@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize(
    ("words", "act"),
    [
        (("ls",), _vanish),
        (_DEEP, _vanish),
        (_DEEP, _becomes_a_fifo),
        (_DEEP, _becomes_shorter),
        (_DEEP, _cannot_be_read),
    ],
)
def test_a_directory_that_changes_while_it_is_read(
    tmp_path: Path, capsys: Capture, words: tuple[str, ...], act: Callable[[str], None], kind: str
) -> None:
    """At each look, what is about to be looked at goes, becomes another thing, or cannot be read."""
    if kind == "ours":
        tiny_run(tmp_path / "original", world_size=1).ok()
    else:
        stock_trees.healthy(tmp_path / "original", (0, 5), (0, 10), ranks=[0])
    at = looks = 0
    while at <= looks:
        at += 1
        save = Path(shutil.copytree(tmp_path / "original", tmp_path / "copy", symlinks=True))
        with pytest.MonkeyPatch.context() as patch:
            meddler = _Meddler(patch, save, at, act)
            with hostile.watched(save):
                code = cli.main([words[0], str(save), *words[1:]])
        printed = capsys.readouterr()
        assert code in (0, 2, 10, 20, 21, 40), printed.err
        looks = meddler.looks
        shutil.rmtree(save)

    assert at > 20


def test_a_whole_directory_stays_whole(save: Path, stock: Path, capsys: Capture) -> None:
    """No false alarm: what all the above is built on is fine."""
    for directory in (save, stock):
        assert {code for code, _ in hostile.look_at_all(capsys, directory).values()} == {0}
        assert all(isinstance(verdict, Checkpoint) for verdict in locate.every(directory))
