"""Saves behind training: what is saved is the state of its moment, and whatever goes wrong reaches the trainer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import savers
from runs import ThreadGroup, TinyRank, run_ranks

import ms_resume
from ms_resume import commit, locate, write
from ms_resume.errors import DiskError, NothingToResume, UsageError
from ms_resume.state import Arrays, HostTensor
from ms_resume.write import staging

Checkpointer = ms_resume.Checkpointer


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to copy."""
    monkeypatch.setattr(staging, "FEW", 0)


class Slow(Arrays):
    """Arrays whose reading waits until it is let go, as from a device that is at work."""

    def __init__(self, **arrays: Any) -> None:
        super().__init__(**arrays)
        self.go = threading.Event()
        self.go.set()

    def read(self, name: str) -> HostTensor:
        self.go.wait(20)
        return super().read(name)


def started(save: Path, *, resume: bool = False, world_size: int = 1, **settings: Any) -> list[TinyRank]:
    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        me.policy = Slow(**me.policy)
        chosen = ms_resume.Settings(**{"keep_last": 2, "heartbeat_s": 0, "fence_check": 1, **settings})
        me.start = me.saves_in(save, group, steps_per_epoch=100, settings=chosen).start(resume=resume)
        return me

    return run_ranks(world_size, rank_main).ok()


def checkpointer_of(rank: TinyRank) -> Checkpointer:
    assert rank.checkpointer is not None
    return rank.checkpointer


def latest(save: Path) -> str:
    found = locate.latest(save).checkpoint
    return str(found.position) if found else "none"


def test_begin_returns_before_anything_is_copied(tmp_path: Path) -> None:
    """The fence waits for the copy; then training may change everything, and the checkpoint has what was."""
    (me,) = started(tmp_path)
    checkpointer = checkpointer_of(me)
    was = me.policy["w"].copy()
    me.policy.go.clear()  # type: ignore[attr-defined]
    assert checkpointer.begin(0, 2)
    opened = threading.Event()
    fence = threading.Thread(target=lambda: (checkpointer.fence(), opened.set()))
    fence.start()

    assert not opened.wait(0.2)
    me.policy.go.set()  # type: ignore[attr-defined]
    assert opened.wait(60)
    fence.join()
    for array in (*me.policy.values(), *me.optimizer.values()):
        array[...] = 77
    saved = checkpointer.wait()

    assert saved is not None
    assert saved.fresh
    (again,) = started(tmp_path, resume=True)
    assert again.start == ms_resume.Position(0, 2)
    assert np.array_equal(again.policy["w"], was)


def test_the_copying_form(tmp_path: Path) -> None:
    """A trainer that promises nothing: the fence right behind the save."""
    (me,) = started(tmp_path)
    checkpointer = checkpointer_of(me)
    for step in (2, 4, 6):
        checkpointer.begin(0, step)
        checkpointer.fence()
        me.train_one_step()
    checkpointer.close()

    assert latest(tmp_path) == "0_6"


@pytest.mark.parametrize("staging", [True, False])
@pytest.mark.parametrize("when", ["while it is copied", "when it is saved"])
def test_a_trainer_that_changes_too_early(tmp_path: Path, staging: bool, when: str) -> None:
    """Said at the fence, by name; what was saved of it does not count, and the next save works."""
    (me,) = started(tmp_path, staging=staging)
    checkpointer = checkpointer_of(me)
    checkpointer.save(0, 2)
    checkpointer.begin(0, 4)
    flight = checkpointer._saver._flight  # type: ignore[union-attr]
    assert flight is not None
    if when == "when it is saved":
        flight._over.wait(60)
    else:
        flight.snapshot.taken.wait(60)
        for staged in flight.snapshot.staged.values():
            staged.settle()
    me.policy["w"][...] += 1
    if not staging:
        checkpointer.fence()  # it is saved by then: nothing is compared
        return
    with pytest.raises(UsageError, match="policy 'w' was changed while it was being saved, so 0_4 was not saved"):
        checkpointer.fence()

    assert latest(tmp_path) == "0_2"
    checkpointer.save(0, 6)
    assert latest(tmp_path) == "0_6"


def test_in_turn_every_tensor_is_looked_at(tmp_path: Path) -> None:
    """One in two of them, the others at the next fence."""
    (me,) = started(tmp_path, fence_check=2)
    checkpointer = checkpointer_of(me)
    found = []
    for step in (2, 4):
        checkpointer.begin(0, step)
        checkpointer._saver._flight._over.wait(60)  # type: ignore[union-attr]
        me.policy["bias"][...] += 1
        try:
            checkpointer.fence()
        except UsageError:
            found.append(step)

    assert len(found) == 1


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(write, "save", fails)


