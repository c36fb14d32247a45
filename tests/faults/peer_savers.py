"""How each tool saves a state of 3 MB and how its users find and read the newest one: public calls, default options.

A saver opens whatever a program has open long before the save (a manager, tensors in the tool's own form) and returns
the save alone. A reader starts with nothing but the directory. No tool is imported before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

State = dict[str, Any]
"""NumPy arrays by name."""

Save = Callable[[], object]
Saver = Callable[[Path, State, int], Save]
"""From directory, state and generation (1, then 2) to the save of it."""

OURS = "ms_resume"
_TENSORS, _ITEMS = 6, 131072
"""Six tensors of half a MiB in float32."""


@dataclass(frozen=True)
class Target:
    """One row of the table.

    `newest` is the rule by which the reader chooses; `counts_by` is the end of the path that makes a save count once it
    has that name (empty: when the save returns). `prepare` leaves the old state where saving generation 1 does not.
    """

    name: str
    needs: tuple[str, ...]
    imports: tuple[str, ...]
    saver: Saver
    reader: Callable[[Path], State]
    newest: str
    counts_by: str = ""
    prepare: Callable[[Path, State], object] | None = None


def state(generation: int) -> State:
    """Of bits that no compressor shortens; no two generations share a value."""
    random = np.random.default_rng(generation)
    return {f"layer.{n}": random.standard_normal(_ITEMS, dtype=np.float32) + generation for n in range(_TENSORS)}


def empty_state() -> State:
    return {f"layer.{n}": np.zeros(_ITEMS, np.float32) for n in range(_TENSORS)}


def newest(directory: Path, pattern: str, holding: str = "") -> Path:
    """Of the entries whose whole name matches, the one of the highest number; with `holding`, of those that hold it."""
    found = {int(match[1]): path for path in directory.iterdir() if (match := re.fullmatch(pattern, path.name))}
    able = {number: path for number, path in found.items() if not holding or (path / holding).exists()}
    if not able:
        raise LookupError(f"nothing in {directory} is taken for a checkpoint")
    return able[max(able)]


# -- PyTorch and safetensors


def _torch(arrays: State) -> State:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _numpy(tensors: State) -> State:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _torch_save(directory: Path, arrays: State, generation: int) -> Save:
    import torch

    return partial(torch.save, _torch(arrays), directory / "model.pt")


def _torch_load(directory: Path) -> State:
    import torch

    return _numpy(torch.load(directory / "model.pt"))


def _safetensors_save(directory: Path, arrays: State, generation: int) -> Save:
    from safetensors.numpy import save_file

    return partial(save_file, arrays, directory / "model.safetensors")


def _safetensors_load(directory: Path) -> State:
    from safetensors.numpy import load_file

    return dict(load_file(directory / "model.safetensors"))


def _dcp_save(directory: Path, arrays: State, generation: int, *, fresh: bool, **options: Any) -> Save:
    import torch.distributed.checkpoint as dcp

    path = directory / (f"step-{generation}" if fresh else "checkpoint")
    return lambda: dcp.save(_torch(arrays), storage_writer=dcp.FileSystemWriter(path, **options))


def _dcp_load(choose: Callable[[Path], Path], directory: Path) -> State:
    import torch.distributed.checkpoint as dcp

    tensors = _torch(empty_state())
    dcp.load(tensors, checkpoint_id=choose(directory))
    return _numpy(tensors)


def _torchsnapshot_save(directory: Path, arrays: State, generation: int) -> Save:
    from torchsnapshot import Snapshot, StateDict

    path = str(directory / f"snapshot-{generation}")
    return lambda: Snapshot.take(path, {"state": StateDict(**_torch(arrays))})


def _torchsnapshot_load(directory: Path) -> State:
    from torchsnapshot import Snapshot, StateDict

    restored = StateDict(**_torch(empty_state()))
    Snapshot(str(newest(directory, r"snapshot-(\d+)", ".snapshot_metadata"))).restore({"state": restored})
    return _numpy(restored)


# -- Orbax


def _orbax_save(directory: Path, arrays: State, generation: int) -> Save:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(directory / "orbax")

    def save() -> None:
        manager.save(generation, args=ocp.args.StandardSave(arrays))
        manager.wait_until_finished()

    return save


def _orbax_load(directory: Path) -> State:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(directory / "orbax")
    step = manager.latest_step()
    if step is None:
        raise LookupError("no step")
    restored = manager.restore(step, args=ocp.args.StandardRestore(empty_state()))
    return {name: np.asarray(array) for name, array in restored.items()}


# -- MindSpore


def _mindspore_save(
    directory: Path, arrays: State, generation: int, *, ending: str, fresh: bool, **options: bool
) -> Save:
    import mindspore as ms

    parameters = {name: ms.Parameter(ms.Tensor(array), name=name) for name, array in arrays.items()}
    path = directory / f"model-{generation if fresh else 1}.{ending}"
    return partial(ms.save_checkpoint, parameters, str(path), format=ending, **options)


def _mindspore_load(directory: Path, *, ending: str, **options: bool) -> State:
    import mindspore as ms

    path = newest(directory, rf"model-(\d+)\.{ending}")
    loaded = ms.load_checkpoint(str(path), format=ending, **options)
    return {name: parameter.asnumpy() for name, parameter in loaded.items()}


# -- this toolkit


def _start(directory: Path, arrays: State, **start: Any) -> Any:
    """A run of one rank on these arrays: all of them in the optimizer, half of them weights."""
    import ms_resume
    from ms_resume.framework.group import Solo
    from ms_resume.state import Arrays

    checkpointer = ms_resume.Checkpointer(
        directory / "save",
        policy=Arrays({name: arrays[name] for name in list(arrays)[: _TENSORS // 2]}),
        optimizer=Arrays({**arrays, "global_step": np.zeros(1, np.int32)}),
        steps_per_epoch=100,
        settings=ms_resume.Settings(heartbeat_s=0),
        group=Solo(),
        say=lambda text: None,
    )
    checkpointer.start(**start)
    return checkpointer


def _ours_save(directory: Path, arrays: State, generation: int) -> Save:
    """A resume, a training step that gives `arrays`, and the save after it."""
    live = empty_state()
    checkpointer = _start(directory, live, resume=generation > 1)
    for name, array in arrays.items():
        live[name][...] = array

    def save() -> None:
        checkpointer.save(0, generation)
        checkpointer._saver.rest()

    return save


def _ours_going_back(directory: Path, arrays: State) -> None:
    """Leaves `arrays` at 0_1 and another state at 0_2, which a run that goes back to 0_1 abandons."""
    _ours_save(directory, arrays, 1)()
    _ours_save(directory, state(3), 2)()
    _start(directory, empty_state(), resume=True, position=_position(1))


def _position(step: int) -> Any:
    import ms_resume

    return ms_resume.Position(0, step)


def _ours_load(directory: Path) -> State:
    arrays = empty_state()
    _start(directory, arrays, resume=True)
    return arrays


# -- the rows


def _mindspore_rows() -> list[Target]:
    rows = []
    crc: dict[str, Any] = {"crc_check": True}
    for what, ending, options in (
        (".ckpt", "ckpt", {}),
        (".ckpt, crc_check", "ckpt", crc),
        ("safetensors", "safetensors", {}),
    ):
        for fresh in (False, True):
            saver = partial(_mindspore_save, ending=ending, fresh=fresh, **options)
            reader = partial(_mindspore_load, ending=ending, **options)
            name = f"MindSpore `save_checkpoint`, {what}, {'a new name' if fresh else 'overwriting'}"
            rule = "highest number in a file name" if fresh else "the one name"
            counts_by = f"model-{2 if fresh else 1}.{ending}"
            rows.append(Target(name, ("mindspore",), ("mindspore",), saver, reader, rule, counts_by))
    return rows


def _dcp_rows() -> list[Target]:
    def row(name: str, choose: Callable[[Path], Path], rule: str, **options: Any) -> Target:
        saver, reader = partial(_dcp_save, **options), partial(_dcp_load, choose)
        return Target(f"torch DCP, {name}", ("torch",), imports, saver, reader, rule, "/.metadata")

    imports = ("torch", "torch.distributed.checkpoint")
    one, numbered = (lambda directory: directory / "checkpoint"), r"step-(\d+)"
    every_tensor = {"single_file_per_rank": False}
    whole = partial(newest, pattern=numbered, holding=".metadata")
    return [
        row("overwriting, one file", one, "the one directory", fresh=False),
        row("overwriting, a file for each tensor", one, "the one directory", fresh=False, **every_tensor),
        row("a new directory, `.metadata` rule", whole, "highest number that holds `.metadata`", fresh=True),
        row("a new directory, newest rule", partial(newest, pattern=numbered), "highest number", fresh=True),
    ]


def targets() -> list[Target]:
    torch, safetensors, snapshot, orbax = ("torch",), ("safetensors",), ("torchsnapshot",), ("orbax.checkpoint",)
    ours, modules = ("ms_resume",), ("ms_resume.resume.checkpointer", "ms_resume.framework.group")
    start, vote = "what a resume goes on from", "commits/0_2/rank_0.json"
    going_back = f"{OURS}, a position saved again after going back"
    return [
        Target(f"{OURS}, a new position", ours, modules, _ours_save, _ours_load, start, vote),
        Target(going_back, ours, modules, _ours_save, _ours_load, start, vote, _ours_going_back),
        *_mindspore_rows(),
        Target("`torch.save`, overwriting", torch, torch, _torch_save, _torch_load, "the one name"),
        *_dcp_rows(),
        Target(
            "safetensors `save_file`, overwriting",
            safetensors,
            ("safetensors.numpy",),
            _safetensors_save,
            _safetensors_load,
            "the one name",
        ),
        Target(
            "torchsnapshot, a new path",
            snapshot,
            ("torch", *snapshot),
            _torchsnapshot_save,
            _torchsnapshot_load,
            "highest number that holds `.snapshot_metadata`",
            "/.snapshot_metadata",
        ),
        Target(
            "Orbax `CheckpointManager`, a new step",
            ("orbax-checkpoint",),
            ("jax", *orbax),
            _orbax_save,
            _orbax_load,
            "`latest_step()`",
            "orbax/2",
        ),
    ]
