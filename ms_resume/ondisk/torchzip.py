"""What `torch.save` writes, judged by its zip directory and CRCs: a zip of stored records, never unpickled.

    <name>/data.pkl       the object, its tensors as references (nobody reads it here)
    <name>/version        the version of the format
    <name>/data/<key>     the bytes of one storage

A file that was cut has no directory at its end; one whose pages were lost fails a CRC. What a record should hold only
the pickle says, so a record that was left out, directory entry and all, is not seen.
https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/serialization/docs/serialization.md
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from ms_resume.errors import Damaged
from ms_resume.ondisk import reading, sums

ENDINGS = (".pt", ".pth", ".bin")
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch before 1.6 begin, or those saved with `_use_new_zipfile_serialization=False`."""

_EXPECTED = ("data.pkl", "version")
_LOCAL = struct.Struct("<4s22xHH")
_UTF_8 = 0x800
_DIRECTORY_LIMIT = 8 << 20
"""Of some 80,000 records."""

_BROKEN = (zipfile.BadZipFile, NotImplementedError, UnicodeError, struct.error, ValueError, OverflowError, EOFError)


@dataclass(frozen=True, slots=True)
class Record:
    """`begin` is where its bytes begin in the file."""

    name: str
    begin: int
    bytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class Contents:
    """The records of one file, in its order."""

    path: Path
    records: tuple[Record, ...]
    file_bytes: int


def is_named(path: Path) -> bool:
    """Whether `path` has an ending that torch files have."""
    return path.suffix in ENDINGS


def read(path: Path) -> Contents:
    """The directory, and each record's own header; the bytes of the records are not looked at.

    Raises:
        Damaged: They do not agree, or it is not what torch saves.
        OSError: The file cannot be read.
    """
    with reading.opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(len(OLD_MAGIC)) == OLD_MAGIC:
            hint = "load it with torch and save it again: a file of before torch 1.6 does not say where it should end"
            raise reading.damaged(path, "the form of before torch 1.6, which cannot be judged without unpickling", hint)
        try:
            with zipfile.ZipFile(cast(IO[bytes], _Directory(file))) as opened:
                records = tuple(_records(file, opened))
            _check_names([record.name for record in records])
        except _BROKEN as error:
            raise reading.damaged(path, f"{size} bytes, not a whole torch file ({error})") from None
    return Contents(path, records, size)


def check(contents: Contents, sinks: Sequence[sums.Sink] = ()) -> None:
    """Holds each record to its CRC; `sinks` take the bytes too. Raises Damaged, by the name of the record."""
    with reading.opened(contents.path) as file:
        for record in contents.records:
            crc = sums.Crc()
            if left := sums.feed(file, record.begin, record.bytes, [crc.update, *sinks]):
                raise _of_record(contents.path, record, f"ends {left} bytes early")
            if crc.value != record.crc:
                raise _of_record(
                    contents.path, record, f"its bytes have CRC {crc.value:#x}, the directory says {record.crc:#x}"
                )


def _of_record(path: Path, record: Record, reason: str) -> Damaged:
    return reading.damaged(path, f"record {record.name!r}: {reason}", record=record.name)


class _Directory:
    """A file as `zipfile` reads it to find its directory: no more than `_DIRECTORY_LIMIT` at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _DIRECTORY_LIMIT

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset, whence = self._file.seek(0, io.SEEK_END) + offset, io.SEEK_SET
        if offset < 0:
            raise ValueError("its end says that it began before its beginning")
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        if count > self._left:
            raise ValueError(f"a directory of more than {_DIRECTORY_LIMIT} bytes")
        found = self._file.read(self._left + 1 if count < 0 else count)
        self._left -= len(found)
        if self._left < 0:
            raise ValueError(f"a directory of more than {_DIRECTORY_LIMIT} bytes")
        return found


def _records(file: BinaryIO, opened: zipfile.ZipFile) -> Iterator[Record]:
    entries = sorted(opened.infolist(), key=lambda entry: entry.header_offset)
    if entries and entries[0].header_offset:
        raise ValueError(f"it begins at byte {entries[0].header_offset}, other bytes stand before it")
    ends = [*(entry.header_offset for entry in entries[1:]), opened.start_dir]
    for entry, end in zip(entries, ends, strict=True):
        yield _record(file, entry, end)


def _record(file: BinaryIO, entry: zipfile.ZipInfo, end: int) -> Record:
    """Raises ValueError where the record's own header is another one, or it reaches into what comes behind it."""
    name = reading.brief(entry.filename)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"record {name} is compressed, torch stores")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise ValueError(f"record {name} does not begin at byte {entry.header_offset}")
    _, name_bytes, extra_bytes = _LOCAL.unpack(header)
    if file.read(name_bytes) != entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF_8 else "cp437"):
        raise ValueError(f"another record than {name} begins at byte {entry.header_offset}")
    begin = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes
    if begin + entry.file_size > end:
        raise ValueError(f"record {name} reaches beyond byte {end}, where the next one begins")
    return Record(entry.filename, begin, entry.file_size, entry.CRC)


def _check_names(names: Sequence[str]) -> None:
    known, top = set(names), names[0].partition("/")[0] if names else ""
    if len(known) < len(names):
        raise ValueError("a record is there twice")
    if missing := [name for name in _EXPECTED if f"{top}/{name}" not in known]:
        raise ValueError(f"a zip without {' and '.join(missing)}")
