"""Whether the shim saw every call: the same save under strace, which no program can go around, counted by kind.

A library that makes system calls by itself, and not through the C library, goes around the shim.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from faults.peer_points import BEGIN, END
from faults.shim import Kind

_KINDS = {
    Kind.OPEN: "open openat openat2 creat",
    Kind.WRITE: "write pwrite64 writev pwritev pwritev2 copy_file_range sendfile",
    Kind.SYNC: "fsync fdatasync sync_file_range",
    Kind.RENAME: "rename renameat renameat2",
    Kind.LINK: "link linkat",
    Kind.UNLINK: "unlink unlinkat",
    Kind.MKDIR: "mkdir mkdirat",
    Kind.RMDIR: "rmdir",
    Kind.SYMLINK: "symlink symlinkat",
    Kind.TRUNCATE: "truncate ftruncate",
    Kind.ALLOCATE: "fallocate",
}
_KIND_OF = {name: kind.name for kind, names in _KINDS.items() for name in names.split()}
_MAPPED, _RING = "MMAP", "IO_URING"
"""Ways to write that neither the shim nor the list above would see: a shared writable map, and a ring."""
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"|\d+<([^>]*)>')


def command(output: Path, preload: str) -> list[str]:
    """What goes before the command that is to be looked at."""
    names = ",".join([*_KIND_OF, "mmap", "io_uring_setup"])
    options = ["-f", "-y", "-s", "0", "--seccomp-bpf", "-E", f"LD_PRELOAD={preload}"]
    return ["strace", *options, "-e", f"trace={names}", "-o", str(output)]


def kinds(lines: Iterable[str], root: Path) -> Counter[str]:
    """The calls below `root` between the two marks that changed something, by kind, without those that failed."""
    found: Counter[str] = Counter()
    begun: dict[str, str] = {}
    for line in _between_marks(lines):
        if call := _CALL.match(line):
            pid, name, rest = call.groups()
            kind = _kind(name, rest, root)
            if kind and rest.endswith("<unfinished ...>"):
                begun[pid] = kind
            elif kind and " = -1 " not in rest:
                found[kind] += 1
        elif (resumed := _RESUMED.match(line)) and (kind := begun.pop(resumed[1], "")) and " = -1 " not in resumed[2]:
            found[kind] += 1
    return found


def _between_marks(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in map(str.rstrip, lines):
        if BEGIN in line or END in line:
            inside = BEGIN in line
        elif inside:
            yield line


def _kind(name: str, rest: str, root: Path) -> str:
    """Empty for a call that changes nothing below `root`."""
    if name == "io_uring_setup":
        return _RING
    if not any(_below(path, root) for path in _paths(rest)):
        return ""
    if name == "mmap":
        return _MAPPED if "MAP_SHARED" in rest and "PROT_WRITE" in rest else ""
    if name in ("open", "openat", "openat2") and not re.search("O_CREAT|O_TRUNC", rest):
        return ""
    return Kind.RMDIR.name if name == "unlinkat" and "AT_REMOVEDIR" in rest else _KIND_OF[name]


def _paths(rest: str) -> Iterator[str]:
    arguments = rest.rpartition(" = ")[0] or rest
    for directory, name, descriptor in _PATH.findall(arguments):
        yield descriptor or os.path.join(directory, name)


def _below(path: str, root: Path) -> bool:
    return path == str(root) or path.startswith(f"{root}/")
