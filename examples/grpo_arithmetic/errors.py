"""The one error of the example, and what a process ends with after it."""

from __future__ import annotations

EXIT_CODE = 2


class ConfigError(ValueError):
    """A configuration or argument that cannot be used: what was found, what was expected, where."""
