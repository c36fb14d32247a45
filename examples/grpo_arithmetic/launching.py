"""Starting the launch script from Python, with its output to a log and line by line to whoever wants to hear it."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of `launch/run_grpo.sh`."""

    save: Path
    config: Path
    base: Path
    log: Path
    resume: bool = False


def run(launch: Launch, more: Mapping[str, str], hear: Callable[[str], None]) -> int:
    """Runs a launch to its end and gives its exit status; `more` joins the environment."""
    command = [str(TOP / "launch/run_grpo.sh"), *(["--resume_training"] if launch.resume else [])]
    variables = {**os.environ, **_variables(launch), **more}
    with (
        launch.log.open("w") as sink,
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job,
    ):
        assert job.stdout is not None
        for line in job.stdout:
            sink.write(line)
            hear(line)
    return job.returncode


def _variables(launch: Launch) -> dict[str, str]:
    return {
        "SAVE_DIR": str(launch.save),
        "CONFIG": str(launch.config),
        "BASE_MODEL": str(launch.base),
        "MASTER_PORT": str(free_port()),
        "SUPERVISE": "0",  # whoever launches from here decides for itself what comes after a death
        "GLOG_v": os.environ.get("GLOG_v", "3"),  # noqa: SIM112  # its name; warnings would bury the run's lines
        "MS_NODE_TIMEOUT": "5",  # msrun otherwise waits 30 s for a rank that is dead
    }


def free_port() -> int:
    """A port that nobody has, and that the kernel does not give to a connection before msrun listens there."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, given if given > 20_000 else 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
