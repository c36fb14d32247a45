"""Stock MindRLHF: policy, optimizer, and reference of one position on every rank; `meta.json` is a hint.

Stock code has no commit and no sizes, so the files themselves are judged: each must be whole in itself, the position
inside the policy file must be the one in its name, and the optimizer file must hold the weight of every moment.
A reference may be older: stock code does not save it at the end, and it does not change by itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ms_resume.errors import Damaged
from ms_resume.layouts.survey import MOST_LISTED, Survey
from ms_resume.ondisk import ckpt, names, payload, reading
from ms_resume.records import Checkpoint, Found, Position, Rejection, TensorInfo, in_ranges

NAME = "mindrlhf"
POSITION_TENSORS = ("epoch_num", "step_num")

_SCALARS = ("I32", "I64", "U32", "U64")

Source = payload.Header | ckpt.Contents

_MOST_SAID = 8
_TRAINED = ("policy", "optimizer")


def claims(survey: Survey, position: Position) -> bool:
    return position in survey.payloads


def judge(
    survey: Survey, position: Position, only: Sequence[int] = (), roles: Sequence[str] = (*_TRAINED, "ref")
) -> Checkpoint | Rejection:
    """The verdict on a stock position.

    Args:
        only: These ranks alone, where the others have disks of their own.
        roles: A resume needs all of them, a start from weights alone the policy.
    """
    if survey.line.dead_stock_at(survey.save, position):
        return Rejection(position, "abandoned", f"attempt {survey.records[-1].attempt} went back past it")
    world_size = max((ranks[-1] for ranks in survey.ranks.values() if ranks), default=-1) + 1
    ranks = only or (sorted(survey.here) if survey.elsewhere is None else range(world_size))
    trained = [role for role in _TRAINED if role in roles]
    for role in trained:
        if missing := survey.payloads.without(position, role, ranks):
            return Rejection(position, "torn", _say_missing(survey, role, missing), missing[:MOST_LISTED])
    sources = dict.fromkeys(trained, position)
    if "ref" in roles:
        reference = _newest_reference(survey, position, ranks)
        if reference is None:
            missing = tuple(ranks)
            return Rejection(position, "torn", _say_missing(survey, "ref", missing), missing[:MOST_LISTED])
        sources["ref"] = reference
    found = tuple(_files(survey, sources, ranks))
    if rejection := _check_inside(survey, position, found):
        return rejection
    return Checkpoint(
        save=survey.save,
        layout=NAME,
        position=position,
        world_size=world_size,
        found=found,
        warnings=tuple(_warnings(survey, position, sources)),
    )


def read(path: Path) -> Source:
    """What a payload of either format says of itself. Raises Damaged where it is not whole."""
    return ckpt.read(path) if path.suffix == ".ckpt" else payload.read_header(path)


def tensors(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes, and shapes in a payload of either format. Raises Damaged where it is not whole."""
    return dict(read(path).tensors)


def position_inside(source: Source) -> Position:
    """What the 0-d or one-element tensors of a policy file say.

    Raises:
        Damaged: One is missing, or is no whole number.
    """
    if isinstance(source, ckpt.Contents):
        return _position(source, lambda name: ckpt.read_tensor(source, name))
    with reading.opened(source.path) as file:
        return position_in(file, source)


def position_in(file: BinaryIO, header: payload.Header) -> Position:
    """The same of a safetensors file that is open."""
    return _position(header, lambda name: payload.read_tensor(file, header, name))


def _position(source: Source, data: Callable[[str], memoryview]) -> Position:
    path, held = source.path, source.tensors
    if missing := [name for name in POSITION_TENSORS if name not in held]:
        raise Damaged(f"{path}: no {' and no '.join(missing)} in it, stock code saves them last: it was cut")
    for name in POSITION_TENSORS:
        info = held[name]
        if info.dtype not in _SCALARS or math.prod(info.shape) != 1:
            raise reading.damaged(path, f"tensor {name!r}: {info.dtype}{list(info.shape)}, expected a whole number")
    return Position(*(int.from_bytes(data(name), "little", signed=True) for name in POSITION_TENSORS))


def _newest_reference(survey: Survey, position: Position, ranks: Sequence[int]) -> Position | None:
    everywhere = survey.payloads.everywhere("ref", ranks)
    at = bisect_right(everywhere, position)
    return everywhere[at - 1] if at else None


