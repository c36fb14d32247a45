"""The supervisor over the real msrun and the example: msrun killed, the supervisor killed, SIGTERM; the end is that of
a run that nobody disturbed, bit for bit. `make supervise` has ten disturbances; plain ranks show the rest."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import job as jobs
from supervised.job import STARTS_S, Job

from grpo_arithmetic import compare

pytestmark = [
    pytest.mark.msrun,
    pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"),
]

EPOCHS = 4
"""Of seven steps each. A supervisor takes seconds to start, and training goes on meanwhile."""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Beside an undisturbed run `a`."""
    jobs.undisturbed(tmp_path, EPOCHS)
    job = Job(tmp_path, EPOCHS)
    yield job
    job.end()


def test_msrun_and_the_supervisor_are_killed(job: Job):
    """msrun leaves its ranks behind, which train on: they are ended and the run is started again. The second supervisor
    takes the attempt over, and hands SIGTERM on to ranks that are not its children."""
    supervisor = job.supervise()
    job.steps_done(1, 2)
    os.kill(job.events("start")[-1]["pid"], signal.SIGKILL)
    job.steps_done(2, 1)
    supervisor.kill()
    supervisor.wait()
    second = job.supervise()
    job.wait_for(lambda: "taking attempt 2 over" in job.console)
    second.terminate()
    assert second.wait(STARTS_S) == 50
    assert job.supervise("--resume_training").wait(STARTS_S) == 0, job.console[-5000:]

    ends = [(end["ordinal"], end["class"], end["rank"]) for end in job.events("end")]
    assert ends == [(1, "launcher_died", None), (2, "preempted", None), (3, "done", None)]
    assert job.residue() == []
    result = compare.runs(job.top / "a", job.save)
    assert result.equal, compare.table(result)
