"""What a resume takes of the optimizer's file: all of it, unless the configuration says something else than it did.

An optimizer of another kind or with other groups is refused here, with both named, before names are compared one by
one; so is a value that checkpoint and configuration both have, and differently, while nobody said which counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_resume.load import optimizers, overrides
from ms_resume.load.source import Readable
from ms_resume.load.views import Only, Part
from ms_resume.records import Vote
from ms_resume.state import Tensors


@dataclass(frozen=True, slots=True)
class Decided:
    """What is loaded into what; `said` are the differences and which side counts."""

    sources: Mapping[str, Readable]
    live: Mapping[str, Tensors]
    said: tuple[str, ...]


def decide(
    sources: Mapping[str, Readable],
    live: Mapping[str, Tensors],
    about: Mapping[str, Any],
    vote: Vote | None,
    override: Mapping[str, str],
) -> Decided:
    """Decides by `override`. Nothing is changed.

    Raises:
        NamesMismatch: The optimizer is another one.
        LayoutMismatch: A difference that nobody decided, or that cannot be decided so.
    """
    source, optimizer, weights = sources["optimizer"], live["optimizer"], live["policy"].infos().keys()
    wanted = optimizer.infos().keys()
    before, now = optimizers.state(source.tensors, weights), optimizers.state(wanted, weights)
    differences = overrides.in_tensors(source, Only(optimizer, wanted - weights))
    given = {one.key for one in differences if overrides.side(override, one.key) == "config"}
    optimizers.check_same(source.path, before, now, given)
    chosen = overrides.decide(differences, _keys(vote.config if vote else {}), _keys(about["config"]), override)
    kept = {one.key for one in differences if chosen.get(one.key) == "config"}
    said = tuple(overrides.told(differences, chosen))
    if not kept:
        return Decided(sources, live, said)
    return Decided(
        {**sources, "optimizer": Part(source, source.tensors.keys() - kept)},
        {**live, "optimizer": Only(optimizer, wanted - kept)},
        said,
    )


def _keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    values: Mapping[str, Any] = config.get("keys", {})
    return values
