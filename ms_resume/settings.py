"""Every knob of the toolkit, read from the environment here and nowhere else.

A trainer or a test hands over a `Settings`; `from_environment` is for process edges. Names in the environment are
`MS_RESUME_` and the field's name in capitals.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ms_resume.errors import UsageError

PREFIX = "MS_RESUME_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults are safe for hundreds of ranks on one shared file system."""

    keep_last: int = 5
    """Complete checkpoints that retention leaves; below 2 counts as 2, 0 or less keeps all."""

    keep_every: int = 0
    """Complete checkpoints whose global step it divides stay as well; 0 asks for none."""

    keep_best: str = ""
    """The best complete checkpoint by a metric of its save stays as well: `max:reward`, `min:val_loss`."""

    early_retention: bool = False
    """Where a save does not fit, checkpoints beyond the two newest go before it and not after it. What `keep_every` and
    `keep_best` ask for stays."""

    save_format: str = "safetensors"
    """`safetensors`, or `ckpt` for policy, optimizer and ref payloads that MindSpore writes with a CRC."""

    storage: str = "shared"
    """`shared`: all ranks see one save directory; `local`: each node has a disk of its own."""

    visibility_timeout_s: float = 90.0
    """How long a rank waits on a network file system for a file that rank 0 has seen."""

    max_rollback: int = 2
    """How many checkpoints that turn out damaged while they are loaded a resume may pass over before it stops. What
    votes, sizes, and headers show beforehand is passed over without a limit."""

    heartbeat_s: float = 5.0
    """How often the owner of a save directory moves its heartbeat, in seconds; 0 leaves it out."""

    save_optimizer: bool = True
    """Without it saves are of weights alone: a resume passes them over, only a warm start takes them."""

    staging: bool = True
    """Whether saves go through a host copy of policy and optimizer, allocated once. Without it training waits for the
    disk, and the memory is saved."""

    when_busy: str = "wait"
    """What a save does that begins while another one is under way: `wait` for it, or `skip`, on all ranks."""

    fence_check: int = 16
    """Before a fence opens, one tensor in so many is compared with its copy, others each time; 1 compares all, 0 none.
    What has changed too early is an error."""

    staged_load: bool = False
    """A resume reads and checks everything, on all ranks, before a byte of the nets changes, for the memory of one more
    copy. Without it nets are left in doubt by damage, until another load succeeds."""

    share_replicas_s: float = 0.0
    """On a shared file system data-parallel replicas write each file once between them; a rank waits so long for
    another one's. 0: each writes its own."""

    verify_after_save: int = 0
    """Every so many saves what is on the disk is read back and compared before it counts; 1 each time, 0 never."""

    save_timeout_s: float = 1800.0
    """After so many seconds a save that is waited for, and still under way, is reported."""

    grace_s: float = 0.0
    """How many seconds a rank may take that was asked to leave; then it ends at once, and a save that is not done does
    not count. 0: as long as it takes."""

    stop_file: str = ""
    """All ranks save and leave when rank 0 sees that this file was made or touched; empty: `<save>/stop_now`."""

    resume_at: str = ""
    """A resume goes on from exactly this position, `E_S`, as if the trainer had asked for it; empty: the newest whole
    one. `ms-resume run` sets it when it goes back."""

    watch_dir: str = ""
    """Where each rank leaves its pulse and its last words; empty where nobody supervises. `ms-resume run` sets it."""

    label: str = ""
    """A name for people, written into the attempt record; never used to tell attempts apart."""

    def __post_init__(self) -> None:
        if self.keep_best and not re.fullmatch(r"(max|min):.+", self.keep_best):
            raise UsageError(f"keep_best is {self.keep_best!r}", hint="use 'max:METRIC' or 'min:METRIC'")
        if not 0 <= self.grace_s < float("inf"):
            raise UsageError(f"MS_RESUME_GRACE_S is {self.grace_s}", hint="give seconds, or 0: as long as it takes")
        if self.when_busy not in ("wait", "skip"):
            raise UsageError(f"MS_RESUME_WHEN_BUSY is {self.when_busy!r}", hint="use 'wait' or 'skip'")
        if self.storage not in ("shared", "local"):
            raise UsageError(f"MS_RESUME_STORAGE is {self.storage!r}", hint="use 'shared' or 'local'")
        if self.save_format not in ("safetensors", "ckpt"):
            raise UsageError(f"save format {self.save_format!r} is not known", hint="use 'safetensors' or 'ckpt'")


def from_environment(
    environ: Mapping[str, str] = os.environ, *, defaults: Mapping[str, Any] | None = None, **overrides: Any
) -> Settings:
    """Settings from the environment, `overrides` above them; `defaults` in the place of the fields' own.

    Raises:
        UsageError: A value does not parse, or a variable that begins with `MS_RESUME_` is not known.
    """
    values: dict[str, Any] = dict(defaults or {})
    known = [PREFIX + field.name.upper() for field in fields(Settings)]
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{name} is set, but there is no such setting", hint=f"did you mean {nearest}?")
    for field in fields(Settings):
        raw = environ.get(PREFIX + field.name.upper())
        if raw is not None:
            values[field.name] = _parse(field.name, raw, type(field.default))
    return Settings(**{**values, **overrides})


_YES_OR_NO = {"1": True, "true": True, "0": False, "false": False}


def _parse(name: str, raw: str, kind: type) -> Any:
    try:
        return _YES_OR_NO[raw.lower()] if kind is bool else kind(raw)
    except (ValueError, KeyError):
        raise UsageError(
            f"{PREFIX}{name.upper()} is {raw!r}, expected a value of type {kind.__name__}",
            hint=f"unset {PREFIX}{name.upper()} or correct it",
        ) from None
