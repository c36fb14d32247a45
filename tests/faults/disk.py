"""A disk as the power-loss model sees it: what is on it, and what calls have changed that it may not hold yet.

POSIX at its weakest. What a call changed is pending until the inode that it changed is synced: a file for its bytes and
its size, a directory for its names. At a power cut any of the pending changes are on disk, in any order:

* a file's bytes, block by block of 4 KiB; a block that is not there reads as it was on disk, or as zeros;
* a file's size: that on disk, the newest, or the end of any block written in between;
* a name: each call that made or removed it, by itself; of those on one name the last that is on disk decides. Only a
  rename within one directory takes effect on both names together. Without its own name a directory is not there, nor is
  anything below it.

Syncing a file does not sync its name, syncing a directory not what its names stand for.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.shim import Call, Kind

BLOCK = 4096

Tree = dict[str, bytes | str | None]
"""By path relative to the top, which is "": a file's content, a symbolic link's target, None for a directory."""

Names = dict[str, int]
"""A directory: its names, and the numbers of the nodes that they stand for."""

Content = bytes | str | Names
"""Of a node: a file, a symbolic link, a directory."""


@dataclass(frozen=True)
class Snapshot:
    """A tree that is on disk, with the inodes by path and the files' times of change."""

    tree: Tree
    inodes: dict[str, int]
    changed_ns: dict[str, int]

    @staticmethod
    def of(top: Path) -> Snapshot:
        paths = {"": top} | {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*"))}
        status = {relative: path.lstat() for relative, path in paths.items()}
        return Snapshot(
            {relative: _content(path) for relative, path in paths.items()},
            {relative: found.st_ino for relative, found in status.items()},
            {relative: found.st_mtime_ns for relative, found in status.items()},
        )


@dataclass(frozen=True, eq=False)
class Change:
    """Something that is not on disk until node `of` is synced: names (None: removed), a block, or a size."""

    of: int
    call: Call
    says: str
    names: tuple[tuple[str, int | None], ...] = ()
    block: int = -1
    image: bytes = b""
    size: int = -1


class Disk:
    """What is on disk, and what is `pending`, after the calls that were applied."""

    def __init__(self, snapshot: Snapshot, top: str = "/") -> None:
        self.pending: list[Change] = []
        self._top = top
        self._durable: list[Content] = []
        self._newest: list[Content] = []
        self._nodes: dict[int, int] = {}
        for path in sorted(snapshot.tree):
            self._take(path, snapshot.tree[path], snapshot.inodes[path])

    def _take(self, path: str, content: bytes | str | None, inode: int) -> None:
        node = self._nodes[inode] if inode in self._nodes else self._add({} if content is None else content, inode)
        if path:
            above, name = posixpath.split(path)
            for names in (self._durable, self._newest):
                _as_names(names[self._find(above)])[name] = node

    def apply(self, call: Call) -> None:
        _APPLY[call.kind](self, call)

    def after(self, kept: Collection[int]) -> Tree:
        """The tree after a cut that spared these of the pending changes."""
        nodes = list(self._durable)
        spared = defaultdict(list)
        for index in sorted(kept):
            spared[self.pending[index].of].append(self.pending[index])
        for node, changes in spared.items():
            nodes[node] = _changed(nodes[node], changes)
        return _tree(nodes)

    def _open(self, call: Call) -> None:
        above, name = self._place(call.path)
        node = _as_names(self._newest[above]).get(name)
        if node is None:
            self._enter(above, call, {name: self._add(b"", call.inode)})
        elif call.flags & os.O_TRUNC:
            self._resize(node, 0, call)

    def _write(self, call: Call) -> None:
        node = self._nodes[call.inode]
        old = _as_bytes(self._newest[node])
        end = call.offset + len(call.data)
        new = old[: call.offset].ljust(call.offset, b"\0") + call.data + old[end:]
        self._newest[node] = new
        for block in range(call.offset // BLOCK, -(-end // BLOCK)):
            self._put_block(node, block, call)
            if (size := min(end, (block + 1) * BLOCK)) > len(old):
                self._put_size(node, size, call)

    def _truncate(self, call: Call) -> None:
        self._resize(self._nodes[call.inode], call.length, call)

    def _allocate(self, call: Call) -> None:
        node = self._nodes[call.inode]
        self._resize(node, max(call.length, len(_as_bytes(self._newest[node]))), call)

    def _resize(self, node: int, size: int, call: Call) -> None:
        old = _as_bytes(self._newest[node])
        self._newest[node] = old[:size].ljust(size, b"\0")
        for block in range(size // BLOCK, -(-len(old) // BLOCK)):
            self._put_block(node, block, call)
        if size != len(old):
            self._put_size(node, size, call)

    def _put_block(self, node: int, block: int, call: Call) -> None:
        image = _as_bytes(self._newest[node])[block * BLOCK : (block + 1) * BLOCK]
        self.pending.append(
            Change(node, call, f"block {block} of {self._relative(call.path)}", block=block, image=image)
        )

    def _put_size(self, node: int, size: int, call: Call) -> None:
        self.pending.append(Change(node, call, f"size {size} of {self._relative(call.path)}", size=size))

    def _sync(self, call: Call) -> None:
        node = self._nodes[call.inode]
        self._durable[node] = _copy(self._newest[node])
        self.pending = [change for change in self.pending if change.of != node]

    def _make_dir(self, call: Call) -> None:
        above, name = self._place(call.path)
        self._enter(above, call, {name: self._add({}, call.inode)})

    def _symlink(self, call: Call) -> None:
        above, name = self._place(call.path)
        target = call.data.decode() or call.to or "not recorded"
        self._enter(above, call, {name: self._add(target, call.inode)})

    def _link(self, call: Call) -> None:
        above, name = self._place(call.to)
        self._enter(above, call, {name: self._find(self._relative(call.path))})

    def _unlink(self, call: Call) -> None:
        above, name = self._place(call.path)
        self._enter(above, call, {name: None})

    def _rename(self, call: Call) -> None:
        node = self._find(self._relative(call.path))
        (above, name), (new_above, new_name) = self._place(call.path), self._place(call.to)
        if above == new_above:
            self._enter(above, call, {name: None, new_name: node})
        else:
            self._enter(new_above, call, {new_name: node})
            self._enter(above, call, {name: None})

    def _enter(self, above: int, call: Call, names: dict[str, int | None]) -> None:
        says = " to ".join(filter(None, (self._relative(call.path), posixpath.basename(call.to))))
        change = Change(above, call, f"{call.kind.name.lower()} {says}", tuple(names.items()))
        self.pending.append(change)
        self._newest[above] = _changed(self._newest[above], [change])

    def _add(self, content: Content, inode: int) -> int:
        self._durable.append(_copy(content))
        self._newest.append(_copy(content))
        self._nodes[inode] = len(self._newest) - 1
        return self._nodes[inode]

    def _place(self, path: str) -> tuple[int, str]:
        above, name = posixpath.split(self._relative(path))
        return self._find(above), name

    def _find(self, relative: str) -> int:
        node = 0
        for name in filter(None, relative.split("/")):
            node = _as_names(self._newest[node])[name]
        return node

    def _relative(self, path: str) -> str:
        relative = posixpath.relpath(path, self._top)
        return "" if relative == "." else relative


_APPLY: dict[Kind, Callable[[Disk, Call], None]] = {
    Kind.OPEN: Disk._open,
    Kind.WRITE: Disk._write,
    Kind.SYNC: Disk._sync,
    Kind.RENAME: Disk._rename,
    Kind.LINK: Disk._link,
    Kind.UNLINK: Disk._unlink,
    Kind.MKDIR: Disk._make_dir,
    Kind.RMDIR: Disk._unlink,
    Kind.SYMLINK: Disk._symlink,
    Kind.TRUNCATE: Disk._truncate,
    Kind.ALLOCATE: Disk._allocate,
}


def rebuild(tree: Tree, top: Path, before: Snapshot) -> None:
    """Real files. One that is as it was before keeps its time of change, by which stock's files are told apart."""
    for relative, content in sorted(tree.items()):
        path = top / relative
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            if before.tree.get(relative) == content:
                os.utime(path, ns=(before.changed_ns[relative],) * 2)


def _content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return os.readlink(path)
    return None if path.is_dir() else path.read_bytes()


def _changed(content: Content, changes: Sequence[Change]) -> Content:
    if isinstance(content, dict):
        names: dict[str, int | None] = {**content}
        for change in changes:
            names.update(change.names)
        return {name: node for name, node in names.items() if node is not None}
    content = _as_bytes(content)
    size = next((change.size for change in reversed(changes) if change.size >= 0), len(content))
    blocks = bytearray(content[:size].ljust(-(-size // BLOCK) * BLOCK, b"\0"))
    for change in changes:
        if 0 <= change.block * BLOCK < size:
            blocks[change.block * BLOCK : (change.block + 1) * BLOCK] = change.image.ljust(BLOCK, b"\0")
    return bytes(blocks[:size])


def _tree(nodes: Sequence[Content]) -> Tree:
    tree: Tree = {"": None}
    due = [(nodes[0], "")]
    while due:
        directory, above = due.pop()
        for name, node in _as_names(directory).items():
            content = nodes[node]
            if isinstance(content, dict):
                due.append((content, f"{above}{name}/"))
            tree[above + name] = None if isinstance(content, dict) else content
    return tree


def _as_names(content: Content) -> Names:
    assert isinstance(content, dict)
    return content


def _as_bytes(content: Content) -> bytes:
    assert isinstance(content, bytes)
    return content


def _copy(content: Content) -> Content:
    return dict(content) if isinstance(content, dict) else content
