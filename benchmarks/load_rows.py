"""The rows of `bench_load.py`: this toolkit, and other tools, each from a file that it wrote itself into the same nets.

A row is a context: inside it `load()` fills tensors that were there before; `held()` gives their values by name, and
lets go of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from save_rows import Row, State, checkpointing, in_mindspore, in_torch, mindspore_save

Load = Callable[[], object]
Held = Callable[[], Mapping[str, np.ndarray]]
Made = Iterator[tuple[Load, Held]]


def empty(state: State) -> dict[str, np.ndarray]:
    """Where values go: memory that is there."""
    return {name: np.ones_like(array) for name, array in state.once.items()}


# -- the floor


@contextlib.contextmanager
def _copying(directory: Path, state: State) -> Made:
    """One memcpy, in one thread."""
    live = empty(state)

    def load() -> None:
        for name, array in state.once.items():
            np.copyto(live[name], array)

    yield load, lambda: live


@contextlib.contextmanager
def _mapped(directory: Path, state: State) -> Made:
    """The least that a load can be: the header, a map of the file, and one copy of each tensor into memory that is
    there, in one thread; nothing is verified."""
    live, path = empty(state), directory / "model.safetensors"
    entries, at = {}, 0
    for name, array in state.once.items():
        entries[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in state.once.values():
            file.write(array.data)

    def load() -> None:
        mapped = np.memmap(path, np.uint8, "r")
        end = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        for name, entry in json.loads(mapped[8:end].tobytes()).items():
            begin, stop = entry["data_offsets"]
            np.copyto(live[name].view(np.uint8), mapped[end + begin : end + stop])

    yield load, lambda: live


@contextlib.contextmanager
def _safetensors(directory: Path, state: State) -> Made:
    """The same with the package itself, whose tensors for PyTorch are a map; PyTorch copies in several threads."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    live, path = in_torch(empty(state)), directory / "model.safetensors"
    save_file(state.once, path)

    def load() -> None:
        with safe_open(path, framework="pt") as file:
            for name, tensor in live.items():
                tensor.copy_(file.get_tensor(name))

    yield load, lambda: {name: tensor.numpy() for name, tensor in live.items()}


# -- this toolkit


@contextlib.contextmanager
def _ours(directory: Path, state: State, *, into: str = "arrays", staged: bool = False) -> Made:
    """Stage 5 for one role: open, settle, place."""
    from ms_resume import load as stage
    from ms_resume.framework.nets import Net
    from ms_resume.load.source import Source
    from ms_resume.state import Arrays

    with checkpointing(directory / "save", State(state.once, {"m": np.zeros(1, np.float32)}, {})) as checkpointer:
        saved = checkpointer.save(0, 1)
    file = saved.vote.file("policy")
    cell = mindspore_net(empty(state)) if into == "net" else None
    arrays = Arrays(empty(state)) if cell is None else {}

    def load() -> None:
        role = Net(cell) if cell is not None else arrays
        source = {"policy": Source(directory / "save" / file.path, file)}
        stage.settle(source, {"policy": role})
        stage.place(stage.stage(source, {"policy": role}) if staged else source, {"policy": role})

    yield load, lambda: arrays if cell is None else _values(cell)


@contextlib.contextmanager
def _start(directory: Path, state: State) -> Made:
    """Everything that a resume does: find, check headers, load policy and optimizer, take the directory over."""
    with checkpointing(directory / "save", state) as checkpointer:
        checkpointer.save(0, 1)
    live = empty(state)
    weights, moments = ({name: live[name] for name in part} for part in (state.weights, state.moments))

    def load() -> None:
        with checkpointing(directory / "save", State(weights, moments, {}), resume=True):
            pass

    yield load, lambda: {**weights, **moments}


# -- what `ms-resume verify --deep` does


@contextlib.contextmanager
def _deep(directory: Path, state: State, *, reading_alone: bool = False) -> Made:
    """Every byte of one payload against its digest, or read and dropped: by as many threads, in pieces as large.

    Nothing is loaded, so there is nothing to compare; a byte that was changed is found before anything is timed.
    """
    from ms_resume import locate, verify
    from ms_resume.ondisk import payload, sums

    with checkpointing(directory / "save", State(state.once, {"m": np.zeros(1, np.float32)}, {})) as checkpointer:
        checkpointer.save(0, 1)
    found = locate.latest(directory / "save").checkpoint
    assert found is not None  # it was saved just now
    [vote] = found.votes
    policy = next(file for file in vote.files if file.role == "policy")
    checkpoint = replace(found, votes=(replace(vote, files=(policy,)),))
    path = directory / "save" / policy.path

    def check() -> None:
        if verify.check(checkpoint, deep=True):
            raise SystemExit(f"{path}: damaged")

    def read() -> None:
        stretch = 8 * sums.PIECE
        with sums.threads() as threads, open(path, "rb", buffering=0) as file:
            begins = range(0, policy.bytes, stretch)
            for part in [threads.submit(sums.feed, file, at, min(stretch, policy.bytes - at), ()) for at in begins]:
                if part.result():
                    raise SystemExit(f"{path}: cut short")

    at = payload.read_header(path).data_start
    _flip(path, at)
    if not verify.check(checkpoint, deep=True):
        raise SystemExit(f"{path}: a deep check does not find what was changed")
    _flip(path, at)
    yield (read if reading_alone else check), dict


