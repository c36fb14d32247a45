"""What kind of file system a path lies on: by the longest mount point above it, the topmost where several lie there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ms_resume.ondisk import mounts

TABLE = """\
rootfs / rootfs rw 0 0
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw,vers=4.2 0 0
/dev/nvme0n1 /data/local ext4 rw 0 0
obsfs /with\\040space fuse.obsfs rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
lustre@tcp:/fs /scratch lustre rw 0 0"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/nowhere/x", "overlay", False),
        ("/data", "nfs4", True),
        ("/data/run", "nfs4", True),
        ("/database", "overlay", False),  # a common beginning is not a common directory
        ("/data/local/run", "ext4", False),
        ("/with space/run", "fuse.obsfs", True),
        ("/dev/shm/run", "tmpfs", False),
        ("/scratch/run", "lustre", True),
    ],
)
def test_kind(monkeypatch: pytest.MonkeyPatch, path: str, kind: str, network: bool) -> None:
    """Each row: a path, its file system, and whether another machine may write there."""
    monkeypatch.setattr(mounts, "_mount_table", TABLE.splitlines)

    assert (mounts.kind(Path(path)), mounts.is_network(Path(path))) == (kind, network)


def test_without_a_mount_table_it_may_be_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting in vain is better than giving up early."""
    monkeypatch.setattr(mounts, "_mount_table", list)

    assert mounts.is_network(Path("/anywhere"))


def test_this_machine(tmp_path: Path) -> None:
    """The real table has something for every path."""
    assert mounts.kind(tmp_path) != ""
