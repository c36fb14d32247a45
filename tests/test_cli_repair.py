"""`ms-resume repair`: meta.json files mended, or shown how they would be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import own_trees
import pytest
import savers
import stock_trees
from command import act, call, example, in_terminal
from runs import tiny_run
from test_cli import MODULE
from test_repair import running

Capture = pytest.CaptureFixture[str]
TORN = b'{"last_epoch": 1, "last_s'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, epochs=2).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """Whole at 0_5, 1_0, 1_5; 2_0 is torn, so that all meta.json files but one name it in vain, and that is torn."""
    save = Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))
    own_trees.vote_path(save, "2_0", 1).unlink()
    for rank in (0, 1):
        for role in ("policy", "optimizer"):
            stock_trees.set_meta(save, role, rank, stock_trees.meta_bytes(role, rank, (1, 5)))
    stock_trees.set_meta(save, "policy", 1, TORN)
    return save


def test_the_example_in_the_help_is_real(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line."""
    monkeypatch.chdir(save.parent)
    words, pattern = example("repair")

    called = call(capsys, words[0], words[1], *words[2:])

    assert re.fullmatch(pattern, called.out.strip("\n"))


def test_a_dry_run_says_what_is_done_then(save: Path, capsys: Capture) -> None:
    """The first changes nothing, the second what the first said, the third finds nothing."""
    path = stock_trees.meta_path(save, "policy", 1)
    dry = call(capsys, "repair", save, "--dry-run", "--json")
    done = act(capsys, "repair", save, "--json")
    again = act(capsys, "repair", save)

    assert list(dry.json) == ["save", "dry_run", "files"]
    assert (dry.json["dry_run"], done.json["dry_run"]) == (True, False)
    [planned], [rewritten] = dry.json["files"], done.json["files"]
    assert planned == {
        "path": str(path),
        "trouble": "torn",
        "position": [1, 5],
        "said": TORN.decode(),
        "says": stock_trees.meta_bytes("policy", 1, (1, 5)).decode(),
        "kept": None,
    }
    assert rewritten == {**planned, "kept": f"{path}.broken-1"}
    assert path.read_text() == planned["says"]
    assert path.with_name("meta.json.broken-1").read_bytes() == TORN
    assert (again.code, again.out) == (0, f"{save}: every meta.json is as it should be\n")


def test_for_people(save: Path, capsys: Capture) -> None:
    """What it said and says; a missing one said nothing, and one that is long is cut."""
    stock_trees.meta_path(save, "optimizer", 0).unlink()
    stock_trees.set_meta(save, "policy", 1, b"\x1b" + b"x" * 1000)
    out = act(capsys, "repair", save).out

    says = stock_trees.meta_bytes("optimizer", 0, (1, 5)).decode()
    assert f"{save}/optimizer/rank_0/meta.json: missing\n  says now  {says}\n{save}/train" in out
    assert f"  said      \\x1b{'x' * 199}...\n  says now  {{" in out
    assert out.endswith("/meta.json.broken-1\n2 files rewritten\n")


def test_many_files_on_a_terminal(tmp_path: Path) -> None:
    """The first few; a pipe has all of them."""
    stock_trees.healthy(tmp_path / "save", (0, 5), ranks=range(20))
    for rank in range(20):
        stock_trees.set_meta(tmp_path / "save", "policy", rank, b"")
    shown = in_terminal([*MODULE, "repair", "save", "--dry-run"], tmp_path, columns=200)

    assert shown.count("would say") == 16
    assert "... and 4 more files; a pipe gets all\n20 files would be rewritten" in shown


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_job_is_running(save: Path, capsys: Capture, dry: tuple[str, ...]) -> None:
    """Exit 61, and nothing is changed: it writes them itself."""
    running(save)
    called = call(capsys, "repair", save, "--json", *dry)

    assert (called.code, called.json["error"]) == (61, "DirectoryInUse")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_nothing_to_name(tmp_path: Path, capsys: Capture, dry: tuple[str, ...]) -> None:
    """Exit 10 where nothing is whole, and where nothing is at all."""
    stock_trees.f8(tmp_path / "f8")
    (tmp_path / "empty").mkdir()
    torn, empty = (call(capsys, "repair", tmp_path / name, *dry) for name in ("f8", "empty"))

    assert (torn.code, empty.code) == (10, 10)
    assert "no whole checkpoint that meta.json could name" in torn.err
    assert f"`ms-resume ls {tmp_path}/f8` has why" in torn.err
    assert "is empty, expected train/rank_R/" in empty.err


def test_a_reference_elsewhere(tmp_path: Path, capsys: Capture) -> None:
    """--ref-dir makes the checkpoint whole; nothing is written there."""
    stock_trees.f3(tmp_path / "save")
    (tmp_path / "save" / "ref").rename(tmp_path / "base")
    before = savers.files(tmp_path / "base")
    called = act(capsys, "repair", tmp_path / "save", "--ref-dir", str(tmp_path / "base"))

    assert (called.code, called.out.count("says now")) == (0, 1)
    assert savers.files(tmp_path / "base") == before
