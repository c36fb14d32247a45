"""Tensors of a safetensors file read to where they belong, small ones that lie next to each other in one call.

The kernel writes there itself: that takes half the time of a copy from a buffer of one's own. Digests are of what lies
there then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import xxhash

from ms_resume.errors import MsResumeError
from ms_resume.ondisk import payload, reading, sums
from ms_resume.progress import Progress

_MOST_AT_ONCE = 256
"""Tensors that are read in one call; the system allows 1024."""


def read(
    file: BinaryIO, header: payload.Header, memory: Mapping[str, memoryview], told: Progress, sinks: sums.OfTensor
) -> dict[str, str]:
    """Gives the digests by name.

    Args:
        memory: In the order of the file.
        told: Called after each piece.
        sinks: `sinks(name)` take a tensor's bytes once they are there.

    Raises:
        Damaged: The file is shorter than its header says, or a digest does not hold; the tensor is named.
        MsResumeError: The file is right, but something else writes into that memory.
    """
    digests: dict[str, str] = {}
    for run in _runs(header, memory):
        if len(run) == 1:
            digests[run[0]] = _read_alone(file, header, run[0], memory[run[0]], told, sinks)
        else:
            digests |= _read_together(file, header, {name: memory[name] for name in run}, told, sinks)
        for name in run:
            _check(file, header, name, digests[name])
    return digests


def _read_alone(
    file: BinaryIO, header: payload.Header, name: str, view: memoryview, told: Progress, sinks: sums.OfTensor
) -> str:
    digest = xxhash.xxh3_128()
    into = [digest.update, *sinks(name)]
    for at in range(0, len(view), sums.PIECE):
        piece = view[at : at + sums.PIECE]
        _fill(file, header, name, at, [piece])
        for sink in into:
            sink(piece)
        told(len(piece))
    return digest.hexdigest()


def _read_together(
    file: BinaryIO, header: payload.Header, run: Mapping[str, memoryview], told: Progress, sinks: sums.OfTensor
) -> dict[str, str]:
    views = list(run.values())
    _fill(file, header, next(iter(run)), 0, views)
    for name, view in run.items():
        for sink in sinks(name):
            sink(view)
    told(sum(map(len, views)))
    return {name: payload.digest_of(view) for name, view in run.items()}


def _runs(header: payload.Header, names: Iterable[str]) -> Iterator[list[str]]:
    """Tensors without a gap between them, of one piece together; or one that is larger."""
    run: list[str] = []
    filled = end = 0
    for name in names:
        info = header.tensors[name]
        filled += info.end - info.begin
        if run and (info.begin != end or filled > sums.PIECE or len(run) == _MOST_AT_ONCE):
            yield run
            run, filled = [], info.end - info.begin
        run.append(name)
        end = info.end
    if run:
        yield run


def _fill(file: BinaryIO, header: payload.Header, name: str, at: int, views: list[memoryview]) -> None:
    if left := sums.spread(file, header.data_start + header.tensors[name].begin + at, views):
        raise reading.damaged(header.path, f"tensor {name!r}: ends {left} bytes early", tensor=name)


def _check(file: BinaryIO, header: payload.Header, name: str, found: str) -> None:
    if header.mark is None or found == header.digests[name]:
        return
    payload.check_tensor(file, header, name)  # if the file is right, going back to an older one would be wrong
    raise MsResumeError(
        f"{header.path}: tensor {name!r} does not hold what was placed (digest {found}): something else writes there",
        hint="load before anything trains, and let nothing else use these tensors meanwhile",
        tensor=name,
    )
