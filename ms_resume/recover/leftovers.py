"""Which processes are a training's, and ending those that it left: what `launch/kill_npu_process.sh FILE.yaml` calls.

    python -m ms_resume.recover.leftovers [--dry-run] TRAINING.yaml ...

What a training starts inherits the path of its YAML file in `TRAINING_YAML`: torchrun's workers, data loaders,
processes in sessions of their own. Exit code 0 when nothing is left, 2 for a file that is not there, 40 when something
cannot be ended, 61 when --dry-run finds some.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ms_resume.errors import ExitCode
from ms_resume.supervisor import leftovers, processes
from ms_resume.supervisor.processes import Process

VARIABLE = "TRAINING_YAML"


def mark(yaml: Path) -> str:
    """The entry in the environment of everything that the training of that file starts."""
    return f"{VARIABLE}={os.path.realpath(yaml)}"


def find(yaml: Path) -> list[Process]:
    """Its living processes, but this one and those above it."""
    return processes.marked(os.path.realpath(yaml), mark=VARIABLE)


def end(yaml: Path) -> list[Process]:
    """Ends them without a word, and gives those that cannot be ended."""
    return processes.end(lambda: find(yaml), gently_s=leftovers.GENTLY_S)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ms_resume.recover.leftovers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("yaml", nargs="+", metavar="TRAINING.yaml", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="name them, end none")
    args = parser.parse_args(words)
    found, left = leftovers.end(
        lambda: [each for yaml in args.yaml for each in find(yaml)],
        ", ".join(map(str, args.yaml)),
        dry_run=args.dry_run,
    )
    if left:
        return int(ExitCode.DISK)
    if found:
        return int(ExitCode.IN_USE if args.dry_run else ExitCode.OK)
    if lacks := [str(yaml) for yaml in args.yaml if not yaml.exists()]:
        print(f"{', '.join(lacks)}: does not exist\n  -> give the file that the training was given", file=sys.stderr)
        return int(ExitCode.USAGE)
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
