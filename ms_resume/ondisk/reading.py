"""The one door through which a save directory is read: what lies there may be anybody's.

Only plain files are opened and only real directories listed. To open a FIFO waits for ever, a device has no end, and
what a symbolic link names may lie outside the save directory; the save directory itself may be one. Nothing is
allocated by what a file claims: JSON is read up to a limit, directories name by name.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ms_resume.errors import Damaged

DOCUMENT_LIMIT = 4 << 20
"""Bytes of a vote, a record or a `meta.json`. Parsed, JSON takes up to 25 times its length."""

_BUFFER = 4096
"""What a network file system recommends may be 4 MiB, read for 8 bytes of a header."""

_LARGEST = (1 << 63) - 1
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
_LINK_HINT = "put in its place what it names: a link may lead out of the save directory, so none in it is followed"


def opened(path: Path) -> BinaryIO:
    """A plain file, to be read.

    Raises:
        Damaged: Something else has its name.
        OSError: It cannot be opened.
    """
    return os.fdopen(_open(path)[0], "rb", _BUFFER)


def size(path: Path | str) -> int:
    """Bytes of a plain file. Raises as `opened` does."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise _other(path, status.st_mode, "a file")
    return status.st_size


def content(path: Path | str, limit: int = DOCUMENT_LIMIT) -> bytes:
    """A whole small file. Raises Damaged where it is longer than `limit`, and as `opened` does."""
    fd, length = _open(path)
    try:
        if length > limit:
            raise damaged(path, f"{length} bytes, at most {limit} are read of such a file")
        found = os.read(fd, length)
        while len(found) < length and (more := os.read(fd, length - len(found))):
            found += more
        return found
    finally:
        os.close(fd)


def listed(path: Path, *, follow: bool = False) -> Iterator[str]:
    """The names in a directory, one after the other; none where there is no directory of that name.

    Args:
        follow: A person gave the path: it may be a symbolic link.

    Raises:
        Damaged: It is one.
        OSError: It cannot be listed.
    """
    if (fd := _open_dir(path, follow)) is None:
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name
    except OSError as error:
        error.filename = os.fspath(path)  # else it names a descriptor
        raise
    finally:
        os.close(fd)


def endings(path: Path | str, start: str) -> list[str]:
    """What follows `start` in the names that begin with it, as `listed` gives them, but sooner: there are many."""
    if (fd := _open_dir(path, follow=False)) is None:
        return []
    length = len(start)
    try:
        with os.scandir(fd) as entries:
            return [name[length:] for entry in entries if (name := entry.name).startswith(start)]
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        os.close(fd)


def parse(text: bytes | memoryview) -> Any:
    """One JSON document, which every reader reads alike: UTF-8, without lone surrogates, each name of an object once.

    Raises:
        ValueError: It is not.
    """
    try:
        plain = str(text, "utf-8")
        found = _DECODER.decode(plain)
        if "\\u" in plain:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def begin(text: str, start: str) -> tuple[Any, int]:
    """The JSON value that follows `start`, with which `text` begins, and where it ends. Held to what `parse` asks.

    Raises:
        ValueError: There is none.
    """
    if not text.startswith(start):
        raise ValueError(f"does not begin with {start}")
    try:
        found, end = _DECODER.raw_decode(text, len(start))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.find("\\u", 0, end) >= 0:
        json.dumps(found, ensure_ascii=False).encode()
    return found, end


def whole(value: object, least: int = 0, most: int = _LARGEST) -> int:
    """`value`, which must be a whole number in these bounds. Raises ValueError where it is not."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{brief(value)} is not a whole number from {least} to {most}")
    return value


def brief(value: object) -> str:
    """A value of unknown size for a message."""
    return reprlib.repr(value)


def damaged(path: Path | str, reason: str, hint: str = "", **fields: Any) -> Damaged:
    return Damaged(f"{path}: {reason}", hint=hint, path=str(path), reason=reason, **fields)


def _open(path: Path | str) -> tuple[int, int]:
    """A descriptor of a plain file, and its size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            size(path)
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise _other(path, status.st_mode, "a file")
    return fd, status.st_size


def _open_dir(path: Path | str, follow: bool) -> int | None:
    """None where there is no directory of that name. Raises as `listed` does."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        if os.path.islink(path):
            raise _other(path, stat.S_IFLNK, "a directory") from None
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _other(path: Path | str, mode: int, expected: str) -> Damaged:
    kind = _KINDS.get(stat.S_IFMT(mode), "a device")
    return damaged(path, f"{kind}, expected {expected}", hint=_LINK_HINT if stat.S_ISLNK(mode) else "")
