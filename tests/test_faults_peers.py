"""The side-by-side table at its smallest: its counting, with literals, and one row of ours for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import peer_syncs, peer_traces, peers, shim
from faults.peer_points import Row
from faults.shim import Call, Kind

ROOT = "/r"


def call(kind: Kind, path: str, to: str = "", *, directory: bool = False) -> Call:
    return Call(kind, 0, 0, f"{ROOT}/{path}".rstrip("/"), f"{ROOT}/{to}" if to else "", 0, 1, int(directory), b"")


OPEN, WRITE, RENAME = call(Kind.OPEN, "a.tmp"), call(Kind.WRITE, "a.tmp"), call(Kind.RENAME, "a.tmp", "a")
SYNC, DIRECTORY = call(Kind.SYNC, "a.tmp"), call(Kind.SYNC, "", directory=True)


@pytest.mark.parametrize(
    ("calls", "files", "directories"),
    [
        ([OPEN, WRITE, SYNC, RENAME, DIRECTORY], 1, 1),
        ([OPEN, SYNC, WRITE, RENAME, DIRECTORY], 0, 1),  # the bytes come after the sync
        ([OPEN, WRITE, RENAME, call(Kind.SYNC, "a"), DIRECTORY], 0, 1),  # it counted before they were on the disk
        ([OPEN, WRITE, SYNC, DIRECTORY, RENAME], 1, 0),  # the name comes after the sync
    ],
)
def test_synced(calls: list[Call], files: int, directories: int) -> None:
    """Of one file and one directory, what is on the disk when a save counts, and when it returns."""
    found = peer_syncs.of(calls, [ROOT], "/a")

    assert (found.files_synced, found.files, found.directories_synced, found.directories) == (files, 1, directories, 1)


def test_strace_is_read_between_the_marks() -> None:
    """Failed calls, reading, other directories, and what is outside the marks do not count."""
    lines = f"""1 mkdir("{ROOT}/before", 0777) = 0
1 unlink("/ms_resume_faults_begins") = -1 ENOENT (No such file or directory)
1 openat(AT_FDCWD</>, "{ROOT}/a", O_WRONLY|O_CREAT, 0666) = 3<{ROOT}/a>
1 openat(AT_FDCWD</>, "{ROOT}/a", O_RDONLY) = 4<{ROOT}/a>
1 write(3<{ROOT}/a>, ""..., 9 <unfinished ...>
2 renameat(5<{ROOT}>, "a", 5<{ROOT}>, "b") = 0
1 <... write resumed>) = 9
1 write(6</elsewhere>, ""..., 9) = 9
1 mkdir("{ROOT}/b", 0777) = -1 EEXIST (File exists)
1 mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{ROOT}/a>, 0) = 0x7f
1 unlink("/ms_resume_faults_ends") = -1 ENOENT (No such file or directory)
1 mkdir("{ROOT}/after", 0777) = 0"""

    found = peer_traces.kinds(lines.splitlines(), Path(ROOT))

    assert found == {"OPEN": 1, "WRITE": 1, "RENAME": 1, "MMAP": 1}


def test_the_table_replaces_the_one_before(tmp_path: Path) -> None:
    """What stands around the markers stays."""
    document = tmp_path / "durability.md"
    document.write_text(f"before\n{peers.BEGIN}\nold\n{peers.END}\nafter\n")

    peers.write(document, [Row("a tool", skipped="not installed: tool")])

    written = document.read_text()
    assert written.startswith(f"before\n{peers.BEGIN}\n")
    assert written.endswith(f"{peers.END}\nafter\n")
    assert "| a tool | skipped: not installed: tool |" in written
    assert "\nold\n" not in written


def test_without_a_compiler_every_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped, never passed."""

    def no_compiler() -> Path:
        raise shim.Unavailable("no C compiler (cc, gcc, clang) on PATH")

    monkeypatch.setattr(shim, "build", no_compiler)
    rows = peers.run([0], tmp_path, 1)

    assert rows[0].skipped.startswith("no C compiler")
