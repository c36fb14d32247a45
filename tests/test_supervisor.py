"""A supervisor over ranks that are plain Python and a launcher with msrun's habits: each fault, noticed, explained,
ended, decided, recovered."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from supervised.__main__ import report
from supervised.job import Row, memory_group

from ms_resume import cli, locate
from ms_resume.errors import DirectoryInUse, DiskError, LayoutMismatch, UsageError
from ms_resume.records import Position
from ms_resume.supervisor import files, plan, processes, rules, run
from ms_resume.supervisor.evidence import Evidence, Limits, Policy
from ms_resume.supervisor.plan import Plan
from ms_resume.supervisor.watch import Started, Watch

HERE = Path(__file__).parent
RANK = str(HERE / "toy_rank.py")
LAUNCHER = [sys.executable, str(HERE / "toy_msrun.py")]
STEPS = 12
QUICK = Policy(backoff_s=0.1, longest_s=0.2)
TWICE = Policy(attempts=2, backoff_s=0.1, longest_s=0.2)
HANG = Limits(multiple=4, floor=4, known_after=3, phases={"launch": 20, "start": 20, "save": 20, "end": 20}, other=20)


@dataclass
class Toy:
    """One run's directories, and what its supervisor said of it."""

    save: Path

    def plan(self, **more: Any) -> Plan:
        return plan.make(
            {
                "command": [*LAUNCHER, "2", RANK, str(self.save), str(STEPS)],
                "save": self.save,
                "ranks": 2,
                "on_restart": ["--resume_training"],
                "policy": QUICK,
                "free_gib": 0,
                "read_s": 0.2,
                "gently_s": 0.2,
                **more,
            }
        )

    def breaks(self, *faults: dict[str, Any]) -> None:
        text = "".join(json.dumps(fault) + "\n" for fault in faults)
        self.save.with_name(f"{self.save.name}.faults").write_text(text)

    @property
    def logs(self) -> Path:
        return self.save.with_name(f"{self.save.name}.logs")

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self.logs / files.HISTORY
        return files.read_history(path)[0] if path.exists() else []

    @property
    def ends(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "end"]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.logs / "supervisor.jsonl").read_text().splitlines()]

    def said(self, pattern: str) -> list[str]:
        return [entry["message"] for entry in self.log if re.search(pattern, entry["message"])]

    def residue(self) -> list[processes.Process]:
        return processes.marked(str(self.logs / "attempts"), below=True)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE}")
    monkeypatch.setenv("DEVICE_TARGET", "CPU")
    toy = Toy(tmp_path / "run")
    yield toy
    left = toy.residue()
    processes.end(toy.residue, gently_s=0)
    assert left == [], "a supervisor left processes behind"


def test_a_run_without_faults_and_the_same_again(toy: Toy):
    """One attempt, done, exit 0, and nothing left running. Then a start that would ignore checkpoints: it stops at once
    with the trainer's own code."""
    summary = run.supervise(toy.plan())

    assert (summary.action.what, summary.action.exit_code) == ("done", 0)
    assert [end["class"] for end in toy.ends] == ["done"]
    assert (toy.save / "result").read_text() == repr([float(STEPS)] * 4)
    summary = run.supervise(toy.plan())

    assert (summary.action.what, summary.action.exit_code) == ("stop", 62)
    assert [end["class"] for end in summary.ends] == ["not_empty"]
    assert toy.said("holds checkpoints")


def test_ranks_within_a_script(toy: Toy):
    """A script around each rank, seen before the rank is: the rank is who speaks, not the script."""
    script = toy.save.with_name("around.py")
    script.write_text("import subprocess, sys, time\ntime.sleep(1)\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")

    summary = run.supervise(toy.plan(command=[*LAUNCHER, "2", str(script), RANK, str(toy.save), str(STEPS)]))

    assert summary.action.what == "done"
    assert [(end["class"], end["rank"]) for end in toy.ends] == [("done", None)]


def test_what_jumps_with_the_clock_is_for_people():
    """A node decides nothing by a clock that can be set: only the time that history and log show is read from it. Of
    several nodes that failed in one attempt, that time says which was first: hosts have no other clock in common."""
    package = Path(run.__file__).parent
    readers = {path.name: re.findall(r"time\.time\b|\.now\(", path.read_text()) for path in package.glob("*.py")}

    assert {name: found for name, found in readers.items() if found} == {"run.py": [".now("]}
    assert re.fullmatch(r"\d{4}-.*\+00:00", run._now())


DEATHS = [
    # what the rank does, which one, the class, and what it ends with
    ("kill", 0, "killed", -9),
    ("memory", 0, "oom_host", 1),
    ("typo", 0, "code_error", 1),
    ("kill", 1, "killed", -9),
    ("vanish", 1, "vanished", 0),
    ("disk", 1, "disk_full", 1),
    ("some error", 1, "unknown", 1),
]


