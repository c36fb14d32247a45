"""The values between watching, saying why, and deciding: frozen and plain, so that each is tested with a literal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ms_resume.records import Position


@dataclass(frozen=True, slots=True)
class RankEnd:
    """What is known of the rank that failed first."""

    rank: int
    pid: int = 0
    host: str = ""
    exit_code: int | None = None
    """Negative for a signal; None where nobody saw how it ended."""
    outcome: Mapping[str, Any] | None = None
    """Its last words; None where it died without any, or hangs."""
    phase: str = "launch"
    position: Position | None = None
    log: tuple[str, ...] = ()
    """The last lines of its log."""

    @property
    def error(self) -> Mapping[str, Any]:
        """What it raised; empty where it raised nothing."""
        found: Mapping[str, Any] = (self.outcome or {}).get("error") or {}
        return found


@dataclass(frozen=True, slots=True)
class Evidence:
    """How an attempt ended. `first` is None where no rank is known to have failed: then it is the launcher's word."""

    node: str
    first: RankEnd | None = None
    done: bool = False
    left: bool = False
    """Saved and left on request."""
    asked: bool = False
    """The supervisor itself was asked to end the run."""
    hang: str = ""
    """What stood still, for how long; empty where nothing did."""
    elsewhere: str = ""
    """Which other node's part failed, so that this one was ended; empty where it was this one's."""
    scheduler: bool = False
    """msrun's scheduler failed while all ranks waited for it; `launcher_log` is its log then."""
    launcher_code: int | None = None
    launcher_log: tuple[str, ...] = ()
    oom_kills: int = 0
    """Processes that the kernel killed for memory in the ranks' control group during the attempt."""
    reached: Position | None = None
    """The furthest position that any rank began to work at."""
    seconds: float = 0.0
    stacks: tuple[str, ...] = ()
    """Files with the stacks of ranks that hung."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended, for people and for `decide`."""

    kind: str
    then: str
    """restart, once, stop, leave or done: see rules.yaml."""
    says: str
    rank: int | None = None
    node: str = ""
    exit_code: int | None = None
    detail: str = ""
    """Equal where the same thing happened again: class of the error and its first line."""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt in the history, as far as a decision depends on it."""

    ordinal: int
    kind: str
    then: str
    detail: str = ""
    exit_code: int | None = None
    reached: Position | None = None
    before: Position | None = None
    """The newest whole checkpoint when it was started."""
    checkpoint: Position | None = None
    """The newest whole checkpoint when it had ended."""
    older: Position | None = None
    """The whole checkpoint before that one."""
    back: Position | None = None
    """The position that it was told to go back to."""


@dataclass(frozen=True, slots=True)
class Action:
    """What to do next, and why. `what`: restart, back, stop, leave, done."""

    what: str
    reason: str
    delay_s: float = 0.0
    back: Position | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """When to go on trying; defaults are for jobs whose start takes minutes."""

    attempts: int = 3
    """Attempts without progress before the run goes back one checkpoint, and then before it gives up."""
    backoff_s: float = 10.0
    """Waited before the second start without progress, then twice as long each time; not before the first."""
    longest_s: float = 600.0
    jitter: float = 0.25
    """A wait is longer or shorter by up to this share, so that many jobs do not come back at the same moment."""


@dataclass(frozen=True, slots=True)
class Limits:
    """After how long without progress a rank counts as hanging, in seconds."""

    multiple: float = 10.0
    """Of the longest that this phase took lately in this attempt."""
    floor: float = 60.0
    """Never sooner than this once a phase is known."""
    known_after: int = 3
    """So often a phase must have been seen before `multiple` counts."""
    phases: Mapping[str, float] = field(
        default_factory=lambda: {"launch": 1800.0, "start": 3600.0, "save": 3600.0, "end": 1800.0}
    )
    """Never later than this, by phase."""
    other: float = 3600.0
    """Never later than this in all other phases: below HCCL_EXEC_TIMEOUT (7200), which would end the job silently."""