def _files(survey: Survey, sources: Mapping[str, Position], ranks: Sequence[int]) -> Iterator[Found]:
    for rank in ranks:
        for role, source in sources.items():
            path = survey.payloads.path(source, role, rank)
            assert path is not None  # else the position would be torn
            yield Found(rank, role, path)


def check_cut(path: Path, held: Collection[str], before: Path | None) -> None:
    """A `.ckpt` cut between two records can be read to its end: the same rank's file before it says what should be in
    it. Raises Damaged where it lacks some of that, and has nothing else instead."""
    if path.suffix != ".ckpt" or before is None:
        return
    try:
        had = tensors(before).keys()
    except (Damaged, OSError):
        return  # it says nothing
    if set(held) < had:
        raise Damaged(f"{path}: holds {len(held)} of the {len(had)} parameters of {before.name}: it was cut")


def _before(survey: Survey, position: Position, file: Found) -> Path | None:
    held = survey.payloads.of(file.role, file.rank)
    at = bisect_left(held, position)
    return survey.payloads.path(held[at - 1], file.role, file.rank) if at else None


def _check_inside(survey: Survey, position: Position, found: Iterable[Found]) -> Rejection | None:
    weights: dict[int, set[str]] = {}
    for file in found:
        try:
            source = read(file.path)
            held = source.tensors
            if file.role == "policy":
                _check_position(source, position)
                weights[file.rank] = held.keys() - set(POSITION_TENSORS)
            elif file.role == "optimizer":
                _check_weights(file.path, weights[file.rank], held)
            if file.path.suffix == ".ckpt":
                check_cut(file.path, held.keys(), _before(survey, position, file))
        except Damaged as error:
            return Rejection(position, "damaged", error.message, (file.rank,))
        except OSError as error:  # a job that is running prunes it
            return Rejection(position, "torn", f"{file.path}: {error.strerror}", (file.rank,))
    return None


def _check_position(source: Source, position: Position) -> None:
    inside = position_inside(source)
    if inside != position:
        raise Damaged(f"{source.path}: its name says {position}, the position inside is {inside}")


def _check_weights(path: Path, weights: set[str], held: Mapping[str, TensorInfo]) -> None:
    """Only weights that have a moment must be there: frozen ones (LoRA's base) are not in an optimizer."""
    updated = {name.partition(".")[2] for name in held} & weights
    if absent := sorted(updated - held.keys()):
        raise Damaged(f"{path}: moments without their weight, first {absent[0]!r}, {len(absent)} in all: it was cut")
    if not updated:
        raise Damaged(f"{path}: holds no moment of any of the policy's {len(weights)} weights")


def _say_missing(survey: Survey, role: str, missing: tuple[int, ...]) -> str:
    """What those ranks have instead: with one missing file the reader sees which step to look for."""
    if not survey.ranks[role]:
        return f"no {names.DIRECTORIES[role]} directory"
    instead: dict[int, list[int]] = {}
    for rank in missing:
        instead.setdefault(id(survey.payloads.of(role, rank)), []).append(rank)
    alike = list(instead.values())[: _MOST_SAID + 1]
    parts = [f"rank {in_ranges(ranks)} has {some(survey.payloads.of(role, ranks[0]))}" for ranks in alike]
    return f"{role}: " + "; ".join(parts[:_MOST_SAID]) + ("; ..." if len(parts) > _MOST_SAID else "")


def some(held: Sequence[Position]) -> str:
    """The newest few of what is sorted: a file name is quickly made."""
    newest = list(map(str, held[-_MOST_SAID:]))
    return ", ".join(newest if len(held) <= _MOST_SAID else ["...", *newest]) or "none"


def _warnings(survey: Survey, position: Position, sources: Mapping[str, Position]) -> Iterable[str]:
    if (reference := sources.get("ref", position)) != position:
        yield f"{position}: the reference is that of {reference}"
    for role in filter(sources.__contains__, _TRAINED):
        alike: dict[str, list[int]] = {}
        for rank in survey.ranks[role]:
            said = survey.said(role, rank)
            if said.trouble:
                alike.setdefault(f"{said.trouble}; stock code could not resume from it", []).append(rank)
            elif said.position != position:
                alike.setdefault(f"says {said.position}, the files say {position}", []).append(rank)
        for trouble, (first, *others) in alike.items():
            more = f" (rank {in_ranges(others)} likewise)" if others else ""
            yield f"{names.DIRECTORIES[role]}/rank_{first}/{names.META}: {trouble}{more}"
