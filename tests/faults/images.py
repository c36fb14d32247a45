"""Power lost on real file systems: what an ext4 and an xfs image hold after every call, mounted anew and judged.

A scenario acts on a mounted image and is stopped before each of its calls. What the image's file holds then is what a
machine that loses power at that moment finds: what the kernel has not written back is missing. The kernel may write
back anything at any time, so most runs also do that from outside, drawn at random: a block, a file, what an fsync of
some file or directory takes along, or everything. Each copy goes through its file system's own recovery: it is mounted.

What a disk with a volatile cache may lose or reorder besides does not show here; `power_model` works it out.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from faults import cases, judge, scenarios
from faults.cases import Tally
from faults.processes import Child, End, Tell, in_child
from faults.scenarios import Expected, Scenario, Stage
from faults.shim import Control, Kind, Mode, Unavailable

KINDS = ("ext4", "xfs")
SCENARIOS = (
    "the first save of all",
    "a save, with retention",
    "a save with a new reference",
    "a save as .ckpt",
    "a torn position saved again",
    "an abandoned position saved again",
    "a start",
    "going back",
    "restore",
    "repair",
)
"""Those that act in one process: only that one is stopped."""

RUNS = 3
"""Of each scenario on each file system; nothing is written back from outside in the first of them."""

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "--unsupported", "-q"),  # one below 300 MiB is refused otherwise, and copied too slowly
}
_BYTES = {"ext4": 16 << 20, "xfs": 20 << 20}
_MOUNT = {"ext4": "loop,commit=300", "xfs": "loop,nouuid"}  # else ext4 commits every 5 s, here and there in a run
_PIECE = 1 << 16
_CLONE_NEWNS = 0x20000
_WRITE_AND_WAIT = 7  # all three flags of sync_file_range
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Content:
    """What an image's file holds: its pieces that are not all zeros, by offset."""

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    digest: str

    def write(self, path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(self.size)
            for offset, piece in self.pieces:
                os.pwrite(file.fileno(), piece, offset)


def read(path: Path) -> Content:
    """An image's file as it is at one moment: it is read until two readings agree."""
    now = _read(path)
    for _ in range(100):
        before, now = now, _read(path)
        if now.digest == before.digest:
            return now
    raise AssertionError(f"{path}: never stands still")


def _read(path: Path) -> Content:
    digest, pieces = xxhash.xxh3_128(), []
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for offset in _offsets(file.fileno(), size):
            piece = os.pread(file.fileno(), _PIECE, offset)
            if piece.strip(b"\0"):
                pieces.append((offset, piece))
                digest.update(b"%d " % offset + piece)
    return Content(size, tuple(pieces), digest.hexdigest())


def _offsets(fd: int, size: int) -> Iterator[int]:
    """Of the pieces that hold data."""
    offset = 0
    while offset < size:
        try:
            offset = max(offset, os.lseek(fd, offset, os.SEEK_DATA) // _PIECE * _PIECE)
        except OSError:  # only a hole follows
            return
        yield offset
        offset += _PIECE


class Image:
    """A file system in a file, mounted at `at` for as long as the block lasts.

    Args:
        content: What it holds; a new, empty file system when left out.
        options: Further options of mkfs, for a new one.

    Raises:
        Unavailable: A new one cannot be made or mounted here; the message says why.
        OSError: This content cannot be mounted.
    """

    def __init__(self, kind: str, content: Content | None = None, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self._content = content or _new(kind, tuple(options))
        self.home = cases.room() / f"image_{time.monotonic_ns()}"
        self.file, self.at = self.home / "image", self.home / "mounted"

    def __enter__(self) -> Image:
        self.at.mkdir(parents=True)
        self._content.write(self.file)
        _keep_mounts_private()
        try:
            _command("mount", "-t", self.kind, "-o", _MOUNT[self.kind], str(self.file), str(self.at))
        except OSError:
            shutil.rmtree(self.home)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()
        shutil.rmtree(self.home, ignore_errors=True)

    def content(self) -> Content:
        """What would be left if the power went now."""
        return read(self.file)

    def unmount(self) -> None:
        """Does nothing when it is unmounted already."""
        for _ in range(50):
            if not os.path.ismount(self.at):
                return
            with contextlib.suppress(OSError):  # a child that was just killed may still hold it
                _command("umount", str(self.at))
                return
            time.sleep(0.1)
        _command("umount", "-l", str(self.at))


@lru_cache(maxsize=16)
def _new(kind: str, options: tuple[str, ...]) -> Content:
    """A new file system that was mounted once, so that a mount that fails later has another cause than this machine."""
    if os.geteuid() != 0:
        raise Unavailable(f"{kind}: mounting an image takes root")
    path = cases.room() / f"new_{kind}_{time.monotonic_ns()}"
    try:
        with open(path, "wb") as file:
            file.truncate(_BYTES[kind])
        _command(*_MAKE[kind], *options, str(path))
        content = _read(path)
        with Image(kind, content):
            return content
    except OSError as error:
        raise Unavailable(f"{kind}: {error}") from None
    finally:
        path.unlink(missing_ok=True)


def _command(*words: str) -> None:
    found = shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise OSError(f"no {words[0]} on PATH")
    done = subprocess.run([found, *words[1:]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.replace(f"{words[0]}: ", "").replace(f"{words[-1]}: ", "").split())
        raise OSError(f"{words[0]} failed: {said[:200]}")


@lru_cache(maxsize=1)
def _keep_mounts_private() -> None:
    """What this process mounts goes when it ends, even when it is killed: it gets a mount namespace of its own."""
    if _libc.unshare(_CLONE_NEWNS) == 0:
        _command("mount", "--make-rprivate", "/")


@lru_cache(maxsize=8)
def prepared(kind: str, scenario: Scenario, options: tuple[str, ...] = ()) -> tuple[Content, Expected]:
    """An image in which the scenario was prepared, cleanly unmounted, and what is acknowledged in it."""
    with Image(kind, options=options) as image:
        case = image.at / "case"
        case.mkdir()
        end = in_child(lambda tell: scenario.prepare(Stage(case / "save", tell)))
        if end.kind != "returned":
            raise AssertionError(f"{scenario} on {kind}: cannot be prepared: {end.value}")
        image.unmount()
        return image.content(), Expected().hear(*end.told)


@dataclass(frozen=True)
class Case:
    """One run of a scenario on one file system."""

    kind: str
    scenario: Scenario
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.scenario}, on {self.kind}, run {self.number} (seed {self.seed})"


@dataclass(frozen=True)
class Point:
    """The power goes after so many calls of a run; what the last one was, and what was written back from outside."""

    calls: int
    last: Kind | None
    path: str
    written_back: str
    content: Content
    expected: Expected

    def __str__(self) -> str:
        done = f"after call {self.calls}" + (f" ({self.last.name} {self.path})" if self.last else "")
        return f"{done}, last written back from outside: {self.written_back}" if self.written_back else done


def of_power_loss(seed: int, share: float = 1.0, kinds: Sequence[str] = KINDS) -> list[Case]:
    """The runs to make, and as many of them as `share` says, at least one on each file system."""
    drawn: list[Case] = []
    for kind in kinds:
        of_kind = [
            Case(kind, scenarios.named(name, world_size), number, seed)
            for world_size in (1, 2)
            for name in SCENARIOS
            for number in range(RUNS)
        ]
        count = min(len(of_kind), max(1, round(share * len(of_kind))))
        chosen = set(random.Random(f"{seed} {kind}").sample(range(len(of_kind)), count))
        drawn += [case for n, case in enumerate(of_kind) if n in chosen]
    return drawn


def check(case: Case) -> Tally:
    """Makes one run, then judges every copy that is unlike the others."""
    tally = Tally("power loss on images", "points", notes={"sync points": 0, "points between": 0, "copies mounted": 0})
    judged = set()
    points, end = _run(case)
    for point in points:
        tally.cases += 1
        tally.notes["sync points" if point.last is Kind.SYNC else "points between"] += 1
        unlike = (point.content.digest, repr(point.expected.candidates))
        if unlike in judged:
            continue
        judged.add(unlike)
        tally.notes["copies mounted"] += 1
        if wrong := _judge(case, point):
            tally.failures.append(f"{case}: power lost {point}: {wrong}")
    if end.kind != "returned":
        tally.failures.append(f"{case}: undisturbed it {end.kind}: {end.value}")
    return tally


def run(seed: int, share: float = 1.0, kinds: Sequence[str] = KINDS, jobs: int = 2) -> Tally:
    """All runs, spread over processes. A file system that cannot be had here is named in `skipped`."""
    tally = Tally("power loss on images", "points")
    began = time.monotonic()
    kinds, tally.skipped = available(kinds)
    for done in spread(check, of_power_loss(seed, share, kinds), jobs):
        tally.merge(done)
    tally.seconds = time.monotonic() - began
    return tally


def available(kinds: Sequence[str] = KINDS) -> tuple[list[str], str]:
    """The file systems that can be made and mounted here, and why the others cannot."""
    found, reasons = [], []
    for kind in kinds:
        # In a child, because the processes that do the work get a mount namespace each.
        end = in_child(partial(_why_not, kind))
        if end.kind != "returned":
            raise AssertionError(f"an image of {kind}: {end.kind}: {end.value}")
        if end.value:
            reasons.append(end.value)
        else:
            found.append(kind)
    return found, "; ".join(reasons)


def _why_not(kind: str, tell: Tell) -> str:
    try:
        _new(kind, ())
    except Unavailable as reason:
        return str(reason)
    return ""


def spread(check: Callable[[Any], Any], cases: Sequence[Any], jobs: int) -> Iterator[Any]:
    """`check` of every case, in processes that are forked from this one."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(check, cases, chunksize=max(1, min(RUNS, len(cases) // jobs)))


def _run(case: Case) -> tuple[list[Point], End]:
    content, expected = prepared(case.kind, case.scenario)
    with Image(case.kind, content) as image:
        root, heard = image.at / "case", image.home / "heard"
        control = Control(image.home / "control", root)

        def work(tell: Tell) -> None:
            def note(word: Any) -> None:
                with open(heard, "ab") as file:
                    pickle.dump(word, file)

            case.scenario.act(Stage(root / "save", note, expected, lambda: control.armed(Mode.STOP_EACH)))

        child = Child(work)
        try:
            points = list(_points(case, image, child, control, lambda: expected.hear(*_heard(heard))))
        except BaseException:
            child.kill()
            raise
        end = child.wait()
        control.close()
        return points, end


def _points(
    case: Case, image: Image, child: Child, control: Control, expected: Callable[[], Expected]
) -> Iterator[Point]:
    """One at each stop, that is after each call, and one at the end."""
    draw, written_back = random.Random(f"{case.seed} {case}"), ""
    done: tuple[int, Kind | None, str] = (0, None, "")
    while child.stops():
        if case.number and draw.random() < 0.3:
            written_back = _write_back(draw, image.at / "case")
        yield Point(*done, written_back, image.content(), expected())
        done = control.hit, control.hit_kind, os.path.relpath(control.hit_path, image.at / "case")
        child.go_on()
    yield Point(*done, written_back, image.content(), expected())


def _heard(path: Path) -> list[Any]:
    words: list[Any] = []
    if path.exists():
        with open(path, "rb") as file, contextlib.suppress(EOFError):
            while True:
                words.append(pickle.load(file))
    return words


def _judge(case: Case, point: Point) -> str:
    try:
        with Image(case.kind, point.content) as copy:
            return judge.look(copy.at / "case" / "save", case.scenario.world_size, point.expected)
    except OSError as error:
        return f"the copy cannot be mounted: {error}"


def _write_back(draw: random.Random, case: Path) -> str:
    """Something that the kernel may do by itself at any moment; what it was, in a few words."""
    there = [case, *sorted(path for path in case.rglob("*") if not path.is_symlink())]
    path = draw.choice(there)
    how = draw.choices(
        ("a block of", "all of", "with its directory or journal,", "everything, not only"), (4, 3, 3, 1)
    )[0]
    fd = os.open(path, os.O_RDONLY)
    try:
        if how.startswith("everything"):
            _libc.syncfs(fd)
        elif how.startswith("with") or path.is_dir():
            os.fsync(fd)
        else:
            blocks = max(1, -(-os.fstat(fd).st_size // 4096))
            first, count = (draw.randrange(blocks), 1) if how == "a block of" else (0, blocks)
            start, length = ctypes.c_int64(first * 4096), ctypes.c_int64(count * 4096)
            _libc.sync_file_range(fd, start, length, ctypes.c_uint(_WRITE_AND_WAIT))
    finally:
        os.close(fd)
    return f"{how} {path.relative_to(case)}"
