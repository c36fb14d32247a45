"""ms_resume: MindSpore GRPO training that survives anything.

Importing this costs neither MindSpore nor NumPy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_resume.errors import MsResumeError
    from ms_resume.records import Position
    from ms_resume.resume.checkpointer import Checkpointer
    from ms_resume.resume.components.cursor import Cursor
    from ms_resume.resume.components.draws import Draws
    from ms_resume.resume.components.fields import Fields
    from ms_resume.resume.components.metrics import MetricsLog
    from ms_resume.resume.components.pipeline import DatasetCursor
    from ms_resume.resume.components.randomness import Randomness
    from ms_resume.resume.components.rates import LearningRates
    from ms_resume.resume.schedule import Schedule
    from ms_resume.resume.start_mode import StartMode
    from ms_resume.settings import Settings
    from ms_resume.state import Component

__version__ = "0.1.0"

_HOMES = {
    "Checkpointer": "ms_resume.resume.checkpointer",
    "Component": "ms_resume.state",
    "Cursor": "ms_resume.resume.components.cursor",
    "DatasetCursor": "ms_resume.resume.components.pipeline",
    "Draws": "ms_resume.resume.components.draws",
    "Fields": "ms_resume.resume.components.fields",
    "LearningRates": "ms_resume.resume.components.rates",
    "MetricsLog": "ms_resume.resume.components.metrics",
    "MsResumeError": "ms_resume.errors",
    "Position": "ms_resume.records",
    "Randomness": "ms_resume.resume.components.randomness",
    "Schedule": "ms_resume.resume.schedule",
    "Settings": "ms_resume.settings",
    "StartMode": "ms_resume.resume.start_mode",
}

__all__ = [
    "Checkpointer",
    "Component",
    "Cursor",
    "DatasetCursor",
    "Draws",
    "Fields",
    "LearningRates",
    "MetricsLog",
    "MsResumeError",
    "Position",
    "Randomness",
    "Schedule",
    "Settings",
    "StartMode",
    "__version__",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
