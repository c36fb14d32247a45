"""One pass from disk to tensor: every byte read once, by several threads, put where it belongs, and no second copy."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import quickest
import savers
from safetensors.numpy import save_file

from ms_resume import load, write
from ms_resume.errors import Damaged, MsResumeError
from ms_resume.load.source import Readable, Source
from ms_resume.ondisk import sums
from ms_resume.records import Payload, TensorInfo
from ms_resume.state import Arrays, HostTensor, read_all

PIECE = sums.PIECE


def file_of(save: Path, arrays: Any, file_format: str = "safetensors") -> tuple[Path, Payload]:
    """A reference payload with these arrays, as a save leaves it."""
    taken = savers.snapshot("0_5", file_format=file_format)
    taken = replace(taken, held={**taken.held, "ref": read_all(Arrays(arrays))})
    vote = write.save(savers.writer(save, savers.open_attempt(save)), taken, savers.ABOUT, None).vote
    file = vote.file("ref")
    assert file is not None
    return save / file.path, file


def loaded(source: Readable, live: Any, **options: Any) -> None:
    load.settle({"ref": source}, {"ref": live})
    load.place({"ref": source}, {"ref": live}, **options)


def values(seed: int = 0) -> dict[str, Any]:
    """Large and small, of sizes that fill no piece, 0-d, empty, and of each width."""
    random = np.random.default_rng(seed)
    return {
        "large": random.integers(0, 255, 3 * PIECE + 17, np.uint8),
        "whole pieces": random.standard_normal((2, PIECE // 4)).astype(np.float32),
        "half": random.standard_normal((5, 7)).astype(np.float16),
        "0-d": np.array(random.integers(0, 1 << 60)),
        "none": np.zeros((0, 3), np.float32),
        "mask": random.integers(0, 2, 33).astype(np.bool_),
        **{f"small.{n}": random.standard_normal(n % 7 + 1) for n in range(600)},
    }


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
@pytest.mark.parametrize("staged", [False, True])
def test_every_byte_is_where_it_belongs(tmp_path: Path, file_format: str, staged: bool) -> None:
    """And the arrays are the same arrays."""
    held = {name: array for name, array in values().items() if file_format != "ckpt" or array.size}  # it has no empty
    path, file = file_of(tmp_path, held, file_format)
    live = Arrays({name: np.ones_like(array) for name, array in held.items()})
    before = dict(live)
    source: Readable = Source(path, file)
    told: list[int] = []
    loaded(load.stage({"ref": source}, {"ref": live})["ref"] if staged else source, live, progress=told.append)

    assert {name: bytes(live.read(name).data) for name in live} == {n: a.tobytes() for n, a in held.items()}
    assert all(live[name] is array for name, array in before.items())
    assert sum(told) == sum(array.nbytes for array in held.values())
    assert max(told) <= (len(held["large"]) if staged else PIECE)


def strided(array: Any) -> Any:
    return np.ones((*array.shape, 2), array.dtype)[..., 0]


def reversed_(array: Any) -> Any:
    return np.ones_like(array)[::-1]


def transposed(array: Any) -> Any:
    return np.ones(array.shape[::-1], array.dtype).T


def big_endian(array: Any) -> Any:
    return np.ones(array.shape, array.dtype.newbyteorder(">"))


@pytest.mark.parametrize("made", [strided, reversed_, transposed, big_endian])
def test_memory_that_is_not_as_the_file_is(tmp_path: Path, made: Any) -> None:
    """D6: right values, not the bytes as they come; and what lies between them stays as it was."""
    held = {"w": np.arange(40, dtype=np.float32).reshape(5, 8)}
    path, file = file_of(tmp_path, held)
    live = Arrays(w=made(held["w"]))
    around = live["w"].base
    loaded(Source(path, file), live)

    assert live.memory("w") is None
    assert np.array_equal(live["w"], held["w"])
    if made is strided:
        assert np.array_equal(around[..., 1], np.ones((5, 8)))


def test_what_is_not_contiguous_is_saved_right(tmp_path: Path) -> None:
    """D6, the other way: safetensors 0.8.0 writes the memory under a strided array as it lies there."""
    whole = np.arange(80, dtype=np.float32).reshape(5, 16)
    made = {"columns": whole[:, 3:9], "steps": whole[::2, ::-3], "transposed": whole.T, "reversed": whole[::-1]}
    path, file = file_of(tmp_path, made)
    live = Arrays({name: np.zeros(array.shape, array.dtype) for name, array in made.items()})
    loaded(Source(path, file), live)

    assert all(np.array_equal(live[name], array) for name, array in made.items())


def test_a_read_only_array_is_not_written(tmp_path: Path) -> None:
    path, file = file_of(tmp_path, {"w": np.ones(4)})
    live = Arrays(w=np.zeros(4))
    live["w"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        loaded(Source(path, file), live)


class Device(Arrays):
    """Tensors that lie elsewhere: placed one by one, by one thread, and copied when they are read."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.placed: list[tuple[str, int]] = []

    def read(self, name: str) -> HostTensor:
        value = super().read(name)
        return HostTensor(value.dtype, value.shape, memoryview(bytearray(value.data)))

    def place(self, name: str, value: HostTensor) -> None:
        self.placed.append((name, threading.get_ident()))
        super().place(name, value)

    def memory(self, name: str) -> memoryview | None:
        return None


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_a_device_is_fed_by_the_thread_that_loads(tmp_path: Path, file_format: str) -> None:
    """MindSpore's operators are called from one thread; others read ahead."""
    held = {name: array for name, array in values().items() if array.size}
    path, file = file_of(tmp_path, held, file_format)
    live = Device({name: np.zeros_like(array) for name, array in held.items()})
    loaded(Source(path, file), live)

    assert {name: bytes(live.read(name).data) for name in live} == {n: a.tobytes() for n, a in held.items()}
    assert {thread for _, thread in live.placed} == {threading.get_ident()}
    assert len(live.placed) == len(held)


