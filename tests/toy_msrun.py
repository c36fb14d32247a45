"""Starts ranks as msrun does, with its bad habits: sessions of their own, a look now and then, SIGTERM not passed on, a
`tail` that looks like rank 0 and is killed at the end, a long wait after a death, and 1 for everything that fails.

    python toy_msrun.py RANKS SCRIPT ARGUMENTS...       TOY_FIRST_RANK: of this node
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def main(ranks: int, command: list[str]) -> int:
    logs = Path(os.environ["MS_RESUME_WATCH_DIR"])
    workers = []
    first = int(os.environ.get("TOY_FIRST_RANK", "0"))
    for rank in range(first, first + ranks):
        variables = {**os.environ, "MS_ROLE": "MS_WORKER", "RANK_ID": str(rank), "MS_NODE_ID": str(rank)}
        with (logs / f"worker_{rank}.log").open("wb") as log:
            words = [sys.executable, *command]
            workers.append(subprocess.Popen(words, env=variables, stdout=log, stderr=log, start_new_session=True))
        if rank == first:
            tail = subprocess.Popen(["tail", "-f", str(logs / f"worker_{rank}.log")], env=variables)
    while True:
        codes = [worker.poll() for worker in workers]
        for worker, code in zip(workers, codes, strict=True):
            if code:
                print(f"Worker process {worker.pid} exit with exception. Error code: {code}.", flush=True)
                for other in [*workers, tail]:
                    other.kill()
                time.sleep(30)
                return 1
        if all(code == 0 for code in codes):
            tail.kill()
            tail.wait()
            time.sleep(0.2)
            return 0
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
