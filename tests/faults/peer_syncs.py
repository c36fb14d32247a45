"""What of a save was on the disk, and not only in memory, when the save began to count: read from its recorded calls.

This is what a power loss right after the save has to work with. A file counts as synced when a sync follows its last
change, a directory when a sync follows the last entry that was put into it or taken out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field

from faults.shim import Call, Kind


@dataclass
class Syncs:
    """`files` hold bytes of this save when it begins to count, `directories` got or lost an entry until then.

    A file must be synced by then: a rename that is on the disk before the bytes gives a whole name to a torn file. A
    directory must be when the save returns.
    """

    calls: int = 0
    files: int = 0
    files_synced: int = 0
    directories: int = 0
    directories_synced: int = 0


@dataclass
class _Disk:
    """Paths as they are called now: changed, and not yet synced."""

    exists: set[str]
    files: set[str] = field(default_factory=set)
    unsynced: set[str] = field(default_factory=set)
    entries: set[str] = field(default_factory=set)
    entries_unsynced: set[str] = field(default_factory=set)

    def see(self, call: Call) -> None:
        if call.kind in (Kind.WRITE, Kind.TRUNCATE, Kind.ALLOCATE):
            self.files.add(call.path)
            self.unsynced.add(call.path)
        elif call.kind == Kind.SYNC:
            (self.entries_unsynced if call.flags else self.unsynced).discard(call.path)
        elif call.kind == Kind.RENAME:
            self._move(call.path, call.to)
        elif call.kind == Kind.LINK:
            self._appear(call.to)
            for group in (self.files, self.unsynced):
                group |= {call.to} if call.path in group else set()
        elif call.kind in (Kind.UNLINK, Kind.RMDIR):
            self._vanish(call.path)
        else:
            self._appear(call.path)

    def _appear(self, path: str) -> None:
        if path not in self.exists:
            self.exists.add(path)
            self._touch(path)

    def _vanish(self, path: str) -> None:
        for group in (self.exists, self.files, self.unsynced, self.entries, self.entries_unsynced):
            group.discard(path)
        self._touch(path)

    def _move(self, old: str, new: str) -> None:
        for group in (self.exists, self.files, self.unsynced, self.entries, self.entries_unsynced):
            group.discard(new)
            for path in [path for path in group if path == old or path.startswith(f"{old}/")]:
                group.remove(path)
                group.add(new + path[len(old) :])
        self._touch(old)
        self._touch(new)
        self.exists.add(new)

    def _touch(self, path: str) -> None:
        """The directory of `path` changed."""
        self.entries.add(posixpath.dirname(path))
        self.entries_unsynced.add(posixpath.dirname(path))


def of(calls: list[Call], existing: Iterable[str], counts_by: str) -> Syncs:
    """What the calls of one whole save synced.

    Args:
        existing: Paths that were there before.
        counts_by: End of the path that makes the save count once it has that name; empty for the last call of all.
    """
    last = _commit(calls, counts_by)
    disk, found = _Disk(set(existing)), Syncs(calls=sum(call.kind == Kind.SYNC for call in calls))
    for call in calls[: last + 1]:
        disk.see(call)
    found.files, found.files_synced = len(disk.files), len(disk.files - disk.unsynced)
    found.directories = len(disk.entries)
    for call in calls[last + 1 :]:
        disk.entries_unsynced -= {call.path} if call.kind == Kind.SYNC and call.flags else set()
    found.directories_synced = found.directories - len(disk.entries_unsynced)
    return found


def _commit(calls: list[Call], counts_by: str) -> int:
    """Where the save begins to count: the last time that the name was given, or that its file was written to."""
    if not counts_by:
        return len(calls) - 1
    named = [n for n, call in enumerate(calls) if (call.to or call.path).endswith(counts_by)]
    named = [n for n in named if calls[n].kind in (Kind.RENAME, Kind.LINK, Kind.OPEN, Kind.WRITE)]
    if not named:
        raise LookupError(f"no call gives a name that ends in {counts_by}")
    return named[-1]
