"""The newest whole checkpoint on the live line is found, by position, with a reason for each newer one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import own_trees
import pytest
import stock_trees
from command import tree
from runs import tiny_run

from ms_resume import locate, verify
from ms_resume.errors import Damaged, NothingToResume, Torn, UsageError
from ms_resume.layouts import survey
from ms_resume.records import Checkpoint, Located, Position, Rejection


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, epochs=2).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """A finished run of two ranks, whole at 0_5, 1_0, 1_5, 2_0."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


def found(located: Located) -> str | None:
    return str(located.checkpoint.position) if located.checkpoint else None


def passed(located: Located) -> list[tuple[str, str]]:
    return [(str(rejection.position), rejection.kind) for rejection in located.rejected]


def headers(checkpoint: Checkpoint) -> Rejection | None:
    return verify.rejection(checkpoint, verify.check(checkpoint))


def test_the_newest_is_taken(save: Path) -> None:
    """Nothing is passed over, and looking changes nothing."""
    before = tree(save)

    located = locate.latest(save)

    assert (found(located), located.rejected, located.warnings) == ("2_0", (), ())
    assert tree(save) == before


def test_newest_is_by_position_never_by_a_clock(save: Path) -> None:
    """Restored from a backup, every file has another time."""
    for at, age_s in (("2_0", 9000), ("0_5", 0)):
        for path in (save / "commits" / at).iterdir():
            os.utime(path, (time.time() - age_s,) * 2)

    assert found(locate.latest(save)) == "2_0"


def test_ten_is_newer_than_nine(tmp_path: Path) -> None:
    """Numbers, not text."""
    stock_trees.healthy(tmp_path / "save", (0, 9), (0, 10), (9, 0), (10, 0))

    every = [str(judged.position) for judged in locate.every(tmp_path / "save")]

    assert every == ["10_0", "9_0", "0_10", "0_9"]


def test_torn_ones_are_passed_over_with_reasons(save: Path) -> None:
    """Newest first, down to the one that is taken."""
    own_trees.vote_path(save, "2_0", 0).unlink()
    own_trees.payload_path(save, "1_5", 1, "state").write_bytes(b"")

    located = locate.latest(save)

    assert (found(located), passed(located)) == ("1_0", [("2_0", "torn"), ("1_5", "damaged")])


def test_a_check_may_turn_a_complete_one_down(save: Path) -> None:
    """A header that is not the voted one, at the same size."""
    own_trees.flip(own_trees.payload_path(save, "2_0", 1, "policy"), 3000)

    assert found(locate.latest(save)) == "2_0"
    located = locate.latest(save, check=headers)
    assert (found(located), passed(located)) == ("1_5", [("2_0", "damaged")])
    assert located.rejected[0].ranks == (1,)


def test_known_bad_ones_are_excluded(save: Path) -> None:
    """What a load found damaged is not judged again; its reason is handed on."""
    bad = Rejection(Position(2, 0), "damaged", "tensor 'w'", (1,))

    located = locate.latest(save, excluded=[bad])

    assert (found(located), located.rejected) == ("1_5", (bad,))


def test_a_future_left_behind_is_not_resumed(save: Path) -> None:
    """An attempt went on from 1_0 and died before it saved: 1_5 and 2_0 of the first one stay dead."""
    for at in ("2_0", "1_5"):
        shutil.move(save / "commits" / at, save / at)
    tiny_run(save, epochs=2, resume=True, stop=(1, 3)).ok()
    for at in ("2_0", "1_5"):
        shutil.move(save / at, save / "commits" / at)

    located = locate.latest(save)

    assert (found(located), passed(located)) == ("1_0", [("2_0", "abandoned"), ("1_5", "abandoned")])


def test_the_line_goes_through_every_attempt(tmp_path: Path) -> None:
    """Three starts, each from the last: all of their checkpoints up to where they were left are live."""
    for stop in ((0, 7), (1, 7)):
        tiny_run(tmp_path / "save", epochs=2, resume=stop != (0, 7), stop=stop).ok()
    tiny_run(tmp_path / "save", epochs=2, resume=True).ok()

    every = locate.every(tmp_path / "save")

    assert [(str(judged.position), type(judged)) for judged in every] == [
        (at, Checkpoint) for at in ("2_0", "1_5", "1_0", "0_5")
    ]
    assert len({judged.attempt for judged in every}) == 3


