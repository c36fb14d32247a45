"""Save directories made by an enemy: a verdict or one clear error, never a trace, a wait, a look outside, much memory.

Each case was found by hand or by `test_fuzz.py` and went wrong once, or is the neighbour of one that did.
"""

from __future__ import annotations

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

from ms_resume import locate
from ms_resume.errors import Damaged
from ms_resume.load.source import Source
from ms_resume.ondisk import ckpt, payload, reading, sums
from ms_resume.records import Checkpoint, Position, TensorInfo

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
    "a name twice": b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "w": 3}',
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
    assert "a resume takes 0_5" in hostile.look_at_all(capsys, stock)["locate"][1]


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


CKPTS = {
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


def test_a_whole_directory_stays_whole(save: Path, stock: Path, capsys: Capture) -> None:
    """No false alarm: what all the above is built on is fine."""
    for directory in (save, stock):
        assert {code for code, _ in hostile.look_at_all(capsys, directory).values()} == {0}
        assert all(isinstance(verdict, Checkpoint) for verdict in locate.every(directory))