def test_ranks_that_die(toy: Toy):
    """Seven deaths in one run: each noticed within a second, said why, all else ended, started again within three; the
    end is as if nothing had been."""
    steps = [7, 12, 17, 1, 1, 1, 1]  # rank 0 first: when another rank dies, it leaves and saves wherever it is
    toy.breaks(
        *[
            {"attempt": n, "rank": rank, "at": at, "do": what}
            for n, ((what, rank, *_), at) in enumerate(zip(DEATHS, steps, strict=True), 1)
        ]
    )

    long = [*LAUNCHER, "2", RANK, str(toy.save), "120"]  # room for what rank 0 does while rank 1 dies four times
    summary = run.supervise(toy.plan(policy=Policy(attempts=10, backoff_s=0), command=long))

    assert summary.action.what == "done"
    assert (toy.save / "result").read_text() == repr([120.0] * 4)
    noticed, started = [], []
    for end, (_, rank, kind, code), at in zip(toy.ends[:-1], DEATHS, steps, strict=True):
        assert (end["class"], end["rank"]) == (kind, rank)
        assert end["exit_code"] in (code, code or None)  # of 0 nobody tells, where the launcher was faster
        assert end["node"]
        assert rank or (end["reached"], end["checkpoint"]) == ([0, at], [0, at - 2])
        died = float((toy.save.parent / f"fault-{end['ordinal']}-{rank}").read_text())
        noticed.append(_said_at(toy, f"attempt {end['ordinal']} failed") - died)
        started.append(_said_at(toy, f"attempt {end['ordinal'] + 1} started") - died)
    # A machine that does other work may be late once; msrun waits for 30 s.
    assert statistics.median(noticed) < 1
    assert statistics.median(started) < 3
    assert max(started) < 20


def _said_at(toy: Toy, begin: str) -> float:
    """On the monotonic clock: when the log says so."""
    text = next(entry["time"] for entry in toy.log if entry["message"].startswith(begin))
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() - time.time() + time.monotonic()


def test_ranks_that_hang(toy: Toy):
    """Noticed by the pulse; the stacks of who can still answer are in the log; then started again. Twice in one run."""
    toy.breaks({"attempt": 1, "rank": 0, "at": 8, "do": "hang"}, {"attempt": 2, "rank": 0, "at": 9, "do": "stop"})

    summary = run.supervise(toy.plan(limits=HANG))

    assert summary.action.what == "done"
    for end, step, stopped in zip(toy.ends, (8, 9), (False, True), strict=False):
        assert (end["class"], end["rank"]) == ("hang", 0)
        assert re.search(rf"rank 0 .* stands still in step at 0_{step} for \d+\.\d s, limit \d+\.\d s", end["lines"][0])
        assert ("the process is stopped" in end["lines"][0]) == stopped
    assert len(toy.said("in a_call_that_never_returns")) == 1
    assert len(toy.said("in follow")) == 2


def test_the_newest_checkpoint_is_damaged(toy: Toy):
    """The next start passes it over by itself; the end is the same."""
    toy.breaks({"attempt": 1, "rank": 0, "at": 11, "do": "flip"})

    summary = run.supervise(toy.plan())

    assert summary.action.what == "done"
    [second] = (toy.logs / "attempts").glob("000002-*")
    assert "passed over 0_10: damaged" in (second / "worker_0.log").read_text()
    assert (toy.save / "result").read_text() == repr([float(STEPS)] * 4)


def test_the_kernel_kills_for_memory(toy: Toy):
    """Told from any other SIGKILL by the count that the rank's control group keeps."""
    with memory_group() as found:
        if found is None:
            pytest.skip("no control group for memory can be made here: not root, or in a container without one")
        group, limit = found
        (group / limit).write_text(str(400 << 20))
        toy.breaks({"attempt": 1, "rank": 1, "at": 1, "do": "balloon"})
        within = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
        summary = run.supervise(toy.plan(command=[*within, *toy.plan().command]))

    assert summary.action.what == "done"
    assert next((end["class"], end["rank"], end["exit_code"]) for end in toy.ends) == ("oom_host", 1, -9)


def test_who_ignores_sigterm_is_killed(toy: Toy):
    toy.breaks({"attempt": 1, "rank": 0, "at": 3, "do": "deaf"}, {"attempt": 1, "rank": 1, "at": 6, "do": "kill"})

    assert run.supervise(toy.plan()).action.what == "done"
    assert toy.ends[0]["rank"] == 1


