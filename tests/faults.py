"""Dying before, or failing at, the n-th operation that changes a directory, in a forked process: nothing runs after.

Operations are seen through Python's audit events, whoever calls them and however; `write` and `fsync`, which have no
event, through the names in `os`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIED = 9
_EVENTS = ("os.remove", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Faults:
    """Counts the operations below `root` from now on; at number `at` the process dies, or that one fails with `code`.

    An audit hook cannot be taken away: make one only in a process that is about to end.
    """

    def __init__(self, root: Path, *, at: int = 0, code: int | None = None) -> None:
        self.seen = 0
        self._root, self._at, self._code = str(root), at, code
        for name in ("write", "fsync"):
            setattr(os, name, self._wrapped(getattr(os, name)))
        sys.addaudithook(self._hook)

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *rest: Any) -> Any:
            self._count(os.readlink(f"/proc/self/fd/{fd}"))
            return real(fd, *rest)

        return call

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and arguments[2] & _WRITING):
            # A symbolic link's own path is its second argument.
            path = arguments[1] if event == "os.symlink" else arguments[0]
            if isinstance(path, (str, bytes, os.PathLike)):
                self._count(os.fsdecode(path))

    def _count(self, path: str) -> None:
        if not path.startswith(self._root):
            return
        self.seen += 1
        if self.seen == self._at:
            if self._code is None:
                os._exit(DIED)
            raise OSError(self._code, os.strerror(self._code), path)


def forked(work: Callable[[], int]) -> int:
    """The exit code of a copy of this process that did `work`; 255 where it raised."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = work()
        except BaseException:  # noqa: BLE001  # the copy must never return into the test
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def points(root: Path, work: Callable[[], object]) -> int:
    """How many operations `work` does, at most 254; it is done in a copy of this process."""

    def count() -> int:
        faults = Faults(root)
        work()
        assert faults.seen < 255
        return faults.seen

    return forked(count)
