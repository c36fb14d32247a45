"""Children of this process: forked, talking over a pipe, and never trusted to end by themselves."""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tell = Callable[[Any], None]
"""Sends one value, of a few hundred bytes, to the parent; it arrives even if the child is killed right after."""

HUNG_AFTER_S = 60.0


@dataclass
class End:
    """How a child ended. `kind`: returned, raised (`value` is the traceback), killed, or hung (killed by us)."""

    kind: str
    value: Any = None
    told: list[Any] = field(default_factory=list)


class Child:
    """A fork of this process that does `work` and ends; it returns to nobody."""

    def __init__(self, work: Callable[[Tell], Any]) -> None:
        self._out, into = os.pipe()
        self._told: list[Any] = []
        self.pid = os.fork()
        if self.pid == 0:
            _live(work, into, self._out)
        os.close(into)

    def wait(self, hung_after_s: float = HUNG_AFTER_S) -> End:
        """How it ended; one that does not is killed."""
        try:
            content = self._read_all(time.monotonic() + hung_after_s)
        finally:
            os.close(self._out)
        if content is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return End("hung")
        _, status = os.waitpid(self.pid, 0)
        told = _messages(content)
        if os.WIFSIGNALED(status):
            return End("killed", os.WTERMSIG(status), told)
        kind, value = told.pop() if told else ("raised", f"exit code {status}")
        return End(kind, value, told)

    def stops(self) -> bool:
        """Waits until it has stopped itself (True) or ended (False)."""
        options = os.WEXITED | os.WSTOPPED | os.WNOWAIT
        found = os.waitid(os.P_PID, self.pid, options)
        if found is not None and found.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)
            return True
        return False

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> End:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def _read_all(self, deadline: float) -> bytes | None:
        content = b""
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._out], [], [], left)[0]:
                got = os.read(self._out, 1 << 20)
                if not got:
                    return content
                content += got
        return None


def in_child(work: Callable[[Tell], Any], hung_after_s: float = HUNG_AFTER_S) -> End:
    return Child(work).wait(hung_after_s)


def _live(work: Callable[[Tell], Any], into: int, out: int) -> None:
    try:
        os.close(out)

        def tell(value: Any) -> None:
            content = pickle.dumps(value)
            os.write(into, struct.pack("=I", len(content)) + content)

        try:
            last = ("returned", work(tell))
        except BaseException:  # noqa: BLE001  # a copy of the campaign must never go on as a second campaign
            last = ("raised", traceback.format_exc()[-8000:])
        tell(last)
    finally:
        os._exit(0)


def _messages(content: bytes) -> list[Any]:
    told, at = [], 0
    while at + 4 <= len(content):
        (size,) = struct.unpack_from("=I", content, at)
        told.append(pickle.loads(content[at + 4 : at + 4 + size]))
        at += 4 + size
    return told
