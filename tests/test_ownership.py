"""Who owns a save directory: two jobs, dead ones, those elsewhere, and workers that were replaced unawares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import savers
import stock_trees
from runs import run_ranks, tiny_run

import ms_resume
from ms_resume import commit, locate, ownership, retention
from ms_resume.errors import DirectoryInUse, Superseded
from ms_resume.layouts import survey
from ms_resume.ondisk import attempts, names
from ms_resume.records import Attempt, Position, Writer

JOB = """
import sys, time
from pathlib import Path
from runs import tiny_run
def live(rank, position):
    print("running", flush=True)
    time.sleep(600)
tiny_run(Path(sys.argv[1]), world_size=1, before_step=live)
"""


@contextmanager
def second_job(save: Path) -> Iterator[subprocess.Popen[str]]:
    """A real job in a process of its own that has taken `save` and trains."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(ms_resume.__file__).parents[1])])
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(save)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "running\n"
        yield job
    finally:
        job.kill()
        job.wait()


def test_a_second_job_on_this_machine_is_refused_at_once_until_the_first_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By process and start time, not by waiting; after SIGKILL nothing is in the way."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with second_job(tmp_path) as job:
        before = savers.files(tmp_path)
        with pytest.raises(DirectoryInUse) as caught:
            tiny_run(tmp_path, world_size=1, resume=True).ok()
        assert slept == []
        assert f"pid {job.pid}" in str(caught.value)
        assert "--take_over" in caught.value.hint
        assert savers.files(tmp_path) == before
        job.send_signal(signal.SIGKILL)
        job.wait()

    assert tiny_run(tmp_path, world_size=1, resume=True).ok()[0].positions[0] == (0, 0)


def test_taking_over_supersedes_the_job_that_runs(tmp_path: Path) -> None:
    """It is asked for by name, and the other job's rank learns of it before it writes."""
    with second_job(tmp_path):
        theirs = attempts.read_all(tmp_path)[-1]
        tiny_run(tmp_path, world_size=1, resume=True, start={"take_over": True}).ok()

    with pytest.raises(Superseded):
        ownership.assert_owner(savers.writer(tmp_path, theirs))


def owner_elsewhere(save: Path, **changes: object) -> Attempt:
    """The newest record, as a job in another place would have written it."""
    attempt = replace(savers.open_attempt(save), **{"pid": 1, "pid_start": 1, **changes})  # type: ignore[arg-type]
    names.attempt_record(save, attempt.ordinal).write_bytes(attempts.encode(attempt))
    return attempt


