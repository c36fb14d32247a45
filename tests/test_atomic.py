"""The one door to the disk: what it calls, in which order, and what it leaves behind when a call fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ms_resume.errors import DiskError
from ms_resume.ondisk import atomic, names

ATTEMPT = "000007-0123456789abcdef"


class Calls:
    """Records the state-changing calls, with the names of the files they are about, and passes them on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        # Before 3.11 pathlib holds on to the functions of os that it found at import.
        monkeypatch.setattr(Path, "unlink", _unlink)
        monkeypatch.setattr(Path, "mkdir", lambda path, mode=0o777, exist_ok=False: os.mkdir(path, mode))
        for name in ("open", "write", "fsync", "link", "unlink", "replace", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
            if name != "open" or rest[0] & os.O_CREAT:
                self.seen.append(f"{name} {Path(path).name}")
            return real(first, *rest, **options)

        return call


def _unlink(path: Path, missing_ok: bool = False) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        if not missing_ok:
            raise


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, *, times: int = 1, only: str = "") -> list[int]:
    """Lets `os.<name>` fail `times` times with `code`, for paths (or open files) that end in `only`."""
    real, left = getattr(os, name), [times]

    def call(first: Any, *rest: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        if left[0] and path.endswith(only):
            left[0] -= 1
            raise OSError(code, os.strerror(code), path)
        return real(first, *rest, **options)

    monkeypatch.setattr(os, name, call)
    return left


def test_publish_syncs_the_file_before_its_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after any of these calls leaves the whole file or none; nothing may come in another order."""
    part = f".a.{ATTEMPT}.part"
    calls = Calls(monkeypatch)
    atomic.publish(tmp_path / "a", [b"one", b"two"], ATTEMPT)

    assert calls.seen == [
        f"unlink {part}",
        f"open {part}",
        f"write {part}",
        f"write {part}",
        f"fsync {part}",
        f"link {part}",
        f"unlink {part}",
        f"fsync {tmp_path.name}",
    ]
    assert (tmp_path / "a").read_bytes() == b"onetwo"


def test_publish_never_replaces(tmp_path: Path) -> None:
    """What stands there stays, and the temp file goes."""
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        atomic.publish(tmp_path / "a", [b"new"], ATTEMPT)

    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_replace_syncs_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader, or a power cut, sees the old or the new content."""
    part = f".a.{ATTEMPT}.part"
    calls = Calls(monkeypatch)
    atomic.replace(tmp_path / "a", b"new", ATTEMPT)

    assert calls.seen[1:] == [
        f"open {part}",
        f"write {part}",
        f"fsync {part}",
        f"replace {part}",
        f"fsync {tmp_path.name}",
    ]


def test_make_dirs_links_each_directory_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new directory is synced into the one above before anything is made below it."""
    calls = Calls(monkeypatch)
    atomic.make_dirs(tmp_path / "x" / "y")

    assert calls.seen == ["mkdir x", f"fsync {tmp_path.name}", "mkdir y", "fsync x"]


def test_make_empty_syncs_the_file_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was there already, whose maker may have died before the sync; what is in it stays."""
    calls = Calls(monkeypatch)
    atomic.make_empty(tmp_path / "x")
    (tmp_path / "x").write_text("content")
    atomic.make_empty(tmp_path / "x")

    assert calls.seen == ["open x", "fsync x", f"fsync {tmp_path.name}"] * 2
    assert (tmp_path / "x").read_text() == "content"


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda at: atomic.rename(at / "a", at / "b"), ["rename a", "fsync"]),
        (lambda at: atomic.remove(at / "a"), ["unlink a", "fsync"]),
    ],
)
def test_names_that_go_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None], expected: list[str]
) -> None:
    """A vote that was retracted must not come back after a power cut."""
    (tmp_path / "a").touch()
    calls = Calls(monkeypatch)
    act(tmp_path)

    assert calls.seen == [expected[0], f"{expected[1]} {tmp_path.name}"]


