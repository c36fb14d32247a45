"""The model of the protocol: what holds in every interleaving, and that each rule is there for a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from faults import protocol
from faults.protocol import ASIDE, FAILED, FELL_BEHIND, LOST, MIXTURE, NOTHING, SEEN, TOLD, UNLINK


@pytest.mark.parametrize(
    ("config", "states"),
    [
        (protocol.saved_again(ASIDE, 1), 2_209),
        (protocol.swept(ASIDE, 1), 1_176),
        (protocol.pruned(ASIDE, 1), 1_847),
        (protocol.brought_back(ASIDE, 2), 13_729),
        (protocol.saved_again(ASIDE, 2, zombie_ranks=(1,)), 11_506),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_nothing_is_lost(config: protocol.Config, states: int) -> None:
    """Whoever is stopped where, what was acknowledged is found, and the newest attempt can save."""
    result = protocol.explore(config)

    assert [str(violation) for violation in result.violations] == []
    assert result.states == states


@pytest.mark.parametrize(
    ("config", "invariants"),
    [
        (protocol.saved_again(UNLINK, 1), {LOST, TOLD}),
        (protocol.swept(UNLINK, 1, newer=2), {LOST, FELL_BEHIND, FAILED}),
        (protocol.pruned(UNLINK, 1), {NOTHING}),
        (protocol.brought_back(UNLINK, 1), {LOST}),
        (protocol.swept(SEEN, 1, newer=2), {FELL_BEHIND}),
        (protocol.pruned(SEEN, 1), {NOTHING}),
        (protocol.brought_back(SEEN, 1), {LOST, MIXTURE}),
        (protocol.swept(replace(ASIDE, stable=False), 1, newer=2), {FELL_BEHIND}),
        (protocol.swept(replace(ASIDE, put_back="", stable=False), 1, newer=2), {LOST, FELL_BEHIND}),
        (protocol.swept(replace(ASIDE, patience=1), 1), {FAILED}),
        (protocol.pruned(replace(ASIDE, recheck=False), 1), {NOTHING}),
        (protocol.brought_back(replace(ASIDE, recheck=False), 1), {LOST}),
    ],
)
def test_each_rule_is_needed(config: protocol.Config, invariants: set[str]) -> None:
    """Each row: a configuration whose rules lack something, and exactly what goes wrong."""
    assert protocol.explore(config).invariants == invariants


def test_a_trace_says_who_did_what() -> None:
    """The shortest way to the loss: a zombie that was the owner when it asked unlinks its successor's vote."""
    found = protocol.explore(protocol.saved_again(UNLINK, 1)).violations
    zombie = "attempt 2 rank 0 does: unlink commits/P2/rank_0 (older vote)"

    trace = next(violation.trace for violation in found if violation.culprit == zombie)

    asked = max(n for n, line in enumerate(trace) if line == "attempt 2 rank 0: ask who owns -> 2")
    assert trace[-1] == "attempt 2 rank 0: unlink commits/P2/rank_0 (older vote) -> None"
    assert any(line.startswith("attempt 3 rank 0: publish commits/P2/rank_0") for line in trace[asked:])
