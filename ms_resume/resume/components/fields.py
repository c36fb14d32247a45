"""Plain attributes of any object as a component: a loss scale, a KL controller, counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Fields:
    """Saves and restores attributes of `owner`: numbers, strings, booleans, None, and lists or dicts of these.

    Example:
        `Fields("loss_scale", scaler, "scale", "good_steps")`
    """

    def __init__(self, name: str, owner: Any, *fields: str) -> None:
        self.name = name
        self._owner = owner
        self._fields = fields
        for field in fields:
            getattr(owner, field)  # a misspelt field is an error now, not at the first save

    def state(self) -> dict[str, Any]:
        return {field: getattr(self._owner, field) for field in self._fields}

    def restore(self, state: Mapping[str, Any]) -> None:
        for field in self._fields:
            setattr(self._owner, field, state[field])
