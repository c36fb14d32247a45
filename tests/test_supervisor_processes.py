"""Whose a process is, whether it lives, how it ended; and that no other one is ever ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ms_resume.supervisor import processes
from ms_resume.supervisor.processes import MARK, Process, Watched

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
CHILD = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "


class Nursery:
    """Starts processes that end with the test."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, directory: str | Path = "", code: str = "", **more: object) -> subprocess.Popen[bytes]:
        """One that has begun when this returns; `code` runs before it sleeps."""
        variables = {name: text for name, text in os.environ.items() if name != MARK}
        variables |= {MARK: str(directory)} if directory else {}
        command = [*SLEEP[:2], code + SLEEP[2]]
        child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, **more)  # type: ignore[call-overload]
        assert child.stdout is not None
        child.stdout.readline()
        self.children.append(child)
        return child


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    for child in nursery.children:
        child.kill()
        child.wait()
        child.stdout.close()


def pids(found: list[Process]) -> set[int]:
    return {process.pid for process in found}


def test_marked_by_environment(nursery: Nursery, tmp_path: Path):
    """Those of this attempt; with `below` those of all attempts; never those of another run."""
    first, second = (nursery.start(tmp_path / "attempts" / name) for name in ("000001-a", "000002-b"))
    nursery.start(tmp_path / "attempts-of-another" / "000001-a")
    nursery.start()

    assert pids(processes.marked(str(tmp_path / "attempts/000001-a"))) == {first.pid}
    assert pids(processes.marked(str(tmp_path / "attempts"), below=True)) == {first.pid, second.pid}
    assert processes.marked(str(tmp_path / "attempts/000001")) == []


def test_marked_by_descent(nursery: Nursery, tmp_path: Path):
    """A child that lost the mark, and one whose parent is gone but whose session is known."""
    lost = f"{CHILD}env={{}}); "
    parent = nursery.start(tmp_path / "a", lost, start_new_session=True)
    found = processes.marked(str(tmp_path / "a"))

    assert parent.pid in pids(found)
    assert len(found) == 2
    assert processes.end(lambda: processes.marked(str(tmp_path / "a")), gently_s=1, tick=parent.poll) == []
    assert not any(map(processes.alive, found))


def test_this_process_is_never_marked(tmp_path: Path):
    """A supervisor that runs inside an attempt of another one does not end itself."""
    code = (
        f"from ms_resume.supervisor import processes; print(len(processes.marked({str(tmp_path / 'attempt')!r})), "
        f"len(processes.marked({str(tmp_path)!r}, below=True)))"
    )
    variables = {**os.environ, MARK: str(tmp_path / "attempt")}
    run = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)

    assert run.stdout.split() == ["0", "0"]


def test_gently_then_hard(nursery: Nursery, tmp_path: Path):
    """SIGTERM first; who ignores it, or is stopped, is killed; nobody else is."""
    polite, deaf, stopped = (nursery.start(tmp_path, code) for code in ("", DEAF, ""))
    stranger = nursery.start(tmp_path / "other", DEAF)
    stopped.send_signal(signal.SIGSTOP)

    def tick() -> None:
        """Before time is up, however late they get a core."""
        for child in (polite, stopped):
            child.wait(20)
        deaf.poll()

    began = time.monotonic()
    left = processes.end(lambda: processes.marked(str(tmp_path)), gently_s=0.5, tick=tick)

    assert left == []
    assert time.monotonic() - began >= 0.5
    assert (polite.wait(), deaf.wait(), stopped.wait()) == (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM)
    assert stranger.poll() is None


def test_a_reused_pid_is_not_signalled(nursery: Nursery):
    """The same pid with another start is another process."""
    child = nursery.start()
    own = Watched(child.pid).process

    assert not processes.send(Process(own.pid, own.start - 1), signal.SIGKILL)
    assert not processes.alive(Process(own.pid, own.start - 1))
    assert child.poll() is None
    assert processes.alive(own)
    assert processes.send(own, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_how_it_ended_is_seen_before_anybody_asks(nursery: Nursery, number: signal.Signals):
    """By one who is not its parent: a zombie shows its status until the parent takes it."""
    child = nursery.start()
    watched = Watched(child.pid)
    assert watched.look() is not None
    child.send_signal(number)
    while not (look := watched.look()) or not look.ended:
        time.sleep(0.01)

    assert processes.exit_code(look.status) == -number
    assert not processes.alive(watched.process)
    child.wait()
    assert watched.look() is None
    watched.close()


def test_a_process_that_is_not_there():
    with pytest.raises(ProcessLookupError):
        Watched(2**22 + 1)
    assert not processes.send(Process(2**22 + 1, 1), signal.SIGKILL)


@pytest.mark.parametrize("name", ["a b", ") Z 1 1", "))", "(x"])
def test_names_with_anything_in_them(name: str):
    """A process chooses its own name, and what follows it must still be found."""
    stat = f"77 ({name}) S 5 6 9 " + " ".join(str(n) for n in range(7, 53))
    look = processes.parse(stat)

    assert look is not None
    assert (look.state, look.parent, look.session, look.start, look.status) == ("S", 5, 9, 22, 52)


def test_workers_of_msrun(nursery: Nursery, tmp_path: Path):
    """By rank; msrun's scheduler, what a worker starts, and the `tail` of a worker's log are none."""
    roles = {"MS_ROLE": "MS_WORKER", "RANK_ID": "3"}
    code = f"{CHILD}); "
    variables = {**os.environ, MARK: str(tmp_path)}
    for more, script in ((roles, code), ({"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}, "")):
        command = [*SLEEP[:2], script + SLEEP[2]]
        child = subprocess.Popen(command, env={**variables, **more}, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        nursery.children.append(child)
    (tmp_path / "worker_3.log").touch()
    tail = ["tail", "-f", str(tmp_path / "worker_3.log")]
    nursery.children.append(subprocess.Popen(tail, env={**variables, **roles}, stdout=subprocess.PIPE))

    found = processes.workers(str(tmp_path))

    assert {rank: process.pid for rank, process in found.items()} == {3: nursery.children[0].pid}
    assert processes.end(lambda: processes.marked(str(tmp_path)), gently_s=1, tick=nursery.children[0].poll) == []
