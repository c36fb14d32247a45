"""A second job on a save directory is refused at once while the first is alive, and let in once it is dead.

Every job is a process of its own. The first is stopped, killed, not yet reaped, or elsewhere; its pid is used again;
its heartbeat stands still or is torn; clocks jump by years. Of jobs that start at the same time one becomes the owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.cases import Tally
from faults.contenders import AT_ONCE_S, BEAT_S, LET_IN_S, LONG_BEAT_S, WATCHED_S, set_up
from faults.namespaces import Namespace, hidden_processes, lacking, own_proc
from faults.processes import Child, Tell
from faults.races import alternate, race
from faults.shim import Mode
from ms_resume.ondisk import attempts, names
from ms_resume.records import Position

if TYPE_CHECKING:
    from faults.campaign import Plan

TWENTY_YEARS_S = 20 * 365 * 86_400
SCHEDULES = 120
STARTS = ("no directory", "two checkpoints")
HOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "a start": ("start", {}),
    "a start at 0_2": ("start", {"resume": True, "position": Position(0, 2)}),
    "a fresh start": ("start", {"resume": False}),
    "a fresh start by request": ("start", {"resume": False, "allow_fresh_start": True}),
    "restore": ("restore", {}),
    "repair": ("repair", {}),
}
NAME_CUT_SHORT = "训练脚本一号".encode()[:13]
"""As the kernel has the name of a script: 15 bytes, whatever character they end in."""
ELSEWHERE: dict[str, dict[str, object]] = {
    "rebooted": {"boot_id": "11111111-2222-3333-4444-555555555555"},
    "on another host": {"boot_id": "11111111-2222-3333-4444-555555555555", "host": "another"},
    "in another container": {"pid_namespace": "pid:[1]"},
}
GARBAGE = (
    None,
    b"",
    b"7",
    b"x y",
    bytes(16),
    b"7 \xff\xfe",
    b"\xff\xfe\x80 \x9f",
    b"7 -1",
    b"7 nan",
    b"7 1e300",
    b"7 inf",
)
"""What may lie where a heartbeat was."""


@dataclass(frozen=True)
class Case:
    """`play` returns what is wrong; `waits`: it looks at heartbeats, and needs little of a core."""

    name: str
    play: Callable[[], str]
    waits: bool = False

    def __str__(self) -> str:
        return self.name


def check(case: Case) -> str:
    """What is wrong; empty when nothing is."""
    try:
        wrong = case.play()
    except AssertionError as error:  # what should go without trouble before the case begins
        wrong = str(error)
    return f"{case}: {wrong}" if wrong else ""


def run(plan: Plan) -> Tally:
    """Every case, those that wait side by side; those that need namespaces are skipped where there are none."""
    tally = Tally("two writers", "cases")
    chosen, reason = plan.draw(plan.named(cases(plan.seed))), lacking()
    contained = plan.draw(plan.named(in_containers()))
    if not reason:
        chosen += contained
    plan.spread(check, [case for case in chosen if not case.waits], tally)
    if tally.failures and plan.impatient:
        return tally
    waiting = [case for case in chosen if case.waits]
    replace(plan, jobs=4 * plan.jobs).spread(check, waiting, tally)
    tally.notes = {"that watch a heartbeat": len(waiting)}
    if reason:
        tally.notes[f"skipped ({reason})"] = len(contained)
    return tally


def cases(seed: int = 0) -> list[Case]:
    """All that need no namespaces."""
    return [*_refused(), *_killed(), *_stale(), *_clocks(), *_races(), *_schedules(seed)]


def in_containers() -> list[Case]:
    """Those that need root, for pid namespaces."""
    apart = [
        Case(
            f"the first {lives}, the {'second' if second_inside else 'first'} one in a container",
            partial(container, lives, second_inside),
            waits=True,
        )
        for lives in ("runs", "is stopped", "is killed")
        for second_inside in (False, True)
    ]
    together = [
        Case(
            f"both in one container with /proc {proc}, the first {lives}{', its pid again' if again else ''}",
            partial(both_in_one_container, lives, proc, again),
            waits=True,
        )
        for proc in ("its own", "the host's", "hidden")
        for lives, again in (("runs", False), ("is killed", False), ("is killed", True))
    ]
    return [*apart, *together, Case("a stranger has the first's pid", its_pid_again)]


def _refused() -> Iterator[Case]:
    for ranks in (1, 2):
        for lives in ("runs", "is stopped"):
            for beat_s in (0.0, 0.05):
                for what in HOWS:
                    name = f"{what} while a job of {ranks} {lives}, a beat each {beat_s:g} s"
                    yield Case(name, partial(beside, ranks, lives, beat_s, what))
            yield Case(f"a job of {ranks} {lives} and is taken over", partial(taken_over, ranks, lives))
        yield Case(f"the record of a job of {ranks} is gone", partial(record_gone, ranks))
        for at in range(1, calls("save", ranks) + 1):
            yield Case(f"stopped before call {at} of a save of {ranks}", partial(in_the_middle, ranks, at))


def _killed() -> Iterator[Case]:
    for ranks in (1, 2):
        for left in STARTS:
            for at in range(1, calls("start", ranks, left) + 1):
                name = f"killed before call {at} of a start of {ranks}, {left}"
                yield Case(name, partial(killed_in_its_start, ranks, left, at))


def _stale() -> Iterator[Case]:
    for ranks in (1, 2):
        yield Case(f"another process of the pid of a job of {ranks}", partial(another_process_of_that_pid, ranks))
        for place in ELSEWHERE:
            for lives in ("runs", "is stopped"):
                name = f"a job of {ranks} {place}, it {lives}"
                yield Case(name, partial(elsewhere, ranks, place, lives), waits=True)
    for who in ("the first job", "a stranger"):
        yield Case(f"{who} is named by half a character", partial(named_by_half_a_character, who))
    yield Case("a job elsewhere ends while its heartbeat is watched", ends_while_it_is_watched, waits=True)
    yield Case("what is left of a heartbeat", gone_elsewhere, waits=True)
    for call in (1, 2):
        yield Case(f"a beat is held up before its call {call}", partial(torn_while_it_lives, call), waits=True)
    for at in range(record_call() + 1, calls("start", 1) + 1):
        yield Case(f"call {at} of a start elsewhere takes long", partial(not_yet_beating, at), waits=True)


def _clocks() -> Iterator[Case]:
    years = (-TWENTY_YEARS_S, TWENTY_YEARS_S)
    for ranks in (1, 2):
        for first_s, second_s in ((0, years[0]), (0, years[1]), (years[0], 0), (years[1], 0), years, years[::-1]):
            name = f"the clock of a job of {ranks} jumps by {first_s} s, the second's is off by {second_s} s"
            yield Case(name, partial(clocks, ranks, first_s, second_s))
    for jump_s in years:
        for lives in ("runs", "is stopped"):
            name = f"a rebooted job, it {lives}, a clock jumped by {jump_s} s"
            yield Case(name, partial(elsewhere, 1, "rebooted", lives, jump_s), waits=True)
        name = f"the clock jumps by {jump_s} s while a heartbeat is watched"
        yield Case(name, partial(clock_jumps_while_it_watches, jump_s), waits=True)


def _races() -> Iterator[Case]:
    pairs = [("start", "start", left) for left in (*STARTS, "files aside")]
    pairs += [("start", "restore", "an abandoned future"), ("restore", "start", "an abandoned future")]
    pairs += [("start", "repair", "broken meta.json"), ("repair", "start", "broken meta.json")]
    for ranks in (1, 2):
        for stopped, other, left in pairs:
            for at in range(1, calls(stopped, ranks, left) + 1):
                name = f"{stopped} of {ranks} stopped before call {at}, {other} meanwhile, {left}"
                yield Case(name, partial(race, ranks, left, at, stopped, other))


def _schedules(seed: int) -> Iterator[Case]:
    draw = random.Random(seed)
    for number in range(SCHEDULES):
        ranks, left, racers = draw.choice((1, 2)), draw.choice(STARTS), draw.choice((2, 2, 3))
        take_over, drawn = number % 4 == 0, draw.randrange(1 << 32)
        name = f"{racers} jobs of {ranks} race, {left}, schedule {drawn}{', one takes over' if take_over else ''}"
        yield Case(name, partial(alternate, ranks, left, racers, take_over, drawn))


@lru_cache
def calls(what: str, world_size: int, left: str = "two checkpoints") -> int:
    """How many calls that makes undisturbed."""
    with set_up(world_size, left) as scene:
        worker = scene.worker("start" if what == "save" else what)
        done = worker.does(1)
        if what == "save":
            worker.order()
            done = worker.does(2)
        if not done:
            raise AssertionError(f"{what} fails undisturbed: {worker.answers}")
        return worker.control.seen


@lru_cache
def record_call() -> int:
    """The call of a start that gives its record its name."""
    for at in range(1, calls("start", 1) + 1):
        with set_up(1) as scene:
            before = attempts.newest_ordinal(scene.save)
            worker = scene.worker("start", Mode.STOP, at)
            if worker.stops() and attempts.newest_ordinal(scene.save) > before:
                return at - 1
    raise AssertionError("a start makes no record")


def beside(world_size: int, lives: str, beat_s: float, what: str) -> str:
    """The first has started, and trains or is stopped; then it goes on and saves as if nothing had been."""
    with set_up(world_size) as scene:
        first = scene.owner(beat_s=beat_s)
        if lives == "runs":
            first.go_on()
        work, how = HOWS[what]
        return scene.refused(work, **how) or scene.saves(first) or scene.judged(first)


def in_the_middle(world_size: int, at: int) -> str:
    """The first is stopped before a call of its save; then it is killed there and, not reaped yet, is dead."""
    with set_up(world_size) as scene:
        first = scene.owner()
        first.order(Mode.STOP, at)
        if not first.stops_at_its_call():
            return "the call was not reached"
        if wrong := scene.refused():
            return wrong
        first.dies()
        return scene.judged(first)


def killed_in_its_start(world_size: int, left: str, at: int) -> str:
    """Not reaped either: no claim is left, with or without a record."""
    with set_up(world_size, left) as scene:
        first = scene.worker("start", Mode.STOP, at)
        if not first.stops_at_its_call():
            return "the call was not reached"
        first.dies()
        return scene.judged(first)


def taken_over(world_size: int, lives: str) -> str:
    """By request: the first learns of it in its next save, and in the one after it."""
    with set_up(world_size) as scene:
        first = scene.owner(beat_s=0.05)
        if lives == "runs":
            first.go_on()
        second, wrong = scene.let_in(take_over=True)
        return wrong or scene.superseded(first) or scene.saves(second) or scene.judged(first, second)


def record_gone(world_size: int) -> str:
    """Somebody emptied the directory, or moved it away: nothing more is written there."""
    with set_up(world_size) as scene:
        first = scene.owner()
        names.attempt_record(scene.save, attempts.newest_ordinal(scene.save)).unlink()
        return scene.superseded(first)


def another_process_of_that_pid(world_size: int) -> str:
    """The record's pid belongs to a process that started at another time, and lives."""
    with set_up(world_size) as scene:
        first = scene.owner()
        first.dies()
        stranger = Child(_sleeper)
        try:
            _moved(scene.save, pid=stranger.pid)
            return scene.judged(first)
        finally:
            stranger.kill()


