"""The vote and what surrounds it: retracting, casting, meta.json."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import savers
import stock_trees

from ms_resume import commit, locate
from ms_resume.errors import DiskError, Superseded
from ms_resume.ondisk import atomic, names, payload, votes
from ms_resume.records import Position

P = Position.parse


def latest(save: Path) -> str:
    found = locate.latest(save).checkpoint
    return str(found.position) if found else "none"


def meta(save: Path, role: str, rank: int = 0) -> dict[str, object]:
    text = (names.rank_dir(save, role, rank) / names.META).read_text()
    loaded: dict[str, object] = json.loads(text)
    return loaded


def test_a_position_counts_with_the_last_vote_and_not_before(tmp_path: Path) -> None:
    """Two ranks, one after the other: the older checkpoint stands until the second vote."""
    attempt = savers.open_attempt(tmp_path, world_size=2)
    first, second = (savers.writer(tmp_path, attempt, rank) for rank in (0, 1))
    savers.save_all("0_5", first, second)
    savers.save(first, "0_10")
    between = latest(tmp_path)
    savers.save(second, "0_10")

    assert (between, latest(tmp_path)) == ("0_5", "0_10")


def test_a_vote_says_what_the_format_promises(tmp_path: Path) -> None:
    """The keys of docs/format.md, and nothing relative outside the save directory."""
    vote = savers.save(savers.writer(tmp_path, savers.open_attempt(tmp_path)), "0_5")
    document = json.loads(names.vote(tmp_path, P("0_5"), 0).read_bytes())

    assert list(document) == [
        "format", "epoch", "step", "global_step", "steps_per_epoch", "rank", "world_size", "attempt", "files",
        "layout", "parallel", "config", "model_config", "metrics", "tool", "created_at", "digest",
    ]  # fmt: skip  # one list
    assert document["format"] == "ms_resume/1"
    assert [file["role"] for file in document["files"]] == ["policy", "optimizer", "ref", "state"]
    for file in vote.files:
        header = payload.read_header(tmp_path / file.path)
        assert (file.bytes, file.digest) == ((tmp_path / file.path).stat().st_size, header.digest)


def test_meta_json_has_three_keys_and_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order ref, optimizer, train, after the vote: stock code reads each alone, so weights must be the last to move."""
    written: list[str] = []
    real_replace, real_publish = atomic.replace, atomic.publish

    def replace(path: Path, content: bytes, attempt: str) -> None:
        written.append(path.parent.parent.name)
        real_replace(path, content, attempt)

    def publish(path: Path, chunks: list[bytes], attempt: str) -> None:
        written.append(path.parent.parent.name)
        real_publish(path, chunks, attempt)

    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    monkeypatch.setattr(atomic, "replace", replace)
    monkeypatch.setattr(atomic, "publish", publish)
    savers.save(who, "0_5")

    assert written == ["train", "optimizer", "ref", "state", "commits", "ref", "optimizer", "train"]
    assert meta(tmp_path, "policy") == {
        "last_epoch": 0,
        "last_step": 5,
        "last_ckpt_file": "policy_model_rank_0-0_5.safetensors",
    }
    assert not (names.rank_dir(tmp_path, "state", 0) / names.META).exists()


def test_meta_json_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vote is cast: the checkpoint counts, and the next save repairs."""
    from ms_resume import write

    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", _no_space)
        saved = write.save(who, savers.snapshot("0_5"), savers.ABOUT, None)
    repaired = write.save(who, savers.snapshot("0_5"), savers.ABOUT, None)

    assert (len(saved.warnings), latest(tmp_path)) == (3, "0_5")
    assert "the next save repairs this" in saved.warnings[0]
    assert (repaired.fresh, repaired.bytes, repaired.warnings) == (False, 0, ())
    assert meta(tmp_path, "policy")["last_step"] == 5


def test_meta_json_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    """Somebody made it a directory: the save goes on."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_5")
    path = names.rank_dir(tmp_path, "ref", 0) / names.META
    path.unlink()
    path.mkdir()
    savers.save(who, "0_10")

    assert latest(tmp_path) == "0_10"
    assert meta(tmp_path, "policy")["last_step"] == 10


def test_a_position_that_stands_is_not_written_again(tmp_path: Path) -> None:
    """Two triggers on one position: the second writes nothing."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    first = savers.save(who, "0_5")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = savers.save(who, "0_5")

    assert second == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_position_whose_payload_was_cut_is_written_again(tmp_path: Path) -> None:
    """Standing means that the files are there as the vote names them."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    vote = savers.save(who, "0_5")
    os.truncate(tmp_path / vote.files[0].path, 100)
    savers.save(who, "0_5")

    assert latest(tmp_path) == "0_5"


def test_saving_an_abandoned_position_retracts_the_old_vote_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment does the old vote stand beside new payloads."""
    first = savers.open_attempt(tmp_path)
    savers.save(savers.writer(tmp_path, first), "0_5")
    savers.save(savers.writer(tmp_path, first), "0_10")
    second = savers.open_attempt(tmp_path, "0_5", by=first.attempt)
    vote = names.vote(tmp_path, P("0_10"), 0)
    real, seen = atomic.publish, []

    def publish(path: Path, chunks: list[bytes], attempt: str) -> None:
        seen.append((path.name, vote.exists()))
        real(path, chunks, attempt)

    monkeypatch.setattr(atomic, "publish", publish)
    savers.save(savers.writer(tmp_path, second), "0_10", value=2.0)

    assert [stands for _, stands in seen] == [False] * 5
    assert votes.read(vote).attempt == second.attempt


def test_stock_files_in_the_way_are_renamed_aside(tmp_path: Path) -> None:
    """A stock job's file is never deleted, whatever stands on it."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10), ranks=[0])
    stock = {role: stock_trees.payload_path(tmp_path, role, 0, (0, 10)) for role in stock_trees.DIRECTORIES}
    before = {role: path.read_bytes() for role, path in stock.items()}
    attempt = savers.open_attempt(tmp_path, "0_5")
    savers.save(savers.writer(tmp_path, attempt), "0_10")

    for role, path in stock.items():
        aside = path.with_name(f"{path.name}.superseded-{attempt.attempt}")
        assert aside.read_bytes() == before[role]
        assert payload.read_header(path).mark is not None


