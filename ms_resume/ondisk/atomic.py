"""The one door through which a save directory is written; the order of calls in here is the contract.

Every function returns when its effect survives a power cut, unless it says otherwise. A failed call raises `DiskError`
with path and cause and leaves no temp file where the disk still lets it be removed; what was there before is untouched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ms_resume.errors import DiskError
from ms_resume.ondisk import direct, names

Chunk = bytes | memoryview
"""Bytes, or a flat view of format `B`."""


class Pieces(Protocol):
    """The content of a file that may be large, and may still be coming to be."""

    @property
    def size(self) -> int:
        """In bytes."""

    def pieces(self) -> Iterable[tuple[int, memoryview]]:
        """Offsets and bytes, in any order. Each call gives all of them again."""

    def wrote(self, count: int) -> None:
        """Hears from any thread that so many bytes were written."""


Content = list[Chunk] | Pieces
"""Chunks in order, or pieces."""

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_HINTS = {
    errno.ENOSPC: "free space or inodes there (`df -h`, `df -i`); `ms-resume prune` shows what may go",
    errno.EDQUOT: "the quota is used up: free space there, or ask for more",
    errno.EROFS: "the file system is read-only: save to another directory",
    errno.EACCES: "make the directory writable for this user, or save to another one",
    errno.EINVAL: "the file system has neither hard links nor renames that do not replace: save to another one",
    errno.EIO: "the disk reported a failure: look at `dmesg`, and save to another disk",
}


def publish(path: Path, content: Content, attempt: str) -> None:
    """Makes `path` appear whole or not at all, never in the place of another file.

    Args:
        path: Its directory exists.
        content: Taken again when the first temp file could not be synced.
        attempt: Goes into the temp file's name.

    Raises:
        FileExistsError: Something stands at `path`; it is as it was.
    """
    part = names.part(path, attempt)
    _write_part(part, content)
    with _reported(part, "publish"):
        try:
            _place(part, path)
        except OSError:
            _discard(part)
            raise
    sync_dir(path.parent)


def share(path: Path, other: Path) -> None:
    """Gives the durable file `path` a second name, `other`, which is free. The bytes stay one file.

    Raises:
        FileExistsError: Another file stands at `other`; it is as it was.
    """
    with _reported(other, f"link to {path}"):
        _link(path, other)
    sync_dir(other.parent)


def replace(path: Path, content: bytes, attempt: str) -> None:
    """Makes `path` hold `content`; a reader sees the old or the new one, never a mixture."""
    part = names.part(path, attempt)
    _write_part(part, [content])
    with _reported(path, "replace"):
        _replace(part, path)
    sync_dir(path.parent)


def scribble(path: Path, content: bytes) -> None:
    """Overwrites a small file, neither atomically nor durably: for heartbeats, which say nothing about the past.

    In place, because a network file system shows a rename to other machines up to a minute late; and without cutting
    it first, because an empty one would say to a reader that came just then that its owner is gone.
    """
    with _reported(path, "write"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)


def append(path: Path, content: list[Chunk], size: int, *, durable: bool = True) -> int:
    """Adds to a log whose first `size` bytes are good, and makes it where there is none; what follows them is cut.

    Of what is added a reader may see any part, also after an error or a crash: the log has to show where it is torn.

    Args:
        durable: Without it the log is in the kernel's hands when this returns: it survives the process, not the power.

    Returns:
        How many bytes are good now.
    """
    with _reported(path, "append"):
        new = not path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            size = os.lseek(fd, 0, os.SEEK_END)
            for chunk in content:
                _write_all(fd, memoryview(chunk))
                size += len(chunk)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    if new:
        sync_dir(path.parent)
    return size


def make_empty(path: Path) -> None:
    """Makes a file whose name is all that it says. One that is there keeps its content, and is made durable too."""
    with _reported(path, "make"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_dir(path.parent)


def point(link: Path, target: str, attempt: str) -> None:
    """Makes the symbolic link `link` point to `target`, at once."""
    part = names.part(link, attempt)
    with _reported(link, "point"):
        part.unlink(missing_ok=True)
        os.symlink(target, part)
        _replace(part, link)
    sync_dir(link.parent)


def make_dirs(path: Path) -> None:
    """Makes `path` and what lacks above it, each durably linked into the directory above.

    The name of one that is there already is synced too: who made it may have died, or failed, before its sync.
    """
    missing = [path, *path.parents]
    missing = missing[: next((n for n, step in enumerate(missing) if step.is_dir()), len(missing))]
    if not missing:
        _sync_dir_where_readable(path.parent)
    for step in reversed(missing):
        with _reported(step, "make directory"):
            try:
                step.mkdir(exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, "a file stands there", str(step)) from error
        sync_dir(step.parent)


def rename(source: Path, target: Path) -> None:
    """Moves within one directory; the caller has seen to it that `target` is free."""
    with _reported(source, f"rename to {target.name}"):
        os.rename(source, target)
    sync_dir(source.parent)


def remove(*paths: Path) -> None:
    """Unlinks files that may already be gone, then syncs their directories."""
    for path in paths:
        with _reported(path, "remove"):
            path.unlink(missing_ok=True)
    for directory in {path.parent for path in paths}:
        _sync_dir_unless_gone(directory)


def put_aside(path: Path, aside: Path) -> bool:
    """Renames within one directory, not durably: a power cut may undo it. False when nothing is there."""
    with _reported(path, f"rename to {aside.name}"):
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
    return True


def give_back(aside: Path, path: Path) -> bool:
    """Gives a file its name again; False when it is not there any more. Raises FileExistsError where another has it."""
    with _reported(path, "put back"):
        try:
            _place(aside, path, never_nameless=True)
        except FileNotFoundError:
            return False
    for directory in dict.fromkeys((path.parent, aside.parent)):
        _sync_dir_unless_gone(directory)
    return True


def remove_dir_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or another rank was faster: both are fine
        path.rmdir()


def sync_dir(path: Path) -> None:
    """Makes the names in `path` survive a power cut. Not needed for the names above it."""
    with _reported(path, "sync directory"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_dir_unless_gone(path: Path) -> None:
    try:
        sync_dir(path)
    except DiskError as error:
        if error.fields["errno"] != errno.ENOENT:  # another process removed the emptied directory in between
            raise


def _sync_dir_where_readable(path: Path) -> None:
    """A directory above `<save>` may be closed to this user; then whoever made `<save>` there has synced it."""
    if os.access(path, os.R_OK):
        sync_dir(path)


def writable(path: Path) -> bool:
    """Whether files can be made in `path`, or in the nearest directory above it that exists. Writes nothing."""
    there = next(step for step in (path, *path.parents) if step.exists())
    read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK) and not read_only


def _write_part(part: Path, content: Content) -> None:
    with _reported(part, "write"):
        try:
            if not _write_and_sync(part, content) and not _write_and_sync(part, content):
                raise OSError(errno.EIO, "fsync failed twice", str(part))
        except BaseException:  # also what the content itself raises while it comes to be
            _discard(part)
            raise


def _write_and_sync(part: Path, content: Content) -> bool:
    """False when the sync failed. The kernel drops dirty pages of a failed fsync and reports success on the next call,
    so the file must be written anew, never synced again."""
    part.unlink(missing_ok=True)  # it may be a second link to a published file: truncating it would truncate that one
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if isinstance(content, list):
            for chunk in content:
                _write_all(fd, memoryview(chunk))
        else:
            direct.write(part, fd, content.size, content.pieces(), content.wrote)
        return _synced(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view[: 1 << 30]) :]  # one write moves at most 2 GiB - 4096 bytes


def _synced(fd: int) -> bool:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


def _place(part: Path, path: Path, *, never_nameless: bool = False) -> None:
    """Hard link and unlink where the file system has links: it is the one exclusive publish that NFS has too.

    Args:
        never_nameless: A power cut may keep the unlink and lose the link: then there is a sync in between.
    """
    try:
        _link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_noreplace(part, path)
        return
    if never_nameless:
        sync_dir(path.parent)
    _discard(part)  # the name is given; a second one that the disk does not let go is swept by the next start


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except FileExistsError:
        # A lost reply makes NFS repeat the call, which then finds its own work.
        if not os.path.samestat(os.stat(path), os.stat(other)):
            raise


def _rename_noreplace(source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _replace(part: Path, path: Path) -> None:
    try:
        os.replace(part, path)
    except OSError:
        _discard(part)
        raise


def _discard(part: Path) -> None:
    with contextlib.suppress(OSError):  # what matters has been done, or is being reported
        part.unlink()


@contextlib.contextmanager
def _reported(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        cause = error.strerror or str(error)
        raise DiskError(
            f"{path}: cannot {doing}: {cause}",
            hint=_HINTS.get(error.errno or 0, "nothing that was saved is harmed; see the cause above"),
            path=str(path),
            errno=error.errno,
        ) from error
