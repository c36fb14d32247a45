"""Save directories with many checkpoints or many ranks, made in seconds by writing the files themselves.

The two newest positions are real: payloads with a few tiny tensors and the headers that belong to them, votes as a job
casts them. Older ones are hard links to those files under their own names: whoever opens one has looked too far back.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ms_resume.ondisk import attempts, meta, names, payload, votes
from ms_resume.records import Attempt, Payload, Position, TensorInfo, Vote

ATTEMPT = "000001-00000000000bea75"
STEPS_PER_EPOCH = 100
CONFIG = {f"actor_config.section_{n}.key_{n}": n / 7 for n in range(60)}
"""As many keys as a configuration of MindRLHF has, so that votes are as long as real ones."""

_WEIGHTS = {f"model.layers.{n}.weight": ("F32", (2, 3)) for n in range(4)}
_MOMENTS = {f"{kind}.{name}": info for kind in ("adam_m", "adam_v") for name, info in _WEIGHTS.items()}
_NUMBER: tuple[str, tuple[int, ...]] = ("I64", ())
_TENSORS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "policy": {**_WEIGHTS, "epoch_num": _NUMBER, "step_num": _NUMBER},
    "optimizer": {**_WEIGHTS, **_MOMENTS, "global_step": _NUMBER},
    "ref": _WEIGHTS,
    "state": {"global_step": _NUMBER},
}
_STOCK_ROLES = ("policy", "optimizer", "ref")


@dataclass(frozen=True)
class Tree:
    """A save directory, and what every search for its newest checkpoint has to look at."""

    save: Path
    listed: list[str]
    looked_at: list[str]
    read: list[str]
    opened: list[str]
    """Payloads: a search that checks headers opens them as well."""


def ours(save: Path, checkpoints: int, ranks: int) -> Tree:
    """A run of this toolkit that kept every checkpoint. The reference did not change: its first file serves all."""
    positions = _positions(checkpoints)
    _write(names.attempt_record(save, 1), attempts.encode(Attempt(ATTEMPT, None, ranks)))
    for position in positions:
        names.vote_dir(save, position).mkdir(parents=True)
    for rank in range(ranks):
        ref = _payload(save, "ref", rank, positions[0])
        for role in ("policy", "optimizer", "state"):
            _fill(save, role, rank, positions, _payload)
        for position in positions[-2:]:
            files = tuple(
                ref if role == "ref" else _named(save, role, rank, position)
                for role in ("policy", "optimizer", "ref", "state")
            )
            _write(names.vote(save, position, rank), votes.encode(_vote(position, rank, ranks, files)))
        for position in positions[:-2]:
            os.link(names.vote(save, positions[-2], rank), names.vote(save, position, rank))
        for role in _STOCK_ROLES:
            _meta(save, role, rank, positions[0] if role == "ref" else positions[-1])
    newest = names.vote_dir(save, positions[-1])
    opened = [str(save / file.path) for rank in range(ranks) for file in votes.read(newest / f"rank_{rank}.json").files]
    return Tree(
        save=save,
        listed=[str(names.commits(save)), str(names.attempts(save)), str(newest), *_rank_dirs(save, ranks)],
        looked_at=opened,
        read=[str(names.attempt_record(save, 1)), *(str(newest / f"rank_{rank}.json") for rank in range(ranks))],
        opened=opened,
    )


def stock(save: Path, checkpoints: int, ranks: int) -> Tree:
    """The same from MindRLHF's own code: three roles, a reference each time, no votes."""
    positions = _positions(checkpoints)
    for rank in range(ranks):
        for role in _STOCK_ROLES:
            _fill(save, role, rank, positions, _stock_payload)
            _meta(save, role, rank, positions[-1])
    opened = [str(names.payload(save, role, rank, positions[-1])) for role in _STOCK_ROLES for rank in range(ranks)]
    metas = [str(names.rank_dir(save, role, rank) / names.META) for role in _STOCK_ROLES[:2] for rank in range(ranks)]
    return Tree(save, _rank_dirs(save, ranks), [], [*metas, *opened], opened)


def _positions(checkpoints: int) -> list[Position]:
    return [Position(n // STEPS_PER_EPOCH, n % STEPS_PER_EPOCH) for n in range(1, checkpoints + 1)]


def _fill(
    save: Path,
    role: str,
    rank: int,
    positions: list[Position],
    write: Callable[[Path, str, int, Position], object],
) -> None:
    for position in positions[-2:]:
        write(save, role, rank, position)
    for position in positions[:-2]:
        os.link(names.payload(save, role, rank, positions[-2]), names.payload(save, role, rank, position))


def _payload(save: Path, role: str, rank: int, position: Position) -> Payload:
    """One of ours, as `write` makes it."""
    tensors, data = _data(role, position)
    mark = payload.Mark(ATTEMPT, position, rank, role)
    digests = {name: payload.digest_of(data[info.begin : info.end]) for name, info in tensors.items()}
    block = payload.header_block(tensors, digests, mark, {})
    path = names.payload(save, role, rank, position)
    _write(path, block + data)
    return Payload(role, path.relative_to(save).as_posix(), len(block + data), payload.digest_of(block), ATTEMPT)


def _named(save: Path, role: str, rank: int, position: Position) -> Payload:
    path = names.payload(save, role, rank, position)
    header = payload.read_header(path)
    return Payload(role, path.relative_to(save).as_posix(), header.file_bytes, header.digest, ATTEMPT)


def _stock_payload(save: Path, role: str, rank: int, position: Position) -> None:
    tensors, data = _data(role, position)
    entries = {
        name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.begin, info.end]}
        for name, info in tensors.items()
    }
    text = json.dumps({"__metadata__": {"format": "ms"}, **entries}).encode()
    _write(names.payload(save, role, rank, position), struct.pack("<Q", len(text)) + text + data)


def _data(role: str, position: Position) -> tuple[dict[str, TensorInfo], bytes]:
    """Zeros, but for the numbers that say the position."""
    tensors = payload.lay_out(_TENSORS[role])
    data = bytearray(max(info.end for info in tensors.values()))
    for name, value in (("epoch_num", position.epoch), ("step_num", position.step)):
        if name in tensors:
            data[tensors[name].begin : tensors[name].end] = struct.pack("<q", value)
    return tensors, bytes(data)


def _vote(position: Position, rank: int, ranks: int, files: tuple[Payload, ...]) -> Vote:
    return Vote(
        position=position,
        global_step=position.epoch * STEPS_PER_EPOCH + position.step,
        steps_per_epoch=STEPS_PER_EPOCH,
        rank=rank,
        world_size=ranks,
        attempt=ATTEMPT,
        files=files,
        layout="0" * 32,
        parallel={"name": "dp", "data_parallel": ranks, "model_parallel": 1, "pipeline_stage": 1},
        config={"fingerprint": "0" * 32, "keys": CONFIG},
        metrics={"reward": 0.5, "kl": 0.01},
        tool={"ms_resume": "0.1.0", "mindspore": "2.10.0", "numpy": "1.26.4", "python": "3.11.7"},
        created_at="2026-01-01T00:00:00+00:00",
    )


def _meta(save: Path, role: str, rank: int, position: Position) -> None:
    path = names.payload(save, role, rank, position)
    _write(path.parent / names.META, meta.encode(position, path.name))


def _rank_dirs(save: Path, ranks: int) -> list[str]:
    return list(_existing(names.rank_dir(save, role, rank) for role in names.DIRECTORIES for rank in range(ranks)))


def _existing(directories: Iterator[Path]) -> Iterator[str]:
    return (str(directory) for directory in directories if directory.is_dir())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