def test_an_error_that_stays_stops_the_run(toy: Toy):
    """The same error at the same place, from the same checkpoint: two attempts, no third; exit 60."""
    toy.breaks({"rank": 0, "at": 7, "do": "typo"})

    summary = run.supervise(toy.plan())

    assert (summary.action.what, summary.action.exit_code) == ("stop", 60)
    assert [end["class"] for end in toy.ends] == ["code_error"] * 2
    assert "fowrard" in summary.action.reason


def test_no_progress_goes_back_one_checkpoint_then_gives_up(toy: Toy):
    """Two attempts come no further than the first: back one checkpoint; two more do not either: exit 60."""
    toy.breaks({"rank": 0, "at": 11, "do": "kill"})

    summary = run.supervise(toy.plan(policy=TWICE))

    assert (summary.action.what, summary.action.exit_code) == ("stop", 60)
    decisions = [(e["what"], e["back"]) for e in toy.events if e["event"] == "decision"]
    assert decisions == [
        ("restart", None), ("restart", None), ("back", [0, 5]), ("restart", None), ("stop", None),
    ]  # fmt: skip
    assert "0_5" in (toy.logs / "attempts").glob("000004-*").__next__().joinpath("worker_0.log").read_text()
    latest = locate.latest(toy.save).checkpoint
    assert latest is not None
    assert latest.position == Position(0, 10)


def test_going_back_helps(toy: Toy):
    """What broke at the newest checkpoint does not break when it is reached again from the one before."""
    toy.breaks(*[{"attempt": n, "rank": 0, "at": 11, "do": "kill"} for n in (1, 2, 3)])

    summary = run.supervise(toy.plan(policy=TWICE))

    assert summary.action.what == "done"
    assert [end["back"] for end in toy.ends] == [None, None, None, [0, 5]]
    assert (toy.save / "result").read_text() == repr([float(STEPS)] * 4)


# -- the supervisor as a process


