"""All ranks do something, or none goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runs import ThreadGroup, run_ranks

from ms_resume.errors import Damaged, Disagreement, MsResumeError, NamesMismatch
from ms_resume.framework import group as groups
from ms_resume.framework.group import MindSporeGroup, Solo
from ms_resume.resume import agree


def failing_on(ranks: set[int], error: Exception) -> Any:
    def rank_main(group: ThreadGroup) -> tuple[int, list[Any]]:
        def action() -> int:
            if group.rank in ranks:
                raise error
            return group.rank * 10

        return agree.together(group, action, lambda result: result + 1)

    return rank_main


def test_every_rank_hears_what_every_rank_tells() -> None:
    """And keeps its own result."""
    assert run_ranks(3, failing_on(set(), ValueError())).ok() == [
        (0, [1, 11, 21]),
        (10, [1, 11, 21]),
        (20, [1, 11, 21]),
    ]


@pytest.mark.parametrize(
    ("ranks", "said"), [({0}, "rank 0: torn apart"), ({1, 2}, "rank 1 (and 1 other ranks): torn apart")]
)
def test_one_ranks_error_is_every_ranks(ranks: set[int], said: str) -> None:
    """Kind, hint, and fields; within one exchange, so nobody waits for a collective that never comes."""
    fail, seen = failing_on(ranks, Damaged("torn apart", hint="do", tensor="w")), list[ThreadGroup]()
    errors = run_ranks(3, lambda group: (seen.append(group), fail(group))[1]).errors

    assert [group.exchanges for group in seen] == [1] * 3
    assert [type(errors[rank]) for rank in range(3)] == [Damaged] * 3
    for error in errors.values():
        assert isinstance(error, Damaged)
        assert (error.message, error.hint) == (said, "do")
        assert (error.fields["tensor"], error.fields["ranks"]) == ("w", sorted(ranks))


def test_what_nobody_foresaw_is_told_too() -> None:
    """A bug on one rank must not leave the others waiting."""
    errors = run_ranks(2, failing_on({1}, KeyError("w"))).errors

    assert [type(error) for error in errors.values()] == [MsResumeError] * 2
    assert "KeyError: 'w'" in str(errors[0])
    assert int(errors[0].exit_code) == 70  # type: ignore[attr-defined]


def test_a_job_of_one_rank_is_not_told_about_ranks() -> None:
    """The message is the message."""

    def fail() -> None:
        raise NamesMismatch("no such name")

    with pytest.raises(NamesMismatch, match=r"^no such name$"):
        agree.together(Solo(), fail)


def test_rank_0_decides() -> None:
    """The others do not even ask."""
    asked: list[int] = []

    def rank_main(group: ThreadGroup) -> Any:
        def decide() -> dict[str, int]:
            asked.append(group.rank)
            return {"rank": group.rank}

        return agree.from_first(group, decide)

    assert run_ranks(3, rank_main).ok() == [{"rank": 0}] * 3
    assert asked == [0]


def test_a_difference_names_the_ranks() -> None:
    """Both values, and how many differ."""
    agree.same_everywhere("the seed", [1, 1, 1])
    with pytest.raises(Disagreement, match=r"the seed: rank 0 has 1, rank 2 has 3 \(2 of 4 ranks") as caught:
        agree.same_everywhere("the seed", [1, 1, 3, 4])

    assert caught.value.fields["ranks"] == [2, 3]


class Echo(MindSporeGroup):
    """Three ranks that say the same, without MindSpore; `widths` is what each gather brought from one rank."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 3
        self.widths: list[int] = []

    def _gather(self, values: Any) -> list[Any]:
        self.widths.append(len(values))
        return [np.array(values)] * self.world_size


@pytest.mark.parametrize("length", [0, 1, 10, 11, 25])
def test_a_long_message_travels_in_pieces(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """One gather of everything, four bytes a byte from each of 512 ranks, would not fit beside the nets on a device."""
    monkeypatch.setattr(groups, "_GATHERED", 30)
    echo = Echo()
    data = bytes(range(100, 100 + length))

    assert echo.exchange(data) == [data] * 3
    assert max(echo.widths) <= 10