@pytest.mark.parametrize("call", ["fence", "wait", "begin", "close"])
def test_an_error_reaches_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Once; then the run goes on, and the next save counts."""
    (me,) = started(tmp_path)
    checkpointer = checkpointer_of(me)
    calls: dict[str, Callable[[], object]] = {
        "fence": checkpointer.fence,
        "wait": checkpointer.wait,
        "begin": lambda: checkpointer.begin(0, 4),
        "close": checkpointer.close,
    }
    with monkeypatch.context() as patched:
        failing(patched, DiskError("no room", hint=""))
        checkpointer.begin(0, 2)
        checkpointer._saver._flight._over.wait(60)  # type: ignore[union-attr]
        with pytest.raises(DiskError, match="no room"):
            calls[call]()
    if call != "close":
        checkpointer.save(0, 4)
        assert latest(tmp_path) == "0_4"


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first."""
    (me,) = started(tmp_path)
    checkpointer, real, running = checkpointer_of(me), write.save, []

    def save(*args: Any) -> write.Saved:
        running.append(1)
        assert len(running) == 1
        time.sleep(0.1)
        done = real(*args)
        running.pop()
        return done

    monkeypatch.setattr(write, "save", save)
    for step in (2, 4, 6):
        checkpointer.begin(0, step)
    checkpointer.close()

    assert latest(tmp_path) == "0_6"