class Renamed:
    """Another source under other names, without a way of its own to be poured."""

    def __init__(self, source: Source, names: dict[str, str]) -> None:
        self.path, self.bytes, self.values = source.path, source.bytes, source.values
        self.tensors = {new: source.tensors[old] for new, old in names.items()}
        self.digests = {new: source.digests[old] for new, old in names.items()}
        self._source, self._names = source, names
        self.reads: list[str] = []

    def read(self, name: str) -> HostTensor:
        self.reads.append(name)
        return self._source.read(self._names[name])


def test_a_source_that_only_reads(tmp_path: Path) -> None:
    """What a name map makes: each tensor is read once, checked, and placed like any other."""
    path, file = file_of(tmp_path, {"a": np.arange(4.0), "b": np.arange(4.0) + 9})
    source = Renamed(Source(path, file), {"b": "a", "a": "b"})
    live = Arrays(a=np.zeros(4), b=np.zeros(4))
    loaded(source, live)

    assert (live["a"].tolist(), live["b"].tolist()) == ([9.0, 10.0, 11.0, 12.0], [0.0, 1.0, 2.0, 3.0])
    assert sorted(source.reads) == ["a", "b"]
    own_trees.flip_tensor(path, "a")
    with pytest.raises(Damaged, match="tensor 'a'"):
        loaded(source, live)


def test_a_source_that_reads_something_else_than_it_says(tmp_path: Path) -> None:
    """A part of a tensor would be left as it was."""
    path, file = file_of(tmp_path, {"a": np.arange(4.0), "b": np.arange(2.0)})
    source = Renamed(Source(path, file), {"a": "b", "b": "b"})
    source.tensors["a"] = TensorInfo("F64", (4,))
    with pytest.raises(MsResumeError, match="'a' is"):
        loaded(source, Arrays(a=np.zeros(4), b=np.zeros(2)))


def test_nothing_is_written_past_a_tensors_end(tmp_path: Path) -> None:
    """Whoever forgets to settle."""
    path, file = file_of(tmp_path, {"w": np.arange(8.0)})
    live = Arrays(w=np.zeros(4))
    with pytest.raises(MsResumeError, match=r"F64\[8\], the net has F64\[4\]"):
        load.place({"ref": Source(path, file)}, {"ref": live})

    assert live["w"].tolist() == [0.0] * 4


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    """A net with a part of the names reads that part: damage elsewhere is not its."""
    path, file = file_of(tmp_path, {name: np.full(3 * PIECE, ord(name), np.uint8) for name in "abc"})
    own_trees.flip_tensor(path, "b")
    told: list[int] = []
    live = Arrays(a=np.zeros(3 * PIECE, np.uint8), c=np.zeros(3 * PIECE, np.uint8))
    load.place({"ref": Source(path, file)}, {"ref": live}, told.append)

    assert sum(told) == 6 * PIECE
    assert {int(live[name][-1]) for name in "ac"} == {ord("a"), ord("c")}