@pytest.mark.parametrize("place", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}])
def test_an_owner_elsewhere_is_alive_while_its_heartbeat_moves(
    tmp_path: Path, place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, or another container: pids mean nothing there. This one beats earlier than it says, else a
    thread that gets no core for long would be dead."""
    attempt = owner_elsewhere(tmp_path, **place)
    monkeypatch.setattr(ownership.Heartbeat, "_stops_within", lambda self, seconds: self._stopped.wait(0.02))
    beating = ownership.Heartbeat(tmp_path, attempt.ordinal, 10)
    with pytest.raises(DirectoryInUse):
        ownership.check_free(tmp_path)
    beating.stop()

    assert ownership.check_free(tmp_path) == attempt.ordinal


@pytest.mark.parametrize("left", [b"", b"7 0.1\n", b"\0\0\0\0", b"7", b"x y"])
def test_a_heartbeat_that_stands_still_is_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    """Whatever a SIGKILL or a power cut left of it: it is watched, never parsed on trust, and never a time of day."""
    monkeypatch.setattr(ownership, "_USUAL_BEAT_S", 0.1)
    attempt = owner_elsewhere(tmp_path, boot_id="another")
    names.heartbeat(tmp_path, attempt.ordinal).write_bytes(left)

    assert ownership.check_free(tmp_path) == attempt.ordinal


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    """The process of that number started at another time."""
    attempt = owner_elsewhere(tmp_path, pid=os.getppid(), pid_start=1)

    assert ownership.check_free(tmp_path) == attempt.ordinal


def test_a_zombie_is_not_the_owner(tmp_path: Path) -> None:
    """It was killed, and its parent has not looked yet."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = ownership._start_of(child.pid)
    owner_elsewhere(tmp_path, pid=child.pid, pid_start=started)
    with pytest.raises(DirectoryInUse):
        ownership.check_free(tmp_path)
    child.kill()
    deadline = time.monotonic() + 60
    while ownership._start_of(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)

    assert ownership.check_free(tmp_path) == 1
    child.wait()


def test_two_jobs_that_race_for_one_attempt(tmp_path: Path) -> None:
    """Eight open the same number at once: one has it, the others are told that the directory is in use."""
    tmp_path.joinpath("commits").mkdir()
    opened = run_ranks(8, lambda group: ownership.open_attempt(survey.take(tmp_path), None, 1, after=0))

    assert len(opened.results) == 1
    assert {type(error) for error in opened.errors.values()} == {DirectoryInUse}
    assert [record.attempt for record in attempts.read_all(tmp_path)] == [
        record.attempt for record in opened.results.values()
    ]


def test_a_job_that_was_overtaken_while_it_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the directory free; the slower one must not end what the faster one has begun."""
    from ms_resume.resume import session

    tiny_run(tmp_path, world_size=1, stop=(0, 7)).ok()
    real = session.load_newest

    def slowly(*args: object) -> object:
        monkeypatch.setattr(session, "load_newest", real)
        tiny_run(tmp_path, world_size=1, resume=True).ok()
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "load_newest", slowly)
    with pytest.raises(DirectoryInUse, match="just started"):
        tiny_run(tmp_path, world_size=1, resume=True).ok()

    assert str(locate.latest(tmp_path).checkpoint.position) == "1_0"  # type: ignore[union-attr]


def superseded_writer(save: Path) -> Writer:
    """A rank of an attempt that saved 0_5 and 0_10, and was taken over by one that went on from 0_5 to 0_20."""
    old = savers.open_attempt(save)
    for at in ("0_5", "0_10"):
        savers.save(savers.writer(save, old), at)
    new = savers.open_attempt(save, "0_5", by=old.attempt)
    for at in ("0_10", "0_15", "0_20"):
        savers.save(savers.writer(save, new), at, value=2.0)
    return savers.writer(save, old)


@pytest.mark.parametrize(
    "act",
    [
        lambda old: savers.save(old, "0_10"),
        lambda old: savers.save(old, "0_25"),
        lambda old: commit.retract(old, Position(0, 10), []),
        lambda old: commit.clear(old, names.payload(old.save, "policy", 0, Position(0, 5))),
        lambda old: commit.record_meta(old, {"policy": names.payload(old.save, "policy", 0, Position(0, 10))}),
        lambda old: retention.sweep(old, survey.take(old.save), retention.Keep(2)),
    ],
)
def test_a_superseded_writer_changes_nothing(tmp_path: Path, act: Callable[[Writer], object]) -> None:
    """It cannot publish, vote, retract, rewrite meta.json, or delete."""
    old = superseded_writer(tmp_path)
    (names.rank_dir(tmp_path, "policy", 0) / names.META).unlink()
    before = savers.files(tmp_path)
    with pytest.raises(Superseded):
        act(old)

    assert savers.files(tmp_path) == before


def test_a_superseded_writer_deletes_no_payload(tmp_path: Path) -> None:
    """Retention of its successor has taken positions out: the unlinking is the successor's."""
    old = superseded_writer(tmp_path)
    new = savers.writer(tmp_path, attempts.read_all(tmp_path)[-1])
    assert [str(position) for position in retention.sweep(new, survey.take(tmp_path), retention.Keep(2))] == [
        "0_5",
        "0_10",
    ]
    before = savers.files(tmp_path)
    with pytest.raises(Superseded):
        retention.remove_payloads(old)

    assert savers.files(tmp_path) == before


def test_a_writer_stopped_before_it_retracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for an unchanged reference takes minutes: a successor may have saved the position in that time."""
    from ms_resume.write import files

    old = savers.open_attempt(tmp_path)
    savers.save(savers.writer(tmp_path, old), "0_5")

    def stopped_for_long(*args: object) -> None:
        monkeypatch.undo()
        new = savers.open_attempt(tmp_path, "0_5", by=old.attempt)
        savers.save(savers.writer(tmp_path, new), "0_10")

    monkeypatch.setattr(files, "unchanged_reference", stopped_for_long)
    with pytest.raises(Superseded):
        savers.save(savers.writer(tmp_path, old), "0_10")

    assert str(locate.latest(tmp_path).checkpoint.position) == "0_10"  # type: ignore[union-attr]


def test_a_listing_from_a_cache_does_not_supersede(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system the record that rank 0 has just made shows late in other ranks' listings."""
    attempt = savers.open_attempt(tmp_path)
    monkeypatch.setattr(attempts, "newest_ordinal", lambda save: 0)
    ownership.assert_owner(savers.writer(tmp_path, attempt))


def test_a_record_that_is_gone(tmp_path: Path) -> None:
    """Somebody moved the directory away while the job ran: no newer attempt is to blame."""
    writer = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    names.attempt_record(tmp_path, 1).unlink()

    with pytest.raises(Superseded, match=r"000001\.json: gone") as caught:
        ownership.assert_owner(writer)
    assert "moved" in caught.value.hint


def test_the_heartbeat_beats_and_ends_without_a_trace(tmp_path: Path) -> None:
    """Its thread does not outlive it."""
    path = names.heartbeat(tmp_path, 1)
    beating = ownership.Heartbeat(tmp_path, 1, 0.02)
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < deadline:
        seen.add(path.read_text())
        time.sleep(0.01)
    beating.stop()

    assert len(seen) == 3
    assert not path.exists()
    assert "ms_resume heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_record_names_stock_positions_it_went_back_past(tmp_path: Path) -> None:
    """Newer than `from` only, by what they mean: stock's final 0_10 of ten steps is older than 0_5."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10), (1, 0))
    (stock_trees.payload_path(tmp_path, "policy", 0, (1, 0))).unlink()
    (stock_trees.payload_path(tmp_path, "policy", 1, (1, 0))).unlink()
    long, short = (
        ownership.passed_stock(survey.take(tmp_path, steps_per_epoch=steps), savers.origin("0_5"))
        for steps in (100, 10)
    )

    assert [str(dead.position) for dead in long] == ["0_10"]
    assert list(short) == []


def test_a_stock_file_that_goes_while_a_record_is_opened(tmp_path: Path) -> None:
    """A worker that is slow to die prunes between the survey and the record: what is gone needs no record."""
    stock_trees.healthy(tmp_path, (0, 2), (0, 4))
    surveyed = survey.take(tmp_path, steps_per_epoch=10)
    for rank in (0, 1):
        stock_trees.payload_path(tmp_path, "policy", rank, (0, 4)).unlink()
    attempt = ownership.open_attempt(surveyed, None, 1, after=0)

    assert {dead.position for dead in attempt.dead_stock} == {Position(0, 2)}
