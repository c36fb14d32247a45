"""The shim as Python sees it: built with the system's compiler, steered and read through its control file.

A process that was started with `environment(...)` has the shim in it. One that forks (the campaign's own workers)
steers each child through a control file of its own: `attach` in the child, then `armed`.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
_PATH_BYTES = 1024
_FIXED = struct.Struct("=qqqiiiiiiq")  # seen, at, hit, mode, code, stall_ms, armed, recording, hit_kind, clock_offset_s
_CONTROL_BYTES = _FIXED.size + 3 * _PATH_BYTES
_ENTRY = struct.Struct("=IiqQqqiHH")


class Mode(enum.IntEnum):
    """What happens to the call at `at`; FAIL_ON lets every growing call from there on fail, STOP_EACH stops before each
    call after `at`."""

    COUNT = 0
    KILL = 1
    KILL_HALF = 2
    FAIL = 3
    FAIL_ON = 4
    SHORT = 5
    STALL = 6
    STOP = 7
    STOP_EACH = 8


class Kind(enum.IntEnum):
    OPEN = 1
    WRITE = 2
    SYNC = 3
    RENAME = 4
    LINK = 5
    UNLINK = 6
    MKDIR = 7
    RMDIR = 8
    SYMLINK = 9
    TRUNCATE = 10
    ALLOCATE = 11


@dataclass(frozen=True, slots=True)
class Call:
    """One call that succeeded. `inode` is that of the file or directory it was about (for RENAME and LINK, of the file
    under its new name; for UNLINK and RMDIR, of what was removed); `path` is absolute, `to` the second path.

    `offset` and `data` are what a WRITE wrote, `length` a TRUNCATE's or ALLOCATE's size in bytes; `flags` are those of
    open and renameat2, and 1 for the SYNC of a directory.
    """

    kind: Kind
    number: int
    inode: int
    path: str
    to: str
    offset: int
    length: int
    flags: int
    data: bytes


class Unavailable(Exception):
    """A part of the campaign cannot run here; the message says why."""


def build() -> Path:
    """The shim, compiled once for each version of its source.

    Raises:
        Unavailable: There is no C compiler, or it failed.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable("no C compiler (cc, gcc, clang) on PATH")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"ms_resume_shim_{os.getuid()}_{digest}.so"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(part), str(SOURCE), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"{compiler} cannot build the shim: {done.stderr.strip()[:300]}")
        part.replace(built)
    return built


def environment(control: Control | None = None) -> dict[str, str]:
    """This process's environment with the shim in it; armed from the start when `control` is."""
    more = {"LD_PRELOAD": str(build())} | ({"FAULTS_CONTROL": str(control.path)} if control else {})
    return {**os.environ, **more}


def present() -> bool:
    """Whether the shim is in this process."""
    return hasattr(ctypes.CDLL(None), "shim_attach")


class Control:
    """A control file: settings for one process or several, and what they report, also after their death."""

    def __init__(self, path: Path, root: Path, record: Path | None = None) -> None:
        self.path, self.root, self.record = path, root, record
        with open(path, "wb") as file:
            file.truncate(_CONTROL_BYTES)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _CONTROL_BYTES)
        self._put(_FIXED.size, str(root))
        self._put(_FIXED.size + _PATH_BYTES, str(record or ""))
        self._set(recording=int(record is not None))

    @property
    def seen(self) -> int:
        return int(self._get()[0])

    @property
    def hit(self) -> int:
        return int(self._get()[2])

    @property
    def hit_kind(self) -> Kind:
        return Kind(self._get()[8])

    @property
    def hit_path(self) -> str:
        start = _FIXED.size + 2 * _PATH_BYTES
        return self._map[start : start + _PATH_BYTES].split(b"\0", 1)[0].decode()

    def arm(self, mode: Mode = Mode.COUNT, at: int = 0, *, code: int = 0, stall_ms: int = 0) -> None:
        """From now on calls are counted, from 1, and the one at `at` is hit."""
        self._set(seen=0, at=at, hit=0, mode=int(mode), code=code, stall_ms=stall_ms, armed=1)

    def aim(self, mode: Mode, at: int) -> None:
        """Another fate for another call, while the process is stopped; counting goes on."""
        self._set(mode=int(mode), at=at)

    def disarm(self) -> None:
        self._set(armed=0)

    def jump_clock(self, seconds: int) -> None:
        """The real-time clock of the processes that are attached."""
        self._set(clock_offset_s=seconds)

    def attach(self) -> None:
        """Puts this process, and what it forks, under this control file. The shim must be in it."""
        if ctypes.CDLL(None).shim_attach(os.fsencode(self.path)) != 0:
            raise OSError(f"the shim cannot map {self.path}")

    @contextlib.contextmanager
    def armed(self, mode: Mode = Mode.COUNT, at: int = 0, *, code: int = 0, stall_ms: int = 0) -> Iterator[None]:
        """Attaches this process and arms for as long as the block lasts."""
        self.attach()
        self.arm(mode, at, code=code, stall_ms=stall_ms)
        try:
            yield
        finally:
            self.disarm()

    def calls(self) -> list[Call]:
        """What was recorded, in the order in which it took effect."""
        return read_record(self.record) if self.record else []

    def close(self) -> None:
        self._map.close()
        for path in (self.path, self.record):
            if path:
                path.unlink(missing_ok=True)

    def _get(self) -> tuple[int, ...]:
        return _FIXED.unpack_from(self._map)

    def _set(self, **values: int) -> None:
        fields = ("seen", "at", "hit", "mode", "code", "stall_ms", "armed", "recording", "hit_kind", "clock_offset_s")
        now = dict(zip(fields, self._get(), strict=True)) | values
        _FIXED.pack_into(self._map, 0, *(now[field] for field in fields))

    def _put(self, offset: int, text: str) -> None:
        encoded = text.encode()
        assert len(encoded) < _PATH_BYTES
        self._map[offset : offset + len(encoded) + 1] = encoded + b"\0"


def read_record(path: Path) -> list[Call]:
    content = path.read_bytes() if path.exists() else b""
    calls, at = [], 0
    while at < len(content):
        size, kind, number, inode, offset, length, flags, from_bytes, to_bytes = _ENTRY.unpack_from(content, at)
        start = at + _ENTRY.size
        middle, end = start + from_bytes, start + from_bytes + to_bytes
        origin, to, data = content[start:middle].decode(), content[middle:end].decode(), content[end : at + size]
        calls.append(Call(Kind(kind), number, inode, origin, to, offset, length, flags, data))
        at += size
    return calls
