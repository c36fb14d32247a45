"""What kind of file system a path lies on."""

from __future__ import annotations

from pathlib import Path

_LOCAL = frozenset(
    ("ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs ramfs overlay vfat exfat ntfs3 squashfs iso9660 erofs bcachefs").split()
)


def is_network(path: Path) -> bool:
    """Whether another machine may have written there: anything that is not known to be local, NFS and FUSE among it."""
    return kind(path) not in _LOCAL


def kind(path: Path) -> str:
    """The type of the file system that holds `path`, empty where the system does not tell."""
    resolved = path.resolve()
    best, found = -1, ""
    for line in _mount_table():
        mount_point, file_system = line.split()[1:3]
        place = Path(mount_point.encode().decode("unicode_escape"))
        if len(place.parts) >= best and resolved.is_relative_to(place):
            best, found = len(place.parts), file_system
    return found


def _mount_table() -> list[str]:
    try:
        return Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return []