def test_a_stock_job_that_went_on_from_ours_wins(save: Path) -> None:
    """Both kinds stand side by side; position decides."""
    stock_trees.healthy(save, (2, 5))

    located = locate.latest(save)

    assert (found(located), located.checkpoint and located.checkpoint.layout) == ("2_5", "mindrlhf")


def test_latest_and_meta_are_only_hints(save: Path) -> None:
    """`latest` lost and every meta.json pointing nowhere: the files decide."""
    (save / "latest").unlink(missing_ok=True)
    (save / "latest").symlink_to("commits/9_9")
    for path in save.glob("*/rank_*/meta.json"):
        path.write_bytes(b"{")

    assert found(locate.latest(save)) == "2_0"


def test_what_retention_deleted_is_no_position(save: Path) -> None:
    """Its payloads may lie there until their ranks remove them."""
    (save / "commits" / "2_0").rename(save / "commits" / "2_0.deleted-000001-0123456789abcdef")

    assert (found(locate.latest(save)), locate.latest(save).rejected) == ("1_5", ())
    with pytest.raises(NothingToResume, match=r"no position 7_7, there are 1_5, 1_0, 0_5\n"):
        locate.at(save, Position(7, 7))
    with pytest.raises(Torn, match="2_0 is torn: retention has deleted it"):
        locate.at(save, Position(2, 0))


def test_a_final_stock_position_is_the_end_of_its_epoch(tmp_path: Path) -> None:
    """Stock code names it (epochs, steps per epoch); it is older than (10, 5), once that number is known."""
    stock_trees.healthy(tmp_path / "save", (10, 500), (10, 5))

    assert found(locate.latest(tmp_path / "save", steps_per_epoch=500)) == "10_5"


def test_an_attempt_record_that_cannot_be_read_stops_the_search(save: Path) -> None:
    """Going on without it could bring back what was left behind: the file and what to do are named."""
    record = save / "commits" / "attempts" / "000001.json"
    record.write_bytes(b'{"attempt": ')

    with pytest.raises(Damaged, match=str(record)) as caught:
        locate.latest(save)
    assert "restore that file" in caught.value.hint


@pytest.mark.parametrize(("build", "what"), [(Path.touch, "is a file"), (lambda path: None, "does not exist")])
def test_no_directory_is_a_usage_error(build, what: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What is there instead, and what was expected."""
    build(tmp_path / "save")

    with pytest.raises(UsageError, match=f"{what}, expected a save directory"):
        locate.latest(tmp_path / "save")


class TestNeverWhole:
    """Only where nothing was ever whole may a resume start fresh by itself."""

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        """A first start."""
        assert locate.never_whole(survey.take(tmp_path))

    def test_a_first_attempt_that_died_in_its_first_save(self, tmp_path: Path) -> None:
        """One rank voted, the other did not."""
        save = tmp_path / "save"
        tiny_run(save, stop=(0, 6)).ok()
        own_trees.vote_path(save, "0_5", 1).unlink()

        assert locate.never_whole(survey.take(save))

    def test_a_checkpoint_whose_files_are_gone(self, save: Path) -> None:
        """It has all its votes, so it was whole once."""
        for path in save.glob("optimizer/rank_1/*.safetensors"):
            path.unlink()

        assert locate.latest(save).checkpoint is None
        assert not locate.never_whole(survey.take(save))

    def test_a_checkpoint_that_retention_deleted(self, tmp_path: Path) -> None:
        """It was whole."""
        (tmp_path / "commits" / "0_5.deleted-000001-0123456789abcdef").mkdir(parents=True)

        assert not locate.never_whole(survey.take(tmp_path))

    def test_a_torn_one_of_an_attempt_that_resumed(self, save: Path) -> None:
        """What it went on from was whole."""
        tiny_run(save, epochs=3, resume=True, stop=(2, 6)).ok()
        for path in save.glob("commits/*_*"):
            shutil.rmtree(path)

        assert not locate.never_whole(survey.take(save))

    def test_a_stock_checkpoint(self, tmp_path: Path) -> None:
        """Whole or not: nobody knows what it was."""
        stock_trees.f8(tmp_path / "save")

        assert not locate.never_whole(survey.take(tmp_path / "save"))


def test_cost_does_not_grow_with_what_is_older(tmp_path: Path) -> None:
    """Only the newest position's votes are opened: broken older ones do not even matter."""
    save = tmp_path / "save"
    tiny_run(save, save_every=1).ok()
    for path in save.glob("commits/0_*/rank_*.json"):
        path.unlink()
        path.mkdir()  # opening one would raise

    assert found(locate.latest(save)) == "1_0"
