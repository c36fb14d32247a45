"""Ends what is left of a run on this node, after its supervisor is gone: what `launch/kill_npu_process.sh` calls.

python -m ms_resume.supervisor LOG_DIR [--dry-run]      exit 0, 2 (no such run), 40 (something cannot be ended)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ms_resume.errors import ExitCode, MsResumeError, UsageError
from ms_resume.supervisor import host, processes
from ms_resume.supervisor.files import Lock
from ms_resume.supervisor.processes import Process

_GENTLY_S = 5.0


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
        found = _of(log_dir)
        for process in found:
            print(f"{'would end' if dry_run else 'ending'} pid {process.pid}: {_command(process)}")
        left = [] if dry_run else processes.end(lambda: _of(log_dir), gently_s=_GENTLY_S)
    finally:
        lock.release()
    ours = {process.pid for process in found}
    for npu, pid, name in host.npu_processes():
        if pid not in ours:
            print(f"left alone: pid {pid} ({name}) on NPU {npu} is not of this run")
    if left:
        print(f"cannot be ended: pids {', '.join(str(process.pid) for process in left)}; see `dmesg`", file=sys.stderr)
    return int(ExitCode.DISK if left else ExitCode.OK)


def _of(log_dir: Path) -> list[Process]:
    return processes.marked(str(log_dir / "attempts"), below=True)


def _command(process: Process) -> str:
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return " ".join(word.decode(errors="replace") for word in words).strip()[:200]


if __name__ == "__main__":
    sys.exit(main())
