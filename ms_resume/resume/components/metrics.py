"""The log of a run's metrics, which goes on at a resume as if the run had never died: JSON lines, and TensorBoard's.

A step stands in it once: what an abandoned future wrote at or after the step that is run next is taken back. What
stands before it is in the file when the checkpoint is: nothing waits in a buffer.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ms_resume.ondisk import atomic, events
from ms_resume.resume.components import identity

VERSION = 1


class MetricsLog:
    """One JSON object a line, with its step; opened when it is first written.

    Args:
        path: Of the JSON lines; None on the ranks that do not write.
        board: TensorBoard's directory; None leaves it out. It holds one file, which a resume goes on with.
        drawn: The keys of a line that TensorBoard shows; all numbers when left out.
        key: Under which a line has its step.
    """

    name = "metrics_log"

    def __init__(
        self,
        path: Path | None,
        *,
        board: Path | None = None,
        drawn: Sequence[str] | None = None,
        prefix: str = "",
        key: str = "step",
    ) -> None:
        self._path, self._drawn, self._prefix, self._key = path, drawn, prefix, key
        self._board = board / events.NAME if board and path else None
        self._next = 0
        self._sizes: dict[Path, int] | None = None
        self._told: list[str] = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the line of one step, which survives the death of this process.

        Raises:
            ValueError: The step is not behind those that are written.
            DiskError: It cannot be written.
        """
        step = int(line[self._key])
        if step < self._next:
            raise ValueError(f"metrics of step {step} after those of step {self._next - 1}")
        if self._path is not None:
            sizes = self._opened()
            self._append(self._path, sizes, json.dumps(dict(line)).encode() + b"\n")
            if self._board is not None and (values := self._values(line)):
                self._append(self._board, sizes, events.scalars(step, values, time.time()))
        self._next = step + 1

    def state(self) -> dict[str, Any]:
        """Also brings the log to the disk: what stands before a checkpoint must not be lost with the power."""
        for path, size in (self._sizes or {}).items():
            atomic.append(path, [], size)
        return {"version": VERSION, "next": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on at the step that is next. What stands there or behind it is taken back by the first `write`, when
        this start is sure to own the run: one that is refused must not cut the log of the job that lives.

        Raises:
            NamesMismatch: The state is of another version.
            OSError: The log cannot be read.
        """
        identity.check_version(self.name, state, VERSION)
        self._next, self._sizes, self._told = int(state["next"]), None, []
        if self._path is not None and (last := self._good(self._path)[1]) + 1 < self._next:
            self._told = [
                f"{self._path} ends at step {last}, the run goes on at {self._next}: what lies between is not there"
            ]

    def notes(self) -> list[str]:
        """What the banner says of the restore."""
        return self._told

    def _opened(self) -> dict[Path, int]:
        if self._sizes is None:
            assert self._path is not None  # its callers have looked
            self._sizes = {self._path: self._cut_lines(self._path)}
            if self._board is not None:
                self._sizes[self._board] = self._mark_board(self._board)
        return self._sizes

    def _cut_lines(self, path: Path) -> int:
        atomic.make_dirs(path.parent)
        return atomic.append(path, [], self._good(path)[0])

    def _good(self, path: Path) -> tuple[int, int]:
        """Bytes of the lines before the step that is next, and the step of the last of them."""
        content = path.read_bytes() if path.exists() else b""
        size, last = 0, -1
        for line in content.splitlines(keepends=True):
            step = self._step_of(line)
            if step is None or step >= self._next:
                break
            size, last = size + len(line), step
        return size, last

    def _mark_board(self, path: Path) -> int:
        atomic.make_dirs(path.parent)
        content = path.read_bytes() if path.exists() else b""
        begin = events.restart(self._next, time.time()) if content else events.version()
        return atomic.append(path, [begin], events.whole(content))

    def _step_of(self, line: bytes) -> int | None:
        try:
            return int(json.loads(line)[self._key]) if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            return None

    def _values(self, line: Mapping[str, Any]) -> dict[str, float]:
        keys = self._drawn if self._drawn is not None else [key for key in line if key != self._key]
        return {
            f"{self._prefix}{key}": float(value)
            for key in keys
            if isinstance(value := line.get(key), (int, float)) and not isinstance(value, bool) and _fits(value)
        }

    def _append(self, path: Path, sizes: dict[Path, int], content: bytes) -> None:
        sizes[path] = atomic.append(path, [content], sizes[path], durable=False)


def _fits(value: float) -> bool:
    try:
        struct.pack("<f", value)
    except (OverflowError, struct.error):  # TensorBoard has floats of 32 bits
        return False
    return True