def named_by_half_a_character(who: str) -> str:
    """A process's name is bytes: the first job has one, or the stranger that has its pid."""
    with set_up(1) as scene, contextlib.ExitStack() as stack:
        first = scene.owner(before=_named_so if who == "the first job" else None)
        if wrong := scene.refused():
            return wrong
        first.dies()
        if who == "a stranger":
            stranger = Child(_namesake)
            stack.callback(stranger.kill)
            _moved(scene.save, pid=stranger.pid)
        return scene.judged(first)


def _named_so() -> None:
    pr_set_name = 15
    ctypes.CDLL(None).prctl(pr_set_name, NAME_CUT_SHORT)


def elsewhere(world_size: int, place: str, lives: str, clock_s: int = 0) -> str:
    """Its heartbeat decides: refused while it moves; else let in after two and a half beats, and superseded later."""
    with set_up(world_size) as scene:
        first = scene.owner(beat_s=BEAT_S)
        _moved(scene.save, **ELSEWHERE[place])
        if lives == "runs":
            first.go_on()
            first.control.jump_clock(clock_s)
            return scene.refused(within_s=WATCHED_S + AT_ONCE_S) or scene.saves(first) or scene.judged(first)
        second, wrong = scene.let_in(WATCHED_S, clock_s=clock_s)
        return wrong or scene.superseded(first) or scene.saves(second) or scene.judged(first, second)


