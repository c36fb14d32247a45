"""All ranks do something, or none goes on: one rank's error is raised on every rank within one exchange."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ms_resume.errors import Disagreement, MsResumeError, from_json
from ms_resume.framework.group import Group
from ms_resume.records import in_ranges

T = TypeVar("T")

_SHOWN = 4


def together(
    group: Group, action: Callable[[], T], tell: Callable[[T], Any] = lambda result: None
) -> tuple[T, list[Any]]:
    """Runs `action` on every rank.

    Args:
        tell: What of the result the other ranks are told, as plain JSON.

    Returns:
        This rank's result, and what every rank told, by rank.

    Raises:
        MsResumeError: What it raised on the first rank that failed; the message names the rank and counts the others.
    """
    results: list[T] = []
    outcome = _attempt(action, tell, results)
    outcomes = [json.loads(data) for data in group.exchange(json.dumps(outcome, default=str).encode())]
    failed = {rank: outcome["error"] for rank, outcome in enumerate(outcomes) if "error" in outcome}
    if failed:
        raise _joint(failed, group.world_size)
    return results[0], [outcome["value"] for outcome in outcomes]


def from_first(group: Group, action: Callable[[], Any]) -> Any:
    """What `action` gives on rank 0, as plain JSON, on every rank; or its error, on every rank."""
    _, told = together(group, action if group.rank == 0 else lambda: None, lambda result: result)
    return told[0]


def on_each_disk(group: Group, leads: bool, action: Callable[[], Any]) -> list[Any]:
    """What `action` gives on the first rank of each disk, as plain JSON, on every rank; or its error, on every rank."""
    _, told = together(group, lambda: [action()] if leads else [], lambda result: result)
    return [result for results in told for result in results]


def same_everywhere(what: str, told: list[Any]) -> None:
    """Raises Disagreement, naming the ranks, where not every rank told the same."""
    other = [rank for rank, value in enumerate(told) if value != told[0]]
    if other:
        raise Disagreement(
            f"the ranks disagree about {what}: rank 0 has {told[0]!r}, rank {other[0]} has {told[other[0]]!r} "
            f"({len(other)} of {len(told)} ranks differ from rank 0)",
            hint="start all ranks with the same arguments and configuration",
            ranks=other,
        )


def _attempt(action: Callable[[], T], tell: Callable[[T], Any], results: list[T]) -> dict[str, Any]:
    try:
        results.append(action())
        return {"value": tell(results[0])}
    except MsResumeError as error:
        return {"error": error.to_json()}
    except Exception as error:  # noqa: BLE001  # whatever it is, the other ranks wait for this exchange
        return {"error": MsResumeError(f"{type(error).__name__}: {error}").to_json()}


def _joint(failed: dict[int, dict[str, Any]], world_size: int) -> MsResumeError:
    first, data = next(iter(failed.items()))
    error = from_json(data)
    is_report = error.fields.pop("same_if", None) is not None
    if world_size > 1 and is_report:
        error.message = grouped({rank: (d.get("same_if", d["message"]), d["message"]) for rank, d in failed.items()})
    elif world_size > 1:
        others = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
        error.message = f"rank {first}{others}: {error.message}"
    error.fields.setdefault("ranks", sorted(failed))
    return error


def grouped(said: Mapping[int, tuple[str, str]]) -> str:
    """What each rank says, once for all that say the same.

    Args:
        said: By rank, what makes two of them the same, and what is shown of the first that says it.
    """
    ranks: dict[str, list[int]] = {}
    for rank, (same_if, _) in sorted(said.items()):
        ranks.setdefault(same_if, []).append(rank)
    shown = list(ranks.values())[:_SHOWN]
    told = [f"rank{'s' if len(those) > 1 else ''} {in_ranges(those)}: {said[those[0]][1]}" for those in shown]
    more = len(ranks) - len(shown)
    return "\n".join([*told, f"and {more} more that differ from these"] if more else told)
