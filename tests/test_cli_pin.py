"""`ms-resume pin` and `unpin`: retention leaves what somebody wants to keep."""

from __future__ import annotations

import re
from pathlib import Path

import own_trees
import pytest
from command import act, call, example
from runs import tiny_run
from test_repair import running

import ms_resume
from ms_resume import retention
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, attempts
from ms_resume.records import Position, Writer

Capture = pytest.CaptureFixture[str]


def there(capsys: Capture, save: Path) -> list[list[int]]:
    return [row["position"] for row in call(capsys, "ls", save, "--json").json["positions"]]


def go_on(save: Path, epochs: int) -> None:
    """With retention of the two newest."""
    tiny_run(save, epochs=epochs, resume=True, settings=ms_resume.Settings(keep_last=2, heartbeat_s=0)).ok()


def test_it_stays_until_it_is_unpinned(save: Path, capsys: Capture) -> None:
    """Through a whole run, and then not through the next one."""
    act(capsys, "pin", save, "0_4")
    go_on(save, epochs=2)
    kept = there(capsys, save)
    act(capsys, "unpin", save, "0_4")
    go_on(save, epochs=3)

    assert kept == [[2, 0], [1, 5], [0, 4]]
    assert there(capsys, save) == [[3, 0], [2, 5]]


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_the_example_in_the_help_is_real(
    command: str, save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line."""
    monkeypatch.chdir(save.parent)
    words, pattern = example(command)
    words[2] = "0_4"  # the example's is another run
    if command == "unpin":
        act(capsys, "pin", save, "0_4")

    assert re.fullmatch(pattern.replace("0_5", "0_4"), act(capsys, words[0], words[1], *words[2:]).out.strip("\n"))


def test_json(save: Path, capsys: Capture) -> None:
    """What changed, and all that is pinned now; a second time nothing changes."""
    first = act(capsys, "pin", save, "0_4", "--json").json
    second = act(capsys, "pin", save, "0_8", "--json").json
    again = call(capsys, "pin", save, "0_4", "--json").json
    freed = act(capsys, "unpin", save, "0_4", "--json").json

    assert first == {"save": str(save), "position": [0, 4], "changed": True, "pinned": [[0, 4]]}
    assert (second["changed"], second["pinned"]) == (True, [[0, 8], [0, 4]])
    assert (again["changed"], again["pinned"]) == (False, [[0, 8], [0, 4]])
    assert (freed["changed"], freed["pinned"]) == (True, [[0, 8]])
    assert sorted(path.name for path in save.glob("pins/*")) == ["0_8"]


def test_ls_marks_it(save: Path, capsys: Capture) -> None:
    """For people and for scripts; a pin that was made by hand counts alike."""
    (save / "pins").mkdir()
    (save / "pins" / "0_6").write_text("the one for the paper")
    rows = call(capsys, "ls", save, "--json").json["positions"]

    assert [row["position"] for row in rows if row["pinned"]] == [[0, 6]]
    assert "    0_6       complete, pinned  ms_resume" in call(capsys, "ls", save).out
    assert f"{save}: 0_6 is pinned already\n" == call(capsys, "pin", save, "0_6").out


def test_while_a_job_is_running(save: Path, capsys: Capture) -> None:
    """That is when retention is at work."""
    running(save)
    codes = [act(capsys, command, save, "0_2").code for command in ("pin", "unpin")]

    assert codes == [0, 0]


def test_a_torn_one(save: Path, capsys: Capture) -> None:
    """Pinned all the same, and said."""
    own_trees.vote_path(save, "0_4", 1).unlink()
    called = act(capsys, "pin", save, "0_4")

    assert (called.code, called.out) == (0, f"{save}: 0_4 is pinned\n")
    assert "warning: 0_4 is torn: no vote of rank 1" in called.err


def retire(save: Path, position: Position) -> None:
    """What retention leaves before the ranks remove their payloads."""
    last = attempts.read_all(save)[-1]
    retention._retire(Writer(save, last, 0, last.world_size), survey.take(save), position)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_retention_has_taken(save: Path, when: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may still be there: no pin keeps them, so none stays. A job may do that while the pin is made."""
    if when == "before":
        retire(save, Position(0, 4))
    else:
        monkeypatch.setattr(atomic, "make_empty", lambda path: (path.touch(), retire(save, Position(0, 4))))
    called = act(capsys, "pin", save, "0_4")

    assert (called.code, called.out) == (20, "")
    assert "0_4 is torn: retention has deleted it" in called.err
    assert list(save.glob("pins/*")) == []


def test_what_is_not_there(save: Path, capsys: Capture) -> None:
    """A slip of the pen pins nothing, and frees nothing."""
    missing = call(capsys, "pin", save, "0_5")
    none = call(capsys, "unpin", save, "0_4")
    act(capsys, "pin", save, "0_8")
    other = call(capsys, "unpin", save, "0_4")

    assert (missing.code, none.code, other.code) == (10, 2, 2)
    assert "no position 0_5, there are 1_0, 0_8" in missing.err
    assert "0_4 is not pinned, nothing is\n" in none.err
    assert "0_4 is not pinned, pinned are 0_8\n" in other.err


def test_a_directory_that_cannot_be_written(save: Path, capsys: Capture) -> None:
    """Exit 40, with path and cause."""
    (save / "pins").write_text("")
    called = call(capsys, "pin", save, "0_4")

    assert called.code == 40
    assert f"{save}/pins: cannot make directory" in called.err
