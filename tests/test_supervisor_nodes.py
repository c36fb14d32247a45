"""Supervisors of several nodes, as processes on one host: two nodes of one plain rank each, and one log directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_arithmetic.launching import free_port
from ms_resume import locate
from ms_resume.supervisor import files, nodes, processes

HERE = Path(__file__).parent
STEPS = 140


@dataclass
class Cluster:
    """A run on two nodes."""

    top: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def save(self) -> Path:
        return self.top / "run"

    def start(self, node: int, steps: int = STEPS, **more: Any) -> subprocess.Popen[bytes]:
        """The supervisor of one node; its console is in `node_K.console`."""
        toy = [str(HERE / "toy_msrun.py"), "1", str(HERE / "toy_rank.py")]
        plan = {
            "command": [sys.executable, *toy, str(self.save), str(steps)],
            "save": str(self.save),
            "log_dir": str(self.top / "logs"),
            "ranks": 1,
            "on_restart": ["--resume_training"],
            "environment": {"TOY_FIRST_RANK": node},
            "free_gib": 0,
            "read_s": 0.2,
            "nodes": 2,
            "node": node,
            "join_s": 60,
            "policy": {"backoff_s": 0.1},
            **more,
        }  # fmt: skip
        config = self.top / f"node_{node}.yaml"
        config.write_text(yaml.safe_dump(plan))
        variables = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "DEVICE_TARGET": "CPU"}
        with (self.top / f"node_{node}.console").open("ab") as sink:
            command = [sys.executable, "-m", "ms_resume.cli", "run", str(config)]
            self.running.append(subprocess.Popen(command, env=variables, stdout=sink, stderr=sink))
        return self.running[-1]

    def breaks(self, *faults: dict[str, Any]) -> None:
        (self.top / "run.faults").write_text("".join(json.dumps(fault) + "\n" for fault in faults))

    def console(self, node: int) -> str:
        return (self.top / f"node_{node}.console").read_text()

    def attempts(self, node: int) -> list[str]:
        return sorted(path.name for path in (self.top / f"logs/node_{node}/attempts").glob("*"))

    def classes(self, node: int) -> list[tuple[str, int | None]]:
        """How each attempt ended, as this node's history has it, and by which rank."""
        events = files.read_history(self.top / f"logs/node_{node}" / files.HISTORY)[0]
        return [(event["class"], event["rank"]) for event in events if event["event"] == "end"]

    def said(self, node: int, begin: str) -> list[str]:
        """When."""
        lines = (self.top / f"logs/node_{node}/supervisor.jsonl").read_text().splitlines()
        return [entry["time"] for entry in map(json.loads, lines) if entry["message"].startswith(begin)]

    def step(self, node: int, ordinal: int) -> int:
        found = list((self.top / f"logs/node_{node}/attempts").glob(f"{ordinal:06d}-*/rank_*.pulse"))
        pulse = files.document(found[0]) if found else None
        return pulse["position"][1] if pulse and pulse["position"] else -1

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.console(0) + self.console(1)
            time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for supervisor in cluster.running:
        supervisor.kill()
        supervisor.wait()
    for node in (0, 1):
        attempts = str(tmp_path / f"logs/node_{node}/attempts")
        processes.end(lambda attempts=attempts: processes.marked(attempts, below=True), gently_s=0)


def test_a_death_on_one_node_ends_the_attempt_on_all(cluster: Cluster):
    """On either node; all make the same next start, and node 0 decides from what really failed. A supervisor that is
    killed meanwhile takes its part over."""
    cluster.breaks(
        {"attempt": 1, "rank": 1, "at": 8, "do": "kill"},
        {"attempt": 2, "rank": 0, "at": 60, "do": "some error"},  # far behind where the first attempt may end
    )
    first, second = cluster.start(0), cluster.start(1)
    cluster.wait_for(lambda: cluster.step(0, 3) >= 61)
    second.kill()
    second.wait()
    second = cluster.start(1)

    assert (first.wait(60), second.wait(60)) == (0, 0), cluster.console(0) + cluster.console(1)
    assert cluster.classes(0) == [("killed", 1), ("unknown", 0), ("done", None)]
    assert cluster.classes(1) == [("killed", 1), ("elsewhere", None), ("done", None)]
    assert cluster.attempts(0) == cluster.attempts(1)
    assert len(cluster.attempts(0)) == 3
    assert "taking attempt 3 over" in cluster.console(1)
    assert (cluster.save / "result").read_text() == repr([float(STEPS)] * 4)
    ended_on_1, ended_on_0 = (cluster.said(node, "attempt 1 failed")[0] for node in (1, 0))
    assert _seconds(ended_on_0) - _seconds(ended_on_1) < 15  # msrun would take 30
    assert not list(cluster.save.glob(".ms_resume*")) + list(cluster.top.glob(".ms_resume*"))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_asked_on_one_node_all_save_and_leave(cluster: Cluster):
    first, second = cluster.start(0, steps=1000), cluster.start(1, steps=1000)
    follows = (cluster.top / "logs/node_1/attempts").glob
    cluster.wait_for(lambda: cluster.step(0, 1) >= 7 and any(follows("*/rank_1.pulse")))
    second.send_signal(signal.SIGTERM)

    assert (first.wait(60), second.wait(60)) == (50, 50), cluster.console(0) + cluster.console(1)
    newest = locate.latest(cluster.save).checkpoint
    assert newest is not None
    assert newest.position.step >= 7


