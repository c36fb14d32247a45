"""`ms-resume prune`: the plan says what goes and why; --yes does that, and never more."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_trees
import pytest
import savers
import stock_trees
from command import Called, act, call, example
from runs import tiny_run
from test_repair import running

import ms_resume
from ms_resume import ownership, removal, retention
from ms_resume.layouts import survey
from ms_resume.ondisk import attempts, names, payload
from ms_resume.records import Position
from ms_resume.retention import Keep

Capture = pytest.CaptureFixture[str]
P = Position.parse


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, stop=(0, 7)).ok()
    tiny_run(save, epochs=2, resume=True).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """Whole at 0_5, 1_0, 1_5, 2_0; the reference is that of 0_5 in all of them."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


def plan(called: Called) -> dict[str, tuple[str, bool, str]]:
    return {
        "{}_{}".format(*row["position"]): (row["verdict"], row["goes"], row["reason"])
        for row in called.json["positions"]
    }


def payload_bytes(save: Path) -> int:
    """Each file once, whatever the number of its names."""
    files = {(s.st_dev, s.st_ino): s.st_size for p in save.rglob("*.safetensors") for s in [p.stat()]}
    return sum(files.values())


def verified(capsys: Capture, save: Path) -> list[list[int]]:
    """The positions that are there; every byte of them is as it was saved."""
    called = call(capsys, "verify", save, "--all", "--deep", "--json")
    assert called.code == 0
    return [row["position"] for row in called.json["positions"]]


