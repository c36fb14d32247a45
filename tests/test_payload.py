"""A payload is either exactly what was saved, or it is called damaged: no byte of it can change unseen."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
from safetensors.numpy import load_file, save_file

from ms_resume.errors import Damaged
from ms_resume.ondisk import payload
from ms_resume.records import Position, TensorInfo
from ms_resume.state import Arrays, read_all

MARK = payload.Mark("000001-0123456789abcdef", Position(0, 10), 1, "policy")
VALUES = {"cursor": {"samples": 320, "seed": 2**100}, "scale": [1.5, None, True, "\u4e2d"]}
ARRAYS = Arrays(
    weight=np.arange(6, dtype=np.float32).reshape(2, 3),
    bias=np.array([1, 2, 3], np.float16),
    scalar=np.array(7, np.int64),
    empty=np.zeros((0, 4), np.float64),
    mask=np.array([True, False]),
)


def encode(arrays: Arrays = ARRAYS, mark: payload.Mark = MARK) -> bytes:
    tensors = read_all(arrays)
    placed = payload.lay_out({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    digests = {name: payload.digest_of(tensor.data) for name, tensor in tensors.items()}
    return payload.header_block(placed, digests, mark, VALUES) + b"".join(tensors[name].data for name in placed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy_model_rank_1-0_10.safetensors"
    path.write_bytes(encode())
    return path


def is_damaged(path: Path, content: bytes, digest: str) -> bool:
    """As load and a deep check do: the header against the vote, then every tensor against the header."""
    try:
        header = payload.parse_header(path, io.BytesIO(content))
        for name in header.tensors:
            payload.read_tensor(io.BytesIO(content), header, name)
    except Damaged:
        return True
    return header.digest != digest


def test_a_header_says_again_what_it_was_given(file: Path) -> None:
    """Mark, values, names, dtypes, and shapes survive."""
    header = payload.read_header(file)

    assert (header.mark, header.values) == (MARK, VALUES)
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in read_all(ARRAYS).items()
    }
    assert header.file_bytes == file.stat().st_size


def test_every_tensor_reads_back_alone(file: Path) -> None:
    """Bytes equal, whatever else is in the file."""
    header = payload.read_header(file)

    with open(file, "rb") as opened:
        for name, tensor in read_all(ARRAYS).items():
            assert payload.read_tensor(opened, header, name) == tensor.data


def test_the_data_part_starts_at_a_page(file: Path) -> None:
    """A multiple of 4096, and every tensor at a multiple of its item size."""
    header = payload.read_header(file)

    assert header.data_start % payload.ALIGNMENT == 0
    assert all(info.begin % payload.item_bytes(info.dtype) == 0 for info in header.tensors.values())


@pytest.mark.parametrize("count", [1, 40, 41, 42, 400])
def test_the_data_part_starts_at_a_page_whatever_the_header(count: int, tmp_path: Path) -> None:
    """Headers just below, at, and above a page."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(Arrays({f"layer.{n}": np.zeros(3, np.float32) for n in range(count)})))

    assert payload.read_header(path).data_start % payload.ALIGNMENT == 0


def test_headers_that_are_alike_are_parsed_once(tmp_path: Path) -> None:
    """Ten thousand ranks hold the same tensors, with digests and marks of their own."""
    headers = []
    for rank in range(2):
        path = tmp_path / f"policy_model_rank_{rank}-0_10.safetensors"
        path.write_bytes(encode(mark=payload.Mark(MARK.attempt, MARK.position, rank, MARK.role)))
        headers.append(payload.read_header(path))

    assert headers[0].tensors is headers[1].tensors
    assert [header.mark.rank for header in headers if header.mark] == [0, 1]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(Damaged, match="its header says"):
        payload.read_header(path)


def test_metadata_twice(tmp_path: Path) -> None:
    """The second one in the shape of a tensor."""
    path = tmp_path / "a.safetensors"
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = f'{{"__metadata__":{{"format":"ms"}},"w":{entry},"__metadata__":{entry}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)

    with pytest.raises(Damaged, match="a name twice"):
        payload.read_header(path)


def test_the_safetensors_library_reads_it(file: Path) -> None:
    """Any other reader of the format gets the same tensors."""
    loaded = load_file(file)

    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded[name], array)


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    """Without our mark, so without digests."""
    path = tmp_path / "stock.safetensors"
    save_file(dict(ARRAYS), path)

    header = payload.read_header(path)

    assert (header.mark, header.digests, header.tensors.keys()) == (None, {}, ARRAYS.keys())
    with open(path, "rb") as opened:
        for name, tensor in read_all(ARRAYS).items():
            payload.check_tensor(opened, header, name)
            assert payload.read_tensor(opened, header, name) == tensor.data


