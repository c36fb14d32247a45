"""Looks at many names give the same answers one after the other and several at a time."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import own_trees
import pytest
import stock_trees
from runs import tiny_run

from ms_resume import locate
from ms_resume.ondisk import abreast, mounts


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, it counts as a network file system."""
    monkeypatch.setattr(mounts, "is_network", lambda path: True)


@pytest.mark.usefixtures("network")
def test_many_are_looked_at_by_several_threads(tmp_path: Path) -> None:
    """Their answers come in the order of the items. None goes on before there are two."""
    seen: set[str] = set()
    several = threading.Event()

    def look(item: int) -> int:
        seen.add(threading.current_thread().name)
        if len(seen) > 1:
            several.set()
        assert several.wait(20)
        return item * item

    items = range(10 * abreast.FEW)

    assert list(abreast.each(look, items, tmp_path)) == [item * item for item in items]
    assert 1 < len(seen) <= abreast.THREADS


def test_few_or_on_a_local_disk_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads would cost more than they gain."""
    for count, is_network in ((abreast.FEW - 1, True), (abreast.FEW, False)):
        monkeypatch.setattr(mounts, "is_network", lambda path, is_network=is_network: is_network)
        looked = set(abreast.each(lambda item: threading.current_thread().name, range(count), tmp_path))

        assert looked == {threading.current_thread().name}


@pytest.fixture
def waited_for(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The caller wants no more answers, and waits for the threads to end."""
    over, shutdown = threading.Event(), ThreadPoolExecutor.shutdown

    def ends(pool: ThreadPoolExecutor, *args: Any, **kwargs: Any) -> None:
        over.set()
        shutdown(pool, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", ends)
    return over


MOST = (abreast.THREADS + 1) * abreast._AT_ONCE
"""What was taken in one go at first, and what each thread has begun meanwhile."""


@pytest.mark.usefixtures("network")
def test_an_error_ends_it(tmp_path: Path, waited_for: threading.Event) -> None:
    """It is raised where the answers are taken, and what no thread had begun by then is left undone."""
    done: list[int] = []

    def look(item: int) -> None:
        if item == 3:
            raise OSError("no answer")
        assert item < abreast._AT_ONCE or waited_for.wait(20)
        done.append(item)

    with pytest.raises(OSError, match="no answer"):
        list(abreast.each(look, range(20_000), tmp_path))
    assert len(done) <= MOST


@pytest.mark.usefixtures("network")
def test_who_stops_asking_is_not_kept_waiting(tmp_path: Path, waited_for: threading.Event) -> None:
    """The first file that is missing decides; what comes after it is not looked at."""
    done: list[int] = []

    def look(item: int) -> int:
        assert item < abreast._AT_ONCE or waited_for.wait(20)
        done.append(item)
        return item

    answers = abreast.each(look, range(20_000), tmp_path)
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]  # it is a generator

    assert len(done) <= MOST


@pytest.mark.usefixtures("network")
def test_verdicts_are_the_same_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every kind of position: whole, torn, damaged, abandoned, stock's."""
    save = tmp_path / "save"
    tiny_run(save, epochs=3).ok()
    stock_trees.healthy(save, (3, 5), (3, 10))
    stock_trees.payload_path(save, "policy", 1, (3, 10)).unlink()
    own_trees.vote_path(save, "2_5", 1).unlink()
    own_trees.payload_path(save, "2_0", 1, "state").write_bytes(b"")
    own_trees.payload_path(save, "1_5", 0, "optimizer").unlink()
    own_trees.vote_path(save, "1_0", 0).write_bytes(b"{")
    shutil.rmtree(save / "commits" / "0_5")
    one_by_one = locate.every(save)
    monkeypatch.setattr(abreast, "FEW", 1)

    assert locate.every(save) == one_by_one
    assert len(one_by_one) == 8