def test_a_save_is_skipped_by_all_ranks_or_by_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although only one of them is busy."""
    ranks = started(tmp_path, world_size=2, when_busy="skip")
    ranks[1].policy.go.clear()  # type: ignore[attr-defined]

    def both(step: int) -> list[bool]:
        begun: list[bool] = [False, False]

        def one(number: int) -> None:
            begun[number] = checkpointer_of(ranks[number]).begin(0, step)

        threads = [threading.Thread(target=one, args=[number]) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return begun

    assert both(2) == [True, True]
    checkpointer_of(ranks[0]).wait()
    assert both(4) == [False, False]
    ranks[1].policy.go.set()  # type: ignore[attr-defined]
    checkpointer_of(ranks[1]).wait()
    assert both(6) == [True, True]
    for rank in ranks:
        checkpointer_of(rank).wait()

    assert latest(tmp_path) == "0_6"
    assert any("0_4 is not saved: the save before it is still under way" in text for text in ranks[0].said)


def test_a_save_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ms_resume.resume import saver

    monkeypatch.setattr(saver, "_SHOWN_AFTER_S", 0)
    (me,) = started(tmp_path, save_timeout_s=0.05)
    me.policy.go.clear()  # type: ignore[attr-defined]
    tell = checkpointer_of(me)._saver._say  # type: ignore[union-attr]

    def say(text: str) -> None:
        tell(text)
        if "waited for" in text:
            me.policy.go.set()  # type: ignore[attr-defined]

    monkeypatch.setattr(checkpointer_of(me)._saver, "_say", say)
    checkpointer_of(me).begin(0, 2)
    checkpointer_of(me).wait()

    assert any("the save of 0_2 is waited for since 0.05 s" in text for text in me.said)


def test_an_error_of_the_trainer_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save that is under way is waited for; its own error is only said."""
    (me,) = started(tmp_path)
    failing(monkeypatch, DiskError("no room", hint=""))

    def train() -> None:
        with checkpointer_of(me):
            checkpointer_of(me).begin(0, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()

    assert any("the last save failed: no room" in text for text in me.said)


def test_a_process_that_ends_waits_for_its_save(tmp_path: Path) -> None:
    """Whoever forgets to wait, too."""
    script = f"""
import numpy as np, ms_resume
from ms_resume.framework.group import Solo
from ms_resume.state import Arrays
w = Arrays(w=np.ones(3_000_000, np.float32))
c = ms_resume.Checkpointer({str(tmp_path)!r}, policy=w, optimizer=w, steps_per_epoch=9, group=Solo(), say=print)
c.start(resume=False)
c.begin(0, 2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600)

    assert (done.returncode, done.stderr) == (0, "")
    assert latest(tmp_path) == "0_2"


def resident(address: int, size: int) -> int:
    """Pages that are there."""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    gone = ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
    return 0 if gone else sum(page & 1 for page in pages)


@pytest.mark.parametrize("ends", ["before a save", "behind a save", "with an error", "with a save that failed"])
def test_the_host_copy_is_given_back(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the end of the run, however it comes, and not when somebody collects cycles: it is as large as the state."""
    placed: list[tuple[int, int]] = []
    allocate = staging._allocate

    def allocated(size: int) -> mmap.mmap:
        buffer = allocate(size)
        placed.append((np.frombuffer(buffer, np.uint8).ctypes.data, len(buffer)))
        return buffer

    monkeypatch.setattr(staging, "_allocate", allocated)
    gc.disable()
    try:
        (me,) = started(tmp_path)
        checkpointer = checkpointer_of(me)
        assert [resident(*where) > 0 for where in placed] == [True]
        if ends == "with a save that failed":
            monkeypatch.setattr(commit, "cast", Mock(side_effect=DiskError("no room", hint="")))
        if ends != "before a save":
            checkpointer.begin(0, 2)
        with contextlib.suppress(ZeroDivisionError, DiskError), checkpointer:
            if ends == "with an error":
                raise ZeroDivisionError

        assert [resident(*where) for where in placed[:1]] == [0]
    finally:
        gc.enable()


def test_steps_behind_a_rollout(tmp_path: Path) -> None:
    """A trainer of four lines."""
    (me,) = started(tmp_path)
    checkpointer = checkpointer_of(me)
    with checkpointer:
        for _ in checkpointer.steps(1, save_every=40, behind=True):
            checkpointer.fence()
            me.train_one_step()
    (again,) = started(tmp_path, resume=True)

    assert latest(tmp_path) == "1_0"
    assert np.array_equal(again.policy["w"], me.policy["w"])


def test_a_save_that_is_waited_for_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 0, after a while, on a terminal: bytes of all files."""
    from contextlib import contextmanager

    from ms_resume import progress
    from ms_resume.resume import saver

    seen: list[Any] = []

    @contextmanager
    def shown(what: str, total: int) -> Any:
        seen.append((what, total))

        def tell(count: int) -> None:
            seen.append(count)
            if len(seen) > 2:
                me.policy.go.set()  # type: ignore[attr-defined]

        yield tell

    monkeypatch.setattr(saver, "_SHOWN_AFTER_S", 0.05)
    monkeypatch.setattr(progress, "shown", shown)
    (me,) = started(tmp_path)
    me.policy.go.clear()  # type: ignore[attr-defined]
    checkpointer_of(me).begin(0, 2)
    checkpointer_of(me).wait()

    assert seen[0][0] == "saving 0_2"
    assert seen[0][1] > sum(array.nbytes for array in me.optimizer.values())
    assert len(seen) > 2


def test_weights_alone(tmp_path: Path) -> None:
    """A resume passes them over, and says so; `meta.json`, by which stock code goes, does not name them."""
    (me,) = started(tmp_path)
    checkpointer_of(me).save(0, 2)
    meta = savers.files(tmp_path)["train/rank_0/meta.json"]
    (me,) = started(tmp_path, resume=True, save_optimizer=False)
    for step in (4, 6, 8):
        checkpointer_of(me).save(0, step)
    checkpointer_of(me)._saver.rest()  # type: ignore[union-attr]  # retention removes files
    found = {path for path in savers.files(tmp_path) if "-0_8." in path}
    (again,) = started(tmp_path, resume=True)

    assert found == {f"{what}_rank_0-0_8.safetensors" for what in ("train/rank_0/policy_model", "state/rank_0/state")}
    assert savers.files(tmp_path)["train/rank_0/meta.json"] == meta
    assert again.start == ms_resume.Position(0, 2)
    assert "0_8" in again.said[0]
    assert "only a warm start takes it" in again.said[0]


def test_nothing_but_weights(tmp_path: Path) -> None:
    (me,) = started(tmp_path, save_optimizer=False)
    checkpointer_of(me).save(0, 2)
    with pytest.raises(NothingToResume, match="only a warm start takes it"):
        started(tmp_path, resume=True)


@pytest.mark.parametrize("role", ["policy", "optimizer"])
def test_a_parameter_that_changes_shape(tmp_path: Path, role: str) -> None:
    """One error; nothing of that save is left, and when the shape is back the next save counts."""
    (me,) = started(tmp_path)
    checkpointer = checkpointer_of(me)
    checkpointer.save(0, 2)
    before = savers.files(tmp_path)
    name = {"policy": "w", "optimizer": "adam_m.w"}[role]
    was = getattr(me, role)[name]
    getattr(me, role)[name] = np.zeros((4, 4), np.float32)
    with pytest.raises(UsageError, match=r"is F32\[4, 4\] now, it was F32\[3, 4\]"):
        checkpointer.save(0, 4)

    assert savers.files(tmp_path) == before
    getattr(me, role)[name] = was
    checkpointer.save(0, 6)
    assert latest(tmp_path) == "0_6"
