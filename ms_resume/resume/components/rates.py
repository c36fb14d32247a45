"""Learning rates, wherever MindSpore keeps them: a constant, a list, one for each group, a scheduler object.

What `nn` optimizers register (`learning_rate`, `learning_rate_group_0`, a list's rates) lies in the optimizer's payload
already, and a `LearningRateSchedule` is a function of `global_step`. Nobody else saves the rates of
`experimental.optim`, which are in no list of parameters, and what their schedulers count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_resume.errors import NamesMismatch
from ms_resume.framework import nets
from ms_resume.resume.components import identity

VERSION = 1


class LearningRates:
    """The rates of an optimizer and everything that its scheduler counts; made before `Checkpointer.start`.

    A resume goes on with the rates of the checkpoint, as the run that was never killed would. Where others were
    configured meanwhile the banner says so.
    """

    name = "learning_rates"

    def __init__(self, optimizer: Any, scheduler: Any = None) -> None:
        self._rates = nets.learning_rates(optimizer)
        self._counters = nets.counters(scheduler)
        self._configured = {name: nets.to_plain_array(rate).tolist() for name, rate in self._rates.items()}
        self._told: list[str] = []

    def state(self) -> dict[str, Any]:
        held = {name: nets.to_plain_array(parameter) for name, parameter in self._held().items()}
        return {"version": VERSION, "configured": self._configured, **held}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises NamesMismatch where the optimizer has other groups, or the scheduler is of another kind."""
        identity.check_version(self.name, state, VERSION)
        held, saved = self._held(), state.keys() - {"version", "configured"}
        if held.keys() != saved:
            raise NamesMismatch(
                f"component {self.name}: the checkpoint has {', '.join(sorted(saved))}; "
                f"this optimizer and its scheduler have {', '.join(sorted(held))}",
                hint="build them as the run that saved it did",
            )
        for name, parameter in held.items():
            nets.assign(parameter, state[name], f"{self.name}.{name}")
        self._told = [
            f"{name}: {now} is configured, it was {was}; the checkpoint's goes on"
            for name, now in self._configured.items()
            if (was := state["configured"].get(name)) != now
        ]

    def notes(self) -> list[str]:
        return self._told

    def _held(self) -> dict[str, Any]:
        return {**self._rates, **self._counters}
