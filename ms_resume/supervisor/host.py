"""What must hold on this host before a start, and what its kernel says of memory. Everything here only looks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from ms_resume.errors import DirectoryInUse, DiskError, LayoutMismatch, UsageError
from ms_resume.supervisor.processes import Process

_HCCL = {"HCCL_CONNECT_TIMEOUT": (120, 7200), "HCCL_EXEC_TIMEOUT": (0, 2147483647)}
"""Seconds, as CANN documents them for Atlas A2 and A3."""

_NPU_SMI_S = 30.0
_CGROUPS = Path("/sys/fs/cgroup")


def check(save: Path, *, ports: Collection[int], free_gib: float, variables: Mapping[str, str]) -> None:
    """Raises at the first thing that would make a start fail, before anything is started."""
    check_disk(save, free_gib)
    for port in ports:
        check_port(port)
    check_hccl(variables)
    if variables.get("DEVICE_TARGET", "Ascend") == "Ascend":
        check_npus()


def check_disk(save: Path, free_gib: float) -> None:
    """Raises DiskError with too little room where the save directory is, or will be."""
    there = next(path for path in (save, *save.parents) if path.exists())
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize / 2**30
    if free < free_gib:
        raise DiskError(
            f"{there}: {free:.1f} GiB are free, expected {free_gib:g}",
            hint="free space there; `ms-resume prune` shows what may go",
        )


def check_strategies(directory: Path, num_ranks: int) -> None:
    """Raises LayoutMismatch where MindSpore left strategy files of more ranks than the job has.

    A start overwrites those of its own ranks, and merges all that lie there: one that it has no rank for would win.
    """
    for path in sorted(directory.glob("**/strategy_*.ckpt")):
        match = re.fullmatch(r"strategy_(\d+)\.ckpt", path.name)
        if match and int(match[1]) >= num_ranks:
            raise LayoutMismatch(
                f"{path}: of rank {match[1]}, this job has ranks 0 to {num_ranks - 1}: strategies of another topology",
                hint="give the job a strategy directory of its own, or remove those files",
            )


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an ended job left waiting is no user
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be used: {error.strerror}{_listener(port)}",
                hint="end what listens there, or set another MASTER_PORT (--port)",
            ) from None


def check_hccl(variables: Mapping[str, str]) -> None:
    for name, (least, most) in _HCCL.items():
        text = variables.get(name)
        if text is not None and not (text.isdecimal() and least <= int(text) <= most):
            raise UsageError(f"{name} is {text!r}, expected {least} to {most} seconds", hint=f"correct {name}")


def check_npus() -> None:
    """Raises DirectoryInUse where somebody's process is on an NPU. What an earlier attempt left is ended by now."""
    if holders := npu_processes():
        said = ", ".join(f"NPU {npu}: pid {pid} ({name})" for npu, pid, name in holders[:8])
        raise DirectoryInUse(
            f"NPUs are held by other processes: {said}",
            hint="wait for them, end them, or choose others with ASCEND_RT_VISIBLE_DEVICES",
        )


def npu_processes() -> list[tuple[int, int, str]]:
    """(NPU, pid, name) of each process on an NPU, as `npu-smi info` lists them; nothing where there is none."""
    command = ["npu-smi", "info"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_NPU_SMI_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    table = said.partition("Process id")[2]
    rows = re.findall(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*(\S+)", table, re.MULTILINE)
    return [(int(npu), int(pid), name) for npu, pid, name in rows]


def oom_counter(process: Process) -> Path | None:
    """Where the kernel counts what it killed for memory in this process's control group."""
    try:
        listed = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = {kind: path for _, kind, path in (line.split(":", 2) for line in listed if line.count(":") >= 2)}
    for kind, top, name in (("memory", _CGROUPS / "memory", "memory.oom_control"), ("", _CGROUPS, "memory.events")):
        # In a container the path is the host's, and what is mounted is the group itself.
        for path in (groups.get(kind, "").lstrip("/"), ""):
            if kind in groups and (top / path / name).is_file():
                return top / path / name
    return None


def oom_kills(counter: Path | None) -> int:
    try:
        match = re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE) if counter else None
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _listener(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        inodes |= {row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A"}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in sockets for fd in os.listdir(f"/proc/{pid}/fd")):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                return f" (pid {pid}, {name}, listens there)"
        except OSError:
            continue
    return ""
