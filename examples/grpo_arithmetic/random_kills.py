"""Trains undisturbed, trains again while random workers die at random times, and compares both runs bit for bit.

    python examples/grpo_arithmetic/random_kills.py --kills 5       ends in `yes` and exit 0, or in `no` and exit 1

The kills come from outside: SIGKILL to a worker of msrun, in the middle of one of the first steps of each launch.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic import compare, launching
from grpo_arithmetic.launching import TOP, Launch
from grpo_arithmetic.metrics import LINES
from ms_resume import locate


class Killer:
    """Kills one random worker of one launch, in the middle of one of its first `most_steps` steps."""

    def __init__(self, save: Path, chance: random.Random, most_steps: int) -> None:
        self.struck = ""
        self._save, self._chance, self._most_steps = save, chance, most_steps
        self._thread: threading.Thread | None = None

    def hear(self, line: str) -> None:
        if line.startswith("epoch ") and self._thread is None:
            self._thread = threading.Thread(target=self._strike)
            self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _strike(self) -> None:
        began, first = time.monotonic(), self._steps()
        last = first + self._chance.randrange(self._most_steps)
        while self._steps() < last and workers_of(self._save):
            time.sleep(0.01)
        step_s = (time.monotonic() - began) / max(last - first, 1)
        time.sleep(self._chance.uniform(0, min(step_s, 1.0)))
        if victims := workers_of(self._save):
            pid = self._chance.choice(victims)
            os.kill(pid, signal.SIGKILL)
            self.struck = f"worker {pid} of {len(victims)} killed after {self._steps()} steps in all"

    def _steps(self) -> int:
        log = self._save / "metrics" / LINES
        return log.read_bytes().count(b"\n") if log.exists() else 0


def workers_of(save: Path) -> list[int]:
    """The pids of the trainer's ranks that write to `save`; msrun's scheduler runs the same command in another role."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            variables = (entry / "environ").read_bytes() if command else b""
        except OSError:
            continue  # ended in between
        if str(save).encode() in command and b"MS_ROLE=MS_WORKER" in variables:
            found.append(int(entry.name))
    return sorted(found)


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    earlier = args.reuse or args.output
    undisturbed, disturbed, base = earlier / "a", args.output / "b", earlier / "base"
    if args.reuse is None:
        _train(Launch(undisturbed, args.config, base, args.output / "a.txt"), "undisturbed")
    chance = random.Random(args.seed)
    print(f"seed {args.seed}", flush=True)
    for number in range(args.kills + 1):
        launch = Launch(disturbed, args.config, base, args.output / f"b-{number}.txt", resume=_whole(disturbed))
        killer = Killer(disturbed, chance, args.most_steps) if number < args.kills else None
        _train(launch, f"launch {number + 1}{', resumed' if launch.resume else ''}", killer)
    result = compare.runs(undisturbed, disturbed)
    print(compare.table(result))
    counted = f"{'yes' if result.equal else 'no'} ({result.tensors} tensors, {result.differ} differ)"
    print(f"run with {args.kills} kills equals uninterrupted run: {counted}", flush=True)
    return 0 if result.equal else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill random workers at random times, resume, and compare.")
    parser.add_argument("--config", type=Path, default=TOP / "examples/grpo_arithmetic/config.yaml")
    parser.add_argument("--output", type=Path, default=TOP / "output/random_kills", help="removed first")
    parser.add_argument("--reuse", type=Path, metavar="DIR", help="an earlier output, for its run a and base model")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--most_steps", type=int, default=40, metavar="N", help="a launch dies within its first N steps"
    )
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")))
    return parser.parse_args(arguments)


def _train(launch: Launch, title: str, killer: Killer | None = None) -> None:
    """Raises SystemExit where a launch that nobody killed ends badly, or a kill was due and none struck."""
    began = time.monotonic()
    code = launching.run(launch, {}, killer.hear if killer else lambda line: None)
    if killer:
        killer.wait()
    struck = killer.struck if killer else "left alone"
    print(f"{title}: {struck}; exit {code} after {time.monotonic() - began:.0f} s", flush=True)
    said = [line for line in launch.log.read_text(errors="replace").splitlines() if line.startswith("rollouts: ")]
    print("\n".join(said), end="\n" if said else "", flush=True)
    if (killer is None and code) or (killer is not None and not killer.struck):
        tail = "".join(launch.log.read_text().splitlines(keepends=True)[-20:])
        raise SystemExit(f"random_kills: not as planned, see {launch.log}\n{tail}")


def _whole(save: Path) -> bool:
    return save.is_dir() and locate.latest(save).checkpoint is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
