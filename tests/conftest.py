"""`make test` runs the suite in two processes. What starts msrun stays in one of them, and begins at once, since that
takes longest; of all else a file is a unit: its tests share what is slow to make. What several files share is here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msrun_demo
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=lambda item: item.get_closest_marker("msrun") is None)
    for item in items:
        group = "msrun" if item.get_closest_marker("msrun") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo at its smallest size: four launches, two kills. Gives its directory and what it said; in `a` is the run
    that nobody disturbed, in `base` the model that it started from. Nobody may write there."""
    output = tmp_path_factory.mktemp("demo")
    return output, msrun_demo.run(output)
