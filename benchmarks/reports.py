"""What the benchmarks tell: tables on the console, the same as Markdown in a file, all numbers as JSON beside it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class Report:
    """Of one benchmark; `results` is what goes into the JSON file.

    Args:
        path: Of both files, without their endings; None writes none.
        tools: Packages whose versions are told.
    """

    def __init__(self, name: str, path: Path | None, tools: Sequence[str] = ("ms_resume",)) -> None:
        versions = _versions(tools)
        self.results: dict[str, Any] = {"versions": versions}
        self._path, self._console = path, Console(width=130)
        self._text = [f"# Results of `make {name}`", "", ", ".join(f"{k} {v}" for k, v in versions.items()) + ".", ""]

    def table(self, title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        shown = Table(title=title)
        for heading in headings:
            shown.add_column(heading, justify="left" if heading == headings[0] else "right")
        for row in rows:
            shown.add_row(*row)
        self._console.print(shown)
        cells = [headings, ("---",) * len(headings), *rows]
        self._text.append("\n".join([f"## {title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]))

    def say(self, sentence: str) -> None:
        self._console.print(sentence + "\n")
        self._text.append(sentence + "\n")

    def write(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.with_suffix(".json").write_text(json.dumps(self.results) + "\n")
            self._path.with_suffix(".md").write_text("\n".join(self._text))


def _versions(tools: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in tools:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