def test_a_file_of_a_newer_attempt_is_not_touched(tmp_path: Path) -> None:
    """A worker that was slow to die finds its successor's payload."""
    old = savers.open_attempt(tmp_path)
    new = savers.open_attempt(tmp_path)
    savers.save(savers.writer(tmp_path, new), "0_5")
    before = savers.files(tmp_path)
    names.attempt_record(tmp_path, new.ordinal).rename(tmp_path / "hidden")  # it looks as if it still owned
    with pytest.raises(Superseded, match="newer attempt"):
        commit.clear(savers.writer(tmp_path, old), names.payload(tmp_path, "policy", 0, P("0_5")))
    (tmp_path / "hidden").rename(names.attempt_record(tmp_path, new.ordinal))

    assert savers.files(tmp_path) == before


def test_a_vote_in_the_way_is_another_writer(tmp_path: Path) -> None:
    """It appeared since ours was retracted."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    vote = savers.save(who, "0_5")
    with pytest.raises(Superseded):
        commit.cast(who, vote)


def test_a_vote_directory_that_cannot_be_synced_means_no_vote_was_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller learns that it must not rely on the position."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    real = atomic.sync_dir

    def sync_dir(path: Path) -> None:
        if path == names.commits(tmp_path):
            raise DiskError(f"{path}: EIO", errno=errno.EIO)
        real(path)

    savers.save(who, "0_5")
    monkeypatch.setattr(atomic, "sync_dir", sync_dir)
    with pytest.raises(DiskError):
        savers.save(who, "0_10")


def test_every_directory_above_a_vote_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made them, and before the vote: another rank may have died between making and syncing."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    names.vote_dir(tmp_path, P("0_5")).mkdir()  # by another rank
    real, synced = atomic.sync_dir, []

    def sync_dir(path: Path) -> None:
        synced.append(path)
        real(path)

    monkeypatch.setattr(atomic, "sync_dir", sync_dir)
    savers.save(who, "0_5")

    voted = synced.index(names.vote_dir(tmp_path, P("0_5")))
    assert synced[voted - 2 : voted + 1] == [tmp_path, names.commits(tmp_path), names.vote_dir(tmp_path, P("0_5"))]


@pytest.mark.parametrize(("ranks", "complete"), [((0,), False), ((0, 1), True)])
def test_complete_needs_every_rank(tmp_path: Path, ranks: tuple[int, ...], complete: bool) -> None:
    """It is what lets a reference be named again."""
    attempt = savers.open_attempt(tmp_path, world_size=2)
    vote = next(iter([savers.save(savers.writer(tmp_path, attempt, rank), "0_5") for rank in ranks]))

    assert commit.complete(tmp_path, vote) is complete


def test_a_vote_of_another_attempt_completes_nothing(tmp_path: Path) -> None:
    """Two votes of two ranks lie there; one of them is of the past."""
    past = savers.open_attempt(tmp_path, world_size=2)
    savers.save(savers.writer(tmp_path, past, 1), "0_5")
    now = savers.open_attempt(tmp_path, world_size=2)

    assert not commit.complete(tmp_path, savers.save(savers.writer(tmp_path, now, 0), "0_5"))


def test_complete_where_the_file_system_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older reference is named then; a raw OSError would end the training."""
    vote = savers.save(savers.writer(tmp_path, savers.open_attempt(tmp_path)), "0_5")

    def stale(*args: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(votes, "read_all", stale)

    assert not commit.complete(tmp_path, vote)


def test_complete_of_a_vote_that_a_successor_took_away(tmp_path: Path) -> None:
    """Not an error of this rank: it learns of its successor when it asks who owns the directory."""
    vote = savers.save(savers.writer(tmp_path, savers.open_attempt(tmp_path)), "0_5")
    names.vote_dir(tmp_path, P("0_5")).rename(names.deleted_dir(tmp_path, P("0_5"), vote.attempt))

    assert not commit.complete(tmp_path, vote)


def test_votes_of_two_attempts_make_no_checkpoint(tmp_path: Path) -> None:
    """Rank 0 saved the position again, rank 1's vote is still the abandoned one."""
    first = savers.open_attempt(tmp_path, world_size=2)
    savers.save_all("0_5", *(savers.writer(tmp_path, first, rank) for rank in (0, 1)))
    savers.save_all("0_10", *(savers.writer(tmp_path, first, rank) for rank in (0, 1)))
    second = savers.open_attempt(tmp_path, "0_5", by=first.attempt, world_size=2)
    savers.save(savers.writer(tmp_path, second, 0), "0_10")

    assert latest(tmp_path) == "0_5"


def test_latest_points_to_the_newest_for_people(tmp_path: Path) -> None:
    """And a failure to move it is nobody's trouble."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_5")
    commit.point_latest(who, P("0_5"))

    assert os.readlink(tmp_path / "latest") == "commits/0_5"
    commit.point_latest(savers.writer(tmp_path / "missing", who.attempt), P("0_5"))


def _no_space(*paths: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
