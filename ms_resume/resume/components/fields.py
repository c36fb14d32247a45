"""Attributes of any object as a component: a loss scale, a KL controller, a normaliser, half summed gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_resume.errors import NamesMismatch
from ms_resume.framework import nets


class Fields:
    """Saves and restores attributes of `owner`.

    An attribute is plain (a number, string, boolean, None, lists or dicts of these), a NumPy array or number, a
    MindSpore parameter or tensor, or a list or tuple of parameters. Arrays and parameters get their values in place.

    Example:
        `Fields("loss_scale", scaler, "scale_value", "counter")`
    """

    def __init__(self, name: str, owner: Any, *fields: str) -> None:
        self.name = name
        self._owner = owner
        self._fields = fields
        for field in fields:
            getattr(owner, field)  # a misspelt field is an error now, not at the first save

    def state(self) -> dict[str, Any]:
        return {
            key: _saved(value) for field in self._fields for key, value in _spread(field, getattr(self._owner, field))
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises NamesMismatch, before anything is changed, where the state is not of these fields."""
        wanted = {key for field in self._fields for key, _ in _spread(field, getattr(self._owner, field))}
        if wanted != state.keys():
            raise NamesMismatch(
                f"component {self.name}: the checkpoint has {', '.join(sorted(state)) or 'nothing'}; "
                f"this trainer asks for {', '.join(sorted(wanted)) or 'nothing'}",
                hint="run with the code that saved it",
            )
        for field in self._fields:
            for key, value in _spread(field, getattr(self._owner, field)):
                if not _placed(f"{self.name}.{key}", value, state[key]):
                    setattr(self._owner, field, _like(value, state[key]))


def _spread(field: str, value: Any) -> list[tuple[str, Any]]:
    """One entry, or one for each parameter of a list of them."""
    if isinstance(value, (list, tuple)) and value and all(hasattr(entry, "asnumpy") for entry in value):
        return [(f"{field}.{number}", entry) for number, entry in enumerate(value)]
    return [(field, value)]


def _saved(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "asnumpy"):
        return nets.to_plain_array(value)
    return np.array(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _placed(where: str, held: Any, saved: Any) -> bool:
    """Whether what is held could take the value in place."""
    import numpy as np

    if hasattr(held, "asnumpy"):
        nets.assign(held, saved, where)
        return True
    if isinstance(held, np.ndarray) and isinstance(saved, np.ndarray) and held.flags.writeable:
        if (held.shape, held.dtype) != (saved.shape, saved.dtype):
            raise ValueError(f"{where} was {saved.dtype}{saved.shape}, is {held.dtype}{held.shape}")
        held[...] = saved
        return True
    return False


def _like(held: Any, saved: Any) -> Any:
    """A NumPy number was saved as an array without dimensions."""
    import numpy as np

    return (
        saved[()] if isinstance(saved, np.ndarray) and not saved.shape and not isinstance(held, np.ndarray) else saved
    )
