"""One launch of the example's trainer under msrun: its ranks go on word by word, and any of them can be made to die.

All ranks say the same words (see `msrun_rank.py`), each waits after every word until it is let go. So nothing happens
between two words that was not asked for, and a launch that is no longer needed ends at once instead of by a timeout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from faults import shim
from faults.shim import Control, Mode

TOP = Path(__file__).resolve().parents[2]
EXAMPLE = TOP / "examples/grpo_arithmetic"
CONFIG = EXAMPLE / "config_test.yaml"
STEPS_PER_EPOCH = 7
"""With that configuration."""

RANKS = (0, 1)
HUNG_AFTER_S = 180.0


class Broken(Exception):
    """A launch did not go as it should; the message has the end of its log."""


@dataclass(frozen=True)
class Death:
    """Rank `rank` dies before its `at`-th call from here on, or with `half` of that call's bytes written."""

    rank: int
    at: int
    half: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} {'in the middle of' if self.half else 'before'} call {self.at}"


def make_base_model(output: Path) -> None:
    """What a fresh run starts from."""
    command = [sys.executable, str(EXAMPLE / "pretrain.py"), "--config", str(CONFIG), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Broken(f"no base model: {done.stderr[-300:]}")


class Launch:
    """One start of `launch/run_grpo.sh`, saving every step to `<run>/save`.

    Args:
        work: Shared by the launches of one job: base model, logs, control files, and the line to the ranks.
    """

    def __init__(self, run: Path, work: Path, epochs: int) -> None:
        self.save = run / "save"
        self.log = work / "log.txt"
        self.controls = [Control(work / f"rank_{rank}.control", run, work / f"rank_{rank}.calls") for rank in RANKS]
        self._work, self._epochs = work, epochs
        self._lines: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}

    def __enter__(self) -> Launch:
        resume = ["--resume_training"] if self.save.is_dir() else []
        overrides = ["rl_config.save_ckpt_interval=1", "rl_config.save_max_ckpt_num=2", "rl_config.tensorboard=false"]
        command = [str(TOP / "launch/run_grpo.sh"), *resume, "--epochs", str(self._epochs), *overrides]
        address = self._work / "line"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door, self.log.open("wb") as log:
            door.bind(str(address))
            door.listen()
            self._job = subprocess.Popen(
                command, env=self._variables(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                self._welcome(door)
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def hear(self) -> str:
        """The next word of all ranks, who then wait; empty when all have ended."""
        words = {self.hear_from(rank) for rank in RANKS}
        if len(words) > 1:
            raise Broken(self._told(f"one rank says {' and the other '.join(map(repr, sorted(words)))}"))
        return words.pop()

    def hear_from(self, rank: int) -> str:
        """The next word of one rank; empty when it has ended."""
        line = self._lines.get(rank)
        if line is None:
            return ""
        try:
            word = line.recv(64).decode()
        except TimeoutError:
            raise Broken(self._told(f"rank {rank} hangs")) from None
        except ConnectionResetError:
            word = ""
        if not word:
            self._lines.pop(rank).close()
        return word

    def let(self, *ranks: int) -> None:
        for rank in ranks or RANKS:
            self._lines[rank].send(b".")

    def strike(self, deaths: tuple[Death, ...]) -> list[Death]:
        """Lets the ranks go on one after the other, each until it dies; gives those that died as they should.

        msrun sleeps from here on: it would kill the other rank as soon as it sees that one is gone.
        """
        os.kill(self._job.pid, signal.SIGSTOP)
        doomed = [death.rank for death in deaths]
        if others := [rank for rank in RANKS if rank not in doomed]:
            self.let(*others)
        hit = []
        for death in deaths:
            control = self.controls[death.rank]
            control.arm(Mode.KILL_HALF if death.half else Mode.KILL, death.at)
            self.let(death.rank)
            if not self.hear_from(death.rank) and control.hit == 1:
                hit.append(death)
        self._end()
        return hit

    def ends_well(self) -> None:
        """Waits for msrun, whose ranks have ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._job.wait(HUNG_AFTER_S) == 0:
                return
        raise Broken(self._told(f"it ended with {self._job.poll()}"))

    def close(self) -> None:
        """Forgets what the shim recorded."""
        for control in self.controls:
            control.close()

    def _variables(self) -> dict[str, str]:
        """MindSpore's own patience is far longer than a test's; the base model is there already."""
        trainer = Path(__file__).with_name("msrun_rank.py")
        what = {"TRAINER": trainer, "CONFIG": CONFIG, "BASE_MODEL": self._work / "base", "SAVE_DIR": self.save}
        where = {"STRATEGY_DIR": self._work / "strategy", "LOG_DIR": self._work / "logs", "FAULTS_LINE": self._work}
        fixed = {"VENV": sys.prefix, "MASTER_PORT": _free_port(), "MS_NODE_TIMEOUT": 5, "GLOG_v": 3, "SUPERVISE": 0}
        return {**shim.environment(), **{name: str(value) for name, value in {**what, **where, **fixed}.items()}}

    def _welcome(self, door: socket.socket) -> None:
        """Waits until every rank has called, or the job has ended before."""
        door.settimeout(1.0)
        deadline = time.monotonic() + HUNG_AFTER_S
        while len(self._lines) < len(RANKS):
            if self._job.poll() is not None or time.monotonic() > deadline:
                raise Broken(self._told("not all ranks came up"))
            with contextlib.suppress(TimeoutError):
                line, _ = door.accept()
                line.settimeout(HUNG_AFTER_S)
                _, rank, pid = line.recv(64).decode().split()
                self._lines[int(rank)], self._pids[int(rank)] = line, int(pid)
        self.let()

    def _end(self) -> None:
        """Ranks are in sessions of their own; all else of the job is in the session that was opened for it."""
        for rank in list(self._lines):
            os.kill(self._pids[rank], signal.SIGKILL)
            while self.hear_from(rank):
                pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._job.pid, signal.SIGKILL)
        self._job.wait()

    def _told(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "rror" in line]
        return f"{what}; {' | '.join((errors or lines)[:3])[:500]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
