"""What a wheel holds is a list in pyproject.toml; here it is compared with the folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = Path(__file__).parents[1]


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


def test_every_package_is_in_the_wheel():
    """A folder that the list lacks works in a checkout and is missing once installed."""
    listed = _pyproject()["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(TOP).parts) for path in (TOP / "ms_resume").rglob("*.py")}

    assert sorted(listed) == sorted(folders | {"ms_resume.strategy_templates"})


def test_templates_are_in_the_wheel():
    tool = _pyproject()["tool"]["setuptools"]
    folder = TOP / tool["package-dir"]["ms_resume.strategy_templates"]

    assert [*folder.glob(tool["package-data"]["ms_resume.strategy_templates"][0])]
