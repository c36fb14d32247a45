"""Starts the tiny trainer over and over without paying for MindSpore's import each time.

A server process imports MindSpore, runs nothing, and forks once for each launch: the child is a process of its own,
with no state but the imported modules. What it does it says line by line, `<phase> <step>`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]


@dataclass
class Launch:
    """A running trainer: `lines` gives what it says, and ends when it is dead."""

    pid: int
    lines: Any

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for line in self.lines:
            phase, _, step = line.strip().partition(" ")
            yield phase, int(step)


class Server:
    """A process that has imported MindSpore."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "tests"), str(TOP / "examples")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "exact.launches"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "GLOG_v": "4"},
            cwd=TOP / "tests",
        )

    def launch(self, save: Path, setting: str, *, resume: bool, log: Path) -> Launch:
        read, write = os.pipe()
        path = f"/proc/{os.getpid()}/fd/{write}"
        request = {"save": str(save), "setting": setting, "resume": resume, "lines": path, "log": str(log)}
        self._ask(json.dumps(request))
        pid = int(self._answer())
        os.close(write)
        return Launch(pid, os.fdopen(read))

    def ended(self) -> int:
        """The wait status of the last launch."""
        self._ask("wait")
        return int(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()  # a process that was forked meanwhile may hold the other end of its standard input
        self._process.wait()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def server() -> Iterator[Server]:
    running = Server()
    try:
        yield running
    finally:
        running.close()


def _serve() -> None:
    import mindspore  # noqa: F401  # what the launches do not have to do

    from exact import tiny  # noqa: F401

    pid = 0
    for line in sys.stdin:
        if line == "wait\n":
            print(os.waitpid(pid, 0)[1], flush=True)
            continue
        request = json.loads(line)
        lines = os.open(request["lines"], os.O_WRONLY)
        pid = os.fork()
        if pid == 0:
            _train(request, lines)
        os.close(lines)
        print(pid, flush=True)


def _train(request: dict[str, Any], lines: int) -> None:
    """Never returns. What goes wrong is in the log; nothing of the server's is touched."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        from exact.settings import Setting
        from exact.tiny import Trainer, prepare

        prepare()

        def hear(phase: str, step: int) -> None:
            os.write(lines, f"{phase} {step}\n".encode())

        trainer = Trainer(Path(request["save"]), Setting.parse(request["setting"]), hear)
        code = 0 if trainer.run(resume=request["resume"]) else 50
    except BaseException:  # noqa: BLE001  # the edge of the process: the log has it, the exit code says so
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
