"""A file that torch saved is judged by its zip directory, each record's header and CRCs; nothing is unpickled."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
import torch_trees
from command import call

from ms_resume.errors import Damaged
from ms_resume.ondisk import torchzip

GOLDEN = Path(__file__).parent / "golden" / "torch"
LARGE = bytes(range(256)) * 36


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch_trees.write_torch(tmp_path / "model.pt", LARGE, b"", b"x" * 1000)
    return tmp_path / "model.pt"


def test_records(path: Path) -> None:
    """Names, where their bytes lie, and their CRCs."""
    contents = torchzip.read(path)

    assert [record.name for record in contents.records] == [
        "archive/data.pkl", "archive/byteorder", "archive/data/0", "archive/data/1", "archive/data/2",
        "archive/version",
    ]  # fmt: skip  # one list
    large = contents.records[2]
    assert path.read_bytes()[large.begin : large.begin + large.bytes] == LARGE
    torchzip.check(contents)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.pt")), ids=lambda path: path.name)
def test_what_torch_itself_wrote(golden: Path) -> None:
    """Whole, every byte of it."""
    contents = torchzip.read(golden)
    torchzip.check(contents)

    assert any(record.bytes == 4096 for record in contents.records)


def test_there_are_golden_files() -> None:
    assert sorted(golden.name for golden in GOLDEN.glob("*.pt")) == ["2.13.0.pt"]


def test_every_flipped_bit_is_seen(path: Path) -> None:
    """Of a record by its CRC, of a name or an extent by the directory. What no reader looks at may differ: times."""
    whole = path.read_bytes()
    unseen = []
    for at in range(0, len(whole), 53):
        harmed = bytearray(whole)
        harmed[at] ^= 0x10
        path.write_bytes(harmed)
        try:
            torchzip.check(torchzip.read(path))
            unseen.append(at)
        except Damaged:
            pass
    data = [(record.begin, record.begin + record.bytes) for record in _whole(path, whole).records]
    assert not [at for at in unseen if any(begin <= at < end for begin, end in data)]


def _whole(path: Path, content: bytes) -> torchzip.Contents:
    path.write_bytes(content)
    return torchzip.read(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_cut_file(path: Path, share: float) -> None:
    """Wherever it was cut: its directory is at the end."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(Damaged, match="not a whole torch file"):
        torchzip.read(path)


def test_a_lost_page(path: Path) -> None:
    """Headers hold; only reading every byte shows it, by the record's name."""
    record = torchzip.read(path).records[2]
    with open(path, "r+b") as file:
        file.seek(record.begin + 4096)
        file.write(bytes(4096))

    with pytest.raises(Damaged, match="record 'archive/data/0': its bytes have CRC 0x"):
        torchzip.check(torchzip.read(path))


def test_a_file_that_gets_shorter(path: Path) -> None:
    """Between the two looks."""
    contents = torchzip.read(path)
    with open(path, "r+b") as file:
        file.truncate(contents.records[2].begin + 100)

    with pytest.raises(Damaged, match="ends 9116 bytes early"):
        torchzip.check(contents)


def test_the_old_form_is_called_by_its_name(path: Path) -> None:
    """Its magic number stands in a pickle; nothing says where it should end."""
    path.write_bytes(torchzip.OLD_MAGIC + b"rest")

    with pytest.raises(Damaged, match=r"before torch 1\.6") as caught:
        torchzip.read(path)
    assert "save it again" in caught.value.hint


def _zip(path: Path, *names: str, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name in names:
            file.writestr(name, b"content " * 100)


def _overlapping(path: Path) -> None:
    """Two entries over the same bytes: what unpacks to more than there is."""
    _zip(path, "a/data.pkl", "a/version")
    content = path.read_bytes()
    second = content.rindex(b"PK\1\2")
    path.write_bytes(content[: second + 42] + struct.pack("<L", 0) + content[second + 46 :])


def _endless(path: Path) -> None:
    """Its end says that the directory has 390 MiB; the file, all holes, is as long."""
    with open(path, "wb") as file:
        file.seek(400 << 20)
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, 390 << 20, 10 << 20, 0))


def _many(path: Path) -> None:
    """A directory that is really there, and larger than one of a checkpoint is."""
    with zipfile.ZipFile(path, "w") as file:
        for number in range(2100):
            file.writestr(f"a/{number:04000d}", b"")


NONE: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: _zip(path, "readme.txt"), "without data.pkl and version"),
    (lambda path: _zip(path, "a/data.pkl", "b/version"), "without version"),
    (lambda path: _zip(path, "a/data.pkl", "a/version", "a/version"), "there twice"),
    (lambda path: _zip(path, "a/data.pkl", "a/version", compression=zipfile.ZIP_DEFLATED), "compressed, torch stores"),
    (_overlapping, "record 'a/data.pkl' reaches beyond byte 0, where the next one begins"),
    (_endless, "a directory of more than 8388608 bytes"),
    (_many, "a directory of more than 8388608 bytes"),
    (lambda path: path.write_bytes(b"PK\5\6" + bytes(18)), "not a whole torch file"),
    (lambda path: path.write_bytes(b"\xff" * 70_000), "not a whole torch file"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("build", "said"), NONE)
def test_a_zip_that_torch_did_not_write(tmp_path: Path, build: Callable[[Path], None], said: str) -> None:
    """Damaged, within bounds of memory, whatever it claims."""
    path = tmp_path / "model.pt"
    build(path)

    with hostile.watched(tmp_path), pytest.raises(Damaged, match=said):
        torchzip.read(path)


def test_bytes_in_front(path: Path) -> None:
    """Zip readers skip them, torch's does not."""
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())

    with pytest.raises(Damaged, match="begins at byte 10"):
        torchzip.read(path)


def test_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its records, and that it is not unpickled; by its first bytes where it has another ending."""
    other = path.with_suffix(".old")
    other.write_bytes(path.read_bytes())
    for shown in (other, path):
        called = call(capsys, "show", shown)

        assert called.code == 0
        assert "kind     torch" in called.out
        assert "9.0 KiB" in called.out
        assert "archive/data/0" in called.out
    records = call(capsys, "show", path, "--json").json["records"]
    assert records[2] == {
        "name": "archive/data/0",
        "bytes": len(LARGE),
        "crc": f"{torchzip.read(path).records[2].crc:08x}",
    }


def test_show_of_a_damaged_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(path.read_bytes()[:-1])

    assert call(capsys, "show", path).code == 21