def test_a_file_cut_anywhere_is_damaged(file: Path) -> None:
    """At every single length from nothing to one byte short; its header alone tells."""
    whole = file.read_bytes()

    for length in range(len(whole)):
        with pytest.raises(Damaged):
            payload.parse_header(file, io.BytesIO(whole[:length]))


def test_a_file_that_grew_is_damaged(file: Path) -> None:
    """Bytes behind the last tensor belong to nobody."""
    with open(file, "ab") as opened:
        opened.write(b"\0")

    with pytest.raises(Damaged, match="its header says"):
        payload.read_header(file)


def test_one_flipped_bit_is_damaged_wherever_it_is(file: Path) -> None:
    """Every bit of the data part, and 4,000 bits drawn from header and padding."""
    whole = file.read_bytes()
    header = payload.read_header(file)
    draw = random.Random(20)
    text_bits = [(draw.randrange(header.data_start), draw.randrange(8)) for _ in range(4000)]
    data_bits = [(offset, bit) for offset in range(header.data_start, len(whole)) for bit in range(8)]

    for offset, bit in text_bits + data_bits:
        content = bytearray(whole)
        content[offset] ^= 1 << bit
        assert is_damaged(file, bytes(content), header.digest), f"bit {bit} of byte {offset} changed unseen"


def test_a_damaged_tensor_is_named(file: Path) -> None:
    """By a deep check and by a read; its neighbours still read."""
    own_trees.flip_tensor(file, "bias")
    header = payload.read_header(file)

    with open(file, "rb") as opened:
        with pytest.raises(Damaged, match="tensor 'bias': its bytes have digest") as deep:
            payload.check_tensor(opened, header, "bias")
        assert payload.read_tensor(opened, header, "weight") == read_all(ARRAYS)["weight"].data
        with pytest.raises(Damaged) as read:
            payload.read_tensor(opened, header, "bias")
    assert deep.value.fields["tensor"] == read.value.fields["tensor"] == "bias"


def test_a_file_that_shrinks_while_it_is_read_is_damaged(file: Path) -> None:
    """The tensor that ends early is named, by a deep check and by a read."""
    header = payload.read_header(file)
    with open(file, "r+b") as opened:
        opened.truncate(header.file_bytes - 1)
    last = max(header.tensors, key=lambda name: header.tensors[name].end)

    for read in (payload.check_tensor, payload.read_tensor):
        with open(file, "rb") as opened, pytest.raises(Damaged, match=f"tensor {last!r}: ends 1 bytes early"):
            read(opened, header, last)


def header_of(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        (2**63).to_bytes(8, "little") + b"{}",
        header_of(b"[1, 2]"),
        header_of(b"{"),
        header_of(b"\xff\xfe"),
        header_of({"__metadata__": []}),
        header_of({"a": 1}) + b"\0" * 4,
        header_of({"a": [1]}) + b"\0" * 4,
        header_of({"a": {**GOOD, "dtype": "F31"}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "dtype": []}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "shape": [-1]}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "shape": ["x"]}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "shape": [2]}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "data_offsets": [0]}}) + b"\0" * 4,
        header_of({"a": {**GOOD, "data_offsets": [4, 8]}}) + b"\0" * 8,
        header_of({"a": GOOD, "b": GOOD}) + b"\0" * 4,
        header_of({"a": GOOD, "__metadata__": {"ms_resume": "1"}}) + b"\0" * 4,
        header_of({"a": GOOD, "__metadata__": {"ms_resume": "1", "epoch": "x"}}) + b"\0" * 4,
        header_of(b"[" * 100_000),
    ],
)
def test_headers_that_are_none(content: bytes, tmp_path: Path) -> None:
    """Whatever stands there, the file is damaged, its path is named, and nothing else is raised."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with pytest.raises(Damaged, match=str(path)):
        payload.read_header(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.pop("attempt"),
        lambda metadata: metadata.pop("digests"),
        lambda metadata: metadata.update(digests="[]"),
        lambda metadata: metadata.update(digests="1"),
        lambda metadata: metadata.update(digests="{}"),
        lambda metadata: metadata.update(epoch="one"),
        lambda metadata: metadata.update(step=None),
    ],
)
def test_a_mark_that_cannot_be_read_is_damage(
    change: Callable[[dict[str, Any]], object], file: Path, tmp_path: Path
) -> None:
    """A file that says it is ours and does not say whose is not taken for stock's."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    change(entries["__metadata__"])
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(header_of(entries) + content[8 + length :])

    with pytest.raises(Damaged):
        payload.read_header(changed)


