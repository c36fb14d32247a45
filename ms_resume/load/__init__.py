"""Stage 5 of 6: verified files into live tensors, in place.

    reads    this rank's payloads: headers first, then each tensor once, checked against its digest before it is placed
    gives    a `LoadReport` for each role

Names, shapes, and dtypes of all roles are settled before the first byte is placed; after that only damage can stop a
load, and then the tensors hold a part of it: load another checkpoint before training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ms_resume.errors import Damaged, MsResumeError, NamesMismatch
from ms_resume.load.match import NONE, Gaps, LoadReport, match
from ms_resume.load.source import Source
from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo
from ms_resume.state import Tensors

Progress = Callable[[int], None]

_NOT_WEIGHTS = {"policy": {"epoch_num", "step_num"}}
"""Tensors that a payload holds for its position, not for the net."""


def settle(sources: Mapping[str, Source], live: Mapping[str, Tensors], gaps: Gaps = NONE) -> dict[str, LoadReport]:
    """Matches every role by name, shape, and dtype. Nothing is placed.

    Args:
        gaps: What may differ. Then `match.fitted` is what there is to place.

    Raises:
        NamesMismatch: One role or more does not fit; the message holds the report of each.
    """
    reports = {role: match(_wanted(sources[role], role), tensors.infos(), gaps, role) for role, tensors in live.items()}
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


def place(sources: Mapping[str, Source], live: Mapping[str, Tensors], progress: Progress | None = None) -> None:
    """Reads, checks, and places every tensor of every role, then checks that the live tensors hold what was placed.

    The weights in the optimizer file are read and compared with the policy file's instead of being placed again:
    unequal ones are two generations mixed.

    Raises:
        Damaged: A digest does not hold, or the generations are mixed; the file and tensor are named.
        MsResumeError: A live tensor does not hold what was placed.
    """
    placed: dict[str, dict[str, str]] = {}
    for role, tensors in live.items():
        shared = placed.get("policy", {}) if role == "optimizer" else {}
        placed[role] = _place_role(sources[role], role, tensors, shared, progress or (lambda count: None))
    for role, tensors in live.items():
        _check_held(sources[role].path, tensors, placed[role])


def _place_role(
    source: Source, role: str, tensors: Tensors, shared: Mapping[str, str], progress: Progress
) -> dict[str, str]:
    digests = {}
    for name in _wanted(source, role):
        value = source.read(name)
        digests[name] = payload.digest_of(value.data)
        if name not in shared:
            tensors.place(name, value)
        elif shared[name] != digests[name]:
            raise Damaged(
                f"{source.path}: weight {name!r} differs from the policy file's: two generations are mixed",
                hint="an older checkpoint is whole if `ms-resume verify --all --deep` says so",
                path=str(source.path),
                tensor=name,
            )
        progress(len(value.data))
    return digests


def _check_held(path: Path, tensors: Tensors, digests: Mapping[str, str]) -> None:
    for name in tensors.infos():
        found = payload.digest_of(tensors.read(name).data)
        if found != digests[name]:
            # Not Damaged: the file is right, so going back to older ones would only throw them away.
            raise MsResumeError(
                f"{path}: tensor {name!r} does not hold what was placed (digest {found})",
                hint="the optimizer must update the policy's own parameters, not copies of them; else this is a bug",
                tensor=name,
            )


def _wanted(source: Source, role: str) -> dict[str, TensorInfo]:
    return {name: info for name, info in source.tensors.items() if name not in _NOT_WEIGHTS.get(role, ())}
