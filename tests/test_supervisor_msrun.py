"""The supervisor over the real msrun and the example: five disturbances of one run, and the end is that of a run that
nobody disturbed, bit for bit.

All disturbances share one run, because each launch takes ten seconds and more.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_msrun import TOP, environment

from grpo_arithmetic import compare
from ms_resume.supervisor import files, processes

pytestmark = [
    pytest.mark.msrun,
    pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"),
]

EPOCHS = "8"
"""Of seven steps each: room for all disturbances."""

STARTS_S = 120.0
"""Far more than a start takes on two cores that others use as well."""


@dataclass
class Job:
    top: Path
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def save(self) -> Path:
        return self.top / "b"

    @property
    def logs(self) -> Path:
        return self.top / "b.logs"

    def supervise(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`ms-resume run` with a configuration that notices hangs quickly."""
        config = {
            "command": [str(TOP / "launch/run_grpo.sh"), *arguments],
            "save": str(self.save),
            "ranks": 2,
            "on_restart": ["--resume_training"],
            "read_s": 0.1,
            "limits": {
                "multiple": 4,
                "floor": 4,
                "known_after": 2,
                "other": 20,
                "phases": {"launch": 120, "start": 120},
            },
        }
        path = self.top / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        where = {"SAVE_DIR": str(self.save), "BASE_MODEL": str(self.top / "base")}
        variables = environment(**where, EPOCHS=EPOCHS, MS_NODE_TIMEOUT="60")
        with (self.top / "console").open("ab") as sink:
            command = [sys.executable, "-m", "ms_resume.cli", "run", str(path)]
            self.supervisors.append(subprocess.Popen(command, env=variables, stdout=sink, stderr=sink))
        return self.supervisors[-1]

    def end(self) -> None:
        """A test that failed leaves nothing that starts a run again and again."""
        for supervisor in self.supervisors:
            supervisor.kill()
            supervisor.wait()
        processes.end(lambda: processes.marked(str(self.logs / "attempts"), below=True), gently_s=0)

    def pulse(self, ordinal: int, rank: int) -> dict[str, Any]:
        found = list((self.logs / "attempts").glob(f"{ordinal:06d}-*/rank_{rank}.pulse"))
        return (files.document(found[0]) or {}) if found else {}

    def wait_for(self, condition: Callable[[], Any]) -> float:
        """When it came to hold, on the monotonic clock."""
        deadline = time.monotonic() + STARTS_S
        while not condition():
            assert time.monotonic() < deadline, (self.top / "console").read_text()[-5000:]
            time.sleep(0.05)
        return time.monotonic()

    def steps_done(self, ordinal: int, steps: int) -> None:
        """Returns in the middle of the attempt's `steps`-th step."""
        self.wait_for(lambda: self.pulse(ordinal, 0).get("phase") == "rollout")
        first = self.pulse(ordinal, 0)["position"]
        self.wait_for(lambda: self.pulse(ordinal, 0)["position"] >= [first[0], first[1] + steps])

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.logs / files.HISTORY
        return [event for event in files.read_history(path)[0] if event["event"] == kind] if path.exists() else []

    def recovered(self, ordinal: int, struck: float) -> tuple[float, float, float]:
        """Seconds from a fault until it was noticed, until the next start, and until its first step."""
        failed = self.wait_for(lambda: f"attempt {ordinal} failed" in (self.top / "console").read_text())
        started = self.wait_for(lambda: len(self.events("start")) > ordinal)
        stepped = self.wait_for(lambda: self.pulse(ordinal + 1, 0).get("phase") == "rollout")
        return failed - struck, started - struck, stepped - struck


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `a`, by the launch script without a supervisor. Gives its directory."""
    top = tmp_path_factory.mktemp("supervised")
    variables = environment(SAVE_DIR=str(top / "a"), BASE_MODEL=str(top / "base"), EPOCHS=EPOCHS, SUPERVISE="0")
    run = subprocess.run([TOP / "launch/run_grpo.sh"], env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return top


@pytest.fixture
def job(undisturbed: Path) -> Iterator[Job]:
    job = Job(undisturbed)
    yield job
    job.end()


def test_five_disturbances(job: Job):
    """A rank killed, a rank stopped, msrun killed, the supervisor killed, SIGTERM: each is survived, and the end equals
    that of the run that was left alone."""
    figures: dict[str, tuple[float, float, float]] = {}
    supervisor = job.supervise()
    job.steps_done(1, 4)
    os.kill(job.pulse(1, 1)["pid"], signal.SIGKILL)
    figures["rank killed"] = job.recovered(1, time.monotonic())
    job.steps_done(2, 4)
    os.kill(job.pulse(2, 0)["pid"], signal.SIGSTOP)
    figures["rank stopped"] = job.recovered(2, time.monotonic())
    job.steps_done(3, 3)
    os.kill(job.events("start")[-1]["pid"], signal.SIGKILL)
    figures["msrun killed"] = job.recovered(3, time.monotonic())
    job.steps_done(4, 2)
    supervisor.kill()
    supervisor.wait()
    second = job.supervise()
    job.wait_for(lambda: "taking attempt 4 over" in (job.top / "console").read_text())
    job.steps_done(4, 1)
    second.terminate()
    assert second.wait(STARTS_S) == 50
    third = job.supervise("--resume_training")
    assert third.wait(STARTS_S) == 0, (job.top / "console").read_text()[-5000:]

    ends = [(end["ordinal"], end["class"], end["rank"]) for end in job.events("end")]
    assert ends == [
        (1, "killed", 1),
        (2, "hang", 0),
        (3, "launcher_died", None),
        (4, "preempted", None),
        (5, "done", None),
    ]
    assert processes.marked(str(job.logs / "attempts"), below=True) == []
    result = compare.runs(job.top / "a", job.save)
    assert result.equal, compare.table(result)
    noticed, relaunched, _ = figures["rank killed"]
    assert noticed < 1
    assert relaunched < 3
    show(figures)


def show(figures: dict[str, tuple[float, float, float]]) -> None:
    """What `make supervise` prints."""
    print("\n| fault | noticed after, s | started again after, s | first step after, s |\n|---|---|---|---|")
    for fault, (noticed, relaunched, stepped) in figures.items():
        print(f"| {fault} | {noticed:.2f} | {relaunched:.2f} | {stepped:.2f} |")
