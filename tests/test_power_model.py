"""The power-loss model by itself: hand-made calls, and what may be on disk after a cut."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest
from faults import power_model
from faults.disk import BLOCK, Disk, Snapshot, Tree, rebuild
from faults.shim import Call, Kind

EMPTY: Tree = {"": None, "d": None}
NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY


class Calls:
    """Calls as a process makes them, with the inodes that the paths stand for."""

    def __init__(self, inodes: dict[str, int]) -> None:
        self.inodes = dict(inodes)
        self.made: list[Call] = []

    def __call__(self, kind: Kind, path: str, to: str = "", *, flags: int = 0, length: int = 0) -> Calls:
        return self._make(kind, path, to, self.inodes[to or path], flags, length=length)

    def new(self, kind: Kind, path: str, *, flags: int = NEW) -> Calls:
        self.inodes[path] = 100 + len(self.made)
        return self._make(kind, path, "", self.inodes[path], flags)

    def names(self, kind: Kind, path: str, to: str) -> Calls:
        self.inodes[to] = self.inodes[path]
        return self._make(kind, path, to, self.inodes[to], 0)

    def write(self, path: str, data: bytes, offset: int = 0) -> Calls:
        return self._make(Kind.WRITE, path, "", self.inodes[path], 0, offset, len(data), data)

    def _make(
        self,
        kind: Kind,
        path: str,
        to: str,
        inode: int,
        flags: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
    ) -> Calls:
        paths = (f"/top/{path}".rstrip("/"), to and f"/top/{to}")
        self.made.append(Call(kind, len(self.made) + 1, inode, *paths, offset, length, flags, data))
        return self


def on_disk(tree: Tree) -> Snapshot:
    inodes = {path: number for number, path in enumerate(sorted(tree), 1)}
    return Snapshot(tree, inodes, dict.fromkeys(tree, 0))


def calls_on(tree: Tree) -> Calls:
    return Calls(on_disk(tree).inodes)


def disk_after(tree: Tree, calls: Calls) -> Disk:
    disk = Disk(on_disk(tree), "/top")
    for call in calls.made:
        disk.apply(call)
    return disk


def outcomes(tree: Tree, calls: Calls) -> list[Tree]:
    """Every tree there may be after a cut, each once."""
    disk = disk_after(tree, calls)
    changes = range(len(disk.pending))
    subsets = itertools.chain.from_iterable(itertools.combinations(changes, n) for n in range(len(changes) + 1))
    found: list[Tree] = []
    for kept in subsets:
        if (after := disk.after(kept)) not in found:
            found.append(after)
    return found


def contents(path: str, trees: list[Tree]) -> set[bytes | str | None]:
    return {tree[path] for tree in trees if path in tree}


def test_a_file_that_is_synced_without_its_directory_is_whole_or_not_there():
    """The sync of a file is not one of its name."""
    calls = calls_on(EMPTY).new(Kind.OPEN, "d/f").write("d/f", b"new")(Kind.SYNC, "d/f")
    found = outcomes(EMPTY, calls)

    assert found == [EMPTY, EMPTY | {"d/f": b"new"}]


def test_a_name_that_is_synced_without_its_file_stands_for_anything_in_between():
    """Empty, zeros, and each block by itself: the sync of a directory is not one of what its names stand for."""
    data = b"a" * BLOCK + b"b" * 10
    calls = calls_on(EMPTY).new(Kind.OPEN, "d/f").write("d/f", data)(Kind.SYNC, "d", flags=1)
    found = contents("d/f", outcomes(EMPTY, calls))

    first, second, hole, rest = b"a" * BLOCK, b"b" * 10, b"\0" * BLOCK, b"\0" * 10
    assert found == {b"", first, hole, data, hole + rest, first + rest, hole + second}


def test_what_is_synced_stays():
    """Nothing is pending after file and directory are synced."""
    calls = calls_on(EMPTY).new(Kind.OPEN, "d/f").write("d/f", b"new")(Kind.SYNC, "d/f")(Kind.SYNC, "d", flags=1)

    assert outcomes(EMPTY, calls) == [EMPTY | {"d/f": b"new"}]


def test_a_block_that_is_not_there_reads_as_before():
    """Overwriting in place mixes old and new blocks."""
    old, new = b"o" * (2 * BLOCK), b"n" * (2 * BLOCK)
    tree = EMPTY | {"d/f": old}
    found = contents("d/f", outcomes(tree, calls_on(tree).write("d/f", new)))

    assert found == {old, new, old[:BLOCK] + new[:BLOCK], new[:BLOCK] + old[:BLOCK]}


def test_blocks_are_aligned_in_the_file():
    """A write across a block's end is two changes, each of a whole block with what lay around the write."""
    old = b"o" * (2 * BLOCK)
    tree = EMPTY | {"d/f": old}
    found = contents("d/f", outcomes(tree, calls_on(tree).write("d/f", b"nn", BLOCK - 1)))

    assert len(found) == 4
    assert old[: BLOCK - 1] + b"n" + old[:BLOCK] in found


@pytest.mark.parametrize("how", ["truncate", "open"])
def test_cutting_a_file_is_pending_too(how):
    """Truncated, by a call or as it was opened, and written anew: old, empty, new, or old and cut to the new size."""
    tree = EMPTY | {"d/f": b"old content"}
    calls = calls_on(tree)
    calls(Kind.TRUNCATE, "d/f", length=0) if how == "truncate" else calls(Kind.OPEN, "d/f", flags=os.O_TRUNC)
    found = contents("d/f", outcomes(tree, calls.write("d/f", b"new")))

    assert {b"old content", b"", b"new", b"old", b"\0\0\0"} <= found


