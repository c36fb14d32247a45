"""What a rank tells its supervisor, and what a Checkpointer makes of a signal to leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import tiny_run

from ms_resume import pulse
from ms_resume.errors import DiskError
from ms_resume.pulse import Pulse
from ms_resume.records import Position
from ms_resume.resume.schedule import LEAVE, Schedule, Wishes
from ms_resume.settings import Settings

ATTEMPT = "000001-0123456789abcdef"


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an attempt, that of this process."""
    directory = tmp_path / ATTEMPT
    directory.mkdir()
    monkeypatch.setenv("MS_RESUME_WATCH_DIR", str(directory))
    monkeypatch.setenv("RANK_ID", "3")
    monkeypatch.setattr(pulse, "_OPENED", [])
    return directory


def said(directory: Path, kind: str, rank: int = 3) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / f"rank_{rank}.{kind}").read_text())
    return document


def test_a_pulse_moves_with_the_work(watched: Path):
    """Position and phase, and who it is; a shorter one leaves nothing of a longer one behind."""
    mine = Pulse(str(watched), 3)
    mine.beat("a phase with a long name", Position(10, 123456))
    first = said(watched, "pulse")
    mine.beat("save")
    second = said(watched, "pulse")

    assert (first["phase"], first["position"]) == ("a phase with a long name", [10, 123456])
    assert (second["phase"], second["position"]) == ("save", [10, 123456])
    assert second["beat"] > first["beat"]
    assert (second["pid"], second["rank"], second["stacks"]) == (os.getpid(), 3, True)
    assert second["pid_start"] > 0


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda words: 0, 0, {"done": True, "left": False, "exit_code": 0}),
        (lambda words: 50, 50, {"done": False, "left": True, "exit_code": 50}),
        (lambda words: 31, 31, {"done": False, "left": False, "exit_code": 31}),
    ],
)
def test_last_words(watched: Path, main: Any, code: int, words: dict[str, Any]):
    assert pulse.run(main, []) == code
    assert said(watched, "outcome").items() >= words.items()


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (DiskError("d: full", hint="free space", errno=28), 1, "DiskError"),
        (ZeroDivisionError("division"), 1, "ZeroDivisionError"),
        (SystemExit(7), 7, None),
        (SystemExit("a text"), 1, None),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
    ],
)
def test_last_words_of_an_error(watched: Path, error: BaseException, code: int, name: str | None):
    """It goes on its way, and its class, message, and last lines are there; of ours everything that it carries."""

    def main(words: list[str]) -> int:
        raise error

    with pytest.raises(type(error)):
        pulse.run(main, [])
    words = said(watched, "outcome")
    assert (words["exit_code"], words["done"]) == (code, False)
    assert words.get("error", {}).get("error") == name
    if name == "DiskError":
        assert words["error"]["errno"] == 28
    if name == "ZeroDivisionError":
        assert "ArithmeticError" in words["error"]["kinds"]
        assert words["error"]["traceback"][-1] == "ZeroDivisionError: division"


def test_an_error_that_main_catches(watched: Path):
    """`told` keeps it beside the exit code."""

    def main(words: list[str]) -> int:
        pulse.told(DiskError("d: full", hint="free space"))
        return 40

    assert pulse.run(main, []) == 40
    assert said(watched, "outcome")["error"]["message"] == "d: full"


