"""Leaving when asked: by signals, by a file, within a time, twice; what is not asked for does not happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import QUIET, ThreadGroup, TinyRank, run_ranks, tiny_run

from ms_resume import Schedule, Settings, locate, verify
from ms_resume.errors import UsageError
from ms_resume.resume.leaving import TOGETHER_S, Leaving
from ms_resume.resume.schedule import LEAVE


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Asked(Leaving):
    """One whose end is a number in a list."""

    def __init__(self) -> None:
        self.clock, self.ends = Clock(), list[int]()
        super().__init__(clock=self.clock, end=self.ends.append)


@pytest.fixture
def asked() -> Iterator[Asked]:
    leaving = Asked()
    yield leaving
    leaving.close()


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks(asked: Asked, number: int) -> None:
    """These two without being named; other handlers hear of it, too, and have their signal back at the end."""
    heard: list[int] = []
    was = signal.signal(number, lambda number, frame: heard.append(number))
    mine = signal.getsignal(number)
    try:
        asked.listen()
        assert not asked.wanted()
        os.kill(os.getpid(), number)
        until(asked.wanted)
        until(lambda: heard == [number])
        asked.close()

        assert asked.ends == []
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, was)


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        ([0], []),
        ([0, 0.1, TOGETHER_S], []),  # one request that came over several ways
        ([0, TOGETHER_S + 0.1], [143]),
        ([0, 0.1, 60], [143]),
    ],
)
def test_a_second_signal_ends_at_once(asked: Asked, seconds: list[float], ends: list[int]) -> None:
    """As the signal would have, had nobody listened."""
    for at in seconds:
        asked.clock.now = 100 + at
        asked.hear(signal.SIGTERM)

    assert asked.ends == ends


def test_a_first_signal_after_another_ranks_is_no_second_one(asked: Asked) -> None:
    """A scheduler takes its time to tell all of them."""
    asked.ask("another rank was asked")
    asked.clock.now += 30
    asked.hear(signal.SIGTERM)

    assert asked.ends == []


def test_after_it_has_left_any_end_is_a_good_one(asked: Asked) -> None:
    """What hangs at the exit of a process does not turn 50 into 143."""
    asked.hear(signal.SIGUSR1)
    asked.left()
    asked.clock.now += 30
    asked.hear(signal.SIGTERM)

    assert asked.ends == [50]


def test_another_run_in_the_same_process(asked: Asked) -> None:
    """Its signals are no second ones of the run before it, which has left."""
    before = Asked()
    before.listen(signal.SIGUSR1)
    before.hear(signal.SIGUSR1)
    before.left()
    asked.listen(signal.SIGUSR1)
    before.clock.now += 30
    os.kill(os.getpid(), signal.SIGUSR1)
    until(lambda: asked._signalled_at)  # the thread has told everybody

    assert before.ends == []
    before.close()


def test_the_grace_time(asked: Asked, tmp_path: Path) -> None:
    """Counts from the request, also where that came before the Checkpointer; without one nothing ends."""
    asked.belongs_to(tmp_path, 1, Settings())
    asked.hear(signal.SIGUSR1)
    time.sleep(0.05)
    assert asked.ends == []

    early = Asked()
    early.hear(signal.SIGUSR1)
    early.clock.now += 3600
    early.belongs_to(tmp_path, 0, Settings(grace_s=3600))
    until(lambda: early.ends == [128 + signal.SIGUSR1])


def test_a_run_that_is_over_has_no_grace_time(asked: Asked, tmp_path: Path) -> None:
    """It was asked in its last step, and evaluates now."""
    asked.belongs_to(tmp_path, 0, Settings(grace_s=60))
    asked.hear(signal.SIGTERM)
    timer = asked._timer
    asked.close()

    assert timer is not None
    timer.join(20)
    assert not timer.is_alive()
    assert asked.ends == []


def test_a_save_that_takes_longer_than_the_grace_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Is said when that is known, which is not when it is too late; once."""
    tiny_run(tmp_path, world_size=1, settings=Settings(heartbeat_s=0, grace_s=1e-6)).ok()
    said = capfd.readouterr().err

    assert said.count("MS_RESUME_GRACE_S is 1e-06, but a save took") == 1


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
def test_a_grace_time_that_is_none(grace_s: float) -> None:
    with pytest.raises(UsageError, match="MS_RESUME_GRACE_S"):
        Settings(grace_s=grace_s)


