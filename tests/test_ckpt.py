"""MindSpore's `.ckpt` without MindSpore: what it wrote is read, what we write is byte for byte the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ms_resume.errors import Damaged
from ms_resume.ondisk import ckpt
from ms_resume.records import TensorInfo
from ms_resume.state import Arrays, infos, read_all

BY_MINDSPORE = bytes.fromhex(
    "0a320a076d6f64656c2e771227080208031207466c6f617433321a18000000000000803f0000004000004040000080400000a040"
    "0a250a0e6164616d5f6d2e6d6f64656c2e77121308031207466c6f617431361a06003c00400042"
    "0a180a02626612120802120842466c6f617431361a04c03f00c0"
    "0a1e0a0b676c6f62616c5f73746570120f08011205496e7433321a040a000000"
    "0a140a046d61736b120c08021204426f6f6c1a020100"
    "0a1e0a0965706f63685f6e756d12111205496e7436341a080300000000000000"
    "0a1d0a08737465705f6e756d12111205496e7436341a08ffffffffffffffff"
    "6372635f6e756d00000000000039dc0ea8"
)
"""`mindspore.save_checkpoint(..., crc_check=True)` with epoch_num 3 and step_num -1, MindSpore 2.10.0."""

HELD = {
    "model.w": (TensorInfo("F32", (2, 3)), np.arange(6, dtype=np.float32).tobytes()),
    "adam_m.model.w": (TensorInfo("F16", (3,)), np.array([1, 2, 3], np.float16).tobytes()),
    "bf": (TensorInfo("BF16", (2,)), np.array([0x3FC0, 0xC000], np.uint16).tobytes()),
    "global_step": (TensorInfo("I32", (1,)), (10).to_bytes(4, "little")),
    "mask": (TensorInfo("BOOL", (2,)), b"\1\0"),
    "epoch_num": (TensorInfo("I64", ()), (3).to_bytes(8, "little")),
    "step_num": (TensorInfo("I64", ()), (-1).to_bytes(8, "little", signed=True)),
}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.ckpt"
    path.write_bytes(BY_MINDSPORE)
    return path


def boundaries(content: bytes, path: Path) -> set[int]:
    """The lengths at which a record of `content` ends."""
    contents = ckpt.read(path)
    return {begin + length for pieces in contents.pieces.values() for begin, length in pieces}


def test_what_mindspore_wrote_is_read(golden: Path) -> None:
    """Names in order, dtypes, shapes, and bytes; bfloat16, bool, and 0-d tensors too."""
    contents = ckpt.read(golden)

    assert (list(contents.tensors), contents.has_crc) == (list(HELD), True)
    assert {n: (info, bytes(ckpt.read_tensor(contents, n))) for n, info in contents.tensors.items()} == HELD
    ckpt.check_crc(golden)


def test_what_is_written_is_what_mindspore_writes() -> None:
    """Byte for byte, so that stock code reads it, CRC and all."""
    written = ckpt.encode((name, info, memoryview(data)) for name, (info, data) in HELD.items())

    assert b"".join(written) == BY_MINDSPORE


def test_every_dtype_goes_there_and_back(tmp_path: Path) -> None:
    """Values at the ends of each type, an empty tensor beside them."""
    kinds = [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]
    arrays = Arrays({k: np.array([[0, 1], [1, 0]]).astype(k) for k in (*kinds, "bool", "float16", "float64")})
    arrays["empty"] = np.zeros((0, 3), np.float32)
    tensors, path = read_all(arrays), tmp_path / "a.ckpt"
    path.write_bytes(b"".join(ckpt.encode((n, infos(tensors)[n], t.data) for n, t in tensors.items())))

    contents = ckpt.read(path)

    assert dict(contents.tensors) == infos(tensors)
    assert all(ckpt.read_tensor(contents, name) == tensor.data for name, tensor in tensors.items())


def test_a_large_tensor_is_written_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of one tag, each with the whole shape, are one tensor again."""
    monkeypatch.setattr(ckpt, "SLICE_BYTES", 10)
    array, path = Arrays(w=np.arange(9, dtype=np.float32)), tmp_path / "a.ckpt"
    path.write_bytes(b"".join(ckpt.encode((n, t.info, t.data) for n, t in read_all(array).items())))

    contents = ckpt.read(path)

    assert [length for _, length in contents.pieces["w"]] == [10, 10, 10, 6]
    assert ckpt.read_tensor(contents, "w") == read_all(array)["w"].data


def test_a_file_cut_inside_a_record_is_damaged(golden: Path, tmp_path: Path) -> None:
    """At every length that is not the end of a record."""
    cut, ends = tmp_path / "cut.ckpt", boundaries(BY_MINDSPORE, golden)

    for length in set(range(len(BY_MINDSPORE))) - ends:
        cut.write_bytes(BY_MINDSPORE[:length])
        with pytest.raises(Damaged, match=str(cut)):
            ckpt.read(cut)


def test_a_file_cut_between_records_has_fewer_tensors(golden: Path, tmp_path: Path) -> None:
    """No reader can tell, MindSpore's neither: who knows what must be in it has to look."""
    cut, ends = tmp_path / "cut.ckpt", sorted(boundaries(BY_MINDSPORE, golden))

    for count, length in enumerate(ends, 1):
        cut.write_bytes(BY_MINDSPORE[:length])
        assert list(ckpt.read(cut).tensors) == list(HELD)[:count]
        assert not ckpt.read(cut).has_crc


def test_one_flipped_bit_breaks_the_crc(golden: Path, tmp_path: Path) -> None:
    """In any byte before the trailer's mark; and what is read of such a file is tensors, or Damaged."""
    flipped = tmp_path / "flipped.ckpt"

    for at in range(len(BY_MINDSPORE) - 17):
        content = bytearray(BY_MINDSPORE)
        content[at] ^= 1 << at % 8
        flipped.write_bytes(content)
        with pytest.raises(Damaged, match="its bytes have CRC"):
            ckpt.check_crc(flipped)
        _reads_or_is_damaged(flipped)


def test_a_file_without_crc_passes_its_check(tmp_path: Path) -> None:
    """Stock code saves none by default: there is nothing to hold the file to."""
    path = tmp_path / "plain.ckpt"
    path.write_bytes(BY_MINDSPORE[:-17])

    ckpt.check_crc(path)
    assert list(ckpt.read(path).tensors) == list(HELD)


@pytest.mark.parametrize(
    "content", [b"", b"crc_num" + bytes(10), b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\0" * 30]
)
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    """Nothing but Damaged is raised, whatever stands there."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)

    with pytest.raises(Damaged, match=str(path)):
        ckpt.read(path)


def test_one_dimension_of_nothing_is_a_scalar(tmp_path: Path) -> None:
    """MindSpore writes the shape of some 0-d tensors so."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"".join(ckpt.encode([("step", TensorInfo("I64", (0,)), memoryview(bytes(8)))])))

    assert ckpt.read(path).tensors == {"step": TensorInfo("I64", ())}


def test_a_tensor_without_all_its_bytes_is_damaged(tmp_path: Path) -> None:
    """A dropped slice of a large tensor leaves a file that parses."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"".join(ckpt.encode([("w", TensorInfo("F32", (4,)), memoryview(bytes(12)))])))

    with pytest.raises(Damaged, match=r"tensor 'w': 12 bytes, F32\[4\] needs 16"):
        ckpt.read(path)


def _reads_or_is_damaged(path: Path) -> None:
    try:
        ckpt.read(path)
    except Damaged:
        pass
