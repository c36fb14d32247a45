"""One fate for every name, what a caller may allow, and a report that people read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import model_names
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import ThreadGroup, run_ranks
from safetensors.numpy import save_file

from ms_resume import load
from ms_resume.errors import NamesMismatch, UsageError
from ms_resume.load.names.match import Gaps, by_module, fitted, match
from ms_resume.load.source import Source
from ms_resume.records import TensorInfo
from ms_resume.resume import agree
from ms_resume.state import Arrays


def infos(text: str) -> dict[str, TensorInfo]:
    """`w:2x3` is F32; `w:2x3:F16`; `w::` a name and no more."""
    found = {}
    for entry in text.split():
        name, shape, dtype = (entry + ("" if entry.endswith("::") else ":F32")).split(":")[:3]
        found[name] = TensorInfo(dtype, tuple(int(size) for size in shape.split("x") if size))
    return found


MISSING, UNEXPECTED = Gaps(missing=("b*",)), Gaps(unexpected=("b*",))
WIDEN, NARROW = Gaps(widen=True), Gaps(narrow={"a*": "BF16"})


@pytest.mark.parametrize(
    ("saved", "wanted", "gaps", "clean"),
    [
        ("a:2", "a:2 b.c:3", Gaps(), False),
        ("a:2", "a:2 b.c:3", MISSING, True),
        ("a:2", "a:2 b.c:3", UNEXPECTED, False),  # the other side
        ("a:2 b.c:3", "a:2", UNEXPECTED, True),
        ("a:2", "a:2 b:3 c:3", MISSING, False),  # one was not named
        ("a:2 b:4", "a:2 b:3", MISSING, False),  # another shape is no gap
        ("b:2", "bb:2", Gaps(("*",), ("*",)), False),  # 0 of N, whatever was allowed
        ("a:2:BF16", "a:2:F32", Gaps(), False),
        ("a:2:BF16", "a:2:F32", WIDEN, True),
        ("a:2:F16", "a:2:F32", WIDEN, True),
        ("a:2:F16", "a:2:BF16", WIDEN, False),  # neither holds the other
        ("a:2:F32", "a:2:BF16", WIDEN, False),
        ("a:2:F32", "a:2:BF16", NARROW, True),
        ("a:2:F16", "a:2:BF16", NARROW, True),
        ("a:2:F32", "a:2:F16", NARROW, False),  # another dtype than was named
        ("b:2:F32", "b:2:BF16", NARROW, False),
        ("a:2:I32", "a:2:I64", WIDEN, True),
        ("a:2:I32", "a:2:F32", WIDEN, False),  # a count is no weight
        ("a:2:BOOL", "a:2:U8", WIDEN, False),
        ("a:2:F8_E4M3", "a:2:BF16", WIDEN, False),  # worth nothing without its scales
        ("a:2:F8_E4M3", "a:2:BF16", NARROW, False),
        ("a:2", "a::", Gaps(), True),  # a list of names and no more
    ],
)
def test_what_may_differ(saved: str, wanted: str, gaps: Gaps, clean: bool) -> None:
    """Each row: the file, the net, what the caller said, and whether that makes it fit."""
    assert match(infos(saved), infos(wanted), gaps).clean is clean


def test_a_dtype_to_round_to_that_is_none() -> None:
    """Said when it is given, not when a tensor comes that it is for."""
    with pytest.raises(UsageError, match="'F31' is no dtype"):
        match(infos("a:2"), infos("a:2"), Gaps(narrow={"a": "F31"}))


NAMES = st.sampled_from([*"abcdef", "a.b", "a/b", "层.0.权重", "x.0.w", "x.1.w", "y.0.w", "y.1.w"])
SHAPES = st.sampled_from([(), (0,), (2,), (2, 3), (3, 2)])
SIDES = st.dictionaries(NAMES, st.builds(TensorInfo, st.sampled_from(["F32", "BF16", "I8"]), SHAPES), min_size=1)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(SIDES, SIDES, st.lists(st.sampled_from(["a*", "x.*", "*"]), max_size=2), st.booleans())
def test_every_name_has_one_fate(
    saved: dict[str, TensorInfo], wanted: dict[str, TensorInfo], patterns: list[str], widen: bool
) -> None:
    """Whatever the names: five groups, disjoint, complete; clean means that nothing is left or was named."""
    report = match(saved, wanted, Gaps(tuple(patterns), tuple(patterns), widen))
    shapes, dtypes = ([entry[0] for entry in group] for group in (report.wrong_shape, report.wrong_dtype))
    groups = [*report.matched, *report.missing, *report.unexpected, *shapes, *dtypes]

    assert sorted(groups) == sorted(saved.keys() | wanted.keys())
    assert set(report.matched) | set(shapes) | set(dtypes) == saved.keys() & wanted.keys()
    assert set(report.nearest) <= set(report.missing)
    assert set(report.nearest.values()) <= set(report.unexpected)
    json.dumps(report.to_json())
    if report.clean:
        assert report.matched
        assert report.allowed >= {*report.missing, *report.unexpected}


def test_a_report_for_people() -> None:
    """Counts, the nearest name in the file, both shapes, and no line for each of many."""
    saved = infos("net.layer_0.weight:2x3 b:3 c:2:F16 " + " ".join(f"extra.{n}.a:1" for n in range(7)))
    text = str(match(saved, infos("layers.0.weight:2x5 b:4 c:2 d:1")))

    assert "0 of 4 parameters match" in text
    assert "missing layers.0.weight (nearest in the file: net.layer_0.weight)" in text
    assert "unexpected: 8, extra 7, net.layer 1" in text
    assert "shape of b: the file has (3,), the net (4,)" in text
    assert "dtype of c: the file has F16, the net F32" in text


@pytest.mark.parametrize("title", model_names.MODELS)
def test_four_thousand_names_are_a_few_lines(title: str) -> None:
    """By module, with shares, the cause and the map: a screen, whatever the model."""
    model = model_names.shortened(model_names.MODELS[title], layers=24, experts=16)
    net = model_names.optimizer(model_names.policy(model_names.mindformers(model)))
    text = str(match(model_names.optimizer(model_names.mindformers(model)), net))

    assert len(text.splitlines()) < 24
    assert re.search(r"missing: \d+ \((99|100)\.\d % of the net's\)", text)
    assert "likely cause: " in text
    assert "a name map mends" in text
    assert "grpo_model_train.policy_model.model.layers" in text


def test_by_module() -> None:
    """The most first; what has no number goes by its module."""
    names = [*(f"model.layers.{n}.w" for n in range(5)), "model.norm.weight", "head", *"abcd"]

    assert by_module(names) == "model.layers 5, model.norm 1, head 1, a 1, 3 others 3"


def test_json_is_complete() -> None:
    """Every name of both sides can be found again, and the map as text."""
    net = model_names.mindformers(model_names.MODELS["Qwen2.5-0.5B"])
    report = match({f"net.{name}": info for name, info in net.items()}, net).to_json()

    assert report["missing"] == sorted(net)
    assert report["nearest"] == {name: f"net.{name}" for name in net}
    assert [cause["kind"] for cause in report["causes"]] == ["prefix"]
    assert report["name_map"] == "ms_resume_name_map: 1\nrules:\n- prefix:\n    net.: ''\n"
    assert (report["mended"], report["total"], report["clean"]) == (len(net), len(net), False)


def test_brief_is_brief() -> None:
    """Of thousands of names with nothing in common no list goes to every rank, nor a map that has each of them."""
    names = [f"block.{chr(97 + n % 26)}{n:x}" for n in range(3000)]
    net = {f"{name}.kernel.w": TensorInfo("F32", (n + 1,)) for n, name in enumerate(names)}
    report = match({f"{name}q.kernel.w": TensorInfo("F32", (n + 1,)) for n, name in enumerate(names)}, net)

    assert report.diagnosis.mended == len(net)
    assert len(json.dumps(report.brief())) < 2000
    assert len(json.dumps(report.to_json())) > 200_000
    assert report.to_json()["name_map"].count("kernel") > len(net)


def test_fitted(tmp_path: Path) -> None:
    """What was allowed is left out, what is widened comes in the net's dtype, the rest as it lies there."""
    save_file(
        {"a": np.array([1.5, -2.0], np.float16), "b": np.ones(2, np.float32), "c": np.ones(1)},
        tmp_path / "x.safetensors",
    )
    source = Source(tmp_path / "x.safetensors")
    live = Arrays(a=np.zeros(2, np.float32), b=np.zeros(2, np.float32), d=np.zeros(1))
    report = match(source.tensors, live.infos(), Gaps(("d",), ("c",), widen=True))
    view = fitted(source, report)

    assert (report.clean, sorted(view.tensors)) == (True, ["a", "b"])
    assert view.tensors["a"].dtype == "F32"
    for name in view.tensors:
        live.place(name, view.read(name))
    assert live["a"].tolist() == [1.5, -2.0]
    assert live["b"].tolist() == [1.0, 1.0]

    same = match(source.tensors, source.tensors)
    assert fitted(source, same) is source


