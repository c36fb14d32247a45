"""The example under the real msrun and a supervisor, seen from outside: what is struck, when, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from msrun_demo import TOP, environment

from ms_resume.supervisor import files, processes
from supervised.trainer import FAULT

STARTS_S = 180.0
"""Far more than a start takes on two cores that others use as well."""

TRAINER = Path(__file__).with_name("trainer.py")
ROOM_BYTES = 192 << 20
STEPS_PER_EPOCH = 7


@dataclass(frozen=True)
class Row:
    """One fault: what it was taken for, and seconds from it; `start_s` from the next start to its first step."""

    fault: str
    kind: str
    then: str
    noticed_s: float | None = None
    started_s: float | None = None
    stepped_s: float | None = None
    start_s: float | None = None
    lost_steps: int | None = None


@dataclass
class Job:
    """One save directory, and the supervisors that are started for it. An undisturbed run `a` and the base model lie
    beside it, or in `earlier`."""

    top: Path
    epochs: int
    name: str = "b"
    earlier: Path | None = None
    group: tuple[Path, str] | None = None
    """A memory control group for its processes, and the file for its limit."""
    hangs: bool = False
    """Hangs are noticed within seconds; a machine that has other work may make a start look like one."""
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def save(self) -> Path:
        return self.top / self.name / "save"

    @property
    def logs(self) -> Path:
        return self.top / f"{self.name}.logs"

    @property
    def fault(self) -> Path:
        return self.top / f"{self.name}.fault"

    @property
    def console(self) -> str:
        return (self.top / f"{self.name}.console").read_text()

    def supervise(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`ms-resume run` in a process of its own."""
        within = []
        if self.group is not None:
            within = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.group[0])]
        config = {
            "command": [*within, str(TOP / "launch/run_grpo.sh"), *arguments],
            "save": str(self.save),
            "log_dir": str(self.logs),
            "ranks": 2,
            "on_restart": ["--resume_training"],
            "read_s": 0.1,
            "free_gib": 0.02,
            "limits": {"multiple": 4, "floor": 4, "known_after": 2} if self.hangs else {},
        }
        path = self.top / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        where = {"SAVE_DIR": str(self.save), "TRAINER": str(TRAINER), FAULT: str(self.fault)}
        variables = launched(self.earlier or self.top, self.epochs, **where, MS_NODE_TIMEOUT="60")
        with (self.top / f"{self.name}.console").open("ab") as sink:
            command = [sys.executable, "-m", "ms_resume.cli", "run", str(path)]
            self.supervisors.append(subprocess.Popen(command, env=variables, stdout=sink, stderr=sink))
        return self.supervisors[-1]

    def end(self) -> None:
        """One that failed leaves nothing that starts a run again and again."""
        for supervisor in self.supervisors:
            supervisor.kill()
            supervisor.wait()
        processes.end(self.residue, gently_s=0)

    def residue(self) -> list[processes.Process]:
        return processes.marked(str(self.logs / "attempts"), below=True)

    def directory(self, ordinal: int) -> Path | None:
        return next((self.logs / "attempts").glob(f"{ordinal:06d}-*"), None)

    def pulse(self, ordinal: int, rank: int = 0) -> dict[str, Any]:
        directory = self.directory(ordinal)
        return (files.document(directory / f"rank_{rank}.pulse") or {}) if directory else {}

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = STARTS_S) -> Any:
        """What it gives, once that is something."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, self.console[-5000:]
            time.sleep(0.03)
        return found

    def first_step(self, ordinal: int) -> float:
        """When an attempt began its first step, on the monotonic clock."""

        def begun() -> dict[str, Any] | None:
            pulse = self.pulse(ordinal)
            return pulse if pulse.get("phase") == "rollout" else None

        return float(self.wait_for(begun)["beat"]) / 1e9

    def steps_done(self, ordinal: int, steps: int) -> None:
        self.first_step(ordinal)
        first = _step(self.pulse(ordinal)["position"])
        self.wait_for(lambda: _step(self.pulse(ordinal)["position"]) >= first + steps)

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.logs / files.HISTORY
        return [event for event in files.read_history(path)[0] if event["event"] == kind] if path.exists() else []

    def said_at(self, begin: str) -> float | None:
        """On the monotonic clock: when the supervisor's log says so."""
        path = self.logs / "supervisor.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            if entry["message"].startswith(begin):
                at = datetime.fromisoformat(entry["time"].replace("Z", "+00:00")).timestamp()
                return at - time.time() + time.monotonic()
        return None

    def asks(self, do: str, rank: int, ordinal: int, **more: Any) -> float:
        """When the rank broke as it was asked to."""
        struck = Path(f"{self.fault}.struck")
        struck.unlink(missing_ok=True)
        part = self.fault.with_suffix(".part")
        part.write_text(json.dumps({"attempt": ordinal, "rank": rank, "do": do, "save": str(self.save), **more}))
        part.replace(self.fault)
        self.wait_for(lambda: struck.exists() and struck.read_text())
        return float(struck.read_text())

    def recovered(self, fault: str, ordinal: int, struck: float) -> Row:
        """What came of it, once the next attempt has begun its first step."""
        noticed = self.wait_for(lambda: self.said_at(f"attempt {ordinal} failed"))
        started = self.wait_for(lambda: self.said_at(f"attempt {ordinal + 1} started"))
        stepped = self.first_step(ordinal + 1)
        end = self.events("end")[ordinal - 1]
        record = json.loads(max((self.save / "commits/attempts").glob("*.json")).read_text())["from"]
        lost = max(0, _step(end["reached"]) - _step([record["epoch"], record["step"]]))  # a pulse is read now and then
        start_s = stepped - started
        return Row(
            fault, end["class"], "restarted", noticed - struck, started - struck, stepped - struck, start_s, lost
        )  # fmt: skip


