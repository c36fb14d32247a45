"""When a run saves: the same answer on all ranks, whoever asked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from runs import ThreadGroup, TinyRank, run_ranks

from ms_resume import Schedule, locate
from ms_resume.errors import UsageError
from ms_resume.resume.schedule import Wishes


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (Schedule(), []),
        (Schedule(every_steps=3), ["0_3", "1_3"]),
        (Schedule(each_epoch=True), ["1_0"]),
        (Schedule(every_steps=2, each_epoch=True), ["0_2", "0_4", "1_0", "1_2", "1_4"]),
        (Schedule(every_s=1.0), []),  # that is a wish
    ],
)
def test_by_position(schedule: Schedule, due: list[str]) -> None:
    positions = [(epoch, step) for epoch in range(2) for step in range(5)]

    assert [f"{e}_{s}" for e, s in positions if schedule.reason(e, s)] == due
    assert schedule.reason(0, 1, wishes=1.0) == "asked for"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_so_many_seconds(tmp_path: Path) -> None:
    """By rank 0's clock alone, from the last save that began, whatever brought it about."""
    clock = Clock()
    first, second = (Wishes(tmp_path, rank, Schedule(every_s=60), clock) for rank in (0, 1))
    said = []
    for now in (101.0, 159.0, 160.0, 200.0):
        clock.now = now
        said.append((first.now(), second.now()))
    first.granted()
    clock.now = 259.0
    said.append((first.now(), second.now()))

    assert said == [(0, 0), (0, 0), (1, 0), (1, 0), (0, 0)]


def test_a_file_asks_once(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, 0, Schedule())
    (tmp_path / "save_now").touch()

    assert wishes.now() == 1.0
    assert Wishes(tmp_path, 1, Schedule()).now() == 0.0  # else as many wishes as ranks see it, and some see it late
    wishes.granted()
    assert not (tmp_path / "save_now").exists()
    assert wishes.now() == 0.0


def test_a_signal_asks_once_and_is_passed_on(tmp_path: Path) -> None:
    heard: list[int] = []
    was = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        wishes = Wishes(tmp_path, 1, Schedule())
        wishes.listen(signal.SIGUSR1, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)

        assert wishes.now() == 1.0
        assert heard == [signal.SIGUSR1]
        wishes.granted()
        assert wishes.now() == 0.0
    finally:
        signal.signal(signal.SIGUSR1, was)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def test_steps_go_by_the_schedule(tmp_path: Path) -> None:
    """Without `save_every` it says when; with neither a run would save nothing until its end, which is refused."""

    def rank_main(group: ThreadGroup, schedule: Schedule | None) -> list[str]:
        me = TinyRank(group.rank)
        with me.saves_in(tmp_path, group, schedule=schedule) as checkpointer:
            checkpointer.start(resume=False)
            for _ in checkpointer.steps(1):
                me.train_one_step()
        return [str(found.position) for found in locate.every(tmp_path)]

    with pytest.raises(UsageError, match="nothing that says when to save"):
        run_ranks(1, lambda group: rank_main(group, None)).ok()
    assert run_ranks(1, lambda group: rank_main(group, Schedule(every_steps=4))).ok() == [["1_0", "0_8", "0_4"]]


def test_a_trainer_that_sums_up_wishes(tmp_path: Path) -> None:
    """One rank's wish is a save of all, one step later."""
    saved: list[list[str]] = [[], []]

    def rank_main(group: ThreadGroup) -> None:
        me = TinyRank(group.rank)
        with me.saves_in(tmp_path, group, schedule=Schedule(every_steps=4)) as checkpointer:
            checkpointer.start(resume=False)
            wishes = 0.0
            for step in range(10):
                if checkpointer.due(0, step, wishes=wishes):
                    checkpointer.begin(0, step)
                    saved[group.rank].append(f"0_{step}")
                checkpointer.fence()
                me.train_one_step()
                if step == 5 and group.rank == 0:
                    (tmp_path / "save_now").touch()
                wishes = sum(map(float, group.exchange(str(checkpointer.wish()).encode())))

    run_ranks(2, rank_main).ok()

    assert saved == [["0_4", "0_6", "0_8"]] * 2
    assert [str(found.position) for found in locate.every(tmp_path)] == ["0_8", "0_6", "0_4"]
    assert not (tmp_path / "save_now").exists()
