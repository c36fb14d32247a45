"""Every way this toolkit says no, with the exit code a launcher and an operator can act on.

    MsResumeError                70   a bug, or something nobody foresaw
    +-- UsageError                2   wrong argument, configuration, or environment
    +-- NothingToResume          10   no whole checkpoint, and a fresh start was not allowed
    +-- Torn                     20   a checkpoint lacks votes or payloads
    |   +-- Disagreement         20   ranks see different checkpoints
    +-- Damaged                  21   bytes are not what was saved
    +-- NamesMismatch            30   parameter names, shapes, or dtypes do not fit the nets
    +-- LayoutMismatch           31   another world size, strategy, or model
    +-- Different                32   two checkpoints that were compared are not equal
    +-- DiskError                40   the disk is full, read-only, or failed
    +-- GaveUp                   60   failed again and again without progress
    +-- DirectoryInUse           61   another job writes in the save directory
    |   +-- Superseded           61   a newer attempt has taken this run over
    +-- DirectoryNotEmpty        62   a fresh start would go into a directory with checkpoints

50 (saved and left on request) is a trainer's or the supervisor's, 60 (gave up without progress) the supervisor's and
`recover --run`'s. A code is never reused. An error leaves everything that was saved before it as it was; where one
leaves more or less, its docstring says so.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a process that uses ms_resume ends with."""

    OK = 0
    USAGE = 2
    NOTHING_TO_RESUME = 10
    TORN = 20
    DAMAGED = 21
    NAMES = 30
    LAYOUT = 31
    DIFFERENT = 32
    DISK = 40
    LEFT_ON_REQUEST = 50
    GAVE_UP = 60
    IN_USE = 61
    NOT_EMPTY = 62
    BUG = 70


class MsResumeError(Exception):
    """What was found, what was expected and where; `hint` is what to type next.

    `fields` holds the same facts typed, for `--json` and the supervisor. Errors survive pickling and `to_json`, because
    one rank's error is raised on all ranks.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.fields))

    def to_json(self) -> dict[str, Any]:
        return {
            "error": type(self).__name__,
            "exit_code": int(self.exit_code),
            "message": self.message,
            "hint": self.hint,
            **self.fields,
        }


class UsageError(MsResumeError):
    exit_code = ExitCode.USAGE


class NothingToResume(MsResumeError):
    exit_code = ExitCode.NOTHING_TO_RESUME


class Torn(MsResumeError):
    exit_code = ExitCode.TORN


class Disagreement(Torn):
    """Nothing was written but, where a rank does not see it, the record of this start."""


class Damaged(MsResumeError):
    """Nets may hold a part of the damaged checkpoint: then nothing saves them until another one is loaded whole."""

    exit_code = ExitCode.DAMAGED


class NamesMismatch(MsResumeError):
    """Raised before a byte is placed: the nets are as they were."""

    exit_code = ExitCode.NAMES


class LayoutMismatch(MsResumeError):
    exit_code = ExitCode.LAYOUT


class Different(MsResumeError):
    """What `ms-resume diff` says no with; nothing is wrong with either."""

    exit_code = ExitCode.DIFFERENT


class DiskError(MsResumeError):
    """The save it happened in does not count; its temp file is gone where the disk still let it be removed."""

    exit_code = ExitCode.DISK


class GaveUp(MsResumeError):
    exit_code = ExitCode.GAVE_UP


class DirectoryInUse(MsResumeError):
    exit_code = ExitCode.IN_USE


class Superseded(DirectoryInUse):
    """This process must stop writing for good: what it would write belongs to a past that was left behind."""


class DirectoryNotEmpty(MsResumeError):
    exit_code = ExitCode.NOT_EMPTY


def from_json(data: dict[str, Any]) -> MsResumeError:
    """Rebuilds what `to_json` gave, on another rank; an unknown kind becomes a plain `MsResumeError`."""
    known = {cls.__name__: cls for cls in _tree(MsResumeError)}
    rest = {key: value for key, value in data.items() if key not in ("error", "exit_code", "message", "hint")}
    return _rebuild(known.get(data["error"], MsResumeError), data["message"], data["hint"], rest)


def _rebuild(cls: type[MsResumeError], message: str, hint: str, fields: dict[str, Any]) -> MsResumeError:
    return cls(message, hint=hint, **fields)


def _tree(cls: type[MsResumeError]) -> list[type[MsResumeError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _tree(child))]