def test_tensors_lie_without_gaps_wide_ones_first() -> None:
    """Readers of the format refuse gaps; wide ones first keeps each aligned."""
    placed = payload.lay_out({"a": ("BOOL", (3,)), "b": ("F64", (2,)), "c": ("F16", (1,))})

    assert placed == {
        "b": TensorInfo("F64", (2,), 0, 16),
        "c": TensorInfo("F16", (1,), 16, 18),
        "a": TensorInfo("BOOL", (3,), 18, 21),
    }


BY_MINDSPORE = (
    b'{"__metadata__":{"format":"ms","crc_num":"4067273637"},"epoch_num":{"dtype":"I64","shape":[],"data_offsets":[0,8]'
    b'},"step_num":{"dtype":"I64","shape":[],"data_offsets":[8,16]},"model.w":{"dtype":"F32","shape":[2,3],"data_offset'
    b's":[16,40]},"scale":{"dtype":"F32","shape":[],"data_offsets":[40,44]},"count":{"dtype":"I32","shape":[1],"data_of'
    b'fsets":[44,48]},"adam_m.model.w":{"dtype":"F16","shape":[3],"data_offsets":[48,54]},"flag":{"dtype":"BOOL","shape'
    b'":[],"data_offsets":[54,55]},"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[55,57]}}    '
)
BY_MINDSPORE = len(BY_MINDSPORE).to_bytes(8, "little") + BY_MINDSPORE
BY_MINDSPORE += bytes.fromhex(
    "03000000000000000b00000000000000000000000000803f0000004000004040000080400000a0400000204007000000003c00400042010100"
)
"""`mindspore.save_checkpoint(..., format="safetensors", crc_check=True)`, MindSpore 2.10.0. Its `load_checkpoint`, with
`crc_check`, takes it."""


def crc_of(path: Path, content: bytes) -> str:
    """holds, or what is said instead."""
    path.write_bytes(content)
    try:
        payload.check_crc(payload.read_header(path))
        return "holds"
    except Damaged as error:
        return error.message


class TestCrc:
    """What MindSpore saved with a CRC, in a safetensors file."""

    def test_it_holds(self, tmp_path: Path) -> None:
        """0-d whole numbers go into it as that many zeros, other 0-d tensors as their bytes."""
        assert crc_of(tmp_path / "a.safetensors", BY_MINDSPORE) == "holds"

    def test_one_flipped_bit(self, tmp_path: Path) -> None:
        """Of any tensor, in any byte; of a position as well, whose number may be absurd then."""
        begin = len(BY_MINDSPORE) - 57
        for bit in range(8 * begin, 8 * len(BY_MINDSPORE)):
            spoilt = bytearray(BY_MINDSPORE)
            spoilt[bit // 8] ^= 1 << bit % 8
            said = crc_of(tmp_path / "a.safetensors", bytes(spoilt))
            assert "its tensors have CRC" in said or "for which MindSpore has no CRC" in said

    def test_a_name_is_in_it(self, tmp_path: Path) -> None:
        """Two tensors of one shape that change places."""
        spoilt = BY_MINDSPORE.replace(b"epoch_num", b"epoch_nun")

        assert "its tensors have CRC" in crc_of(tmp_path / "a.safetensors", spoilt)

    def test_without_one_there_is_nothing_to_check(self, tmp_path: Path) -> None:
        """As stock code saves by default."""
        plain = BY_MINDSPORE.replace(b'"crc_num":', b'"crc_nun":')

        assert crc_of(tmp_path / "a.safetensors", plain[:-57] + bytes(57)) == "holds"


@pytest.mark.parametrize(("there", "instead"), [("[2,3]", "[6.1]"), ("[1]", "[1.9]"), ("[16,40]", '["16",40]')])
def test_a_number_in_a_header_is_a_whole_one(there: str, instead: str, tmp_path: Path) -> None:
    """A comma that became a point made another shape of the same size."""
    path = tmp_path / "a.safetensors"
    text = BY_MINDSPORE[8:-57].replace(there.encode(), instead.encode(), 1)
    path.write_bytes(len(text).to_bytes(8, "little") + text + BY_MINDSPORE[-57:])

    with pytest.raises(Damaged, match="cannot be read"):
        payload.read_header(path)
