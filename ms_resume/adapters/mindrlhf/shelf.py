"""What stock code looks for before it loads, laid out in a directory of its own for as long as a load lasts.

The values were read already, from files that stock code might not find: a `meta.json` that is not there, another
format, a directory behind a link. Nothing on the shelf has content.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ms_resume.ondisk import names


@contextlib.contextmanager
def laid_out(roles: Sequence[str], rank: int, title: str) -> Iterator[Path]:
    """Yields a directory with the rank directory and `meta.json` of each role; `title` is in its name, for logs."""
    with tempfile.TemporaryDirectory(prefix=f"ms_resume-{title}-") as directory:
        shelf = Path(directory).resolve()
        for role in roles:
            rank_dir = names.rank_dir(shelf, role, rank)
            rank_dir.mkdir(parents=True)
            (rank_dir / names.META).touch()
        yield shelf


def role_of(shelf: Path, path: str) -> str | None:
    """The role whose directory on the shelf `path` is, or is in."""
    found = Path(path).resolve()
    if not found.is_relative_to(shelf) or found == shelf:
        return None
    folder = found.relative_to(shelf).parts[0]
    return next((role for role, named in names.DIRECTORIES.items() if named == folder), None)
