"""What watching costs: a whole supervisor over ranks that say a step twice a second."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ms_resume.supervisor import processes

RANKS = 8
HERE = Path(__file__).parents[1]


def of_watching(save: Path, seconds: float) -> float:
    """The share of one core that the supervisor's process took, its start left out."""
    ranks = [sys.executable, str(HERE / "toy_msrun.py"), str(RANKS), str(HERE / "toy_rank.py"), str(save), "1000000"]
    command = [sys.executable, "-m", "ms_resume.cli", "run", "--save", str(save), "--ranks", str(RANKS), "--", *ranks]
    path = f"{HERE.parent}:{HERE}"
    variables = {**os.environ, "PYTHONPATH": path, "TOY_STEP_S": "0.5", "DEVICE_TARGET": "CPU"}
    supervisor = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    attempts = save.with_name(f"{save.name}.logs") / "attempts"
    try:
        while len(list(attempts.glob("*/rank_*.pulse"))) < RANKS:
            time.sleep(0.2)
        time.sleep(5)
        began, used = time.monotonic(), _used_s(supervisor.pid)
        time.sleep(seconds)
        return (_used_s(supervisor.pid) - used) / (time.monotonic() - began)
    finally:
        supervisor.kill()
        supervisor.wait()
        processes.end(lambda: processes.marked(str(attempts), below=True), gently_s=0)


def _used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
