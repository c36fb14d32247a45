"""One rank of the example's trainer, run by msrun in place of `main.py`: it says what it is about to do, and waits.

The trainer is the example's own, unchanged. `msrun.py` hears "start" and "save" before each, "started" and "saved"
after it, with the position, and arms the shim in this process while the rank waits for its answer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # The folder itself would shadow modules of others.
    sys.path[0] = str(Path(__file__).resolve().parents[2] / "examples")

import ms_resume
from grpo_arithmetic.main import main
from ms_resume.resume.checkpointer import Checkpointer


class Line:
    """To the process that launched the job. Without it there is nothing left to do."""

    def __init__(self, address: str, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address)
        self.say(f"here {rank} {os.getpid()}")

    def say(self, word: str) -> None:
        """Returns when the launcher lets this rank go on."""
        self._socket.send(word.encode())
        if not self._socket.recv(1):
            os._exit(1)


class Watched(Checkpointer):
    line: Line

    def start(self, **asked: Any) -> ms_resume.Position:
        self.line.say("start ")
        position = super().start(**asked)
        self.line.say(f"started {position}")
        return position

    def begin(self, epoch: int, step: int, metrics: Mapping[str, Any] | None = None) -> bool:
        """Waits for the save and its retention: what is counted is theirs alone."""
        self.line.say(f"save {epoch}_{step}")
        begun = super().begin(epoch, step, metrics)
        self.fence()
        self.wait()
        assert self._saver is not None  # it has started
        self._saver.rest()
        self.line.say(f"saved {epoch}_{step}")
        return begun


def watch(directory: Path, rank: int) -> None:
    """Puts this process under its rank's control file, and its Checkpointer under the launcher's eyes."""
    if ctypes.CDLL(None).shim_attach(os.fsencode(directory / f"rank_{rank}.control")) != 0:
        sys.exit(f"rank {rank}: the shim cannot map its control file")
    Watched.line = Line(str(directory / "line"), rank)
    vars(ms_resume)["Checkpointer"] = Watched


if __name__ == "__main__":
    if os.environ["MS_ROLE"] == "MS_WORKER":  # msrun's scheduler runs the same command
        watch(Path(os.environ["FAULTS_LINE"]), int(os.environ["RANK_ID"]))
    sys.exit(main(sys.argv[1:]))