@pytest.mark.parametrize(("asked", "deaths"), [(0, 1), (1, 1), (1, 2)])
def test_asked_between_two_attempts(cluster: Cluster, asked: int, deaths: int):
    """None waits for another, when node 0 is not ready (after one death) or all back off. Started again it goes on."""
    deadly = {1: [(1, 1, 40)], 2: [(n, rank, -1) for n in (1, 2) for rank in (0, 1)]}[deaths]  # two without progress
    cluster.breaks(*({"attempt": n, "rank": rank, "at": at, "do": "kill"} for n, rank, at in deadly))
    port = free_port()
    both = [cluster.start(0, 80, policy={"backoff_s": 50}, ports=[port]), cluster.start(1, 80)]
    cluster.wait_for(lambda: all(cluster.attempts(node) for node in (0, 1)))
    with socket.socket() as listener:
        if deaths == 1:
            listener.bind(("127.0.0.1", port))
            listener.listen()
            cluster.wait_for(lambda: bool(cluster.said(0, "not started yet")))
        cluster.wait_for(lambda: all(len(cluster.said(node, "decision: restart")) == deaths for node in (0, 1)))
        both[asked].send_signal(signal.SIGTERM)
        began = time.monotonic()

        assert [supervisor.wait(60) for supervisor in both] == [143, 143], cluster.console(0) + cluster.console(1)
        assert time.monotonic() - began < 20  # of about 50, and of 60
    assert f"node {asked}: asked to end between two attempts" in cluster.console(1 - asked)
    assert len(cluster.attempts(0)) == deaths
    again = [cluster.start(0, 80), cluster.start(1, 80)]
    assert [supervisor.wait(60) for supervisor in again] == [0, 0], cluster.console(0) + cluster.console(1)


def test_an_error_that_stays_stops_all_nodes(cluster: Cluster):
    """With the same code, though only node 1 has seen it. It comes before that rank has done anything."""
    cluster.breaks({"rank": 1, "at": -1, "do": "typo"})
    both = [cluster.start(0, steps=20), cluster.start(1, steps=20)]

    assert [supervisor.wait(60) for supervisor in both] == [60, 60], cluster.console(0) + cluster.console(1)
    assert "fowrard" in cluster.console(0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"save": "{top}/elsewhere/run"}, "node 1 ({host}): does not see the save directory of node 0, {top}/run"),
        ({"same": ["{top}/node_1.yaml"]}, "node 1 ({host}): code is "),
    ],
)
def test_what_all_nodes_must_see_alike(cluster: Cluster, other: dict[str, Any], message: str):
    """Found before anything is started: another save directory, other code."""
    (cluster.top / "elsewhere").mkdir()
    filled = json.loads(json.dumps(other).replace("{top}", str(cluster.top)))
    first = cluster.start(0)
    cluster.start(1, join_s=8, **filled)

    assert first.wait(60) == 2
    assert message.format(top=cluster.top, host=os.uname().nodename) in cluster.console(0)
    assert cluster.attempts(0) == cluster.attempts(1) == []


def test_a_node_that_does_not_come(cluster: Cluster):
    """Either way it is said for whom was waited; nothing is started."""
    first = cluster.start(0, join_s=1)
    assert first.wait(30) == 2
    assert "nodes [1] are not ready after 1 s" in cluster.console(0)
    second = cluster.start(1, join_s=1, log_dir=str(cluster.top / "another"))

    assert second.wait(30) == 2
    assert "node 0 has called no start in 1 s" in cluster.console(1)
    assert cluster.attempts(0) == cluster.attempts(1) == []


def part(kind: str, then: str = "restart", at: int = 0, **more: Any) -> dict[str, Any]:
    return {"class": kind, "then": then, "at": f"2026-11-21T20:00:{at:02d}.000", "says": "", "reached": None, **more}


@pytest.mark.parametrize(
    ("own", "other", "merged"),
    [
        (part("done", "done"), part("done", "done"), "done"),
        (part("done", "done"), part("killed"), "killed"),
        (part("elsewhere"), part("killed"), "killed"),
        (part("killed", at=2), part("oom_npu", at=1), "oom_npu"),  # the earlier one
        (part("hccl_timeout", at=1), part("killed", at=2), "killed"),  # it lost the other one
        (part("elsewhere"), part("hccl_timeout"), "hccl_timeout"),
        (part("preempted", "leave"), part("done", "done"), "preempted"),
        (part("done", "done"), part("preempted", "leave"), "preempted"),
        (part("elsewhere"), part("elsewhere"), "elsewhere"),
        (part("done", "done"), None, "elsewhere"),  # nobody knows
        (part("hang"), None, "hang"),
    ],
)
def test_merge(own: dict[str, Any], other: dict[str, Any] | None, merged: str):
    """Each row: node 0's part, node 1's or nothing, and the class of the whole."""
    assert nodes.merge(own, {1: other})["class"] == merged


def test_the_furthest_step_of_all_nodes_counts():
    whole = nodes.merge(part("done", "done", ordinal=4), {1: part("killed", reached=[0, 7], ordinal=9, rank=5)})

    assert (whole["reached"], whole["ordinal"], whole["rank"]) == ([0, 7], 4, 5)