def _flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())  # a page that is not on disk yet stays in the cache, and would be read warm


# -- MindSpore


def mindspore_net(arrays: Mapping[str, np.ndarray]) -> Any:
    """A cell with a parameter for each array."""
    from mindspore import ParameterTuple, nn

    class Cell(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.all = ParameterTuple(in_mindspore(arrays).values())

    return Cell()


def _values(cell: Any) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in cell.get_parameters()}


@contextlib.contextmanager
def _mindspore(directory: Path, state: State, *, ending: str, **options: Any) -> Made:
    """`load_checkpoint` and `load_param_into_net`. What is only mapped into memory by then is read, page by page."""
    import mindspore as ms

    cell = mindspore_net(empty(state))
    mindspore_save(directory / "model", in_mindspore(state.once), ending=ending, **options)

    def load() -> None:
        path = str(directory / f"model.{ending}")
        ms.load_param_into_net(cell, ms.load_checkpoint(path, format=ending, **options))
        for parameter in cell.get_parameters():
            parameter.asnumpy().reshape(-1)[::1024].sum()

    def held() -> dict[str, np.ndarray]:
        for parameter in cell.get_parameters():
            parameter.set_data(ms.Tensor(parameter.asnumpy().copy()))
        return _values(cell)

    yield load, held


# -- others


@contextlib.contextmanager
def _dcp(directory: Path, state: State) -> Made:
    import torch.distributed.checkpoint as dcp

    live = in_torch(empty(state))
    dcp.save(in_torch(state.once), storage_writer=dcp.FileSystemWriter(directory / "dcp", thread_count=2))

    yield lambda: dcp.load(live, checkpoint_id=directory / "dcp"), lambda: {n: t.numpy() for n, t in live.items()}


@contextlib.contextmanager
def _snapshot(directory: Path, state: State) -> Made:
    from torchsnapshot import Snapshot, StateDict

    live = {"state": StateDict(**in_torch(empty(state)))}
    snapshot = Snapshot.take(str(directory / "snapshot"), {"state": StateDict(**in_torch(state.once))})

    yield lambda: snapshot.restore(live), lambda: {name: tensor.numpy() for name, tensor in live["state"].items()}


@contextlib.contextmanager
def _orbax(directory: Path, state: State) -> Made:
    """It makes new arrays; they are copied to where the values have to be."""
    import orbax.checkpoint as ocp

    live = empty(state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "orbax", state.once)
        checkpointer.wait_until_finished()

        def load() -> None:
            for name, array in checkpointer.restore(directory / "orbax", live).items():
                np.copyto(live[name], array)

        yield load, lambda: live


COPY = "safetensors + copy"
"""What a verified load is compared with."""

READING, DEEP = "deep check: reading alone", "deep check"
"""What a deep check is compared with, and what it is."""


def rows() -> list[Row]:
    torch, snapshot, mindspore = ("torch",), ("torch", "torchsnapshot"), ("mindspore",)
    return [
        Row("memcpy", (), _copying),
        Row(COPY, (), _mapped),
        Row("safetensors + copy, torch", ("safetensors", "torch"), _safetensors),
        Row("ms_resume", (), _ours),
        Row("ms_resume, MindSpore net", mindspore, partial(_ours, into="net")),
        Row("ms_resume, staged", (), partial(_ours, staged=True)),
        Row("ms_resume, a whole start", (), _start),
        Row(READING, (), partial(_deep, reading_alone=True)),
        Row(DEEP, (), _deep),
        Row("MindSpore .ckpt", mindspore, partial(_mindspore, ending="ckpt")),
        Row("MindSpore .ckpt, CRC", mindspore, partial(_mindspore, ending="ckpt", crc_check=True)),
        Row("MindSpore safetensors", mindspore, partial(_mindspore, ending="safetensors")),
        Row("MindSpore safetensors, CRC", mindspore, partial(_mindspore, ending="safetensors", crc_check=True)),
        Row("torch DCP", torch, _dcp),
        Row("torchsnapshot", snapshot, _snapshot),
        Row("Orbax", ("orbax",), _orbax),
    ]