def test_a_failed_fsync_writes_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost page once: a second fsync on the same file would lie, so there is a second file."""
    failing(monkeypatch, "fsync", errno.EIO, only=".part")
    calls = Calls(monkeypatch)
    atomic.publish(tmp_path / "a", [b"content"], ATTEMPT)

    done = [call.partition(" ")[0] for call in calls.seen]
    assert done == [
        "unlink",
        "open",
        "write",
        "fsync",
        "unlink",
        "open",
        "write",
        "fsync",
        "link",
        "unlink",
        "fsync",
    ]
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_second_failed_fsync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is at its end; nothing is published, nothing is left."""
    failing(monkeypatch, "fsync", errno.EIO, times=2)
    with pytest.raises(DiskError, match="fsync failed twice"):
        atomic.publish(tmp_path / "a", [b"content"], ATTEMPT)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_failed_publish_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """The error has path, cause, and number; the directory is as it was."""
    failing(monkeypatch, call, code, only=".part")
    with pytest.raises(DiskError, match=os.strerror(code)) as caught:
        atomic.publish(tmp_path / "a", [b"content"], ATTEMPT)

    assert (caught.value.fields["errno"], int(caught.value.exit_code)) == (code, 40)
    assert str(tmp_path) in caught.value.fields["path"]
    assert os.listdir(tmp_path) == []


def test_a_failed_replace_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No temp file is left either."""
    (tmp_path / "a").write_bytes(b"old")
    failing(monkeypatch, "replace", errno.EIO)
    with pytest.raises(DiskError):
        atomic.replace(tmp_path / "a", b"new", ATTEMPT)

    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_directory_that_cannot_be_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there and may vanish: the caller must not count on it."""
    failing(monkeypatch, "fsync", errno.EIO, only=tmp_path.name)
    with pytest.raises(DiskError, match="sync directory"):
        atomic.publish(tmp_path / "a", [b"content"], ATTEMPT)


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`write` may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    atomic.publish(tmp_path / "a", [b"0123456789"], ATTEMPT)

    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_leftover_part_that_is_a_link_to_the_published_file(tmp_path: Path) -> None:
    """A kill between link and unlink leaves two names of one file: writing through one must not truncate the other."""
    final = tmp_path / "a"
    final.write_bytes(b"published")
    os.link(final, names.part(final, ATTEMPT))
    with pytest.raises(FileExistsError):
        atomic.publish(final, [b"new"], ATTEMPT)

    assert final.read_bytes() == b"published"


def test_a_leftover_part_of_the_same_attempt_is_no_hindrance(tmp_path: Path) -> None:
    """A save failed where even its temp file could not be removed; that is longer than the new content."""
    names.part(tmp_path / "a", ATTEMPT).write_bytes(b"longer than that")
    atomic.publish(tmp_path / "a", [b"new"], ATTEMPT)

    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_it_renames_without_replacing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """FAT and some FUSE file systems have no links: renameat2 with RENAME_NOREPLACE is exclusive, too."""
    failing(monkeypatch, "link", code, times=2)
    atomic.publish(tmp_path / "a", [b"first"], ATTEMPT)
    with pytest.raises(FileExistsError):
        atomic.publish(tmp_path / "a", [b"second"], ATTEMPT)

    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_whose_reply_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the call and finds its own work: that is success, not another writer."""
    real = os.link

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    atomic.publish(tmp_path / "a", [b"content"], ATTEMPT)

    assert os.listdir(tmp_path) == ["a"]


def test_remove_from_a_directory_that_another_rank_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 removes an emptied vote directory between another rank's unlink and its sync: nobody's save fails."""
    directory = tmp_path / "emptied"
    directory.mkdir()
    (directory / "vote").touch()
    real = os.unlink

    def unlink_and_lose_the_directory(path: Any, **options: Any) -> None:
        real(path, **options)
        directory.rmdir()

    monkeypatch.setattr(os, "unlink", unlink_and_lose_the_directory)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: os.unlink(path))
    atomic.remove(directory / "vote")

    assert not directory.exists()


def test_point_moves_a_link_at_once(tmp_path: Path) -> None:
    """`latest` never points nowhere in between."""
    atomic.point(tmp_path / "latest", "commits/0_5", ATTEMPT)
    atomic.point(tmp_path / "latest", "commits/0_10", ATTEMPT)

    assert os.readlink(tmp_path / "latest") == "commits/0_10"
    assert os.listdir(tmp_path) == ["latest"]


def test_writable_looks_without_writing(tmp_path: Path) -> None:
    """A directory that does not exist yet is judged by the one above it."""
    assert atomic.writable(tmp_path / "new" / "deeper")
    (tmp_path / "file").touch()

    assert not atomic.writable(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