def test_nobody_supervises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is written, also where the directory has gone."""
    monkeypatch.delenv("MS_RESUME_WATCH_DIR", raising=False)
    assert pulse.run(lambda words: 5, []) == 5
    gone = Pulse(str(tmp_path / "gone"), 0)
    gone.beat("step")
    gone.ended(done=True)

    assert list(tmp_path.iterdir()) == []


def test_the_scheduler_of_msrun_is_no_rank(watched: Path, monkeypatch: pytest.MonkeyPatch):
    """It runs the same program with RANK_ID=0."""
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")

    assert pulse.run(lambda words: 0, []) == 0
    assert list(watched.iterdir()) == []


def test_a_child_does_not_speak_for_its_rank(watched: Path):
    """A process that was forked off a rank shares its memory, not its place."""
    mine = Pulse(str(watched), 3)
    mine.beat("step", Position(0, 1))
    if (pid := os.fork()) == 0:
        mine.beat("child", Position(0, 2))
        mine.ended(done=True)
        os._exit(0)
    os.waitpid(pid, 0)

    assert said(watched, "pulse")["phase"] == "step"
    assert not (watched / "rank_3.outcome").exists()


def test_stacks_on_request(watched: Path):
    """Of a process that waits in a call, by the signal that would end another one."""
    code = (
        f"import threading; from ms_resume.pulse import Pulse; p = Pulse({str(watched)!r}, 0)\n"
        "def waits_for_ever(): threading.Event().wait()\n"
        "p.beat('step'); waits_for_ever()"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (watched / "rank_0.pulse").exists() or b"step" not in (watched / "rank_0.pulse").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(pulse.STACKS_SIGNAL)
    while "waits_for_ever" not in (watched / "rank_0.stacks").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert child.poll() is None
    child.kill()
    child.wait()


def test_a_checkpointer_tells(tmp_path: Path):
    """Start, steps, saves, and the end, of each rank."""
    directory = tmp_path / ATTEMPT
    directory.mkdir()
    phases: list[tuple[str, list[int]]] = []

    def look(me: Any, position: tuple[int, int]) -> None:
        if me.rank == 1:
            pulsed = said(directory, "pulse", 1)
            phases.append((pulsed["phase"], pulsed["position"]))

    settings = Settings(keep_last=0, heartbeat_s=0, watch_dir=str(directory))
    tiny_run(tmp_path / "save", before_step=look, settings=settings).ok()

    assert phases == [("step", [0, step]) for step in range(10)]
    for rank in (0, 1):
        assert said(directory, "outcome", rank).items() >= {"done": True, "left": False}.items()
        assert said(directory, "pulse", rank)["phase"] == "end"


def test_a_checkpointer_tells_of_an_error(tmp_path: Path):
    directory = tmp_path / ATTEMPT
    directory.mkdir()

    def fail(me: Any, position: tuple[int, int]) -> None:
        if position == (0, 7):
            raise OverflowError("too far")

    settings = Settings(keep_last=0, heartbeat_s=0, watch_dir=str(directory))
    tiny_run(tmp_path / "save", before_step=fail, settings=settings)
    words = said(directory, "outcome", 0)

    assert (words["done"], words["position"], words["error"]["error"]) == (False, [0, 7], "OverflowError")


def test_resume_at(tmp_path: Path):
    """A start goes on from exactly there; a fresh one does not care."""
    quiet = Settings(keep_last=0, heartbeat_s=0)
    told = Settings(keep_last=0, heartbeat_s=0, resume_at="0_5")
    tiny_run(tmp_path / "save", settings=told, steps_per_epoch=15, stop=(0, 12)).ok()
    ranks = tiny_run(tmp_path / "save", settings=told, steps_per_epoch=15, resume=True, stop=(0, 7)).ok()
    after = tiny_run(tmp_path / "save", settings=quiet, steps_per_epoch=15, resume=True, stop=(0, 7)).ok()

    assert [rank.start for rank in ranks] == [Position(0, 5)] * 2
    assert [rank.start for rank in after] == [Position(0, 5)] * 2


def test_all_ranks_leave_together(tmp_path: Path):
    """One rank hears the signal; by the sum all leave at the same step; that is no wish of a save alone."""
    ranks = [Wishes(tmp_path, rank, Schedule()) for rank in range(3)]
    ranks[1].leaving.listen(signal.SIGUSR1)
    before = sum(rank.now() for rank in ranks)
    os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while not (after := sum(rank.now() for rank in ranks)):
        assert time.monotonic() < deadline
    ranks[1].leaving.close()

    assert before == 0
    assert after >= LEAVE
    assert Schedule().reason(0, 1, wishes=after) == "asked for"
    ranks[1].granted()
    assert ranks[1].now() >= LEAVE  # it has its save, and has not left yet
