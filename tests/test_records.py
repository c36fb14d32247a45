"""How ranks are said."""

from __future__ import annotations

import pytest

from ms_resume.records import in_ranges


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([], ""),
        ([3], "3"),
        ([3, 4], "3, 4"),
        ([3, 4, 5], "3-5"),
        ([3, *range(7, 1024)], "3, 7-1023"),
        ([1023, *range(7), 1023], "0-6, 1023"),
        (range(0, 16, 2), "0, 2, 4, 6, 8, 10, 12, 14"),
        (range(0, 1024, 2), "0, 2, 4, 6, 8, 10, 12, 14, ... (512 in all)"),
    ],
)
def test_in_ranges(ranks: list[int], said: str) -> None:
    """Sorted, each once, and never longer than a line."""
    assert in_ranges(ranks) == said