@pytest.mark.parametrize(("second", "fits"), [(1.0, True), (2.0, False)])
def test_two_names_of_one_tensor(tmp_path: Path, second: float, fits: bool) -> None:
    """Tied weights: fine where the file has one value for both, and else one would hold the other's."""
    path, file = file_of(tmp_path, {"embedding": np.ones(4), "head": np.full(4, second)})
    tied = np.zeros(4)
    live = Arrays(embedding=tied, head=tied)
    if fits:
        loaded(Source(path, file), live)
        assert tied.tolist() == [1.0] * 4
        return
    with pytest.raises(MsResumeError, match="does not hold what was placed"):
        loaded(Source(path, file), live)


def test_tensors_that_overlap(tmp_path: Path) -> None:
    """A view into another tensor, written after it or before."""
    path, file = file_of(tmp_path, {"all": np.zeros(8), "part": np.ones(2)})
    whole = np.zeros(8)
    live = Arrays(all=whole, part=whole[3:5])
    with pytest.raises(MsResumeError, match="does not hold what was placed"):
        loaded(Source(path, file), live)


@pytest.mark.parametrize("order", [("all", "part"), ("part", "all")])
def test_tensors_that_overlap_and_a_file_without_digests(tmp_path: Path, order: tuple[str, str]) -> None:
    """Read in one call, the digest of one would be of what the other left there, and nothing else would tell."""
    values = {"all": np.zeros(8), "part": np.ones(2)}
    path = tmp_path / "theirs.safetensors"
    save_file({name: values[name] for name in order}, path)
    whole = np.zeros(8)
    with pytest.raises(MsResumeError, match="does not hold what was placed"):
        loaded(Source(path), Arrays(all=whole, part=whole[3:5]))


def test_something_else_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not damage: the next older checkpoint would fare no better."""
    path, file = file_of(tmp_path, {"a": np.arange(4.0), "b": np.arange(5.0)})
    live = Arrays(a=np.zeros(4), b=np.zeros(5))
    source = Source(path, file)
    read = os.preadv

    def meddle(fd: int, views: Any, offset: int) -> int:
        count = read(fd, views, offset)
        live["a"][0] = 7
        return count

    monkeypatch.setattr(os, "preadv", meddle)
    with pytest.raises(MsResumeError, match="'a' does not hold") as caught:
        loaded(source, live)

    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("most", [1, 5, 100])
def test_a_system_that_gives_less_than_was_asked_for(tmp_path: Path, most: int) -> None:
    """A network file system, or a signal."""
    held = {name: np.arange(n, n + 9.0) for n, name in enumerate("abc")}
    path, file = file_of(tmp_path, held)
    live = Arrays({name: np.zeros(9) for name in held})
    source = Source(path, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, views, at, read=os.preadv: read(fd, [views[0][:most]], at))
        loaded(source, live)

    assert all(np.array_equal(live[name], array) for name, array in held.items())


def test_small_ones_with_others_between_them(tmp_path: Path) -> None:
    """Each lands in its own place, and the others are not read: one of them is damaged."""
    held = {f"w{n:03}": np.full(3, n, np.float32) for n in range(700)}
    path, file = file_of(tmp_path, held)
    own_trees.flip_tensor(path, "w005")
    live = Arrays({name: np.zeros(3, np.float32) for n, name in enumerate(held) if n % 7 not in (2, 5)})
    load.place({"ref": Source(path, file)}, {"ref": live})

    assert all(np.array_equal(array, held[name]) for name, array in live.items())


def test_the_damaged_one_of_many_small_ones_is_named(tmp_path: Path) -> None:
    """Though they are read in one call."""
    held = {f"w{n:03}": np.full(3, n, np.float32) for n in range(300)}
    path, file = file_of(tmp_path, held)
    own_trees.flip_tensor(path, "w211")
    with pytest.raises(Damaged) as caught:
        loaded(Source(path, file), Arrays({name: np.zeros(3, np.float32) for name in held}))

    assert caught.value.fields["tensor"] == "w211"


def test_files_are_closed(tmp_path: Path) -> None:
    """Whether it succeeds or not."""
    held = {f"w{n}": np.full(5 * PIECE, n, np.uint8) for n in range(8)}
    path, file = file_of(tmp_path, held)
    live = Arrays({name: np.zeros_like(array) for name, array in held.items()})
    loaded(Source(path, file), live)
    own_trees.flip_tensor(path, "w3")
    with pytest.raises(Damaged):
        loaded(Source(path, file), live)

    assert str(path) not in {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)}


def is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the peak of this process's memory grows meanwhile."""
    clear = Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        pytest.skip("the kernel does not let the peak be counted anew")

    def of(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    clear.write_text("5")
    before = of("VmRSS")
    work()
    return of("VmHWM") - before


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_no_second_copy(tmp_path: Path, file_format: str) -> None:
    """64 MiB into memory that is there."""
    held = {f"w{n}": np.full(16 << 20, n, np.uint8) for n in range(4)}
    path, file = file_of(tmp_path, held, file_format)
    live = Arrays({name: np.full_like(array, 9) for name, array in held.items()})
    source = Source(path, file)

    assert growth(lambda: loaded(source, live)) < 12 << 20
    assert all(np.array_equal(live[name], array) for name, array in held.items())


def test_the_file_may_change_or_vanish_afterwards(tmp_path: Path) -> None:
    """D5: nothing is a view of it."""
    path, file = file_of(tmp_path, {"w": np.arange(PIECE)})
    live = Arrays(w=np.zeros(PIECE, np.int64))
    loaded(Source(path, file), live)
    path.write_bytes(bytes(path.stat().st_size))
    os.truncate(path, 1)
    path.unlink()

    assert np.array_equal(live["w"], np.arange(PIECE))


def test_a_file_that_is_cut_while_it_is_loaded(tmp_path: Path) -> None:
    """Damaged, not a bus error."""
    path, file = file_of(tmp_path, values())
    source = Source(path, file)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Damaged, match="bytes early"):
        loaded(source, Arrays({name: np.ones_like(array) for name, array in values().items()}))


