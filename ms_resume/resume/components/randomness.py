"""Every random source that can be set back: Python, NumPy, MindSpore, and the trainer's own generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ms_resume.framework import randomness as mindspore_randomness

if TYPE_CHECKING:
    import numpy as np


class Randomness:
    """The process's random state. Build the nets before it is restored: initialisers draw from it too.

    Args:
        generators: The trainer's own `numpy.random.Generator` objects, by the name they are saved under.

    MindSpore's operators repeat only in a run that called `mindspore.set_seed`; without it they draw from the clock.
    Not restored, because MindSpore gives no access to it: what operators in `ms.jit` and `nn.Dropout` draw on a CPU.
    """

    name = "randomness"
    of_rank = True

    def __init__(self, **generators: np.random.Generator) -> None:
        self._generators = generators

    def state(self) -> dict[str, Any]:
        import numpy as np

        kind, words, gaussian = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        plain = {
            "python": [kind, gaussian],
            "python_words": np.array(words, np.int64),
            "numpy_words": np.asarray(keys).astype(np.int64),
            "numpy": [int(position), int(has_gauss), float(cached)],
            "generators": {name: _plain(g.bit_generator.state) for name, g in self._generators.items()},
        }
        if "mindspore" in sys.modules:  # a process that never imported it has drawn nothing from it
            read = mindspore_randomness.read()
            plain["mindspore_generator"] = read.pop("generator")
            plain["mindspore"] = read
        return plain

    def restore(self, state: Mapping[str, Any]) -> None:
        import numpy as np

        kind, gaussian = state["python"]
        random.setstate((kind, tuple(int(word) for word in state["python_words"]), gaussian))
        position, has_gauss, cached = state["numpy"]
        np.random.set_state(("MT19937", state["numpy_words"].astype(np.uint32), position, has_gauss, cached))
        for name, generator in self._generators.items():
            generator.bit_generator.state = _rebuilt(state["generators"][name])
        if "mindspore" in state and "mindspore" in sys.modules:
            mindspore_randomness.write({**state["mindspore"], "generator": state["mindspore_generator"]})


def _plain(value: Any) -> Any:
    """A bit generator's state as JSON; some kinds hold arrays, and integers of 128 bits, which Python keeps whole."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return value


def _rebuilt(value: Any) -> Any:
    import numpy as np

    if isinstance(value, Mapping) and value.keys() == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    if isinstance(value, Mapping):
        return {key: _rebuilt(entry) for key, entry in value.items()}
    return value
