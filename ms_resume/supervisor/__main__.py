"""Ends what is left of a run on this node, after its supervisor is gone: what `launch/kill_npu_process.sh` calls.

python -m ms_resume.supervisor LOG_DIR [--dry-run]      exit 0, 2 (no such run), 40 (something cannot be ended)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ms_resume.errors import ExitCode, MsResumeError, UsageError
from ms_resume.supervisor import leftovers, processes
from ms_resume.supervisor.files import Lock


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ms_resume.supervisor", description=__doc__)
    parser.add_argument("log_dir", type=Path, help="the LOG_DIR of the run")
    parser.add_argument("--dry-run", action="store_true", help="show what would be ended")
    args = parser.parse_args(words)
    try:
        return end(args.log_dir.absolute(), dry_run=args.dry_run)
    except MsResumeError as error:
        print(f"ms_resume.supervisor: {error}", file=sys.stderr)
        return int(error.exit_code)


def end(log_dir: Path, *, dry_run: bool) -> int:
    """Raises UsageError where no run logs, DirectoryInUse while its supervisor lives: that one would start anew."""
    if not (log_dir / "attempts").is_dir():
        raise UsageError(f"{log_dir}: no attempts/ in it, expected the LOG_DIR of a run", hint="check LOG_DIR")
    lock = Lock(log_dir)
    try:
        attempts = str(log_dir / "attempts")
        _, left = leftovers.end(lambda: processes.marked(attempts, below=True), attempts, dry_run=dry_run)
    finally:
        lock.release()
    return int(ExitCode.DISK if left else ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
