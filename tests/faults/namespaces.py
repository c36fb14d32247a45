"""Processes as in another container: in a pid namespace, and with a /proc of its own, the host's, or one that hides.

Needs root; `lacking` says why there are none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from faults.processes import Child, Tell, in_child

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_PRIVATE = 0x4000 | 0x40000


class Namespace:
    """A pid namespace of its own, as a container has it. Whoever forked into it reaps that before it is left: its first
    process cannot end before."""

    def __enter__(self) -> Namespace:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        _called("unshare", _NEWPID)
        self._init = Child(lambda tell: signal.pause())  # the first one in it; the kernel lets no signal stop it
        self._new = os.open(f"/proc/{self._init.pid}/ns/pid", os.O_RDONLY)
        _called("setns", self._own, _NEWPID)
        return self

    def __exit__(self, *error: object) -> None:
        self._init.kill()
        os.close(self._new)
        os.close(self._own)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is forked in here lives there."""
        _called("setns", self._new, _NEWPID)
        try:
            yield
        finally:
            _called("setns", self._own, _NEWPID)

    def next_pid(self, pid: int) -> None:
        """The pid of the next process in it."""
        with self.inside():
            in_child(lambda tell: Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1)))


def _called(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def own_proc(options: bytes = b"") -> None:
    """This process's own /proc, of its own pid namespace."""
    _called("unshare", _NEWNS)
    _called("mount", b"none", b"/", None, _PRIVATE, None)
    _called("mount", b"proc", b"/proc", b"proc", 0, options)


def hidden_processes() -> None:
    """A /proc that shows no process of anybody else: mounted with hidepid, seen without any privilege."""
    own_proc(b"hidepid=2,gid=65533")  # members of that group would see them, and root's own group is the default
    _called("unshare", _NEWUSER)


def lacking() -> str:
    """Why there are none here; empty when there are."""

    def probe(tell: Tell) -> str:
        try:
            with Namespace() as space, space.inside():
                end = in_child(lambda tell: hidden_processes())
            return "" if end.kind == "returned" else str(end.value).strip().splitlines()[-1]
        except OSError as error:
            return str(error)

    end = in_child(probe)
    return str(end.value) if end.kind == "returned" else f"the probe {end.kind}"
