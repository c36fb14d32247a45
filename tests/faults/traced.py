"""One whole run of a scenario of two ranks, between two marks that strace shows; prints what the shim saw, by kind."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faults.peer_points import BEGIN, END
from faults.scenarios import Stage, named
from faults.shim import Control


def main(top: Path, control: Path) -> None:
    scenario = named("a torn position saved again", 2)
    case = top / "case"
    case.mkdir()
    told: list[object] = []
    prepared = Stage(case / "save", told.append)
    scenario.prepare(prepared)
    steered = Control(control, case, top / "record")
    marked = Stage(case / "save", told.append, prepared.expected, lambda: _marked(steered))
    scenario.act(marked)
    print(json.dumps(Counter(call.kind.name for call in steered.calls())))


@contextlib.contextmanager
def _marked(control: Control) -> Iterator[None]:
    with control.armed():
        _mark(BEGIN)
        yield
        _mark(END)


def _mark(name: str) -> None:
    with contextlib.suppress(OSError):
        os.mkdir(f"{name}/mark")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