def gone_elsewhere() -> str:
    """What a crash left of the heartbeat of a job elsewhere: nobody waits for it for ever. All at the same time."""
    with contextlib.ExitStack() as stack:
        waiting = []
        for number, content in enumerate(GARBAGE):
            scene = stack.enter_context(set_up(1, name=f"two_{number}"))
            scene.owner().dies()
            _moved(scene.save, **ELSEWHERE["on another host"])
            beats = names.heartbeat(scene.save, attempts.newest_ordinal(scene.save))
            beats.unlink()
            if content is not None:
                beats.write_bytes(content)
            waiting.append((content, scene.worker()))
        wrong = (f"{content!r}: {worker.answers}" for content, worker in waiting if not worker.does(1))
        return next(wrong, "")  # each may take a minute


def ends_while_it_is_watched() -> str:
    """It takes its heartbeat with it: that is no beat."""
    with set_up(1) as scene:
        first = scene.owner(beat_s=BEAT_S)
        _moved(scene.save, **ELSEWHERE["on another host"])
        second = scene.worker()
        time.sleep(WATCHED_S / 3)
        names.heartbeat(scene.save, attempts.newest_ordinal(scene.save)).unlink()
        first.dies()
        return "" if second.does(1) else f"a start is refused: {second.answers}"


