"""The rows of `bench_save.py`: this toolkit, the raw disk, and other tools, all with as many bytes on the disk.

A row is a context: inside it `save(number)` is what training waits for, and `finish()` returns when the tool says that
the save is over. Files that the tool did not sync are then synced by the benchmark, inside the time to durable.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Save = Callable[[int], float]
"""A save's number to the seconds for which training was blocked."""

Finish = Callable[[], object]
BLOCK, PIECE, THREADS = 4096, 8 << 20, 4


@dataclass(frozen=True)
class State:
    """What is saved. `weights` are in the policy's file and in the optimizer's, so a third tensor set, `again`, stands
    for them in tools that write every tensor once."""

    weights: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    again: dict[str, np.ndarray]

    @staticmethod
    def of(size: int, tensors: int) -> State:
        """`size` bytes on the disk, in `tensors` tensors of float32."""
        random, items = np.random.default_rng(0), max(1, size // 4 // tensors)

        def arrays(what: str, count: int) -> dict[str, np.ndarray]:
            return {f"{what}.{n}": random.standard_normal(items, dtype=np.float32) for n in range(count)}

        quarter = max(1, tensors // 4)
        return State(arrays("w", quarter), arrays("adam_m", 2 * quarter), arrays("again", quarter))

    @property
    def once(self) -> dict[str, np.ndarray]:
        return {**self.weights, **self.moments, **self.again}

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.once.values())


@dataclass(frozen=True)
class Row:
    name: str
    needs: tuple[str, ...]
    make: Callable[[Path, State], contextlib.AbstractContextManager[tuple[Save, Finish]]]
    durable: bool = True
    """Whether the time to durable says anything: not where a rollout lies in it."""

    synced: bool = False
    """Whether everything is on the disk when the tool says so: that of this toolkit the fault campaign checks."""

    def missing(self) -> str:
        from importlib.util import find_spec

        return next((f"{name} is not installed" for name in self.needs if find_spec(name) is None), "")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- the floor


@contextlib.contextmanager
def _copying(directory: Path, state: State) -> Iterator[tuple[Save, Finish]]:
    """One memcpy of what changes, into warm memory, in one thread."""
    changing = {**state.weights, **state.moments}
    copies = {name: np.array(array) for name, array in changing.items()}

    def copy() -> None:
        for name, array in changing.items():
            np.copyto(copies[name], array)

    yield lambda number: timed(copy), lambda: None


def _memory(state: State) -> memoryview:
    """Aligned, whole blocks, all of it there."""
    memory = memoryview(mmap.mmap(-1, state.bytes // BLOCK * BLOCK))
    np.frombuffer(memory, np.uint8)[...] = 1
    return memory


def _write_raw(path: Path, memory: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    os.posix_fallocate(fd, 0, len(memory))
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(os.pwrite, fd, memory[at : at + PIECE], at) for at in range(0, len(memory), PIECE)]:
            done.result()
    os.fsync(fd)
    os.close(fd)


@contextlib.contextmanager
def _raw(directory: Path, state: State) -> Iterator[tuple[Save, Finish]]:
    """Bytes from aligned memory to one preallocated file by direct I/O, from several threads; then fsync."""
    memory = _memory(state)
    yield lambda number: timed(lambda: _write_raw(directory / f"raw-{number}", memory)), lambda: None


@contextlib.contextmanager
def _straight(directory: Path, state: State) -> Iterator[tuple[Save, Finish]]:
    """The least that a verified checkpoint costs from Python, in a straight line: every tensor that changes is copied
    and digested once, a header is made, the bytes are written as in the raw write, then a vote; file and directory of
    each are synced. One payload, no check, no thread beside the writing, no `meta.json`."""
    import xxhash

    memory, changing = _memory(state), {**state.weights, **state.moments}
    sizes = [array.nbytes for array in changing.values()]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    views = [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    targets = [np.frombuffer(view, np.float32) for view in views]

    def save(number: int) -> None:
        for target, array in zip(targets, changing.values(), strict=True):
            np.copyto(target, array)
        entries = {
            name: {"dtype": "F32", "shape": array.shape, "at": start, "digest": xxhash.xxh3_128_hexdigest(view)}
            for (name, array), start, view in zip(changing.items(), starts, views, strict=True)
        }
        part, vote = directory / f"{number}.part", directory / f"vote-{number}.part"
        _write_raw(part, memory)
        for path, content in ((part, json.dumps(entries).encode()), (vote, b"{}" * 500)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.write(fd, content)
            os.fsync(fd)
            os.close(fd)
            path.rename(path.with_suffix(""))
            fd = os.open(directory, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    yield lambda number: timed(lambda: save(number)), lambda: None


# -- this toolkit


@contextlib.contextmanager
def checkpointing(save: Path, state: State, *, resume: bool = False, **settings: Any) -> Iterator[Any]:
    """A `Checkpointer` of one rank, started."""
    import ms_resume
    from ms_resume.framework.group import Solo
    from ms_resume.state import Arrays

    with ms_resume.Checkpointer(
        save,
        policy=Arrays(state.weights),
        optimizer=Arrays({**state.weights, **state.moments}),
        steps_per_epoch=1 << 20,
        settings=ms_resume.Settings(**{"heartbeat_s": 0, "keep_last": 2, **settings}),
        group=Solo(),
        say=lambda text: None,
    ) as checkpointer:
        checkpointer.start(resume=resume)
        yield checkpointer


@contextlib.contextmanager
def _ours(directory: Path, state: State, how: str, rollout_s_per_gib: float = 1.0, **settings: Any) -> Iterator[Any]:
    with checkpointing(directory / "save", state, **settings) as checkpointer:

        def save(number: int) -> float:
            if how == "waits":
                return timed(lambda: checkpointer.save(0, number))
            blocked = timed(lambda: checkpointer.begin(0, number))
            if how == "behind":
                time.sleep(rollout_s_per_gib * state.bytes / 2**30)
            return blocked + timed(checkpointer.fence)

        yield save, checkpointer.wait


# -- others


def _tool(prepare: Callable[[State], Any], save: Callable[[Path, Any], object], finish: Any = None) -> Any:
    """A tool whose call returns when its files are written, or something that `finish` waits for."""

    @contextlib.contextmanager
    def make(directory: Path, state: State) -> Iterator[tuple[Save, Finish]]:
        held, pending = prepare(state), []

        def once(number: int) -> float:
            began = time.perf_counter()
            pending.append(save(directory / f"{number}", held))
            return time.perf_counter() - began

        yield once, lambda: finish(pending.pop()) if finish else pending.clear()

    return make


def in_torch(arrays: Mapping[str, np.ndarray]) -> Any:
    """Tensors over the same memory."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def in_mindspore(arrays: Mapping[str, np.ndarray]) -> Any:
    import mindspore as ms

    return {name: ms.Parameter(ms.Tensor(array), name=name) for name, array in arrays.items()}


def _torch(state: State) -> Any:
    return in_torch(state.once)


def _parameters(state: State) -> Any:
    return in_mindspore(state.once)


def mindspore_save(path: Path, held: Any, *, ending: str, **options: Any) -> None:
    import mindspore as ms

    ms.save_checkpoint(held, f"{path}.{ending}", format=ending, **options)


def _mindspore_wait(result: object) -> None:
    import mindspore as ms

    with contextlib.suppress(AttributeError):
        ms.async_ckpt_thread_status()
    while ms.async_ckpt_thread_status():
        time.sleep(0.001)


def _dcp(path: Path, held: Any) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(held, storage_writer=dcp.FileSystemWriter(path, thread_count=2))


def _dcp_async(path: Path, held: Any) -> Any:
    import torch.distributed.checkpoint as dcp

    return dcp.async_save(held, storage_writer=dcp.FileSystemWriter(path, thread_count=2))


def _snapshot(path: Path, held: Any) -> None:
    from torchsnapshot import Snapshot, StateDict

    Snapshot.take(str(path), {"state": StateDict(**held)})


def _snapshot_async(path: Path, held: Any) -> Any:
    from torchsnapshot import Snapshot, StateDict

    return Snapshot.async_take(str(path), {"state": StateDict(**held)})


def _safetensors(path: Path, held: Any) -> None:
    from safetensors.numpy import save_file

    save_file(held, f"{path}.safetensors")


@contextlib.contextmanager
def _orbax(directory: Path, state: State) -> Iterator[tuple[Save, Finish]]:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(directory / "orbax") as manager:

        def save(number: int) -> float:
            return timed(lambda: manager.save(number, args=ocp.args.StandardSave(state.once)))

        yield save, manager.wait_until_finished


def rows() -> list[Row]:
    torch, snapshot, mindspore = ("torch",), ("torch", "torchsnapshot"), ("mindspore",)
    ckpt = partial(mindspore_save, ending="ckpt")
    return [
        Row("memcpy", (), _copying),
        Row("raw direct write + fsync", (), _raw),
        Row("a straight line from Python", (), _straight, synced=True),
        Row("ms_resume, waits", (), partial(_ours, how="waits"), synced=True),
        Row("ms_resume, waits, reads back", (), partial(_ours, how="waits", verify_after_save=1), synced=True),
        Row("ms_resume, copies, then trains", (), partial(_ours, how="copies"), synced=True),
        Row("ms_resume, behind a rollout", (), partial(_ours, how="behind"), durable=False, synced=True),
        Row("MindSpore .ckpt", mindspore, _tool(_parameters, ckpt)),
        Row("MindSpore .ckpt, CRC", mindspore, _tool(_parameters, partial(ckpt, crc_check=True))),
        Row("MindSpore safetensors", mindspore, _tool(_parameters, partial(mindspore_save, ending="safetensors"))),
        Row(
            "MindSpore safetensors, async",
            mindspore,
            _tool(_parameters, partial(mindspore_save, ending="safetensors", async_save="thread"), _mindspore_wait),
        ),
        Row("safetensors save_file", ("safetensors",), _tool(lambda state: state.once, _safetensors)),
        Row("torch DCP", torch, _tool(_torch, _dcp)),
        Row("torch DCP, async", torch, _tool(_torch, _dcp_async, lambda future: future.result())),
        Row("torchsnapshot", snapshot, _tool(_torch, _snapshot)),
        Row("torchsnapshot, async", snapshot, _tool(_torch, _snapshot_async, lambda pending: pending.wait())),
        Row("Orbax", ("orbax",), _orbax),
    ]
