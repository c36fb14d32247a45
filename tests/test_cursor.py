"""The data cursor: any step without those before it, and no sample twice or lost, whatever changes in mid-epoch."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ms_resume
from ms_resume.errors import LayoutMismatch, NamesMismatch, UsageError
from ms_resume.resume.components import permutation


def cursors(size: int, batch: int, ranks: int, **more: Any) -> list[ms_resume.Cursor]:
    """One for each rank."""
    return [ms_resume.Cursor(size, batch=batch, seed=7, rank=rank, num_ranks=ranks, **more) for rank in range(ranks)]


def moved(state: dict[str, Any], to: list[ms_resume.Cursor]) -> list[ms_resume.Cursor]:
    """Through JSON, as through a payload."""
    for cursor in to:
        cursor.restore(json.loads(json.dumps(state)))
    return to


def run(ranks: list[ms_resume.Cursor], steps: int) -> tuple[list[int], dict[str, Any]]:
    """What all ranks together are given in that many steps, and the state at the top of the next one."""
    iterators = [cursor.epoch() for cursor in ranks]
    given_out: list[int] = []
    for _ in range(steps):
        given_out += np.concatenate([next(iterator) for iterator in iterators]).tolist()
    tops = [next(iterator, None) for iterator in iterators]  # as a save comes: when the step's samples were fetched
    assert len({top is None for top in tops}) == 1
    assert all(cursor.state() == ranks[0].state() for cursor in ranks)
    return given_out, ranks[0].state()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1000, 4097])
def test_every_sample_once(size: int) -> None:
    """Each epoch is a permutation, and another one."""
    orders = [permutation.shuffled(np.arange(size), size, seed=3, epoch=epoch).tolist() for epoch in range(6)]

    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 5 or len({tuple(order) for order in orders}) == 6


def test_the_order_is_pinned() -> None:
    """Another NumPy or another version of this code must not change what a checkpoint's place means."""
    assert permutation.shuffled(np.arange(10), 10, seed=0, epoch=0).tolist() == [1, 6, 7, 0, 4, 2, 9, 5, 8, 3]


def test_orders_are_as_random_as_a_shuffle() -> None:
    """All 120 orders of five, by 3,000 seeds: of a fair shuffle chi-square stays below 174 in 999 of 1000 cases."""
    drawn = Counter(tuple(permutation.shuffled(np.arange(5), 5, seed=seed, epoch=1)) for seed in range(3_000))
    chi = sum((drawn[order] - 25) ** 2 / 25 for order in itertools.permutations(range(5)))

    assert chi < 174


def test_neighbours_do_not_stay_together() -> None:
    """The distance of what stood side by side is that of two independent places: a third of the size in the mean."""
    order = permutation.shuffled(np.arange(100_000), 100_000, seed=1, epoch=0)
    distance = np.abs(np.diff(order)).mean() / 100_000

    assert abs(distance - 1 / 3) < 0.005
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.015


def test_ten_million_samples_cost_nothing() -> None:
    """A place in the middle of an epoch in less than 10 ms and less than 1 MB, where an array of the order takes 80."""
    cursor = ms_resume.Cursor(10_000_000, batch=128, seed=0, rank=3, num_ranks=8)
    took_s, peaks = [], []
    for epoch in range(5):
        cursor.seek(epoch, 0)
        began = time.thread_time()
        moved({**cursor.state(), "done": 4_999_168}, [cursor])
        found = cursor.peek()
        took_s.append(time.thread_time() - began)
        cursor.seek(epoch, 0)
        tracemalloc.start()
        moved({**cursor.state(), "done": 4_999_168}, [cursor])
        cursor.peek()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert len(set(found.tolist())) == 128
    assert min(peaks) < 1 << 20
    assert min(took_s) < 0.01


