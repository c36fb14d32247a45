"""Stage 5 of 6: verified files into live tensors, in place.

    reads    this rank's payloads: headers first, then each tensor once, checked against its digest as it is placed
    gives    a `LoadReport` for each role

Names, shapes, and dtypes of all roles are settled before the first byte is placed; after that only damage can stop a
load, and then the nets hold a part of it: they are in doubt (`doubt.py`) until another load has succeeded. A staged
load reads and checks everything before it places the first byte, for the memory of one host copy.
"""

from __future__ import annotations

from collections.abc import Mapping

from ms_resume.errors import MsResumeError, NamesMismatch
from ms_resume.load import doubt, placing
from ms_resume.load.names.match import NONE, Gaps, LoadReport, match
from ms_resume.load.source import Readable
from ms_resume.ondisk import payload, sums
from ms_resume.ondisk.direct import address_of
from ms_resume.progress import Progress
from ms_resume.records import TensorInfo
from ms_resume.state import HostTensor, Tensors

_NOT_WEIGHTS = {"policy": {"epoch_num", "step_num"}}
"""Tensors that a payload holds for its position, not for the net."""


def settle(sources: Mapping[str, Readable], live: Mapping[str, Tensors], gaps: Gaps = NONE) -> dict[str, LoadReport]:
    """Matches every role by name, shape, and dtype. Nothing is placed.

    Args:
        gaps: What may differ. Then `match.fitted` is what there is to place.

    Raises:
        NamesMismatch: One role or more does not fit; the message holds the report of each.
    """
    reports = {role: match(wanted(sources[role], role), tensors.infos(), gaps, role) for role, tensors in live.items()}
    bad = {role: report for role, report in reports.items() if not report.clean}
    if bad:
        told = "\n  ".join(f"{role} ({sources[role].path}): {report}" for role, report in bad.items())
        raise NamesMismatch(
            f"the checkpoint does not fit the nets; nothing was loaded\n  {told}",
            hint="build the nets as the run that saved them did, or give the directory of a run with this model",
            roles={role: report.brief() for role, report in reports.items()},
            same_if="\n".join(f"{role}: {report}" for role, report in bad.items()),
        )
    return reports


def place(sources: Mapping[str, Readable], live: Mapping[str, Tensors], progress: Progress | None = None) -> None:
    """Reads, checks, and places every tensor that both sides have, then checks that the live tensors hold it.

    The weights in the optimizer file are read and compared with the policy file's instead of being placed again:
    unequal ones are two generations mixed.

    Args:
        progress: Called from any thread.

    Raises:
        Damaged: A digest does not hold, or the generations are mixed; the file and tensor are named. The nets are in
            doubt, as they are after any error.
        DiskError: A file cannot be read.
        MsResumeError: A live tensor does not hold what was placed.
    """
    with doubt.until_whole(live):
        _place(sources, live, progress or (lambda count: None))


def stage(
    sources: Mapping[str, Readable], live: Mapping[str, Tensors], progress: Progress | None = None
) -> dict[str, Copy]:
    """Reads and checks what `place` would, into host memory: the nets are as they were, whatever is raised.

    Returns:
        Sources to be placed instead. Raises as `place` does.
    """
    copies: dict[str, Copy] = {}
    for role, tensors in live.items():
        names = _fitting(sources[role], role, tensors)
        copies[role] = Copy(sources[role], names, copies.get("policy") if role == "optimizer" else None)
    _place(sources, copies, progress or (lambda count: None))
    return copies


class Copy:
    """Some tensors of a source in host memory: a staged load fills it, and then loads from it.

    Args:
        policy: Tensors that it holds, too, lie there.
    """

    def __init__(self, source: Readable, names: list[str], policy: Copy | None = None) -> None:
        import numpy as np

        self.path, self.bytes, self.digests, self.values = source.path, source.bytes, source.digests, source.values
        self.tensors: Mapping[str, TensorInfo] = {name: source.tensors[name] for name in names}
        held = policy._memory if policy else {}
        self._memory: dict[str, memoryview] = {
            name: held[name] if name in held else np.empty(payload.size_of(info), np.uint8).data
            for name, info in self.tensors.items()
        }

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(info.dtype, info.shape) for name, info in self.tensors.items()}

    def memory(self, name: str) -> memoryview:
        return self._memory[name]

    def address(self, name: str) -> int | None:
        return address_of(self._memory[name])

    def read(self, name: str) -> HostTensor:
        info = self.tensors[name]
        return HostTensor(info.dtype, info.shape, self._memory[name])

    def place(self, name: str, value: HostTensor) -> None:
        self._memory[name][:] = value.data


def size_of(sources: Mapping[str, Readable], live: Mapping[str, Tensors]) -> int:
    """Bytes that `place` tells its progress of."""
    return sum(payload.size_of(info) for role in live for info in wanted(sources[role], role).values())


def _place(sources: Mapping[str, Readable], live: Mapping[str, Tensors], tell: Progress) -> None:
    roles: dict[str, placing.Role] = {}
    for role, tensors in live.items():
        names = _fitting(sources[role], role, tensors)
        again = frozenset(names) & frozenset(roles["policy"].names) if role == "optimizer" and "policy" in roles else ()
        roles[role] = placing.Role(sources[role], tensors, names, frozenset(again))
    lies = placing.where(roles)
    placed: dict[str, placing.Placed] = {}
    with sums.threads() as threads:
        begun = {name: placing.begin(role, lies[name], threads, tell) for name, role in roles.items()}
        for name in roles:
            placed[name] = placing.finish(begun[name], placed.get("policy"), threads, tell)
    placing.check_held(placed)


def _fitting(source: Readable, role: str, tensors: Tensors) -> list[str]:
    """The names that both sides have. `settle` has refused other shapes with a report; here nothing is written past
    the end of a tensor whatever was settled."""
    found, live = wanted(source, role), tensors.infos()
    for name in (names := [name for name in found if name in live]):
        if (found[name].dtype, found[name].shape) != (live[name].dtype, live[name].shape):
            raise MsResumeError(
                f"{source.path}: {name!r} is {found[name].dtype}{list(found[name].shape)}, the net has "
                f"{live[name].dtype}{list(live[name].shape)}",
                hint="settle before you place",
                tensor=name,
            )
    return names


def wanted(source: Readable, role: str) -> dict[str, TensorInfo]:
    """What of a source is for the nets: all but the position that a policy's file has as tensors."""
    return {name: info for name, info in source.tensors.items() if name not in _NOT_WEIGHTS.get(role, ())}
