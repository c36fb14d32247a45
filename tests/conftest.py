"""`make test` runs the suite in two processes. What starts msrun stays in one of them, and begins at once, since that
takes longest; of all else a file is a unit: its tests share what is slow to make. What several files share is here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msrun_demo
import pytest
from exact.launches import Server, server
from runs import tiny_run

SHARED = {"test_leave": "test_exact"}
"""Files that stay in the process of another one, whose `trainers` they use."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=lambda item: item.get_closest_marker("msrun") is None)
    for item in items:
        stem = SHARED.get(item.path.stem, item.path.stem)
        group = "msrun" if item.get_closest_marker("msrun") else stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo at its smallest size: four launches, two kills. Gives its directory and what it said; in `a` is the run
    that nobody disturbed, in `base` the model that it started from. Nobody may write there."""
    output = tmp_path_factory.mktemp("demo")
    return output, msrun_demo.run(output)


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """What starts trainers of the campaigns, and where their undisturbed runs lie: one of a setting serves both."""
    with server() as running:
        yield running, tmp_path_factory.mktemp("trainers")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks, whole at 0_2, 0_4, 0_6, 0_8, 1_0: global steps 2, 4, 6, 8, 10. Nobody may write
    there. A file that has a run of its own by this name has copies of that one by the next."""
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, save_every=2).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))