class Supervisor:
    """`ms-resume run` in a process of its own."""

    def __init__(self, toy: Toy, *words: str, steps: int = STEPS, **variables: str) -> None:
        command = [sys.executable, "-m", "ms_resume.cli", "run", "--save", str(toy.save), "--ranks", "2", *words]
        command += ["--on-restart=--resume_training", "--", *LAUNCHER, "2", RANK, str(toy.save), str(steps)]
        self.output = toy.save.with_name(f"console-{len(list(toy.save.parent.glob('console-*')))}")
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=sink, stderr=sink)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def ends(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


def pulse_of(toy: Toy, rank: int, ordinal: int = 1) -> dict[str, Any]:
    found = list((toy.logs / "attempts").glob(f"{ordinal:06d}-*/rank_{rank}.pulse"))
    return (files.document(found[0]) or {}) if found else {}


def beyond(toy: Toy, step: int, ordinal: int = 1) -> Callable[[], bool]:
    return lambda: (pulse_of(toy, 0, ordinal).get("position") or [0, 0]) >= [0, step]


def left_at(toy: Toy) -> Position:
    """Where the last attempt saved and left."""
    assert (toy.ends[-1]["class"], toy.ends[-1]["rank"]) == ("preempted", None)
    latest = locate.latest(toy.save).checkpoint
    assert latest is not None
    assert toy.ends[-1]["checkpoint"] == latest.position.to_json()
    return latest.position


def test_a_signal_saves_and_leaves(toy: Toy):
    """The ranks hear of it, which msrun would not tell them; they save where they are; exit 50."""
    supervisor = Supervisor(toy, steps=1000)
    supervisor.wait_for(beyond(toy, 7))
    supervisor.process.send_signal(signal.SIGUSR1)

    assert supervisor.ends() == 50
    assert len(toy.ends) == 1
    assert left_at(toy).step >= 7


def test_a_rank_that_does_not_leave_in_time(toy: Toy, monkeypatch: pytest.MonkeyPatch):
    """It was asked, and waits for something that never comes: it ends itself, and is not started again for it."""
    monkeypatch.setenv("MS_RESUME_GRACE_S", "0.5")
    toy.breaks({"rank": 0, "at": 7, "do": "asked"})
    summary = run.supervise(toy.plan())

    assert (summary.action.what, summary.action.exit_code) == ("leave", 143)
    assert [(end["class"], end["rank"], end["exit_code"]) for end in toy.ends] == [("interrupted", 0, 143)]
    latest = locate.latest(toy.save).checkpoint
    assert latest is not None
    assert str(latest.position) == "0_5"


def test_a_launcher_is_killed_then_a_supervisor(toy: Toy):
    """A launcher's ranks would go on without it: they are ended, and the run is started again. A supervisor that is
    started again watches the same attempt, sees the rank that dies after that, and starts the next one; that one saves
    and leaves at SIGTERM."""
    first = Supervisor(toy, steps=1000)
    first.wait_for(beyond(toy, 7))
    os.kill(next(e["pid"] for e in toy.events if e["event"] == "start"), signal.SIGKILL)
    first.wait_for(lambda: beyond(toy, 1, 2)() and bool(pulse_of(toy, 1, 2)))
    first.process.kill()
    first.ends()
    pids = {rank: pulse_of(toy, rank, 2)["pid"] for rank in (0, 1)}
    second = Supervisor(toy, steps=1000)
    second.wait_for(lambda: bool(toy.said("taking attempt 2 over")))
    assert pulse_of(toy, 0, 2)["pid"] == pids[0]
    os.kill(pids[1], signal.SIGKILL)
    second.wait_for(beyond(toy, 7, ordinal=3))
    second.process.terminate()

    assert second.ends() == 50
    assert left_at(toy).step >= 7
    ends = [(end["ordinal"], end["class"], end["rank"]) for end in toy.ends]
    assert ends == [(1, "launcher_died", None), (2, "killed", 1), (3, "preempted", None)]


def test_an_attempt_that_ended_while_nobody_watched(toy: Toy):
    """Its ranks' last words tell that it was done; it is not run again."""
    first = Supervisor(toy, steps=100)
    first.wait_for(beyond(toy, 7))
    first.process.kill()
    first.ends()
    deadline = time.monotonic() + 60
    while toy.residue():
        assert time.monotonic() < deadline
        time.sleep(0.1)

    assert Supervisor(toy, steps=100).ends() == 0
    assert [(end["ordinal"], end["class"]) for end in toy.ends] == [(1, "done")]


def test_two_supervisors(toy: Toy):
    """The second one is refused before its start with 61 and the first one's pid, also where it logs elsewhere, and
    while there is no save directory yet."""
    first = Supervisor(toy, steps=1000)
    first.wait_for((toy.logs / files.HISTORY).exists)
    elsewhere = toy.plan(log_dir=toy.save.with_name("elsewhere"))
    assert not toy.save.exists()
    with pytest.raises(DirectoryInUse, match=f"pid {first.process.pid}"):
        run.supervise(toy.plan())
    with pytest.raises(DirectoryInUse, match=f"{re.escape(str(toy.save))}: .*pid {first.process.pid}"):
        run.supervise(elsewhere)
    first.wait_for(beyond(toy, 7))  # it locks the directory itself at the first look that finds it
    another_name = toy.save.parent / "link" / toy.save.name
    another_name.parent.symlink_to(toy.save.parent)
    with pytest.raises(DirectoryInUse):
        run.supervise(toy.plan(save=another_name, log_dir=elsewhere.log_dir))
    assert list(elsewhere.attempts.iterdir()) == []
    first.process.terminate()

    assert first.ends() == 50


def test_what_an_earlier_attempt_left_is_ended(toy: Toy):
    """Of this run only."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, theirs = (
        subprocess.Popen(command, env={**os.environ, processes.MARK: str(top / "attempts/000001-x")})
        for top in (toy.logs, toy.save.with_name("another.logs"))
    )
    time.sleep(0.2)

    assert run.supervise(toy.plan(command=["true"])).action.what == "done"
    assert ours.wait(1) < 0
    assert theirs.poll() is None
    assert toy.said("ending 1 processes of an earlier attempt")
    theirs.kill()
    theirs.wait()


# -- what is found before a start


def test_a_command_that_is_not_there(toy: Toy):
    with pytest.raises(UsageError, match="nosuchprogram: cannot be run"):
        run.supervise(toy.plan(command=["nosuchprogram"]))
    assert toy.events == []


def test_a_port_in_use(toy: Toy):
    """By whom is said."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} cannot be used: .*pid {os.getpid()}"):
            run.supervise(toy.plan(ports=[port]))
    assert toy.events == []


def test_too_little_room(toy: Toy):
    with pytest.raises(DiskError, match="GiB are free, expected 1e\\+08"):
        run.supervise(toy.plan(free_gib=1e8))


@pytest.mark.parametrize(
    ("files_of", "refused"),
    [
        ([0, 1], ""),
        ([0], ""),
        ([0, 1, 2], "strategy_2.ckpt: of rank 2, this job has ranks 0 to 1"),
        (["10_merged"], ""),
    ],
)
def test_a_strategy_directory_of_another_topology(toy: Toy, files_of: list[Any], refused: str):
    """MindSpore would merge the files of ranks that this job does not have; those of its own it overwrites."""
    top = toy.save.with_name("strategy")
    (top / "train_policy_strategy").mkdir(parents=True)
    for rank in files_of:
        (top / f"train_policy_strategy/strategy_{rank}.ckpt").touch()

    if refused:
        with pytest.raises(LayoutMismatch, match=refused):
            run.supervise(toy.plan(strategy_dir=top))
        assert toy.events == []
    else:
        assert run.supervise(toy.plan(strategy_dir=top, command=["true"])).action.what == "done"


