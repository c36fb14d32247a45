"""What people read: tables, sizes, warnings. Scripts read `--json`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

from ms_resume.records import Position

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_POSITIONS_SAID = 8


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table to standard output: the last column folded on a terminal, else a line a row."""
    table = [list(map(printable, row)) for row in (columns, *rows)]
    if sys.stdout.isatty():
        _show_folded(table)
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Prints what is known of one thing, a name and what it says in a line."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, said in rows:
        print(f"{name.ljust(width)}  {printable(said)}")


def lines(said: Iterable[str]) -> None:
    """Prints what names in files may be part of, a line each."""
    for line in said:
        print(printable(line))


def printable(text: str) -> str:
    """What files say of themselves may hold what moves a terminal's cursor, or cannot be printed at all."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_folded(table: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    folded = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in table[0]:
        folded.add_column(column, no_wrap=column is not table[0][-1], overflow="fold")
    for row in table[1:]:
        folded.add_row(*row)
    Console(markup=False, emoji=False, highlight=False).print(folded)


def size(size_bytes: int) -> str:
    """`1536` as `1.5 KiB`."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size_bytes} B"


def positions(listed: Collection[Position]) -> str:
    """Newest first; of many the first few, and how many there are."""
    said = ", ".join(map(str, sorted(listed, reverse=True)[:_POSITIONS_SAID]))
    return said + (f", ... ({len(listed)} in all)" if len(listed) > _POSITIONS_SAID else "")


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"ms-resume: warning: {warning}", file=sys.stderr)
