"""What a net uses that no checkpoint can put back, where a look at the net shows it."""

from __future__ import annotations

import sys
from typing import Any

from ms_resume.framework import randomness

_INITIALIZERS = "init"
_DROPOUT = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")


def cells(net: Any) -> list[str]:
    """The names of cells whose random state lies inside a kernel: dropout that is on."""
    walk = getattr(net, "cells_and_names", None)
    return [name or type(cell).__name__ for name, cell in walk() if _is_on(cell)] if walk else []


def operators() -> list[str]:
    """Random operators that were called in this process and that Ascend does not repeat, whatever the seed.

    Source: docstrings of `mindspore.ops` 2.10.0, "The Ascend backend does not support the reproducibility of random
    numbers". The operators of `mindspore.mint` draw from a generator that can be set back.
    """
    if "mindspore" not in sys.modules:
        return []
    import mindspore

    if mindspore.get_context("device_target") != "Ascend":
        return []
    return sorted({kernel for kernel, _, _ in randomness.read()["kernel_seeds"] if kernel != _INITIALIZERS})


def _is_on(cell: Any) -> bool:
    if type(cell).__name__ not in _DROPOUT or not type(cell).__module__.startswith("mindspore."):
        return False
    share = getattr(cell, "p", None)
    return float(share) > 0.0 if share is not None else float(getattr(cell, "keep_prob", 1.0)) < 1.0