def test_threads_have_ended_when_it_fails(tmp_path: Path) -> None:
    """None writes into tensors that somebody else has by then."""
    held = {f"w{n}": np.full(4 * PIECE, 1, np.uint8) for n in range(12)}
    path, file = file_of(tmp_path, held)
    own_trees.flip_tensor(path, "w0")
    live = Arrays({name: np.zeros_like(array) for name, array in held.items()})
    with pytest.raises(Damaged, match="w0"):
        loaded(Source(path, file), live)
    for array in live.values():
        array[...] = 7
    time.sleep(0.05)

    assert all((array == 7).all() for array in live.values())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ms_resume read")]


def test_a_host_of_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its ranks starts a few threads, not one for each core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(192)))
    all_at_work = threading.Barrier(sums.MOST_THREADS)

    def work() -> int:
        all_at_work.wait(60)
        return threading.get_ident()

    with sums.threads() as threads:
        begun = [threads.submit(work) for _ in range(8 * sums.MOST_THREADS)]
        assert len({part.result() for part in begun}) == threads.count == sums.MOST_THREADS


def test_many_small_tensors(tmp_path: Path) -> None:
    """About 25 microseconds each on one core, measured; here with a margin for other work on the machine."""
    held = {f"layer.{n}.weight": np.full(64, n, np.float32) for n in range(4096)}
    path, file = file_of(tmp_path, held)
    live = Arrays({name: np.zeros_like(array) for name, array in held.items()})
    source = Source(path, file)
    enough_s = 4096 * 200e-6
    _, took_s = quickest.of(lambda: load.place({"ref": source}, {"ref": live}), enough_s)

    assert all(np.array_equal(live[name], array) for name, array in held.items())
    assert took_s < enough_s


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 5), (7, 1), (1000, 70_000), (3, (1 << 20) + 1)])
def test_crcs_are_joined(sizes: tuple[int, int]) -> None:
    """Of two stretches each by itself, and of zeros that nobody has."""
    first, second = (np.random.default_rng(size).integers(0, 255, size, np.uint8).tobytes() for size in sizes)
    crc = sums.Crc()
    crc.update(first)
    crc.extend(zlib.crc32(second), len(second))
    assert crc.value == zlib.crc32(first + second)
    crc.update_zeros(sizes[1])

    assert crc.value == zlib.crc32(first + second + bytes(sizes[1]))