class TestStopFile:
    def test_made_or_touched(self, asked: Asked, tmp_path: Path) -> None:
        """By rank 0 alone, and only where the trainer leaves when it is asked."""
        others = [Asked(), Asked()]
        for rank, leaving in enumerate([asked, *others]):
            leaving.belongs_to(tmp_path, rank % 2, Settings())
        asked.listening = others[0].listening = True
        assert not asked.wanted()
        (tmp_path / "stop_now").touch()

        assert [leaving.wanted() for leaving in (asked, *others)] == [True, False, False]

    def test_one_from_before_the_start_does_not_count_until_it_is_touched(self, asked: Asked, tmp_path: Path) -> None:
        """Or the run after one that left would leave, and the one after that."""
        file = tmp_path / "maintenance"
        file.touch()
        asked.listening = True
        asked.belongs_to(tmp_path, 0, Settings(stop_file=str(file)))

        assert "does not count until it is touched again" in asked.check_file()
        assert not asked.wanted()
        os.utime(file)
        assert asked.wanted()
        assert file.exists()  # other runs may look for it, too

    @pytest.mark.parametrize(
        ("make", "name", "message"),
        [
            (lambda here: None, "gone/stop", "there is no directory"),
            (lambda here: (here / "file").touch(), "file/stop", "Not a directory"),
            (lambda here: (here / "loop").symlink_to("loop"), "loop", "symbolic links"),
            (lambda here: None, "n" * 300, "too long"),
        ],
    )
    def test_one_that_can_never_be_seen(
        self, tmp_path: Path, make: Callable[[Path], object], name: str, message: str
    ) -> None:
        """Is refused on all ranks at the start, before anything is read."""
        make(tmp_path)
        told = tiny_run(tmp_path / "save", settings=Settings(heartbeat_s=0, stop_file=str(tmp_path / name)))

        assert len(told.errors) == 2
        for error in told.errors.values():
            assert isinstance(error, UsageError)
            assert message in str(error)
            assert "MS_RESUME_STOP_FILE" in error.hint
        assert not (tmp_path / "save").exists()

    def test_one_that_cannot_be_read_later_ends_nothing(
        self, asked: Asked, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A disk that hiccups is said once, and looked at again."""
        directory = tmp_path / "d"
        directory.mkdir()
        asked.listening = True
        asked.belongs_to(tmp_path, 0, Settings(stop_file=str(directory / "stop")))
        directory.rename(tmp_path / "away")
        directory.touch()
        found = [asked.wanted(), asked.wanted()]
        directory.unlink()
        (tmp_path / "away").rename(directory)
        (directory / "stop").mkdir()  # whatever it is, it is never opened

        assert found == [False, False]
        assert capfd.readouterr().err.count("warning: stop file") == 1
        assert asked.wanted()


def leaving_run(
    save: Path,
    touch_at: tuple[int, int] | None,
    *,
    settings: Settings = QUIET,
    kept: list[Asked] | None = None,
    **start: Any,
) -> list[TinyRank]:
    """Two ranks that add up their wishes; the stop file is made in that step. Rank 0 is the one that sees it."""

    def rank_main(group: ThreadGroup) -> TinyRank:
        me, leaving = TinyRank(group.rank), Asked()
        leaving.listening = True
        if kept is not None:
            kept.append(leaving)
        given = {"settings": settings, "schedule": Schedule(every_steps=4), "leaving": leaving}
        with me.saves_in(save, group, **given) as checkpointer:
            if touch_at == (-1, group.rank):
                (save / "stop_now").touch()
            me.start = checkpointer.start(**{"resume": True, **start})
            sums = [checkpointer.wishes]
            for position in checkpointer.steps(2, save_every=4, behind=True, wishes=lambda: sums[-1]):
                checkpointer.fence()
                me.train_one_step()
                me.positions.append(position)
                if position == touch_at and group.rank == 0:
                    (save / "stop_now").touch()
                sums.append(sum(map(float, group.exchange(str(checkpointer.wish()).encode()))))
        return me

    return run_ranks(2, rank_main).ok()


def test_all_ranks_save_and_leave_at_one_position(tmp_path: Path) -> None:
    """One rank's request, heard by the sum; the next start does not leave at once, and ends as an undisturbed run."""
    save = tmp_path / "save"
    whole = tiny_run(tmp_path / "whole", epochs=2, save_every=4).ok()
    first = leaving_run(save, (0, 5), resume=False)
    at = locate.latest(save).checkpoint
    second = leaving_run(save, None)

    assert [rank.positions[-1] for rank in first] == [(0, 5)] * 2
    assert [rank.checkpointer.left for rank in first if rank.checkpointer] == [True] * 2
    assert at is not None
    assert str(at.position) == "0_6"
    assert [str(rank.start) for rank in second] == ["0_6"] * 2
    assert "does not count until it is touched again" in "\n".join(second[0].said)
    assert [rank.checkpointer.left for rank in second if rank.checkpointer] == [False] * 2
    for one, other in zip(whole, second, strict=True):
        assert one.policy["w"].tobytes() == other.policy["w"].tobytes()


def test_every_rank_has_the_grace_time(tmp_path: Path) -> None:
    """Also one that was told by another rank: it may wait for that one, in its last exchange. Whoever has left by then
    ends as it should."""
    kept: list[Asked] = []
    leaving_run(tmp_path, (0, 5), settings=Settings(heartbeat_s=0, grace_s=30), kept=kept, resume=False)
    timers = [leaving._timer for leaving in kept]
    assert all(timer is not None and timer.is_alive() for timer in timers)
    for leaving, timer in zip(kept, timers, strict=True):
        assert timer is not None
        timer.function(*timer.args)
        timer.cancel()

        assert leaving.ends == [50]


def test_a_run_that_is_over_does_not_listen(tmp_path: Path) -> None:
    """Nobody would be left who asks it."""
    kept: list[Asked] = []
    leaving_run(tmp_path, None, kept=kept, resume=False)

    assert [leaving.listening for leaving in kept] == [False, False]


def test_asked_while_it_loads(tmp_path: Path) -> None:
    """No step is trained for a run that leaves; the checkpoint that it loaded is the one that it leaves."""
    save = tmp_path / "save"
    leaving_run(save, (0, 5), resume=False)
    (save / "stop_now").unlink()
    again = leaving_run(save, (-1, 0))
    at = locate.latest(save).checkpoint

    assert [(rank.positions, rank.checkpointer and rank.checkpointer.left) for rank in again] == [([], True)] * 2
    assert at is not None
    assert str(at.position) == "0_6"


def test_the_last_save_is_never_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is under way when the run is asked to leave, and busy saves are skipped."""
    from ms_resume.resume.saver import Saver

    monkeypatch.setattr(Saver, "_busy_anywhere", lambda self: self._saves > 0)
    leaving_run(tmp_path, (0, 5), resume=False, settings=Settings(heartbeat_s=0, when_busy="skip"))
    at = locate.latest(tmp_path).checkpoint

    assert at is not None
    assert str(at.position) == "0_6"


def test_only_the_main_thread_listens(asked: Asked) -> None:
    errors: list[BaseException] = []

    def listen() -> None:
        try:
            asked.listen()
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()

    assert "main thread" in str(errors[0])


IMPORTS = """
import os, signal, sys, threading, time
from ms_resume.resume import leaving
leaving.TOGETHER_S = 0.2
"""
HEARS = """
leaving = leaving.Leaving()
leaving.listen()
def say(word): os.write(1, word.encode() + b"\\n")
"""


def child(code: str, before: str = "") -> subprocess.Popen[str]:
    """A process that listens, and is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS + before + HEARS + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_heard_in_a_call_that_does_not_return() -> None:
    """The kernel gives the signal to another thread, and the main thread waits on; another signal ends it there."""
    stuck = child(
        "lock = threading.Lock(); lock.acquire()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "say('ready'); lock.acquire()"
    )
    stuck.send_signal(signal.SIGTERM)
    assert stuck.stderr is not None
    assert "SIGTERM: saves at the next safe point and leaves" in stuck.stderr.readline()
    time.sleep(0.3)
    stuck.send_signal(signal.SIGTERM)

    assert stuck.wait(20) == 143
    assert "SIGTERM again: leaves at once" in stuck.stderr.read()


def test_handlers_of_others_take_nothing_away() -> None:
    """As MindSpore's OnRequestExit puts its own in the place of ours, and swallows the signal."""
    deaf = child(
        "signal.signal(signal.SIGTERM, lambda *_: None); say('ready')\n"
        "while not leaving.wanted(): time.sleep(0.01)\n"
        "say('asked')"
    )
    deaf.send_signal(signal.SIGTERM)

    assert deaf.wait(20) == 0
    assert deaf.stdout is not None
    assert deaf.stdout.read() == "asked\n"


def test_a_signal_that_was_taken_away_is_said(asked: Asked, capfd: pytest.CaptureFixture[str]) -> None:
    """One that is ignored reaches nobody."""
    asked.listen(signal.SIGUSR1)
    was = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    asked.wanted()
    asked.wanted()
    signal.signal(signal.SIGUSR1, was)

    assert capfd.readouterr().err.count("warning: SIGUSR1 was taken away") == 1


@pytest.mark.parametrize(
    ("prepared", "status"), [("", 15), ("signal.signal(signal.SIGTERM, lambda *_: os._exit(7))", 7 << 8)]
)
def test_a_child_that_is_ended_does_not_end_its_rank(prepared: str, status: int) -> None:
    """A loader's worker shares the rank's memory and its pipes, and takes SIGTERM for itself alone."""
    rank = child(
        "r, w = os.pipe()\n"
        "if not (pid := os.fork()):\n"
        f"    {prepared}\n"
        "    os.write(w, b'.')\n"
        "    while True: time.sleep(0.01)\n"
        f"if {bool(prepared)}: os.read(r, 1)\n"  # else as early as can be
        "os.kill(pid, signal.SIGTERM)\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "say('ready')\n"
        "time.sleep(0.2)\n"
        "say(f'{status} {leaving.wanted()}')"
    )

    assert rank.stdout is not None
    assert rank.stdout.readline() == f"{status} False\n"
    assert rank.wait(20) == 0


TAKEN = "r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)\n"


@pytest.mark.parametrize(("before", "after"), [(TAKEN, ""), ("", TAKEN)])
def test_beside_asyncio(before: str, after: str) -> None:
    """Which takes Python's one place for signals and keeps it: they are heard all the same, by the main thread."""
    said = child(
        after
        + "say('ready')\n"
        + "while not leaving.wanted(): time.sleep(0.01)\n"
        + "say(f'asked {signal.set_wakeup_fd(-1) == w}')",
        before,
    )
    said.send_signal(signal.SIGTERM)

    assert said.wait(20) == 0
    assert said.stdout is not None
    assert said.stdout.read() == "asked True\n"


RUN = """
import os, sys, time
import numpy as np
import ms_resume
from ms_resume import commit, settings
from ms_resume.framework.group import Solo
from ms_resume.resume import leaving
from ms_resume.state import Arrays

leaving.TOGETHER_S = 0.2

def never_comes_to_its_vote(writer, vote):
    os.write(1, b"saving\\n")
    time.sleep(60)

weights = Arrays(w=np.zeros(4, np.float32))
optimizer = Arrays({**weights, "m": np.ones(4, np.float32)})
with ms_resume.Checkpointer(
    sys.argv[1], policy=weights, optimizer=optimizer, steps_per_epoch=10, group=Solo(),
    settings=settings.from_environment(heartbeat_s=0),
) as checkpointer:
    checkpointer.leave_on()
    first = checkpointer.start(resume=True)
    checkpointer.save(0, first.step + 1)
    commit.cast = never_comes_to_its_vote
    checkpointer.save(0, first.step + 2)
"""


@pytest.mark.parametrize("grace_s", ["0", "0.2"])
def test_in_the_middle_of_a_save(tmp_path: Path, grace_s: str) -> None:
    """Two signals, or one and no time: what was saved stands, what was being saved does not count, twice over."""
    save = tmp_path / "save"
    for expected in ("0_1", "0_2"):
        save.mkdir(exist_ok=True)
        environment = {**os.environ, "MS_RESUME_GRACE_S": grace_s}
        command, pipe = [sys.executable, "-c", RUN, str(save)], subprocess.PIPE
        rank = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True)
        assert rank.stdout is not None
        assert rank.stderr is not None
        assert rank.stdout.readline() == "saving\n"
        rank.send_signal(signal.SIGUSR1)
        if grace_s == "0":
            assert any("SIGUSR1: saves" in line for line in rank.stderr)
            time.sleep(0.3)
            rank.send_signal(signal.SIGTERM)

        assert rank.wait(20) == 128 + signal.SIGUSR1
        found = locate.latest(save)
        assert found.checkpoint is not None
        assert str(found.checkpoint.position) == expected
        assert verify.check(found.checkpoint, deep=True) == []


def test_last_words(asked: Asked, tmp_path: Path) -> None:
    """A supervisor is told the exit code; a log disk that hangs keeps nobody."""
    words: list[int] = []
    asked.belongs_to(tmp_path, 0, Settings(), words.append)
    asked.hear(signal.SIGTERM)
    asked.clock.now += 30
    asked.hear(signal.SIGTERM)
    asked.belongs_to(tmp_path, 0, Settings(), lambda code: threading.Event().wait())
    began = time.monotonic()
    asked.hear(signal.SIGTERM)

    assert (words, asked.ends) == ([143], [143, 143])
    assert time.monotonic() - began < 20


def test_wishes_beside_it(tmp_path: Path) -> None:
    """Of one that was asked to leave, more than all others together."""
    from ms_resume.resume.schedule import Wishes

    leaving = Asked()
    wishes = Wishes(tmp_path, 0, Schedule(), leaving=leaving)
    leaving.hear(signal.SIGTERM)

    assert wishes.now() >= LEAVE