def test_a_strategy_directory_needs_the_number_of_ranks(toy: Toy):
    with pytest.raises(UsageError, match="strategy_dir without ranks"):
        toy.plan(strategy_dir="x", ranks=0)


@pytest.mark.parametrize(("name", "value"), [("HCCL_CONNECT_TIMEOUT", "60"), ("HCCL_EXEC_TIMEOUT", "2h")])
def test_hccl_out_of_range(toy: Toy, name: str, value: str):
    with pytest.raises(UsageError, match=f"{name} is '{value}', expected"):
        run.supervise(toy.plan(environment={name: value}))


NPU_SMI = """#!/bin/sh
cat <<'TABLE'
| npu-smi 24.1.rc3.7               Version: 24.1.rc3.7                                           |
| 0     Ascend910           | OK            | 178.8       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3397 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
ROWS
TABLE
"""


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ("| No running processes found in NPU 0                                                            |", False),
        ("| 0       0                 | 12345         | python                   | 5432                    |", True),
    ],
)
def test_npus_held_by_others(toy: Toy, monkeypatch: pytest.MonkeyPatch, row: str, held: bool):
    """As `npu-smi info` tells; on a CPU it is not asked."""
    program = toy.save.parent / "bin/npu-smi"
    program.parent.mkdir()
    program.write_text(NPU_SMI.replace("ROWS", row))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DEVICE_TARGET", "Ascend")

    if held:
        with pytest.raises(DirectoryInUse, match=r"NPU 0: pid 12345 \(python\)"):
            run.supervise(toy.plan(command=["true"]))
    else:
        assert run.supervise(toy.plan(command=["true"])).action.what == "done"


def test_a_log_directory_that_cannot_be_written(toy: Toy):
    (toy.save.parent / "file").write_text("")

    with pytest.raises(DiskError, match="file"):
        run.supervise(toy.plan(log_dir=toy.save.parent / "file/logs"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"),
        ("- a", "expected keys and values"),
        ("save: x", "no command"),
        ("command: [x]", "no save"),
        ("command: python main.py\nsave: x", "command: found 'python main.py', expected a list"),
        ("command: [x]\nsave: x\nrank: 2", "unknown key 'rank'"),
        ("command: [x]\nsave: x\nranks: two", "ranks: found 'two'"),
        ("command: [x]\nsave: x\nports: [70000]", "ports: found 70000"),
        ("command: [x]\nsave: x\npolicy: {attempt: 2}", "unknown key 'attempt'"),
        ("command: [x]\nsave: x\npolicy: {backoff_s: long}", "policy.backoff_s: found 'long'"),
        ("command: [x]\nsave: x\nlimits: {phases: {save: -1}}", "limits.phases.save: found -1"),
        ("command: [x]\nsave: x\nrules: nowhere.yaml", "nowhere.yaml: cannot be read"),
    ],
)
def test_a_broken_configuration(toy: Toy, capsys: pytest.CaptureFixture[str], text: str, message: str):
    """One clear error, exit 2, and nothing is made."""
    config = toy.save.parent / "config.yaml"
    config.write_text(text)

    code = cli.main(["run", str(config)])

    assert code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in toy.save.parent.iterdir()] == ["config.yaml"]


def test_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err


def test_a_plain_command(toy: Toy, capsys: pytest.CaptureFixture[str]):
    """Of a program that knows nothing of us: its exit status is all there is."""
    count = toy.save.parent / "count"
    script = f"echo x >> {count}; test $(wc -l < {count}) = 2"
    words = ["run", "--json", "--save", str(toy.save), "--", "sh", "-c", script]

    code = cli.main(words)

    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [end["then"] for end in summary["attempts"]] == ["restart", "done"]


@dataclass(frozen=True)
class Recorded:
    """A run that failed once and recovered, with what its supervisor said on the console."""

    toy: Toy
    console: str


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    toy = Toy(tmp_path_factory.mktemp("recorded") / "run")
    toy.breaks({"attempt": 1, "rank": 0, "at": 7, "do": "typo"})
    here = {"PYTHONPATH": f"{HERE.parent}:{HERE}", "DEVICE_TARGET": "CPU"}
    supervisor = Supervisor(toy, "--job-id=job-7", **here)
    assert supervisor.ends() == 0
    return Recorded(toy, supervisor.output.read_text())


def test_dry_run(recorded: Recorded, capsys: pytest.CaptureFixture[str]):
    """The decisions of a history, as people and as scripts read them; nothing is started."""
    history = str(recorded.toy.logs / files.HISTORY)

    assert cli.main(["run", "--dry-run", history]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "code_error", "restart"],
        ["2", "done", "done"],
    ]
    assert cli.main(["run", "--json", "--dry-run", history]) == 0
    assert [row["what"] for row in json.loads(capsys.readouterr().out)["decisions"]] == ["restart", "done"]


