"""The knobs: their names in the environment, their types, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from ms_resume.errors import UsageError
from ms_resume.settings import Settings, from_environment


def test_defaults_without_an_environment() -> None:
    """What docs and README say."""
    assert from_environment({}) == Settings()
    assert (Settings().keep_last, Settings().max_rollback, Settings().visibility_timeout_s) == (5, 2, 90.0)


def test_the_environment_is_read_by_name_and_type() -> None:
    """`MS_RESUME_` and the field in capitals; overrides win."""
    environ = {
        "MS_RESUME_KEEP_LAST": "3",
        "MS_RESUME_HEARTBEAT_S": "0.5",
        "MS_RESUME_LABEL": "night",
        "KEEP_LAST": "9",
    }

    assert from_environment(environ) == Settings(keep_last=3, heartbeat_s=0.5, label="night")
    assert from_environment(environ, keep_last=7).keep_last == 7


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("KEEP_LAST", "many", "int"),
        ("KEEP_LAST", "2.5", "int"),
        ("HEARTBEAT_S", "5s", "float"),
        ("STAGING", "no", "bool"),
    ],
)
def test_a_value_of_the_wrong_type(name: str, value: str, kind: str) -> None:
    """The message names variable, value, and type."""
    with pytest.raises(UsageError, match=f"MS_RESUME_{name} is '{value}', expected a value of type {kind}"):
        from_environment({f"MS_RESUME_{name}": value})


@pytest.mark.parametrize(("value", "meant"), [("0", False), ("1", True), ("false", False), ("True", True)])
def test_yes_and_no(value: str, meant: bool) -> None:
    """Text that is not empty is not simply true."""
    assert from_environment({"MS_RESUME_STAGING": value}).staging is meant


def test_an_unknown_save_format() -> None:
    """Refused when it is set, not at the first save."""
    with pytest.raises(UsageError, match="pickle"):
        Settings(save_format="pickle")


def test_every_knob_has_a_default_and_is_frozen() -> None:
    """A running job's settings do not move under it."""
    assert all(type(field.default) in (bool, int, float, str) for field in fields(Settings))
    with pytest.raises(FrozenInstanceError):
        Settings().keep_last = 1  # type: ignore[misc]


def test_defaults_of_the_caller() -> None:
    """In the place of a field's own: below the environment, which is below what is said outright."""
    defaults = {"keep_last": -1}

    assert from_environment({}, defaults=defaults).keep_last == -1
    assert from_environment({"MS_RESUME_KEEP_LAST": "7"}, defaults=defaults).keep_last == 7
    assert from_environment({"MS_RESUME_KEEP_LAST": "7"}, defaults=defaults, keep_last=3).keep_last == 3
