"""Errors: one tree, one exit code each, and they survive the way to another rank and another process."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from ms_resume import errors
from ms_resume.errors import ExitCode, MsResumeError, from_json

TREE = errors._tree(MsResumeError)


@pytest.mark.parametrize("kind", TREE)
def test_survives_pickling_and_json(kind: type[MsResumeError]) -> None:
    """Kind, message, hint, and typed fields."""
    error = kind("found this, expected that", hint="type this", path="/x", ranks=[1, 2])
    copies = [pickle.loads(pickle.dumps(error)), from_json(json.loads(json.dumps(error.to_json())))]

    for copy in copies:
        assert type(copy) is kind
        assert (copy.message, copy.hint, copy.fields) == (error.message, error.hint, error.fields)
        assert str(copy) == "found this, expected that\n  -> type this"


def test_json_has_the_exit_code() -> None:
    """What `--json` and the supervisor read."""
    assert errors.DiskError("full", errno=28).to_json() == {
        "error": "DiskError",
        "exit_code": 40,
        "message": "full",
        "hint": "",
        "errno": 28,
    }


def test_an_error_of_a_later_version_is_still_an_error() -> None:
    """Another rank may run another version for a moment."""
    error = from_json({"error": "Unheard", "exit_code": 99, "message": "m", "hint": "h"})

    assert type(error) is MsResumeError
    assert (error.message, int(error.exit_code)) == ("m", 70)


def test_the_tree_in_the_header_is_the_tree() -> None:
    """Names, order of nesting, and codes; only a child may share its parent's code."""
    drawn = re.findall(r"^( *(?:[|+ -]*))(\w+) +(\d\d?)  ", errors.__doc__ or "", re.MULTILINE)

    assert {name: int(code) for _, name, code in drawn} == {kind.__name__: int(kind.exit_code) for kind in TREE}


def test_exit_codes_are_never_shared_but_with_a_parent() -> None:
    """An operator acts on the number alone."""
    own = [kind for kind in TREE if kind is MsResumeError or kind.exit_code is not kind.__base__.exit_code]  # type: ignore[union-attr]
    codes = [int(kind.exit_code) for kind in own]

    assert len(set(codes)) == len(codes)
    assert {kind.__name__ for kind in TREE} - {kind.__name__ for kind in own} == {
        "Disagreement",
        "Superseded",
    }
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "USAGE": 2, "NOTHING_TO_RESUME": 10, "TORN": 20, "DAMAGED": 21, "NAMES": 30, "LAYOUT": 31,
        "DIFFERENT": 32, "DISK": 40, "LEFT_ON_REQUEST": 50, "GAVE_UP": 60, "IN_USE": 61, "NOT_EMPTY": 62, "BUG": 70,
    }  # fmt: skip  # one table