def on_ranks(shapes: dict[int, tuple[int, ...]], save: Path) -> Any:
    """Each rank loads a file of its own into a net of this shape."""

    def rank_main(group: ThreadGroup) -> None:
        path = save / f"policy_model_rank_{group.rank}-0_5.safetensors"
        save_file({"w": np.zeros((2, 3), np.float32)}, path)
        live = {"policy": Arrays(w=np.zeros(shapes[group.rank], np.float32))}
        agree.together(group, lambda: load.settle({"policy": Source(path)}, live))

    return rank_main


def test_one_report_for_ranks_that_say_the_same(tmp_path: Path) -> None:
    """Though each read a file of its own; ranks that say something else are told apart."""
    same = run_ranks(3, on_ranks({0: (4, 3), 1: (4, 3), 2: (4, 3)}, tmp_path)).errors
    other = run_ranks(3, on_ranks({0: (4, 3), 1: (4, 3), 2: (2, 6)}, tmp_path)).errors

    assert [type(error) for error in (*same.values(), *other.values())] == [NamesMismatch] * 6
    text = str(same[2])
    assert text.startswith("ranks 0-2: the checkpoint does not fit the nets; nothing was loaded\n")
    assert text.count("0 of 1 parameters match") == 1
    text = str(other[1])
    assert "ranks 0, 1: the checkpoint does not fit" in text
    assert "\nrank 2: the checkpoint does not fit" in text
    assert text.count("0 of 1 parameters match") == 2
    assert "same_if" not in str(other[0].fields)


def test_ranks_that_all_differ_are_not_all_listed() -> None:
    """A thousand pipeline stages are not a thousand reports."""
    text = agree.grouped({rank: (str(rank), f"says {rank}") for rank in range(1000)})

    assert text.splitlines() == [*(f"rank {n}: says {n}" for n in range(4)), "and 996 more that differ from these"]
