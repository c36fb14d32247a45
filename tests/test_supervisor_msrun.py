"""The supervisor over the real msrun and the example: a worker asked to leave, msrun killed, the supervisor killed,
SIGTERM; the end is that of a run that nobody disturbed, bit for bit. `make supervise` has ten disturbances; plain ranks
show the rest."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from leave import ranks
from supervised.job import STARTS_S, Job

from grpo_arithmetic import compare

pytestmark = [
    pytest.mark.msrun,
    pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"),
]

EPOCHS = 4
"""Of seven steps each, as the run of the demo."""
SEED = int(os.environ.get("LEAVE_SEED", time.strftime("%Y%m%d")))

Demo = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture
def job(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Of the demo's base model; its run `a` is the undisturbed one."""
    for name, value in ranks.PATIENT.items():
        monkeypatch.setenv(name, value)
    job = Job(tmp_path, EPOCHS, earlier=demo[0])
    yield job
    job.end()


@contextlib.contextmanager
def stopped(job: Job, ordinal: int) -> Iterator[list[int]]:
    """Its ranks: training would go on while a supervisor starts, to its end perhaps."""
    pids = [job.pulse(ordinal, rank)["pid"] for rank in range(2)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def is_asked(pid: int) -> bool:
    """A SIGTERM waits for the process."""
    [pending] = re.findall(r"^ShdPnd:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_worker_is_asked_then_msrun_and_the_supervisor_are_killed(demo: Demo, job: Job) -> None:
    """SIGTERM to one worker, drawn anew by the date: both leave at one position, and so does the supervisor; with the
    signals in `test_leave.py` that is a twentieth of what `make leave` does. msrun, killed, leaves its ranks behind,
    which train on: they are ended and the run is started again. The second supervisor takes the attempt over, and hands
    SIGTERM on to ranks that are not its children."""
    print(f"LEAVE_SEED={SEED}")
    supervisor = job.supervise()
    watch = job.wait_for(lambda: job.directory(1))
    asker = ranks.Asker(watch, random.Random(f"leave {SEED}"), new=True, most_steps=3)
    assert supervisor.wait(STARTS_S) == 50, job.console[-5000:]
    ranks.has_left(asker, watch, job.save, f"rank {asker.rank} asked in {asker.phase}")

    supervisor = job.supervise("--resume_training")
    job.steps_done(2, 2)
    os.kill(job.events("start")[-1]["pid"], signal.SIGKILL)
    job.steps_done(3, 1)
    supervisor.kill()
    supervisor.wait()
    with stopped(job, 3) as pids:
        second = job.supervise("--resume_training")
        job.wait_for(lambda: "taking attempt 3 over" in job.console)
        second.terminate()
        job.wait_for(lambda: all(map(is_asked, pids)))
    assert second.wait(STARTS_S) == 50
    assert job.supervise("--resume_training").wait(STARTS_S) == 0, job.console[-5000:]

    ends = [(end["ordinal"], end["class"], end["rank"]) for end in job.events("end")]
    assert ends == [(1, "preempted", None), (2, "launcher_died", None), (3, "preempted", None), (4, "done", None)]
    assert job.residue() == []
    result = compare.runs(demo[0] / "a", job.save)
    assert result.equal, compare.table(result)
    assert result.tensors > 100
