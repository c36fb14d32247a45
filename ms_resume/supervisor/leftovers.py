"""Ends what is left of a run on this node, and says what. Whoever else holds an NPU is named, and left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ms_resume.supervisor import host, processes
from ms_resume.supervisor.processes import Process

GENTLY_S = 5.0
"""Between SIGTERM and SIGKILL."""

_SHOWN = 200


def end(find: Callable[[], list[Process]], of: str, *, dry_run: bool) -> tuple[list[Process], list[Process]]:
    """Ends what `find` finds, all processes of one run. Gives what was found, and what of it could not be ended: it
    hangs in the kernel. A dry run ends nothing."""
    found = find()
    for process in found:
        print(f"{'would end' if dry_run else 'ending'} {told(process)}", flush=True)
    if not found:
        print(f"nothing is left of {of}")
    left = [] if dry_run else processes.end(find, gently_s=GENTLY_S)
    ours = {process.pid for process in found}
    for npu, pid, name in host.npu_processes():
        if pid not in ours:
            print(f"left alone: pid {pid} ({name}) on NPU {npu} is not of this run")
    if left:
        print(f"cannot be ended: {', '.join(map(told, left))}", file=sys.stderr)
        print(
            "  -> they hang in the kernel, often in a device's driver: `dmesg`; reset the device, or the host",
            file=sys.stderr,
        )
    return found, left


def told(process: Process) -> str:
    command = b" ".join(processes.words(process.pid)).decode(errors="replace")
    return f"pid {process.pid}: {command[:_SHOWN] or '?'}"