changes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.integers(1, 200), changes=changes, shuffle=st.booleans())
def test_no_sample_twice_and_none_lost_when_batch_and_ranks_change(
    size: int, changes: list[tuple[int, int, int]], shuffle: bool
) -> None:
    """Each entry of `changes` goes on from the one before with another batch size and number of ranks."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for number, (batch, ranks, steps) in enumerate(changes):
        group = cursors(size, batch, ranks, keep_tail=True, shuffle=shuffle)
        if state is not None:
            moved(state, group)
        left = group[0].steps_left
        last = number == len(changes) - 1
        out, state = run(group, left if last else min(steps, max(left - 1, 0)))
        seen += out

    assert sorted(seen) == list(range(size))
    assert state is not None
    assert (state["epoch"], state["done"]) == (1, 0)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.integers(1, 5), ranks=st.integers(1, 3), size=st.integers(15, 100))
def test_without_the_tail_only_the_tail_is_left_out(batch: int, ranks: int, size: int) -> None:
    """Less than one step of all ranks, and all steps are whole."""
    group = cursors(size, batch, ranks)
    out, _ = run(group, group[0].steps_per_epoch)

    assert len(out) == len(set(out)) == size - size % (batch * ranks)


def test_a_place_is_exact_in_mid_epoch() -> None:
    """Saved at each step of three epochs, each goes on with the same samples as the run that was not interrupted."""
    whole = ms_resume.Cursor(23, batch=2, seed=5, rank=1, num_ranks=2)
    states, rows = [], []
    for _ in range(3):
        for row in whole.epoch():
            states.append(whole.state())
            rows.append(row.tolist())
    for number, state in enumerate(states):
        resumed = ms_resume.Cursor(23, batch=2, seed=5, rank=1, num_ranks=2)
        moved(state, [resumed])
        rest = [row.tolist() for _ in range(3 - state["epoch"]) for row in resumed.epoch()]

        assert rest == rows[number:]


def test_a_change_is_said() -> None:
    """In the banner: how many samples a step takes now."""
    _, state = run(cursors(100, 4, 2), 3)
    [cursor] = moved(state, cursors(100, 3, 1))

    assert cursor.notes() == [
        "goes on at sample 24 of epoch 0 with 3 x 1 samples a step, before 4 x 2: none comes twice"
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 99}, "size was 100, is 99"),
        ({"seed": 8}, "seed was 7, is 8"),
        ({"shuffle": False}, "shuffle was True, is False"),
        ({"data": {"file": "b"}}, "file was 'a', is 'b'"),
        ({"data": {}}, "file was 'a', is None"),
    ],
)
def test_other_data_is_refused_and_what_changed_is_named(changed: dict[str, Any], said: str) -> None:
    """A data set that shrank, another seed, another file."""
    arguments = {"size": 100, "batch": 4, "seed": 7, "data": {"file": "a"}}
    state = ms_resume.Cursor(**arguments).state()
    with pytest.raises(LayoutMismatch, match="other data") as caught:
        ms_resume.Cursor(**{**arguments, **changed}).restore(state)

    assert said in str(caught.value)


def test_a_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    """Not by its name or time; one flipped byte in a large file is found where it is looked at."""
    small, copied, large = tmp_path / "a", tmp_path / "b", tmp_path / "large"
    for path in (small, copied):
        path.write_bytes(b"x" * 100)
    large.write_bytes(bytes(17 << 20))

    def state(path: Path) -> dict[str, Any]:
        return ms_resume.Cursor(10, batch=1, seed=0, data={"file": path}).state()

    assert state(small) == state(copied)
    before = state(large)
    with large.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(LayoutMismatch, match="file was"):
        ms_resume.Cursor(10, batch=1, seed=0, data={"file": large}).restore(before)


@pytest.mark.parametrize(("key", "value"), [("done", 101), ("done", -1), ("epoch", -1)])
def test_a_place_past_the_end_is_refused(key: str, value: int) -> None:
    """However it came to be."""
    cursor = ms_resume.Cursor(100, batch=4, seed=7)
    with pytest.raises(LayoutMismatch, match="it stands at sample"):
        cursor.restore({**cursor.state(), key: value})
    with pytest.raises(LayoutMismatch, match="step 26 of an epoch that has 25"):
        cursor.seek(0, 26)


def test_a_state_of_another_version_is_refused() -> None:
    """Not guessed at."""
    cursor = ms_resume.Cursor(100, batch=4, seed=7)
    with pytest.raises(NamesMismatch, match="has version 2, this ms_resume reads 1"):
        cursor.restore({**cursor.state(), "version": 2})


def test_a_cursor_over_nothing_is_refused() -> None:
    """At once, not as an epoch without steps."""
    for arguments in ({"size": 0, "batch": 1}, {"size": 5, "batch": 3, "num_ranks": 2}, {"size": 5, "batch": 0}):
        with pytest.raises(UsageError):
            ms_resume.Cursor(**arguments, seed=0)
