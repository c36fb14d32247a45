"""`ms-resume restore`: an abandoned position comes back, or is shown what would come and go."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import own_trees
import pytest
import stock_trees
from command import Called, act, call, example
from runs import tiny_run
from test_repair import running
from test_resume import stock_job

from ms_resume import cli
from ms_resume.errors import NothingToResume
from ms_resume.ondisk import attempts
from ms_resume.records import Position

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("back") / "save"
    tiny_run(save, stop=(0, 7)).ok()
    tiny_run(save, epochs=2, resume=True).ok()
    start = {"position": Position(1, 0)}
    tiny_run(save, epochs=2, resume=True, save_every=1, start=start, stop=(1, 2)).ok()
    return save


@pytest.fixture
def save(back: Path, tmp_path: Path) -> Path:
    """Attempt 3 went back to 1_0 and saved 1_1 and 1_2: 1_5 and 2_0 of attempt 2 are abandoned."""
    return Path(shutil.copytree(back, tmp_path / "save", symlinks=True))


def verdicts(capsys: Capture, save: Path) -> dict[str, str]:
    rows = call(capsys, "ls", save, "--json").json["positions"]
    return {"{}_{}".format(*row["position"]): row["verdict"] + ("!" if row["taken"] else "") for row in rows}


def test_the_example_in_the_help_is_real(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line."""
    monkeypatch.chdir(save.parent)
    words, pattern = example("restore")

    assert re.fullmatch(pattern, act(capsys, words[0], words[1], *words[2:]).out.strip("\n"))


def test_a_dry_run_says_what_is_done_then(save: Path, capsys: Capture) -> None:
    """What is between comes back with it; the common past stays; the older position is no obstacle."""
    dry = call(capsys, "restore", save, "1_5", "--dry-run", "--json")
    said = call(capsys, "restore", save, "1_5", "--dry-run").out
    before = verdicts(capsys, save)
    done = act(capsys, "restore", save, "1_5", "--json")
    after = verdicts(capsys, save)

    changes = {"position": [1, 5], "restored": [[1, 5]], "abandoned": [[1, 2], [1, 1]]}
    assert dry.json == {"save": str(save), "dry_run": True, "attempt": None, **changes}
    record = attempts.read_all(save)[-1].attempt
    assert done.json == {"save": str(save), "dry_run": False, "attempt": record, **changes}
    assert said == (
        f"{save}: a resume would take 1_5; nothing was written\nbrought back  1_5\nabandoned     1_2, 1_1\n"
    )
    left, taken = "abandoned", "complete!"
    assert before == {"2_0": left, "1_5": left, "1_2": taken, "1_1": "complete", "1_0": "complete", "0_5": "complete"}
    assert after == {"2_0": left, "1_5": taken, "1_2": left, "1_1": left, "1_0": "complete", "0_5": "complete"}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_is_taken_already(save: Path, capsys: Capture, dry: tuple[str, ...]) -> None:
    """Fine, and nothing changes."""
    called = call(capsys, "restore", save, "1_2", *dry)

    assert (called.code, called.out) == (0, f"{save}: a resume takes 1_2 already\n")


def test_stock_positions(tmp_path: Path, capsys: Capture) -> None:
    """They are left behind by the record, one by one: the dry run knows that, too."""
    save = tmp_path / "save"
    stock_trees.healthy(save, (0, 5), (0, 10))
    stock_job(save, lambda checkpointer, seen: checkpointer.save(0, 12), position=Position(0, 5))
    for rank in (0, 1):
        for role in stock_trees.DIRECTORIES:
            stock_trees.add(save, role, [rank], (0, 20))
    changes = [
        {key: called.json[key] for key in ("restored", "abandoned")}
        for called in (
            call(capsys, "restore", save, "0_10", "--dry-run", "--json"),
            act(capsys, "restore", save, "0_10", "--json"),
        )
    ]

    assert changes == [{"restored": [[0, 10]], "abandoned": [[0, 20], [0, 12]]}] * 2


REFUSED: list[tuple[str, Callable[[Path], object], int, str]] = [
    # asked for  what happened to it                                                         exit, said
    ("9_9", lambda save: None, 10, "no position 9_9, there are 2_0, 1_5, 1_2, 1_1, 1_0, 0_5"),
    ("1_0", lambda save: None, 2, "1_0 is not abandoned, a newer one is live"),
    ("2_0", lambda save: own_trees.vote_path(save, "2_0", 1).unlink(), 20, "no vote of rank 1"),
    ("2_0", lambda save: own_trees.flip(own_trees.payload_path(save, "2_0", 1, "policy"), 99), 21, "rank_1-2_0"),
    ("2_0", running, 61, "is running there"),
    ("five", lambda save: None, 2, "'five' is not a position"),
]


@pytest.mark.parametrize(("at", "happened", "code", "said"), REFUSED)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_cannot_be(
    save: Path, at: str, happened: Callable[[Path], object], code: int, said: str, dry: tuple[str, ...], capsys: Capture
) -> None:
    """The same with and without --dry-run, and nothing is changed."""
    happened(save)
    called = call(capsys, "restore", save, at, *dry)

    assert (called.code, called.out) == (code, "")
    assert said in called.err


def test_a_directory_without_a_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    """As every command says it."""
    (tmp_path / "iteration_00000010").mkdir()

    assert "mindformers-2 checkpoints" in call(capsys, "restore", tmp_path, "0_5").err


def test_the_hint_of_a_start_that_was_refused(save: Path, capsys: Capture) -> None:
    """Typed as it stands it does what it says, whatever the directory is called; then the start works."""
    save = save.rename(save.with_name("my save"))
    start = {"position": Position(2, 0)}
    with pytest.raises(NothingToResume) as caught:
        tiny_run(save, epochs=2, resume=True, start=start).ok()
    [typed] = re.findall("`(.*)`", caught.value.hint)
    words = shlex.split(typed)
    ended = Called(cli.main(words[1:]), *capsys.readouterr())

    assert words[:2] == ["ms-resume", "restore"]
    assert (ended.code, "a resume takes 2_0 from now on" in ended.out) == (0, True)
    assert tiny_run(save, epochs=2, resume=True).ok()[0].start == Position(2, 0)
