"""Rollouts in flight: what a step generated is not generated again after a kill.

    writes   rollouts/rank_R/rollouts_rank_R-E_S.<attempt>.log, behind the trainer
             a log goes when a later checkpoint is complete

A step is minutes of generation and seconds of update, so the steps since the last checkpoint are replayed from here. A
rollout is found by step, part, rank, and given back only where policy, inputs, and configuration are those that it was
made with. It is a cache: what goes wrong with it costs generation, never the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from ms_resume.errors import Damaged, MsResumeError
from ms_resume.framework.group import Group
from ms_resume.ondisk import atomic, journal, names, reading
from ms_resume.ownership import assert_owner
from ms_resume.records import Position, Writer
from ms_resume.resume import agree
from ms_resume.resume.components import identity
from ms_resume.state import Tensors, pack, unpack

_KEY = "rollout"
_MOST_PENDING = 16
"""Rollouts that wait for the disk in memory; another one waits for it, too."""


class Rollouts:
    """One rank's finished rollouts since the last checkpoint. Made by `Checkpointer.rollouts`, by all ranks together.

    Attributes:
        generated, given_back: How often `take` called `make`, and how often it did not have to.
    """

    def __init__(
        self,
        writer: Writer,
        group: Group,
        policy: Tensors,
        config: str,
        *,
        position: Position,
        committed: Callable[[], Position | None],
        tell: Callable[[str], None],
    ) -> None:
        self.generated = self.given_back = 0
        self._writer, self._group, self._policy, self._config = writer, group, policy, config
        self._position, self._committed, self._tell = position, committed, tell
        self._dropped_to: Position | None = None
        self._digest: tuple[int, str] = (-1, "")
        self._sizes: dict[Path, int] = {}
        self._pending: list[Future[None]] = []
        self._broken = threading.Event()
        self._disk = ThreadPoolExecutor(1, "ms_resume rollouts")
        self._kept = self._read()
        # Where one rank generates and another does not, a generation that is a collective would wait for ever.
        _, told = agree.together(group, lambda: sorted(self._kept), lambda keys: [list(key) for key in keys])
        self._common = frozenset.intersection(*(frozenset(map(tuple, keys)) for keys in told))

    def take(
        self,
        step: int,
        make: Callable[[], Mapping[str, Any]],
        *,
        part: int = 0,
        inputs: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any]:
        """What `make` returns, or returned before the run died. Called by all ranks alike.

        Args:
            step: The global step.
            make: Generates: completions, log-probabilities, rewards; NumPy arrays and plain JSON values by name. What
                it draws must be a function of step and part (`Draws`): the call may be left out.
            part: Which one of the step's.
            inputs: Arrays and plain values that it depends on beside policy and configuration: the prompts.
        """
        self._drop()
        about = self._about(step, inputs or {})
        if (step, part) in self._common:
            found = self._find(step, part, about)
            _, told = agree.together(self._group, lambda: found is not None, lambda has: has)
            if found is not None and all(told):
                self.given_back += 1
                return found
        made = make()
        self.generated += 1
        self._append({"step": step, "part": part, **about}, made)
        return made

    def begin(self, position: Position) -> None:
        """A save of `position` has begun: what comes now is of the steps after it."""
        self._position = position

    def flush(self) -> None:
        """Returns when what was taken survives a power cut."""
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        """At the end of a run: what the last checkpoint made needless goes."""
        self._drop()
        self.flush()
        self._disk.shutdown()

    def _about(self, step: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._digest[0] != step:
            self._digest = (step, _digest_of(self._policy))
        return {"policy": self._digest[1], "inputs": identity.of(inputs), "config": self._config}

    def _read(self) -> dict[tuple[int, int], list[journal.Entry]]:
        """By step and part, the newest last. What cannot be read is not there."""
        kept: dict[tuple[int, int], list[journal.Entry]] = {}
        for path in self._logs():
            try:
                found, end = journal.entries(path)
                if torn := reading.size(path) - end:
                    self._tell(f"{path.name}: {torn} bytes behind its last whole rollout are left out")
            except (Damaged, OSError) as error:
                self._tell(f"{path.name}: not read: {error}")
                continue
            for entry in found:
                step, part = entry.header.get("step"), entry.header.get("part")
                if type(step) is int and type(part) is int:
                    kept.setdefault((step, part), []).append(entry)
        return kept

    def _logs(self) -> list[Path]:
        directory = names.rollouts_dir(self._writer.save, self._writer.rank)
        found = [name for name in reading.listed(directory) if names.parse_rollouts(name, self._writer.rank)]
        return [directory / name for name in sorted(found, key=lambda name: name.split(".")[1])]

    def _find(self, step: int, part: int, about: Mapping[str, Any]) -> dict[str, Any] | None:
        other: set[str] = set()
        for entry in reversed(self._kept.get((step, part), [])):
            differs = {key for key, value in about.items() if entry.header.get(key) != value}
            if not differs:
                try:
                    return unpack(journal.read(entry), {_KEY: entry.header["values"]})[_KEY]
                except (Damaged, OSError, KeyError, TypeError, ValueError) as error:
                    self._tell(f"the rollout of step {step}, part {part} is generated anew: {error}")
            other |= differs
        if other:
            self._tell(f"the rollout of step {step}, part {part} is generated anew: another {', '.join(sorted(other))}")
        return None

    def _append(self, about: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        if self._broken.is_set():
            return
        tensors, values = pack({_KEY: _Made(made)})
        record = journal.encode({**about, "values": values[_KEY]}, tensors)
        path = names.rollouts(self._writer.save, self._writer.rank, self._position, self._writer.attempt.attempt)
        self._submit(lambda: self._write(path, record))

    def _submit(self, work: Callable[[], None]) -> None:
        self._pending = [future for future in self._pending if not future.done()]
        if len(self._pending) >= _MOST_PENDING:
            self._pending.pop(0).result()
        self._pending.append(self._disk.submit(self._guarded, work))

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._broken.is_set():
            return
        try:
            work()
        except (MsResumeError, OSError) as error:
            self._broken.set()
            said = str(error) if isinstance(error, OSError) else error.message
            self._tell(f"warning: rollouts are not kept from here on: {said}")

    def _write(self, path: Path, record: bytes) -> None:
        if path not in self._sizes:
            atomic.make_dirs(path.parent)
        self._sizes[path] = atomic.append(path, [record], self._sizes.get(path, 0))

    def _drop(self) -> None:
        """Logs of before the newest complete checkpoint go, whoever wrote them."""
        if (committed := self._committed()) is not None and committed != self._dropped_to:
            self._dropped_to = committed
            self._submit(lambda: self._remove(committed))

    def _remove(self, committed: Position) -> None:
        rank = self._writer.rank
        old = [path for path in self._logs() if (names.parse_rollouts(path.name, rank) or committed) < committed]
        if old:
            assert_owner(self._writer)
            atomic.remove(*old)


class _Made:
    """What `make` returned, in the form in which components are packed."""

    name = _KEY

    def __init__(self, made: Mapping[str, Any]) -> None:
        self._made = made

    def state(self) -> Mapping[str, Any]:
        return self._made

    def restore(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


def _digest_of(tensors: Tensors) -> str:
    hashed = xxhash.xxh3_128()
    for name in sorted(tensors.infos()):
        hashed.update(name.encode())
        hashed.update(tensors.read(name).data)
    return hashed.hexdigest()