GROK = (  # Logstash's own patterns, as far as this line needs them, for the one in the seed document
    r"(?P<timestamp>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d+(?:Z|[+-]\d\d:?\d\d)) "
    r"(?P<level>INFO|WARN(?:ING)?|ERROR|CRITICAL|DEBUG) \[(?P<module>.*?)\] (?P<msg>.*)"
)


def test_the_log_is_what_a_collector_expects(recorded: Recorded):
    """Every line of its own on the console fits the pattern; every JSON line has all fields; an error has node and
    time."""
    toy = recorded.toy
    lines = [line for line in recorded.console.splitlines() if re.match(r"\d{4}-", line)]
    assert len(lines) == len(toy.log)
    for line in lines:
        match = re.fullmatch(GROK, line)
        assert match, line
        assert match["level"] != "ERROR" or f"(node {os.uname().nodename})" in line
    of_ranks = [line for log in (toy.logs / "attempts").glob("*/rank_*.jsonl") for line in log.read_text().splitlines()]
    assert any("RESUMING at 0_" in line for line in of_ranks)
    assert any("AttributeError" in line and '"level": "ERROR"' in line for line in of_ranks)
    for entry in (*toy.log, *map(json.loads, of_ranks)):
        assert {"time", "level", "module", "message", "node", "rank", "attempt", "job_id", "position"} <= entry.keys()
        assert entry["job_id"] == "job-7"
    failed = next(entry for entry in toy.log if " failed: " in entry["message"])
    assert (failed["rank"], failed["attempt"]) == (0, 1)


def test_the_collectors_configurations(recorded: Recorded):
    """Filebeat reads files that are there after a run; Logstash has the pattern that the test above holds, and finds
    rank and attempt in a path."""
    toy = recorded.toy
    folder = HERE.parent / "launch/logging"
    inputs = yaml.safe_load((folder / "filebeat.yml").read_text())["filebeat.inputs"]
    logstash = (folder / "logstash.conf").read_text()

    for entry in inputs:
        [pattern] = entry["paths"]
        found = list(toy.logs.glob(pattern.removeprefix("${LOG_DIR}/")))
        assert found or entry["fields"]["log_kind"] == "console", pattern
        assert f'"{entry["fields"]["log_kind"]}"' in logstash
    assert r"%{TIMESTAMP_ISO8601:timestamp} %{LOGLEVEL:level} \[%{DATA:module}\] %{GREEDYDATA:msg}" in logstash
    [path] = re.findall(r'"(attempts/.*?)"', logstash)
    logs = [re.search(path.replace("(?<", "(?P<"), str(log)) for log in (toy.logs / "attempts").glob("*/worker_*.log")]
    assert sorted(match["rank"] for match in logs if match) == ["0", "0", "1", "1"]


class Stage:
    """An attempt that only its files tell of: no process of it lives, but what is said to be its launcher."""

    def __init__(self, toy: Toy, launcher: processes.Process | None = None) -> None:
        self.directory = toy.logs / "attempts/000001-0000000000000000"
        self.directory.mkdir(parents=True)
        self.started = Started(1, self.directory, launcher or processes.Process(2**22 + 9, 1))
        self.watch = Watch(toy.plan(), self.started, sys.stdout)

    def pulse(self, rank: int, pid: int, start: int, **more: Any) -> None:
        pulse = {"rank": rank, "pid": pid, "pid_start": start, "host": os.uname().nodename, "phase": "step", **more}
        (self.directory / f"rank_{rank}.pulse").write_text(json.dumps(pulse))

    def outcome(self, rank: int, pid: int, at_ns: int, **words: Any) -> None:
        outcome = {"rank": rank, "pid": pid, "at_ns": at_ns, **words}
        (self.directory / f"rank_{rank}.outcome").write_text(json.dumps(outcome))


