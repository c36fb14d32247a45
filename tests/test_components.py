"""State beside the tensors: what goes into a payload comes out the same, or is refused."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ms_resume
from ms_resume.errors import UsageError
from ms_resume.resume.checkpointer import _by_name
from ms_resume.state import Arrays, Component, from_array, pack, to_array, unpack


class Plain:
    """A component that is a dict."""

    def __init__(self, name: str, **state: Any) -> None:
        self.name = name
        self.held = state

    def state(self) -> dict[str, Any]:
        return self.held

    def restore(self, state: Any) -> None:
        self.held = dict(state)


def through_disk(component: Component) -> dict[str, Any]:
    tensors, values = pack({component.name: component})
    return unpack(tensors, json.loads(json.dumps(values)))[component.name]


def test_values_and_arrays_come_back_the_same() -> None:
    """Types, shapes, bits; NaN and infinity, which a run that goes wrong has to save, too."""
    state = {
        "n": 3, "x": 0.1, "big": 2**100, "none": None, "flag": True, "text": "ü", "list": [1, [2.5]],
        "dict": {"a": {"b": 1}}, "infinite": math.inf,
        "a.b": np.arange(6, dtype=np.int16).reshape(2, 3), "scalar": np.array(2.5), "empty": np.zeros((0, 3)),
    }  # fmt: skip  # one line per kind
    back = through_disk(Plain("c", **state))

    assert back.keys() == state.keys()
    for key, value in state.items():
        assert type(back[key]) is type(value)
        assert np.array_equal(back[key], value) if isinstance(value, np.ndarray) else back[key] == value
    assert math.isnan(through_disk(Plain("c", x=math.nan))["x"])
    assert (back["a.b"].dtype, back["scalar"].shape, back["empty"].shape) == (np.int16, (), (0, 3))


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2.0}, {"a": (1,)}, [{2: 1}], np.float32(1), {1, 2}, b"x", type], ids=repr
)
def test_what_json_would_change_is_refused(value: Any) -> None:
    """The key 1 would come back as "1", a tuple as a list: an error at the save, not a wrong run after the resume."""
    with pytest.raises(UsageError, match=r"component state c\.key"):
        pack({"c": Plain("c", key=value)})


def test_fields_saves_attributes_and_finds_misspelt_ones() -> None:
    """At once, not at the first save."""
    owner = SimpleNamespace(scale=2.0, good_steps=7)
    fields = ms_resume.Fields("scaler", owner, "scale", "good_steps")
    state = through_disk(fields)
    owner.scale = owner.good_steps = 0
    fields.restore(state)

    assert (owner.scale, owner.good_steps) == (2.0, 7)
    with pytest.raises(AttributeError, match="skale"):
        ms_resume.Fields("scaler", owner, "skale")


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "Philox", "MT19937", "SFC64"])
def test_randomness_goes_on_where_it_stopped(kind: str) -> None:
    """Python's, NumPy's, and a generator of each kind; also half way through a pair of normal numbers."""
    generator = np.random.Generator(getattr(np.random, kind)(5))
    randomness = ms_resume.Randomness(mine=generator)

    def draw() -> list[Any]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.normal(),
            generator.normal(size=3).tolist(),
            generator.integers(9, dtype=np.int32),
        ]

    draw()
    state = through_disk(randomness)
    expected = draw()
    draw()
    randomness.restore(state)

    assert draw() == expected


def test_components_need_names_of_their_own() -> None:
    """Two of one name would restore each other's state; a dot would cut the name."""
    assert list(_by_name([Plain("a"), Plain("b")])) == ["a", "b"]
    for bad in ([Plain("a"), Plain("a")], [Plain("a.b")]):
        with pytest.raises(UsageError, match="must differ and have no dot"):
            _by_name(bad)


def test_arrays_are_placed_in_place() -> None:
    """What trains on the array trains on the loaded values."""
    held = np.zeros((2, 3), np.float16)
    arrays = Arrays(w=held)
    arrays.place("w", from_array(np.full((2, 3), 1.5, np.float16)))

    assert arrays["w"] is held
    assert held.tolist() == [[1.5] * 3] * 2


def test_a_transposed_array_is_saved_row_by_row() -> None:
    """Its memory is column by column."""
    array = np.arange(6.0).reshape(2, 3).T

    assert to_array(from_array(array)).tolist() == array.tolist()
