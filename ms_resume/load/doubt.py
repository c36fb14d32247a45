"""Nets in doubt: they may hold a part of a checkpoint, or what only some ranks have loaded. Nobody may train on them.

From a load that failed once it had begun to place, until a whole one has succeeded. The mark is on the cell, or
whatever else a role is, not on who loads it: another `Checkpointer` over the same nets sees it, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ms_resume.errors import Damaged
from ms_resume.state import Tensors

_marked: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


@contextmanager
def until_whole(live: Mapping[str, Tensors]) -> Iterator[None]:
    """Around what places: where it raises, the roles are in doubt; where it ends well, they no longer are."""
    cells = [_cell(tensors) for tensors in live.values()]
    try:
        yield
    except BaseException:
        _marked.update({id(cell): cell for cell in cells})
        raise
    for cell in cells:
        _marked.pop(id(cell), None)


def refuse(live: Mapping[str, Tensors]) -> None:
    """Raises Damaged where a role is in doubt."""
    roles = [role for role, tensors in live.items() if _marked.get(id(_cell(tensors))) is _cell(tensors)]
    if roles:
        raise Damaged(
            f"{', '.join(roles)}: may hold a part of a checkpoint that could not be loaded; nothing was saved, and "
            "training must not go on",
            hint="end this process and start again; or load a whole checkpoint: start(resume=True)",
            roles=roles,
        )


def _cell(tensors: Tensors) -> Any:
    return getattr(tensors, "cell", tensors)
