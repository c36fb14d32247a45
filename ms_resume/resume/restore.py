"""What is restored from a checkpoint beside the tensors, and how it differs from the job that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms_resume import load
from ms_resume.errors import LayoutMismatch, NamesMismatch
from ms_resume.load.names.match import NONE, Gaps, LoadReport
from ms_resume.load.source import Readable
from ms_resume.records import Position, Vote
from ms_resume.resume.components.randomness import Randomness
from ms_resume.state import Component, Tensors, unpack

GLOBAL_STEP = "global_step"
"""A 0-d tensor that every state payload holds, so that none is without a tensor."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The states to restore, read and checked, the components that start anew, and states that nobody asks for;
    `reports` say of each role which tensors fit."""

    components: Mapping[str, Component]
    states: Mapping[str, Mapping[str, Any]]
    anew: tuple[str, ...]
    unclaimed: tuple[str, ...] = ()
    reports: Mapping[str, LoadReport] = field(default_factory=dict)

    def apply(self, position: Position) -> None:
        """Restores every component. One that starts anew and can `seek` is put at the position at least.

        Raises:
            NamesMismatch: A component does not take its state. The nets are loaded; this process must not train.
        """
        for name in self.anew:
            seek = getattr(self.components[name], "seek", None)
            if seek is not None:
                seek(position.epoch, position.step)
        # Random sources last: a component that opens a dataset or builds a net seeds or draws from them.
        for name in sorted(self.states, key=lambda name: isinstance(self.components[name], Randomness)):
            self._restore(name)

    def _restore(self, name: str) -> None:
        try:
            self.components[name].restore(self.states[name])
        except (KeyError, TypeError, ValueError) as error:
            raise NamesMismatch(
                f"component {name}: cannot take its saved state: {error!r}",
                hint="run with the code and the configuration that saved it, or let it start anew (allow_missing)",
            ) from error


def settle(
    roles: Mapping[str, Tensors],
    components: Mapping[str, Component],
    sources: Mapping[str, Readable],
    vote: Vote | None,
    allow_missing: frozenset[str],
    gaps: Gaps = NONE,
) -> Settled:
    """Checks that roles, but for the gaps, and components fit before anything is changed.

    Raises:
        NamesMismatch: A role does not fit; or one of our checkpoints lacks the state of a component that is not in
            `allow_missing`. A stock checkpoint has none, which the banner says.
    """
    reports = load.settle(sources, roles, gaps)
    source = sources.get("state")
    tensors = {name: source.read(name) for name in source.tensors if name != GLOBAL_STEP} if source else {}
    states = unpack(tensors, source.values if source else {})
    absent = sorted(components.keys() - states.keys())
    if vote is not None and (refused := [name for name in absent if name not in allow_missing]):
        raise NamesMismatch(
            f"{source.path if source else 'the checkpoint'}: no state of {', '.join(refused)}, it has "
            f"{', '.join(sorted(states))}; nothing was loaded",
            hint=f"let it start anew with allow_missing={refused!r}",
        )
    unclaimed = tuple(sorted(states.keys() - components.keys()))
    return Settled(components, {n: states[n] for n in components if n in states}, tuple(absent), unclaimed, reports)


_NO_SHAPES = ("name", "generate")
"""What of a strategy decides no payload's shapes: its template's name, and how rollouts are split."""


def check_parallel(about: Mapping[str, Any], vote: Vote | None) -> None:
    """Raises LayoutMismatch where the parallel strategy is another one. What one side does not say is not compared."""
    saved, now = dict(vote.parallel if vote else {}), dict(about["parallel"])
    said = [key for key in saved.keys() & now.keys() if saved[key] is not None and now[key] is not None]
    keys = sorted(key for key in said if key not in _NO_SHAPES and saved[key] != now[key])
    if keys:
        listed = ", ".join(f"{key} was {saved[key]!r}, is {now[key]!r}" for key in keys)
        raise LayoutMismatch(
            f"the checkpoint was made with another parallel strategy: {listed}",
            hint="start with the strategy it was made with",
            saved=saved,
            now=now,
        )


def check_steps(position: Position, steps_per_epoch: int, vote: Vote | None) -> None:
    """Raises LayoutMismatch where a position would not mean the same: with other epochs, (E, S) is other data."""
    saved = vote.steps_per_epoch if vote else steps_per_epoch
    if saved != steps_per_epoch or position.step >= steps_per_epoch:
        was = f"with {saved} steps per epoch" if vote else "by stock code"
        raise LayoutMismatch(
            f"checkpoint {position} was made {was}, this job has {steps_per_epoch} steps per epoch",
            hint="give it the same data, batch size, and number of rollouts as the run that saved it",
            found=saved,
            expected=steps_per_epoch,
        )


def unclaimed(files: Mapping[str, Path], roles: Mapping[str, Tensors], settled: Settled) -> list[str]:
    """What the checkpoint holds and this job does not take: the trainer lost it, on purpose or not."""
    left = [*sorted(files.keys() - roles.keys() - {"state"}), *settled.unclaimed]
    return [f"the checkpoint also holds {', '.join(left)}, which this job does not restore"] if left else []


def differences(about: Mapping[str, Any], vote: Vote | None) -> list[str]:
    """What makes this run go on, but not bit for bit."""
    if vote is None:
        return ["a stock checkpoint has no random state, loss scale, or counters: the run goes on, not bit for bit"]
    found = []
    for title, saved, now in (("", vote.tool, about["tool"]), ("config ", _keys(vote.config), _keys(about["config"]))):
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                found.append(f"{title}{key} was {saved.get(key)!r}, is {now.get(key)!r}: not bit for bit")
    return found


def _keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    values: Mapping[str, Any] = config.get("keys", {})
    return values