def torn_while_it_lives(call: int) -> str:
    """A beat takes long between opening and writing, as on a network file system: an empty file is no death."""
    with set_up(1) as scene:
        first = scene.owner(beat_s=BEAT_S)
        _moved(scene.save, **ELSEWHERE["on another host"])
        first.control.arm(Mode.STALL, call, stall_ms=round(1000 * BEAT_S))
        first.go_on()
        return scene.refused(within_s=3 * LONG_BEAT_S) if first.is_held_up() else "no beat was held up"


def not_yet_beating(at: int) -> str:
    """A job elsewhere is in its start, its record stands: it has the directory although it was never seen to beat."""
    with set_up(1) as scene:
        first = scene.worker("start", Mode.STALL, at, stall_ms=round(3000 * BEAT_S), beat_s=BEAT_S)
        if not first.is_held_up():
            return "the call was not reached"
        _moved(scene.save, **ELSEWHERE["on another host"])
        other = scene.worker()
        other.does(1)
        first.stops()
        first.hear()
        ends = [worker.answers[0].error or "starts" for worker in (first, other)]
        return "" if ends == ["starts", "DirectoryInUse"] else f"the first {ends[0]}, the second {ends[1]}"


def clocks(world_size: int, first_s: int, second_s: int) -> str:
    """The first's clock jumps between its saves, the second's is off by years: refused, and newest by position."""
    with set_up(world_size) as scene:
        first = scene.owner()
        first.order()
        first.does(2)
        first.control.jump_clock(first_s)
        for number, path in enumerate(sorted(scene.save.rglob("*"))):  # dates of files say nothing either
            years = first_s * (number % 3 - 1) * 1_000_000_000
            os.utime(path, ns=(0, time.time_ns() + years), follow_symlinks=False)
        first.order()
        if not first.does(3) or first.answers[-1].ahead_s != first_s:
            return f"the first job's clock has not moved, or it cannot save: {first.answers[-1]}"
        if wrong := scene.refused(clock_s=second_s):
            return wrong
        first.dies()
        second, wrong = scene.let_in(clock_s=second_s)
        if wrong:
            return wrong
        second.dies()
        return scene.judged(first, second)