def test_allocating_changes_the_size():
    """Allocated space reads as zeros, if its size is on disk."""
    tree = EMPTY | {"d/f": b"old"}

    assert contents("d/f", outcomes(tree, calls_on(tree)(Kind.ALLOCATE, "d/f", length=5))) == {b"old", b"old\0\0"}


def test_a_rename_within_a_directory_is_atomic():
    """The old name goes and the new one comes together."""
    tree = EMPTY | {"d/part": b"new", "d/f": b"old"}
    found = outcomes(tree, calls_on(tree).names(Kind.RENAME, "d/part", "d/f"))

    assert found == [tree, EMPTY | {"d/f": b"new"}]


def test_a_rename_between_directories_is_not():
    """Each directory has its own half: the file may be under both names, or under none."""
    tree: Tree = {"": None, "a": None, "b": None, "a/f": b"x"}
    found = outcomes(tree, calls_on(tree).names(Kind.RENAME, "a/f", "b/f"))

    assert sorted(sorted(path for path in after if "/" in path) for after in found) == [
        [],
        ["a/f"],
        ["a/f", "b/f"],
        ["b/f"],
    ]


def test_calls_on_different_names_are_reordered():
    """Published by link and unlink: the temp name may be gone before the final one is there."""
    tree = EMPTY | {"d/part": b"x"}
    found = outcomes(tree, calls_on(tree).names(Kind.LINK, "d/part", "d/f")(Kind.UNLINK, "d/part"))

    assert EMPTY in found
    assert len(found) == 4


def test_the_last_call_on_a_name_decides_it():
    """Removed and made anew: never the old file after the new one, though the removal itself may be lost."""
    tree = EMPTY | {"d/f": b"old"}
    calls = calls_on(tree)(Kind.UNLINK, "d/f").new(Kind.OPEN, "d/f").write("d/f", b"new")(Kind.SYNC, "d/f")
    disk = disk_after(tree, calls)

    assert [disk.after(kept).get("d/f") for kept in ((), (0,), (1,), (0, 1))] == [b"old", None, b"new", b"new"]


def test_a_directory_without_a_name_takes_all_below_it_away():
    """What is synced inside does not help."""
    calls = calls_on(EMPTY).new(Kind.MKDIR, "d/e").new(Kind.OPEN, "d/e/f")(Kind.SYNC, "d/e", flags=1)

    assert outcomes(EMPTY, calls) == [EMPTY, EMPTY | {"d/e": None, "d/e/f": b""}]


def test_a_renamed_directory_keeps_what_is_below_it():
    """It is one entry above; what was removed inside before may come back under the new name."""
    tree = EMPTY | {"d/e": None, "d/e/f": b"x"}
    calls = calls_on(tree)(Kind.UNLINK, "d/e/f").names(Kind.RENAME, "d/e", "d/gone")(Kind.SYNC, "d", flags=1)

    assert outcomes(tree, calls) == [EMPTY | {"d/gone": None, "d/gone/f": b"x"}, EMPTY | {"d/gone": None}]


def test_two_names_of_one_file_share_its_bytes():
    """Also those that it had before: what one of them writes the other one reads."""
    tree = EMPTY | {"d/f": b"old", "d/g": b"old"}
    snapshot = on_disk(tree)
    snapshot.inodes["d/g"] = snapshot.inodes["d/f"]
    disk = Disk(snapshot, "/top")
    disk.apply(calls_on(tree).write("d/f", b"new").made[0])

    assert disk.after({0}) == EMPTY | {"d/f": b"new", "d/g": b"new"}


def test_a_reused_inode_is_another_file():
    """File systems give a removed file's inode to the next one; the old bytes must not come with it."""
    tree = EMPTY | {"d/f": b"old"}
    calls = calls_on(tree)(Kind.UNLINK, "d/f")
    calls.inodes["d/g"] = calls.inodes["d/f"]
    calls(Kind.OPEN, "d/g", flags=NEW)(Kind.SYNC, "d", flags=1)

    assert outcomes(tree, calls) == [EMPTY | {"d/g": b""}]


def test_choices_begin_with_the_telling_ones():
    """Of many changes: none, all, each one lost, each one kept; then others, drawn alike from one seed."""
    calls = calls_on(EMPTY).new(Kind.OPEN, "d/f").write("d/f", b"x" * (8 * BLOCK))
    pending = disk_after(EMPTY, calls).pending
    everything = frozenset(range(len(pending)))
    first = list(itertools.islice(power_model.choices(pending, random.Random(1)), 1000))

    assert first[:2] == [frozenset(), everything]
    assert {everything - {n} for n in everything} | {frozenset({n}) for n in everything} <= set(first)
    assert len(set(first)) > 300
    assert first == list(itertools.islice(power_model.choices(pending, random.Random(1)), 1000))


def test_few_changes_are_tried_in_every_subset():
    """Three names: eight subsets, and an end."""
    calls = calls_on(EMPTY)
    for name in "abc":
        calls.new(Kind.OPEN, f"d/{name}")
    pending = disk_after(EMPTY, calls).pending

    assert len(set(power_model.choices(pending, random.Random(1)))) == 8


def test_a_tree_is_rebuilt_as_it_was(tmp_path: Path):
    """Directories, files, and symbolic links; a file that nobody touched keeps its time of change."""
    tree: Tree = {"": None, "d": None, "d/f": b"old", "latest": "d/f"}
    before = Snapshot(tree, {}, dict.fromkeys(tree, 123_000_000_000))
    top = tmp_path / "top"
    rebuild(tree | {"d/g": b"new"}, top, before)
    found = Snapshot.of(top)

    assert found.tree == tree | {"d/g": b"new"}
    assert found.changed_ns["d/f"] == 123_000_000_000
    assert found.changed_ns["d/g"] != 123_000_000_000
