"""What of a run no checkpoint will hold, where that can be seen: said at the start and at the first save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_resume.framework import inexact, nets
from ms_resume.framework.nets import Net
from ms_resume.resume.components.randomness import Randomness
from ms_resume.resume.components.rates import LearningRates
from ms_resume.state import Component, Tensors

_SHOWN = 3


def components(roles: Mapping[str, Tensors], given: Mapping[str, Component]) -> list[str]:
    """What has no component: it starts anew at every resume."""
    found = []
    if Randomness.name not in given:
        found.append("what Python, NumPy, and MindSpore draw (Randomness)")
    optimizer = roles["optimizer"]
    if isinstance(optimizer, Net) and not any(isinstance(component, LearningRates) for component in given.values()):
        rates = [rate.name for rate in nets.learning_rates(optimizer.cell).values()]
        if absent := [name for name in rates if name not in optimizer.infos()]:
            found.append(f"the optimizer's {', '.join(absent)} (LearningRates)")
    return found


def inexact_draws(policy: Tensors) -> list[str]:
    """A line for each kind of randomness that was used and cannot be put back: such a run goes on as another one."""
    cells = inexact.cells(policy.cell) if isinstance(policy, Net) else []
    lines = [f"{_listed(cells)}: dropout draws from a state inside its kernel"] if cells else []
    if operators := inexact.operators():
        lines.append(f"{_listed(operators)}: drawn by operators that Ascend does not repeat")
    return [f"{line}: a resumed run goes on, but not bit for bit (docs/exactness.md)" for line in lines]


def _listed(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} others" if len(found) > _SHOWN else "")


def notes(components: Mapping[str, Any]) -> list[str]:
    """What components have to say of their restore."""
    told = {name: component.notes() for name, component in components.items() if hasattr(component, "notes")}
    return [f"{name}: {line}" for name, lines in told.items() for line in lines]
