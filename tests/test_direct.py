"""Large files: whatever way their bytes take, and whatever a file system refuses, they are those that were given."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from ms_resume.ondisk import direct

BLOCK = direct.BLOCK


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some blocks are large here, and no file system is known to refuse."""
    monkeypatch.setattr(direct, "LARGE", BLOCK)
    monkeypatch.setattr(direct, "PIECE", 2 * BLOCK)
    monkeypatch.setattr(direct, "_refusing", set())


def memory(size: int, seed: int = 0) -> memoryview:
    """Bytes at the beginning of a block."""
    view = memoryview(mmap.mmap(-1, size + BLOCK))
    view[:size] = random.Random(seed).randbytes(size)
    return view


def written(path: Path, size: int, pieces: list[tuple[int, memoryview]]) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        told: list[int] = []
        direct.write(path, fd, size, pieces, told.append)
        assert sum(told) in (0, sum(len(view) for _, view in pieces))  # 0 where the file is small
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK, 9 * BLOCK + 123])
def test_one_piece(tmp_path: Path, size: int) -> None:
    content = memory(size)[:size]

    assert written(tmp_path / "file", size, [(0, content)]) == bytes(content)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_at_any_place_and_in_any_order(tmp_path: Path, seed: int) -> None:
    """Some lie in memory as in the file, modulo a block, some do not; some are read-only; some are empty."""
    draw = random.Random(seed)
    size = draw.randint(1, 30 * BLOCK)
    cuts = sorted(draw.randint(0, size) for _ in range(6))
    content = draw.randbytes(size)
    pieces = []
    for begin, end in zip([0, *cuts], [*cuts, size], strict=True):
        view = memory(end - begin + 2 * BLOCK)[draw.choice((begin % BLOCK, 1)) :][: end - begin]
        view[:] = content[begin:end]
        pieces.append((begin, draw.choice((view, memoryview(bytes(view))))))
    draw.shuffle(pieces)

    assert written(tmp_path / "file", size, pieces) == content


def test_whole_blocks_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the edges."""
    asked: list[tuple[int, int]] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") and direct_flag(fd):
            asked.append((offset, len(data)))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    size = 5 * BLOCK + 100
    content = memory(size)[:size]
    written(tmp_path / "file", size, [(0, content)])

    assert sorted(asked) in ([(0, 2 * BLOCK), (2 * BLOCK, 2 * BLOCK), (4 * BLOCK, BLOCK)], [])  # []: refused here


def direct_flag(fd: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("where", ["open", "pwrite"])
def test_a_file_system_that_refuses_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """At the opening, or only at the first write: what was to go directly goes as usual."""
    asked = []
    real_open, real_write = os.open, os.pwrite

    def refusing_open(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            asked.append(path)
            if where == "open":
                raise OSError(errno.EINVAL, "refused")
        return real_open(path, flags, *mode)

    def refusing_write(fd: int, data: memoryview, offset: int) -> int:
        if where == "pwrite" and direct_flag(fd):
            raise OSError(errno.EINVAL, "refused")
        return real_write(fd, data, offset)

    monkeypatch.setattr(os, "open", refusing_open)
    monkeypatch.setattr(os, "pwrite", refusing_write)
    content = memory(9 * BLOCK)[: 9 * BLOCK]
    found = [written(tmp_path / name, 9 * BLOCK, [(0, content)]) for name in ("first", "second")]

    assert found == [bytes(content)] * 2
    assert len(asked) == 1


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few bytes, too: what is left then does not begin with a whole block."""
    draw, real = random.Random(3), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: _some(draw, fd, len(data))], at))
    content = memory(12 * BLOCK + 7)[: 12 * BLOCK + 7]

    assert written(tmp_path / "file", len(content), [(0, content)]) == bytes(content)


def _some(draw: random.Random, fd: int, size: int) -> int:
    """Direct writes are of whole blocks."""
    return draw.randint(1, size // BLOCK) * BLOCK if direct_flag(fd) else draw.randint(1, size)


def test_an_error_in_a_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "file", 9 * BLOCK, [(0, memory(9 * BLOCK)[: 9 * BLOCK])])


def test_no_room_is_known_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is asked for at once. A file of 8 EiB fits nowhere."""
    content = memory(BLOCK)[:BLOCK]
    with pytest.raises(OSError, match=r"No space|too large") as caught:
        written(tmp_path / "file", (1 << 63) - BLOCK, [(0, content)])

    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert (tmp_path / "file").stat().st_size == 0
