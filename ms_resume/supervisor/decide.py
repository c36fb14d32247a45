"""What happens after an attempt: a pure function of how it ended and of those before it.

An attempt made progress when it worked at a position that no attempt before it had come to, or left a newer whole
checkpoint than it found.
"""

from __future__ import annotations

from collections.abc import Sequence

from ms_resume.errors import ExitCode
from ms_resume.records import Position
from ms_resume.supervisor.evidence import Action, Ended, Policy

_NEVER_STARTED = Position(0, 0)
_TERMINATED = 128 + 15
"""As a shell reports SIGTERM."""


def decide(history: Sequence[Ended], policy: Policy, chance: float) -> Action:
    """What to do after the last attempt in `history`.

    Args:
        history: Oldest first, since the run was last finished or given up.
        chance: From 0 to 1, drawn by the caller: where in the jitter this wait falls.
    """
    last = history[-1]
    if last.then == "done":
        return Action("done", "the run reached its end")
    if last.then == "leave":
        if last.kind == "preempted":
            return Action("leave", "saved and left, as was asked", exit_code=int(ExitCode.LEFT_ON_REQUEST))
        return Action("leave", "ended as was asked, without a last save", exit_code=_TERMINATED)
    if last.then == "stop":
        return Action("stop", f"{last.kind} does not go away by itself", exit_code=_code(last))
    moved = progress(history)
    if last.then == "once" and _same_again(history, moved):
        return Action("stop", f"the same {last.kind} twice at the same place: {last.detail}", exit_code=_code(last))
    fruitless = _fruitless(moved)
    if fruitless == 0:
        return Action("restart", f"{last.kind}, after progress")
    gone_back = _gone_back(history, fruitless)
    tried = _since_back(history, fruitless) if gone_back else fruitless
    if tried < policy.attempts:
        reason = f"{last.kind}, attempt {tried} of {policy.attempts} without progress"
        return Action("restart", reason, backoff_s(fruitless, policy, chance), _still_to_go_back_to(history, fruitless))
    if not gone_back and last.older is not None:
        reason = f"{tried} attempts without progress: back from {last.checkpoint} to {last.older}"
        return Action("back", reason, backoff_s(fruitless, policy, chance), last.older)
    had = "also one checkpoint back" if gone_back else "and no older checkpoint to go back to"
    return Action("stop", f"{tried} attempts without progress, {had}: gave up", exit_code=int(ExitCode.GAVE_UP))


def progress(history: Sequence[Ended]) -> list[bool]:
    """Whether each attempt made progress."""
    moved, furthest, newest = [], None, None
    for ended in history:
        if furthest is None:
            furthest = newest = ended.before or _NEVER_STARTED
        assert newest is not None
        found = max(ended.checkpoint or _NEVER_STARTED, newest)
        reached = max(ended.reached or _NEVER_STARTED, furthest)
        moved.append(found > newest or reached > furthest)
        furthest, newest = max(reached, found), found
    return moved


def backoff_s(fruitless: int, policy: Policy, chance: float) -> float:
    """Nothing before the first start anew, then `backoff_s`, doubled each time, up to `longest_s`, with jitter."""
    if fruitless < 2:
        return 0.0
    doubled: float = policy.backoff_s * 2.0 ** min(fruitless - 2, 60)
    return min(doubled, policy.longest_s) * (1 + policy.jitter * (2 * chance - 1))


def _fruitless(moved: Sequence[bool]) -> int:
    """How many attempts at the end made none."""
    count = 0
    for one in reversed(moved):
        if one:
            break
        count += 1
    return count


def _gone_back(history: Sequence[Ended], fruitless: int) -> bool:
    """Whether one of the attempts since the last progress was told to go back."""
    return any(ended.back is not None for ended in history[len(history) - fruitless :])


def _since_back(history: Sequence[Ended], fruitless: int) -> int:
    """Attempts since the run went back, the first that was told to included."""
    told = [ended.back is not None for ended in history[len(history) - fruitless :]]
    return len(told) - told.index(True)


def _still_to_go_back_to(history: Sequence[Ended], fruitless: int) -> Position | None:
    """Where an attempt that was told to go back died before it had opened its record, the next one is told again."""
    told = [ended for ended in history[len(history) - fruitless :] if ended.back is not None]
    started = any(ended.reached is not None for ended in told)
    return told[-1].back if told and not started else None


def _same_again(history: Sequence[Ended], moved: Sequence[bool]) -> bool:
    if len(history) < 2 or moved[-1]:
        return False
    before, last = history[-2], history[-1]
    return (before.kind, before.detail, before.reached) == (last.kind, last.detail, last.reached)


def _code(last: Ended) -> int:
    """The trainer's own code where it is one of ours, else that of giving up."""
    known = {int(code) for code in ExitCode} - {int(ExitCode.OK), int(ExitCode.LEFT_ON_REQUEST)}
    return last.exit_code if last.exit_code in known else int(ExitCode.GAVE_UP)