def test_the_example_in_the_help_is_real(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, and nothing is removed."""
    own_trees.vote_path(save, "2_0", 1).unlink()
    monkeypatch.chdir(save.parent)
    words, pattern = example("prune")

    assert re.fullmatch(pattern, call(capsys, words[0], words[1], *words[2:]).out.strip("\n"))


def test_a_file_with_the_name_of_a_vote_directory(save: Path, capsys: Capture) -> None:
    """It holds no vote, and is no reason to keep what is to go."""
    (save / "commits" / "0_7").touch()
    (save / "commits" / "9_7").touch()
    gone = [at for at, (_, goes, _) in plan(call(capsys, "prune", save, "--json")).items() if goes]
    called = call(capsys, "prune", save, "--yes")

    assert called.code == 0
    assert not any((save / "commits" / at).is_dir() for at in gone)


def test_yes_does_what_the_plan_says(save: Path, capsys: Capture) -> None:
    """The same rows; so many bytes are free; what stays is whole to its last byte, the old reference included."""
    before = payload_bytes(save)
    planned = call(capsys, "prune", save, "--keep-last", "2", "--json")
    done = act(capsys, "prune", save, "--keep-last", "2", "--json", "--yes")
    again = call(capsys, "prune", save, "--keep-last", "2", "--yes")

    assert list(planned.json) == ["save", "keep", "done", "positions"]
    assert planned.json["keep"] == {"last": 2, "every": 0, "best": ""}
    assert (planned.json["done"], done.json["done"]) == (False, True)
    assert planned.json["positions"] == done.json["positions"]
    kept = "one of the newest 2 complete ones"
    gone = "older than 1_5, the oldest of the newest 2 complete ones"
    assert plan(done) == {
        "2_0": ("complete", False, kept),
        "1_5": ("complete", False, kept),
        "1_0": ("complete", True, gone),
        "0_5": ("complete", True, gone),
    }
    assert before - payload_bytes(save) == sum(row["bytes"] for row in done.json["positions"]) > 0
    assert verified(capsys, save) == [[2, 0], [1, 5]]
    assert own_trees.payload_path(save, "0_5", 1, "ref").exists()
    assert (again.code, again.out.endswith("\nnothing to prune\n")) == (0, True)
    assert tiny_run(save, epochs=2, resume=True).ok()[0].start == P("2_0")


def test_a_reference_goes_with_the_last_that_names_it(tmp_path: Path, capsys: Capture) -> None:
    """It is counted once, and the one that stays is not counted."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    previous = None
    for step in range(1, 6):
        previous = savers.save(who, f"0_{step}", previous, ref=1.0 if step < 3 else 2.0)
    before = payload_bytes(tmp_path)
    done = act(capsys, "prune", tmp_path, "--keep-last", "2", "--json", "--yes").json

    assert before - payload_bytes(tmp_path) == sum(row["bytes"] for row in done["positions"])
    assert sorted(path.name for path in tmp_path.rglob("ref_*")) == ["ref_rank_0-0_3.safetensors"]
    assert verified(capsys, tmp_path) == [[0, 5], [0, 4]]


def test_files_that_replicas_share(save: Path, capsys: Capture) -> None:
    """They take room once, and free it when both names go."""
    for at in ("0_5", "1_0"):
        mine, other = (own_trees.payload_path(save, at, rank, "state") for rank in (0, 1))
        vote = own_trees.vote_path(save, at, 1)
        digest, size = payload.read_header(mine).digest, mine.stat().st_size
        other.unlink()
        os.link(mine, other)
        own_trees.edit_vote(save, at, 1, lambda vote, d=digest, s=size: vote["files"][-1].update(digest=d, bytes=s))
        assert vote.exists()
    (save / "mine").mkdir()
    os.link(own_trees.payload_path(save, "0_5", 0, "state"), save / "mine" / "copy.safetensors")
    before = payload_bytes(save)
    done = act(capsys, "prune", save, "--keep-last", "2", "--json", "--yes").json

    assert before - payload_bytes(save) == sum(row["bytes"] for row in done["positions"])


def test_why_each_one_stays(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule that can keep a position, and every one that can take it."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    for step in range(1, 10):
        savers.save(who, f"0_{step}")
    metrics = {1: 0.1, 2: 0.9, 3: 0.2}
    for step, reward in metrics.items():
        own_trees.edit_vote(tmp_path, f"0_{step}", 0, lambda vote, r=reward: vote.update(metrics={"reward": r}))
    own_trees.vote_path(tmp_path, "0_7", 0).unlink()  # its attempt has gone past it: its mark says whose it is
    own_trees.payload_path(tmp_path, "0_6", 0, "state").write_bytes(b"")
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "0_1").touch()
    stock_trees.set_meta(tmp_path, "policy", 0, stock_trees.meta_bytes("policy", 0, (0, 3)))
    monkeypatch.setenv("MS_RESUME_KEEP_LAST", "3")
    monkeypatch.setenv("MS_RESUME_KEEP_EVERY", "4")
    monkeypatch.setenv("MS_RESUME_KEEP_BEST", "max:reward")
    stock_trees.add(tmp_path, "policy", [0], (0, 20))

    assert plan(call(capsys, "prune", tmp_path, "--json")) == {
        "0_20": ("stock", False, "not of ms_resume: never removed"),
        "0_9": ("complete", False, "one of the newest 3 complete ones"),
        "0_8": ("complete", False, "one of the newest 3 complete ones"),
        "0_7": ("torn", True, "torn, and its attempt has gone on past it"),
        "0_6": ("damaged", False, "not older than 0_5, the oldest of the newest 3 complete ones"),
        "0_5": ("complete", False, "one of the newest 3 complete ones"),
        "0_4": ("complete", False, "its global step 4 is one of every 4"),
        "0_3": ("complete", False, "a meta.json in train names it"),
        "0_2": ("complete", False, "the best by max:reward"),
        "0_1": ("complete", False, "pinned"),
    }


def test_weights_alone(save: Path, capsys: Capture) -> None:
    """They are counted for themselves, and go where nothing else does."""
    for at in ("2_0", "1_5", "1_0"):
        for rank in (0, 1):
            own_trees.edit_vote(save, at, rank, lambda vote: vote["files"].pop(1))
    done = act(capsys, "prune", save, "--keep-last", "2", "--json", "--yes")

    assert plan(done) == {
        "2_0": ("weights", False, "one of the newest 2 of weights alone"),
        "1_5": ("weights", False, "one of the newest 2 of weights alone"),
        "1_0": ("weights", True, "not one of the newest 2 of weights alone"),
        "0_5": ("complete", False, "nothing goes while fewer than 2 are complete"),
    }
    assert not (save / "commits" / "1_0").exists()


@pytest.mark.parametrize(
    ("keep_last", "gone"), [("1", [[1, 0], [0, 5]]), ("3", [[0, 5]]), ("4", []), ("0", []), ("-1", [])]
)
def test_how_many_stay(save: Path, keep_last: str, gone: list[list[int]], capsys: Capture) -> None:
    """Never fewer than two; 0 keeps all."""
    rows = call(capsys, "prune", save, "--keep-last", keep_last, "--json").json["positions"]

    assert [row["position"] for row in rows if row["goes"]] == gone


def test_too_few_are_complete(save: Path, capsys: Capture) -> None:
    """Then nothing goes."""
    for at in ("2_0", "1_5", "1_0"):
        own_trees.vote_path(save, at, 1).unlink()
    called = call(capsys, "prune", save, "--keep-last", "2", "--json", "--yes")

    assert {goes for _, goes, _ in plan(called).values()} == {False}
    assert {why for _, _, why in plan(called).values()} == {"nothing goes while fewer than 2 are complete"}


def test_the_newest_by_votes_are_damaged(save: Path, capsys: Capture) -> None:
    """What a resume falls back on stays: by votes and sizes alone it would go."""
    for at in ("2_0", "1_5"):
        own_trees.flip(own_trees.payload_path(save, at, 1, "policy"), 99)
    called = act(capsys, "prune", save, "--keep-last", "2", "--json", "--yes")

    sound = "one of the newest 2 that a resume can take: their headers are valid"
    assert [plan(called)[at][1:] for at in ("1_0", "0_5")] == [(False, sound), (False, sound)]
    assert call(capsys, "locate", save, "--deep", "--json").json["position"] == [1, 0]


def test_what_a_job_could_not_finish(save: Path, capsys: Capture) -> None:
    """Rank 0 had taken a position out, then all were killed: its files go, and its directory."""
    last = attempts.read_all(save)[-1]
    retention.sweep(savers.writer(save, last), survey.take(save), Keep(3))
    planned = call(capsys, "prune", save, "--json")
    before = payload_bytes(save)
    done = act(capsys, "prune", save, "--json", "--yes").json

    assert plan(planned)["0_5"] == ("deleted", True, "taken out before, files of it are left")
    assert before - payload_bytes(save) == sum(row["bytes"] for row in done["positions"]) > 0
    assert call(capsys, "prune", save).out.endswith("\nnothing to prune\n")
    assert len(verified(capsys, save)) == 3


def test_ranks_of_a_larger_job(tmp_path: Path, capsys: Capture) -> None:
    """Nobody else would ever remove what they left. Their meta.json counts, where it is still there."""
    first = savers.open_attempt(tmp_path, world_size=3)
    for step in (1, 2):
        savers.save_all(f"0_{step}", *(savers.writer(tmp_path, first, rank) for rank in range(3)))
    for role in names.DIRECTORIES:
        shutil.rmtree(names.rank_dir(tmp_path, role, 2))
    second = savers.open_attempt(tmp_path, "0_2", by=first.attempt, world_size=1)
    for step in (3, 4):
        savers.save(savers.writer(tmp_path, second), f"0_{step}")
    act(capsys, "prune", tmp_path, "--keep-last", "2", "--yes")

    assert {path.stem.rpartition("-")[2] for path in tmp_path.rglob("*.safetensors")} == {"0_2", "0_3", "0_4"}
    assert sorted(os.listdir(tmp_path / "commits")) == ["0_2", "0_3", "0_4", "attempts"]


def test_a_job_is_running(save: Path, capsys: Capture) -> None:
    """The plan is for everybody; --yes is exit 61 and removes nothing."""
    running(save)
    planned = call(capsys, "prune", save, "--keep-last", "2", "--json")
    refused = call(capsys, "prune", save, "--keep-last", "2", "--json", "--yes")

    assert (planned.code, plan(planned)["0_5"][1]) == (0, True)
    assert (refused.code, refused.json["error"]) == (61, "DirectoryInUse")


@pytest.mark.parametrize(
    ("moment", "turn", "code"),
    [("check_free", 0, 61), *(("assert_owner", turn, 61) for turn in range(4)), ("assert_owner", 9, 0)],
)
def test_a_job_that_starts_in_between_wins(
    save: Path, moment: str, turn: int, code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after prune was told that the directory is free, or its own: the job has lost nothing.

    The last row is while files are removed: then the job itself has removed the rest.
    """
    real, asked = getattr(ownership, moment), []

    def ask(*args: Any) -> Any:
        answer = real(*args)
        asked.append(moment)
        if len(asked) == turn + 1:
            monkeypatch.undo()
            tiny_run(save, epochs=3, resume=True, stop=(2, 5)).ok()
        return answer

    for module in (ownership, removal):
        monkeypatch.setattr(module, moment, ask, raising=False)
    called = act(capsys, "prune", save, "--keep-last", "2", "--yes")

    assert (called.code, "superseded by attempt number 3" in called.err) == (code, code == 61)
    assert len(asked) > turn
    assert call(capsys, "locate", save, "--deep", "--json").json["position"] == [2, 5]
    assert tiny_run(save, epochs=3, resume=True).ok()[0].start == P("2_5")


def _calls(monkeypatch: pytest.MonkeyPatch, dies_at: int) -> list[str]:
    """Lets the process be killed before its n-th call that changes the disk; returns the calls so far."""
    seen: list[str] = []

    def wrap(name: str, real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            if len(seen) >= dies_at:
                raise KeyboardInterrupt  # and each call after it: nothing runs after a kill
            seen.append(name)
            return real(*args, **named)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "fsync"):
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return seen


def _deaths(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Path]]:
    """A directory for each call before which prune was killed."""
    for dies_at in range(1000):
        here = Path(shutil.copytree(save, save.with_name(f"dead-{dies_at}"), symlinks=True))
        seen = _calls(monkeypatch, dies_at)
        code = act(capsys, "prune", here, "--keep-last", "2", "--yes").code
        monkeypatch.undo()
        if code == 0:
            assert len(seen) == dies_at
            return
        assert code == 130
        yield dies_at, here


def test_killed_before_any_call(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays is whole, a second try does the rest, and so does a run that goes on instead."""
    whole = Path(shutil.copytree(save, save.with_name("whole"), symlinks=True))
    act(capsys, "prune", whole, "--keep-last", "2", "--yes")
    deaths = 0
    for dies_at, here in _deaths(save, capsys, monkeypatch):
        deaths += 1
        assert call(capsys, "locate", here, "--deep", "--json").json["position"] == [2, 0], dies_at
        rows = call(capsys, "verify", here, "--all", "--deep", "--json").json["positions"]
        assert [row["position"] for row in rows if row["verdict"] == "valid"][:2] == [[2, 0], [1, 5]], dies_at
        assert {row["verdict"] for row in rows} <= {"valid", "torn"}, dies_at
        if dies_at % 5 == 0:
            gone_on = Path(shutil.copytree(here, here.with_name(f"on-{dies_at}"), symlinks=True))
            settings = ms_resume.Settings(keep_last=2, heartbeat_s=0)
            tiny_run(gone_on, epochs=3, resume=True, settings=settings).ok()
            assert verified(capsys, gone_on) == [[3, 0], [2, 5]], dies_at
            assert len(list(gone_on.rglob("policy_model*"))) == 4, dies_at
        assert act(capsys, "prune", here, "--keep-last", "2", "--yes").code == 0
        assert savers.files(here) == savers.files(whole), dies_at

    assert deaths > 40


def test_a_disk_that_fails(save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 40; once more does the rest."""
    real = os.unlink

    def failing(path: Any, **named: Any) -> None:
        if "optimizer_rank_1-0_5" in str(path):
            raise OSError(5, "Input/output error", str(path))
        real(path, **named)

    monkeypatch.setattr(os, "unlink", failing)
    called = act(capsys, "prune", save, "--keep-last", "2", "--yes")
    monkeypatch.undo()
    again = act(capsys, "prune", save, "--keep-last", "2", "--yes")

    assert (called.code, "cannot remove: Input/output error" in called.err) == (40, True)
    assert again.code == 0
    assert verified(capsys, save) == [[2, 0], [1, 5]]
    assert not list(names.rank_dir(save, "optimizer", 1).glob("*0_5*"))


def test_usage(save: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is misspelt, and a directory without a checkpoint."""
    (tmp_path / "empty").mkdir()
    number = call(capsys, "prune", save, "--keep-last", "two")
    empty = call(capsys, "prune", tmp_path / "empty")
    monkeypatch.setenv("MS_RESUME_KEEP_LATS", "2")
    setting = call(capsys, "prune", save)

    assert (number.code, empty.code, setting.code) == (2, 10, 2)
    assert "did you mean MS_RESUME_KEEP_LAST?" in setting.err