def test_a_pid_that_is_somebody_elses_by_now(toy: Toy):
    """A rank whose pid lives with another start is dead; the one who has it is left alone."""
    stage = Stage(toy)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = processes.Watched(stranger.pid).process.start
    stage.pulse(0, stranger.pid, start - 7)
    evidence = stage.watch.look()

    assert evidence is not None
    assert evidence.first is not None
    assert evidence.first.rank == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_asked_as_the_ranks_come_up(toy: Toy):
    """One that was not there yet, or not seen, is told once it is; nobody is told twice, which would mean at once."""
    code = "import signal; signal.signal(15, lambda *_: print('asked', flush=True))\nprint()\nwhile 1: signal.pause()"
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    started = [processes.Watched(rank.pid).process for rank in ranks if rank.stdout and rank.stdout.readline()]
    stage = Stage(toy, launcher=started[0])
    stage.pulse(0, started[0].pid, started[0].start)
    stage.watch._pass_on()
    stage.pulse(1, started[1].pid, started[1].start)
    for _ in range(3):
        stage.watch._next_read = 0.0
        assert stage.watch.look() is None

    heard = [bool(select.select([rank.stdout], [], [], 20)[0]) for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert heard == [True, True]
    assert [rank.communicate()[0] for rank in ranks] == ["asked\n", "asked\n"]


def test_asked_when_all_is_done(toy: Toy):
    """A run that reaches its end as it is asked to leave is done, not interrupted."""
    stage = Stage(toy)
    for rank in (0, 1):
        stage.pulse(rank, 2**22 + 1 + rank, 1)
        stage.outcome(rank, 2**22 + 1 + rank, 5, done=True, left=False, exit_code=0)
    evidence = stage.watch.until_it_ends(lambda: True)

    assert (evidence.done, evidence.asked) == (True, False)


def test_the_rank_that_is_furthest_behind_hangs(toy: Toy):
    """Not the one that waits for it in a phase which usually is shorter."""
    clock = [0.0]
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    started = [processes.Watched(sleeper.pid).process for sleeper in sleepers]
    stage = Stage(toy, launcher=started[0])
    stage.watch._clock = lambda: clock[0]
    for rank, process in enumerate(started):
        stage.pulse(rank, process.pid, process.start, position=[0, 7 - rank])
    assert stage.watch.look() is None
    stage.watch._learned.limits = Limits(phases={"step": 30})
    stage.pulse(1, started[1].pid, started[1].start, position=[0, 7 - 1], phase="rollout")
    clock[0] = 20.0
    assert stage.watch.look() is None
    clock[0] = 31.0
    evidence = stage.watch.look()

    assert evidence is not None
    assert evidence.first is not None
    assert evidence.first.rank == 1
    assert "stands still in rollout at 0_6 for 11.0 s" in evidence.hang
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


SCHEDULED = """
import os, signal, subprocess, sys
from pathlib import Path
from ms_resume import pulse

def main(words):
    if os.environ["MS_ROLE"] == "MS_SCHED":
        raise RuntimeError("bind: Address already in use")
    signal.pause()

if "MS_ROLE" in os.environ:
    sys.exit(pulse.run(main, []))
here, children = Path(os.environ["MS_RESUME_WATCH_DIR"]), []
if here.name.startswith(sys.argv[1]):
    for role, log in ("MS_WORKER", "worker_0.log"), ("MS_SCHED", "scheduler.log"):
        with (here / log).open("wb") as out:
            its = {**os.environ, "MS_ROLE": role, "RANK_ID": "0"}
            children.append(subprocess.Popen([sys.executable, __file__], env=its, stdout=out, stderr=out))
    for child in children:
        child.wait()
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A launcher whose first attempt's scheduler fails, while its rank waits in the rendezvous; the next one trains."""


def test_a_scheduler_that_fails(toy: Toy):
    """Its ranks would wait for MindSpore's timeout: it is noticed by itself, with the line that shows why."""
    script = toy.save.with_name("launcher.py")
    script.write_text(SCHEDULED)
    began = time.monotonic()
    command = [sys.executable, str(script), "000001", *LAUNCHER, "2", RANK, str(toy.save), str(STEPS)]

    assert run.supervise(toy.plan(command=command, ranks=0)).action.what == "done"
    assert [(end["class"], end["rank"]) for end in toy.ends] == [("scheduler_died", None), ("done", None)]
    assert toy.said("bind: Address already in use")
    assert time.monotonic() - began < HANG.phases["launch"]


def test_asked_while_the_ranks_wait_for_each_other(toy: Toy):
    """They hear no signal in MindSpore's rendezvous, and have nothing to save: not the time of a save is waited."""
    clock = [0.0]
    deaf = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(); signal.pause()"],
        stdout=subprocess.PIPE,
    )
    assert deaf.stdout is not None
    deaf.stdout.readline()
    process = processes.Watched(deaf.pid).process
    stage = Stage(toy, launcher=process)
    stage.watch._clock = lambda: clock[0]
    stage.pulse(0, process.pid, process.start, phase="launch")
    stage.watch._pass_on()
    clock[0] = 9.0
    assert stage.watch.look() is None
    clock[0] = 11.0
    evidence = stage.watch.look()

    assert evidence is not None
    assert (evidence.asked, evidence.left, deaf.poll()) == (True, False, None)
    deaf.kill()
    deaf.communicate()


@pytest.mark.parametrize(("words", "code"), [({"done": True, "exit_code": 0}, 0), ({"done": True}, None), (None, -9)])
def test_a_kill_after_the_last_words_is_none(toy: Toy, words: dict[str, Any] | None, code: int | None):
    """MindSpore's processes end from a thread, which /proc shows as SIGKILL of the others."""
    stage = Stage(toy)
    stage.pulse(0, 2**22 + 1, 1)
    if words is not None:
        stage.outcome(0, 2**22 + 1, 5, **words)
    stage.watch.look()

    assert stage.watch._described(0, -9).exit_code == code


