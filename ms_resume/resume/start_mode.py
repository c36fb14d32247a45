"""How a person asks for a start: the flags, what they mean together, and which of them contradict each other.

    ms_resume.StartMode.add_arguments(parser)
    mode = ms_resume.StartMode.read(parser.parse_args())
    checkpointer.start_as(mode)

docs/starting.md has a table of them. Nothing here looks at a disk.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms_resume import settings
from ms_resume.errors import UsageError
from ms_resume.load import overrides
from ms_resume.load.warm import DATA_PARALLEL
from ms_resume.settings import Settings

CHECKPOINT_INTERVAL = 5000
KEEP_ALL = -1
AUTO = "auto"
_NONE = "none"

_NEWEST = ("--resume_training", "--auto_resume", "--resume_from auto")
_MODES = (
    "resume_training",
    "auto_resume",
    "resume",
    "checkpoint_path",
    "pretrained_checkpoint",
    "resume_from",
    "resume_from_iteration",
)
_CONTRADICTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("--pretrained_checkpoint",),
        (*_NEWEST, "--resume_from N", "--resume", "--resume_from_iteration"),
        "a new run from weights alone, or a run that goes on",
    ),
    (("--resume",), (*_NEWEST, "--resume_from N"), "the checkpoint that is given, or one that is looked for"),
    (("--resume_from N",), ("--auto_resume",), "that global step, or the newest"),
    (("--resume_from none",), (*_NEWEST[:2], "--resume"), "no checkpoint, or one"),
)
"""Each of the first with each of the second, and what the two would be."""


@dataclass(frozen=True, slots=True)
class StartMode:
    """What was asked for. Of `from_step`, `checkpoint` and `pretrained` at most one is there.

    Attributes:
        said: The flags that chose the mode, as they were given: for the banner.
        resume: Whether to go on from a checkpoint: the newest, that of `from_step`, or `checkpoint`.
        from_step: The global step of the vote of the checkpoint.
        checkpoint: A save directory, a position in it, or one of its files.
        pretrained: Weights to begin a new run from.
        iteration: `auto` or `iter_N` where the weights are an iteration model's; else empty.
        restarted: A supervisor started this command again: what it asks for may have been done already.
        checkpoint_interval: Global steps between saves; None where the flag was not given.
        keep_last, max_rollback: As in `Settings`; None where the flag was not given.
    """

    said: tuple[str, ...] = ()
    resume: bool = False
    from_step: int | None = None
    checkpoint: Path | None = None
    pretrained: Path | None = None
    iteration: str = ""
    restarted: bool = False
    checkpoint_interval: int | None = None
    keep_last: int | None = None
    max_rollback: int | None = None
    allow_fresh_start: bool = False
    take_over: bool = False
    allow_world_size: str = ""
    name_map: Path | None = None
    override: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the flags to any parser. One that it has already stays the parser's own, and must mean the same."""
        group = parser.add_argument_group("how the run starts, and when it saves")
        for flag, options in _FLAGS.items():
            try:
                group.add_argument(flag, **options)
            except argparse.ArgumentError:
                continue

    @classmethod
    def read(cls, args: argparse.Namespace, *, resume_training: bool = False) -> StartMode:
        """What the parsed flags mean together.

        Args:
            resume_training: Whether the trainer's configuration asks for a resume: what counts where no flag says how
                the run starts.

        Raises:
            UsageError: Two of them contradict each other, or one lacks its other half; both are named.
        """
        given = {flag[2:]: getattr(args, flag[2:], None) for flag in _FLAGS}
        said = tuple(_said(given))
        _check(said)
        resume = any(_kind(one) in (*_NEWEST, "--resume_from N", "--resume") for one in said)
        if resume_training and not said:
            said, resume = ("--resume_training, by the configuration",), True
        if given["restarted"]:
            said = (*said, "--restarted")
            resume = resume or given["pretrained_checkpoint"] is None
        weights = given["resume_from_iteration"] not in (None, _NONE) or given["pretrained_checkpoint"] is not None
        if given["name_map"] is not None and not (resume or weights):
            raise UsageError(
                f"--name_map {given['name_map']} in a start that loads nothing",
                hint="give --resume_training or --pretrained_checkpoint P as well, or leave the map out",
            )
        step = given["resume_from"]
        return cls(
            said=said,
            resume=resume,
            from_step=step if isinstance(step, int) else None,
            checkpoint=given["checkpoint_path"],
            pretrained=given["pretrained_checkpoint"],
            iteration="" if given["resume_from_iteration"] in (None, _NONE) else given["resume_from_iteration"],
            restarted=bool(given["restarted"]),
            checkpoint_interval=given["checkpoint_interval"],
            keep_last=given["keep_last_n_checkpoints"],
            max_rollback=given["max_rollback"],
            allow_fresh_start=bool(given["allow_fresh_start"]),
            take_over=bool(given["take_over"]),
            allow_world_size=given["allow_world_size"] or "",
            name_map=given["name_map"],
            override=overrides.parse(given["override"] or []),
        )

    def saves_after(self, done: int, *, scheduled: bool) -> str:
        """Why the state after `done` global steps is to be saved; empty when it is not.

        Args:
            scheduled: Whether the trainer has a schedule of its own: then only the flag counts, not its default.
        """
        every = self.checkpoint_interval or (0 if scheduled else CHECKPOINT_INTERVAL)
        return f"every {every} global steps" if every and done and done % every == 0 else ""

    def settings(self, **configured: Any) -> Settings:
        """The flags above what the trainer has `configured`, that above the environment, and without any of them all
        checkpoints are kept."""
        flags = {"keep_last": self.keep_last, "max_rollback": self.max_rollback}
        given = {name: value for name, value in flags.items() if value is not None}
        return settings.from_environment(defaults={"keep_last": KEEP_ALL}, **{**configured, **given})


