"""What is known of a training that failed, as the supervisor wants it: why, and how far it came.

A training of LLaMA-Factory tells no supervisor anything. Why it failed is read from its exit code and the end of its
log; how far it came are its checkpoints. What follows from that `supervisor.rules` and `supervisor.decide` say.
"""

from __future__ import annotations

import platform
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ms_resume.errors import ExitCode
from ms_resume.records import Position
from ms_resume.supervisor import files, rules
from ms_resume.supervisor.evidence import Ended, Evidence, Failure, RankEnd
from ms_resume.supervisor.rules import Rule

_SHELL = 128
_NEVER_RAN = (126, 127)
_OURS = {int(code) for code in ExitCode} - {int(ExitCode.OK), int(ExitCode.USAGE)}
_ROOT_CAUSE = re.compile(r"Root Cause \(first.*?rank *: (\d+).*?exitcode *: (-?\d+)", re.DOTALL)
_OF_RANK = re.compile(r"\[(?:rank|default)(\d+)\]: ?")


def why(code: int, log: Path, table: Sequence[Rule], *, begin: int = 0) -> Failure:
    """Why a training failed.

    What torchrun names as the root cause counts, where it does: its own exit code is always 1, and what other ranks say
    is that they lost this one.

    Args:
        code: Negative for a signal.
        begin: Where in the log its output begins.

    Returns:
        Its rank is None where torchrun named none.
    """
    said, rank = files.tail(log, begin), None
    if found := _ROOT_CAUSE.search("\n".join(said)):
        rank, code = int(found[1]), int(found[2])
    code = 1 if code in _OURS else code  # such a code means something only where ms_resume ends with it
    lines = tuple(_of_rank(rank, said))
    first = None if code in _NEVER_RAN else RankEnd(rank or 0, exit_code=code, log=lines)
    evidence = Evidence(platform.node(), first, launcher_code=code, launcher_log=() if first else lines)
    return replace(rules.classify(evidence, table), rank=rank)


def plain(code: int) -> int:
    """An exit code as `subprocess` has it, of one as a shell has it: -9 of 137."""
    return _SHELL - code if code - _SHELL in set(signal.Signals) else code


def ended(past: Sequence[Ended], failure: Failure, began: int | None, newest: int, older: int | None) -> Ended:
    """One more entry in the history.

    Args:
        began: The step of the checkpoint that it went on from.
        newest, older: The steps of the newest whole checkpoint now, and of the one before it.
    """
    return Ended(
        ordinal=len(past) + 1,
        kind=failure.kind,
        then=failure.then,
        detail=failure.detail,
        exit_code=failure.exit_code,
        reached=_position(began),
        before=_position(began),
        checkpoint=_position(newest),
        older=_position(older),
    )


def _of_rank(rank: int | None, log: Sequence[str]) -> Iterator[str]:
    """Without the `[rank1]: ` that torch puts before a traceback, and without what other ranks say."""
    for line in log:
        match = _OF_RANK.match(line)
        if match is None:
            yield line
        elif rank is None or int(match[1]) == rank:
            yield line[match.end() :]


def _position(step: int | None) -> Position | None:
    return None if step is None else Position(0, step)