def clock_jumps_while_it_watches(seconds: int) -> str:
    """In the middle of the two and a half beats: they last as long as ever."""
    with set_up(1) as scene:
        first = scene.owner(beat_s=BEAT_S)
        _moved(scene.save, **ELSEWHERE["rebooted"])
        second = scene.worker()
        time.sleep(WATCHED_S / 3)
        second.control.jump_clock(seconds)
        if not second.does(1) or second.answers[0].ahead_s != seconds:
            return f"not let in, or the clock has not moved: {second.answers}"
        took = second.answers[0].seconds
        in_time = WATCHED_S <= took <= WATCHED_S + AT_ONCE_S
        wrong = "" if in_time else f"let in after {took:.2f} s, expected {WATCHED_S} s"
        return wrong or scene.superseded(first) or scene.saves(second) or scene.judged(first, second)


def container(lives: str, second_inside: bool) -> str:
    """One of them is in a container, the other is not: pids mean nothing there, the heartbeat decides."""
    with Namespace() as space, set_up(1) as scene:
        there, here = (contextlib.nullcontext(), space.inside())[:: 1 if second_inside else -1]
        with there:
            first = scene.owner(beat_s=BEAT_S, before=None if second_inside else own_proc)
        place = own_proc if second_inside else None
        if lives == "runs":
            first.go_on()
            with here:
                wrong = scene.refused(within_s=WATCHED_S + AT_ONCE_S, before=place)
            return wrong or scene.saves(first)
        if lives == "is killed":
            first.dies()
        with here:
            second, wrong = scene.let_in(WATCHED_S, before=place, beat_s=BEAT_S)
        if lives == "is stopped":
            wrong = wrong or scene.superseded(first)
        return wrong or scene.saves(second) or scene.judged(first, second, within_s=LET_IN_S + WATCHED_S)


def both_in_one_container(lives: str, proc: str, again: bool) -> str:
    """The second is refused by the first's process there; `again`: the first is dead, and the second has its pid.

    Where /proc is that of the host, or hides all others, the heartbeat decides.
    """
    place = {"its own": own_proc, "the host's": None, "hidden": hidden_processes}[proc]
    waits = 0.0 if proc == "its own" else WATCHED_S
    with Namespace() as space, set_up(1) as scene:
        if lives == "runs":
            space.next_pid(_unused_pid())
        with space.inside():
            first = scene.owner(beat_s=BEAT_S, before=own_proc if place else None)
        if lives == "runs":
            first.go_on()
            with space.inside():
                return scene.refused(within_s=waits + AT_ONCE_S, before=place) or scene.saves(first)
        first.reap()
        if again:
            space.next_pid(attempts.read_all(scene.save)[-1].pid)
        with space.inside():
            second, wrong = scene.let_in(0.0 if again else waits, WATCHED_S + AT_ONCE_S, before=place)
        return wrong or scene.saves(second)


def its_pid_again() -> str:
    """The first's pid really is another process's now, which lives."""
    with Namespace() as space, set_up(1) as scene:
        with space.inside():
            first = scene.owner(before=own_proc)
        pid = attempts.read_all(scene.save)[-1].pid
        first.reap()
        space.next_pid(pid)
        with space.inside():
            stranger = Child(_sleeper)
            second, wrong = scene.let_in(before=own_proc)
        if (told := stranger.kill().told) != [pid]:
            return f"the pid was not used again: {told}, expected {pid}"
        return wrong or scene.saves(second)


def _moved(save: Path, **changes: object) -> None:
    """The newest record, as the same job would have written it in another place."""
    record = replace(attempts.read_all(save)[-1], **changes)  # type: ignore[arg-type]
    names.attempt_record(save, record.ordinal).write_bytes(attempts.encode(record))


def _unused_pid() -> int:
    """A /proc that is the host's has nobody of that number."""
    return next(pid for pid in range(300, 1 << 15) if not Path(f"/proc/{pid}").exists())


def _namesake(tell: Tell) -> None:
    _named_so()
    _sleeper(tell)


def _sleeper(tell: Tell) -> None:
    tell(os.getpid())
    signal.pause()