def _step(text: str) -> str | int:
    if text in (AUTO, _NONE):
        return text
    if re.fullmatch(r"\d{1,18}", text, re.ASCII):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected auto, none, or a global step such as 100")


def _iteration(text: str) -> str:
    if text in (AUTO, _NONE) or re.fullmatch(r"iter_(0|[1-9]\d{0,17})", text, re.ASCII):
        return text
    raise argparse.ArgumentTypeError(f"{text!r}, expected auto, none, or iter_N such as iter_2")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _interval(text: str) -> int:
    return _number(text, lambda number: number >= 1, "at least 1")


def _count(text: str) -> int:
    return _number(text, lambda number: number >= 1 or number == KEEP_ALL, "-1 for all, or at least 1")


def _rollback(text: str) -> int:
    return _number(text, lambda number: number >= 0, "at least 0")


def _number(text: str, fits: Any, expected: str) -> int:
    if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) and fits(int(text)):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")


_FLAGS: dict[str, dict[str, Any]] = {
    "--resume_training": {"action": "store_true", "help": "go on from the newest whole checkpoint, with everything"},
    "--auto_resume": {"action": "store_true", "help": "the same"},
    "--resume": {"action": "store_true", "help": "go on from --checkpoint_path, with everything"},
    "--checkpoint_path": {
        "type": _path,
        "metavar": "P",
        "help": "a save directory, <save>/commits/E_S, <save>/train, or a file in it",
    },
    "--pretrained_checkpoint": {
        "type": _path,
        "metavar": "P",
        "help": "begin a new run from these weights alone",
    },
    "--resume_from": {
        "type": _step,
        "metavar": "auto|N|none",
        "help": "go on from the newest checkpoint, or that of global step N; newer ones are left behind",
    },
    "--resume_from_iteration": {
        "type": _iteration,
        "metavar": "auto|iter_N|none",
        "help": "take the weights of the newest iteration model, or of that one",
    },
    "--restarted": {
        "action": "store_true",
        "help": "what a supervisor adds: go on from the newest checkpoint of a start that was made as asked for",
    },
    "--checkpoint_interval": {
        "type": _interval,
        "metavar": "N",
        "help": f"save every N global steps, and at the end (default: {CHECKPOINT_INTERVAL})",
    },
    "--keep_last_n_checkpoints": {
        "type": _count,
        "metavar": "N",
        "help": "keep that many whole checkpoints, at least 2 (default: -1, all)",
    },
    "--max_rollback": {
        "type": _rollback,
        "metavar": "N",
        "help": "how many checkpoints that turn out damaged a resume passes over (default: 2)",
    },
    "--allow_fresh_start": {"action": "store_true", "help": "begin anew beside what is saved"},
    "--take_over": {"action": "store_true", "help": "take the directory from a job that is gone"},
    "--allow_world_size": {
        "choices": [DATA_PARALLEL],
        "help": "go on with another number of ranks, where those that saved were replicas; not bit for bit",
    },
    "--name_map": {"type": _path, "metavar": "FILE", "help": "gives what is in the files the names of the nets"},
    "--override": {
        "action": "append",
        "metavar": "KEY=config|checkpoint",
        "help": "which value counts where both have one",
    },
}


def _said(given: Mapping[str, Any]) -> Iterator[str]:
    """The flags that choose the mode, as a person writes them."""
    for name in _MODES:
        if given[name] is True:
            yield f"--{name}"
        elif given[name] is not None and given[name] is not False:  # a global step may be 0
            yield f"--{name} {shlex.quote(str(given[name]))}"


def _kind(said: str) -> str:
    """A flag as `_CONTRADICTIONS` names it."""
    flag, _, value = said.partition(" ")
    if flag == "--resume_from":
        return f"{flag} {value if value in (AUTO, _NONE) else 'N'}"
    return f"{flag} {_NONE}" if flag == "--resume_from_iteration" and value == _NONE else flag


def _check(said: tuple[str, ...]) -> None:
    by_kind = {_kind(one): one for one in said}
    for first, second, why in _CONTRADICTIONS:
        for one in first:
            for other in second:
                if one in by_kind and other in by_kind:
                    raise UsageError(
                        f"{by_kind[one]} and {by_kind[other]} contradict each other: {why}", hint="give one of them"
                    )
    for one, other in (("--resume", "--checkpoint_path"), ("--checkpoint_path", "--resume")):
        if one in by_kind and other not in by_kind:
            raise UsageError(
                f"{by_kind[one]} without {other}",
                hint="--resume --checkpoint_path P goes on from P; --auto_resume from the newest",
            )