def _step(position: list[int]) -> int:
    return position[0] * STEPS_PER_EPOCH + position[1]


def launched(top: Path, epochs: int, **more: str) -> dict[str, str]:
    return environment(BASE_MODEL=str(top / "base"), EPOCHS=str(epochs), **more)


def undisturbed(top: Path, epochs: int) -> None:
    """Run `a`, by the launch script without a supervisor."""
    variables = launched(top, epochs, SAVE_DIR=str(top / "a"), SUPERVISE="0")
    run = subprocess.run([TOP / "launch/run_grpo.sh"], env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def pair(top: Path, name: str) -> tuple[float, float]:
    """Seconds from a start to its first step: of a fresh one, and of the next one after a rank was killed."""
    job = Job(top, 8, name)
    try:
        supervisor = job.supervise()
        fresh = _start_s(job, 1)
        job.steps_done(1, 4)
        os.kill(job.pulse(1, 1)["pid"], signal.SIGKILL)
        again = _start_s(job, 2)
        supervisor.terminate()
        supervisor.wait(STARTS_S)
    finally:
        job.end()
    return fresh, again


def _start_s(job: Job, ordinal: int) -> float:
    stepped = job.first_step(ordinal)
    started = job.said_at(f"attempt {ordinal} started")
    assert started is not None
    return stepped - started


@contextlib.contextmanager
def memory_group() -> Iterator[tuple[Path, str] | None]:
    """A control group for memory without a limit yet, and the file for one; None where none can be made."""
    top, limit = _groups()
    if top is None:
        yield None
        return
    group = top / f"ms_resume_test_{os.getpid()}"
    group.mkdir()
    try:
        yield group, limit
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # what has just ended is counted for a moment
                time.sleep(0.1)


def _groups() -> tuple[Path | None, str]:
    """By version of the interface."""
    if os.access("/sys/fs/cgroup/memory", os.W_OK):
        return Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    control = Path("/sys/fs/cgroup/cgroup.subtree_control")
    if control.exists() and "memory" in control.read_text() and os.access(control.parent, os.W_OK):
        return control.parent, "memory.max"
    return None, ""


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Mounts one on `path`; False where this may not be done."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = path / "ballast"
    with ballast.open("wb") as file:
        size, step = 0, ROOM_BYTES
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError:
                step //= 2
    return ballast