DISK = {"error": "DiskError", "message": "No space left on device"}
LOST = {"error": "RuntimeError", "message": "Failed to launch kernel AllReduce: connection reset by peer"}


@pytest.mark.parametrize(
    ("errors", "blamed", "first"),
    [
        ({}, None, (0, "killed")),  # nobody said anything: the lowest
        ({}, 1, (1, "killed")),  # msrun said for whom it ended the others
        ({0: (5, DISK), 1: (4, DISK)}, None, (1, "disk")),  # both said something: the earlier one
        ({1: (4, DISK)}, None, (0, "killed")),  # who else would have killed it
        ({1: (4, DISK)}, 1, (1, "disk")),  # msrun killed rank 0 for it
        ({0: (4, DISK)}, 0, (0, "disk")),
        ({1: (4, LOST)}, None, (0, "killed")),  # one was killed, and the other only lost it
        ({0: (4, LOST)}, 0, (1, "killed")),  # msrun looked when both were dead, and names the lowest
        ({0: (4, LOST), 1: (5, DISK)}, 0, (1, "disk")),
    ],
)
def test_who_was_first(toy: Toy, errors: dict[int, tuple[int, Any]], blamed: int | None, first: tuple[int, str]):
    """Of two that were dead when they were looked at; who said nothing was killed."""
    stage, table = Stage(toy), rules.read()
    lost = {"lost_others": lambda end: rules.classify(Evidence("", end), table).kind == rules.LOST}
    stage.watch = Watch(toy.plan(), stage.started, sys.stdout, **lost)
    for rank in (0, 1):
        stage.pulse(rank, 2**22 + 1 + rank, 1)
    for rank, (at_ns, error) in errors.items():
        stage.outcome(rank, 2**22 + 1 + rank, at_ns, done=False, left=False, exit_code=1, error=error)
    if blamed is not None:
        line = f"[ERROR] Worker process {2**22 + 1 + blamed} exit with exception. Error code: -9.\n"
        (stage.directory / files.LAUNCHER_LOG).write_text(line)
    evidence = stage.watch.look()

    assert evidence is not None
    assert evidence.first is not None
    assert evidence.first.rank == first[0]
    assert ("disk" if evidence.first.error else "killed") == first[1]


def test_watching_costs_next_to_nothing(toy: Toy):
    """Processor time while eight ranks run: a share of one core."""
    sleepers = 8
    directory = toy.logs / "attempts/000001-0000000000000000"
    directory.mkdir(parents=True)
    script = (
        "import sys, time; from ms_resume.pulse import Pulse; from ms_resume import Position\n"
        f"p = Pulse({str(directory)!r}, int(sys.argv[1]))\n"
        "for n in range(1000): p.beat('step', Position(0, n)); time.sleep(0.5)"
    )
    variables = {**os.environ, processes.MARK: str(directory)}
    ranks = [subprocess.Popen([sys.executable, "-c", script, str(n)], env=variables) for n in range(sleepers)]
    launcher = processes.Watched(ranks[0].pid).process
    watch = Watch(toy.plan(ranks=sleepers), Started(1, directory, launcher), sys.stdout)
    while len(list(directory.glob("*.pulse"))) < sleepers:
        time.sleep(0.1)
    watch.look()
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < 2:
        assert watch.look() is None
        time.sleep(0.25)
    share = (time.process_time() - used) / (time.monotonic() - began)
    processes.end(lambda: processes.marked(str(directory)), gently_s=0, tick=lambda: [rank.poll() for rank in ranks])

    assert share < 0.01, f"{share:.4f} of a core"  # aimed at is 0.002, on a machine that does nothing else
    print(f"watching {sleepers} ranks took {share:.5f} of a core")


def test_the_recorded_table_is_of_the_recorded_numbers():
    """benchmarks/results/supervise.md, as `make supervise` writes it; and what it must show."""
    recorded = HERE.parent / "benchmarks/results/supervise.json"
    results = json.loads(recorded.read_text())

    rows = [Row(**row) for row in results["rows"]]
    assert recorded.with_suffix(".md").read_text() == report(results, rows)
    assert len(rows) == 10
    assert all(results["held"].values())


def test_nothing_of_it_needs_mindspore_or_numpy(toy: Toy):
    """It may be what broke."""
    code = (
        "import sys; from ms_resume import cli\n"
        f"assert cli.main(['run', '--save', {str(toy.save)!r}, '--', 'true']) == 0\n"
        "print({'mindspore', 'numpy', 'rich'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines()[-1] == "set()"
