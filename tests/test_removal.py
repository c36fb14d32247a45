"""Taking files away: what was taken from a successor comes back, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import savers

from ms_resume import commit, locate, removal, retention
from ms_resume.errors import Superseded
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, attempts, names
from ms_resume.records import Position, Writer

P = Position.parse


def latest(save: Path) -> str:
    found = locate.latest(save).checkpoint
    return str(found.position) if found else "none"


def asides(save: Path) -> list[str]:
    return sorted(path.name for path in save.rglob("*.retired"))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Writer, Writer]:
    """A worker of an older attempt, and its successor; both went on from 0_2."""
    first = savers.open_attempt(tmp_path)
    savers.save(savers.writer(tmp_path, first), "0_2")
    old = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_2", by=first.attempt))
    savers.save(old, "0_4")
    new = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_2", by=first.attempt))
    return old, new


def stopped_before_it_takes(monkeypatch: pytest.MonkeyPatch, meanwhile: object) -> None:
    """Between the question and the renaming, `meanwhile` happens once."""
    real, pending = atomic.put_aside, [meanwhile]

    def put_aside(path: Path, aside: Path) -> bool:
        if pending:
            pending.pop()()  # type: ignore[operator]
        return real(path, aside)

    monkeypatch.setattr(atomic, "put_aside", put_aside)


@pytest.mark.parametrize("what", ["vote", "payload", "vote directory"])
def test_what_was_taken_from_a_successor_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A worker is stopped after it asked who owns the directory; its successor saves; then it takes what is there."""
    attempt = savers.open_attempt(tmp_path)
    old = savers.writer(tmp_path, attempt)
    savers.save_all("0_2", old)
    savers.save_all("0_4", old)

    def succeed() -> None:
        new = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_2", by=attempt.attempt))
        savers.save(new, "0_4", value=7.0)

    stopped_before_it_takes(monkeypatch, succeed)
    directory = names.vote_dir(tmp_path, P("0_4"))
    takes = {
        "vote": lambda: removal.retire(old, directory / "rank_0.json"),
        "payload": lambda: commit.clear(old, names.payload(tmp_path, "policy", 0, P("0_4"))),
        "vote directory": lambda: removal.retire(old, directory, keep_as=directory.with_name("0_4.deleted")),
    }
    with pytest.raises(Superseded):
        takes[what]()
    between = latest(tmp_path)
    removal.put_back(tmp_path)

    assert (between, latest(tmp_path)) == ("0_2", "0_4")
    assert asides(tmp_path) == [] or what == "vote directory"


def test_what_is_not_live_stays_aside_and_goes(two: tuple[Writer, Writer]) -> None:
    """An abandoned vote that was being retracted must not come back; the next start removes it."""
    old, new = two
    vote = names.vote(new.save, P("0_4"), 0)
    atomic.put_aside(vote, names.retired(vote, old.attempt.attempt))

    assert removal.put_back(new.save) == 0
    assert not vote.exists()
    assert removal.sweep(new) == 1
    assert asides(new.save) == []


def test_a_newer_file_has_the_place(two: tuple[Writer, Writer]) -> None:
    """Two files claim one name: the newer attempt's stands, whichever lay aside."""
    old, new = two
    vote = names.vote(new.save, P("0_4"), 0)
    savers.save(new, "0_4", value=7.0)
    atomic.put_aside(vote, names.retired(vote, old.attempt.attempt))
    vote.write_bytes(b"{}")  # nobody's
    removal.put_back(new.save)

    assert latest(new.save) == "0_4"
    assert attempts.read_all(new.save)[-1].attempt in vote.read_text()


def test_an_older_file_goes_aside_under_another_name(two: tuple[Writer, Writer]) -> None:
    """The worker that took the live payload had its own older one in that place: neither replaces the other."""
    old, new = two
    path = names.payload(new.save, "policy", 0, P("0_4"))
    older = path.read_bytes()
    savers.save(new, "0_4", value=7.0)
    atomic.put_aside(path, names.retired(path, old.attempt.attempt))
    path.write_bytes(older)
    removal.put_back(new.save)

    assert latest(new.save) == "0_4"
    assert removal.author_of(path, path.name) == new.attempt.attempt


def test_two_starts_put_back_at_once(two: tuple[Writer, Writer]) -> None:
    """The slower one finds nothing to do."""
    _, new = two
    savers.save(new, "0_4", value=7.0)
    vote = names.vote(new.save, P("0_4"), 0)
    atomic.put_aside(vote, names.retired(vote, new.attempt.attempt))

    assert [removal.put_back(new.save) for _ in range(2)] == [1, 0]
    assert latest(new.save) == "0_4"


def test_a_stock_file_comes_back_where_its_place_is_free(tmp_path: Path) -> None:
    """Nothing says whose it is, so nothing may be lost of it."""
    path = tmp_path / "train/rank_0/policy_model_rank_0-0_4.ckpt"
    atomic.make_dirs(path.parent)
    path.write_bytes(b"stock's")
    atomic.put_aside(path, names.retired(path, "000001-0123456789abcdef"))
    removal.put_back(tmp_path)

    assert path.read_bytes() == b"stock's"


def test_retention_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """A vote directory lies aside, because rank 0 died between the two renames: it comes back, and goes again."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    for step in (1, 2, 3):
        savers.save(who, f"0_{step}")
    oldest = names.vote_dir(tmp_path, P("0_1"))
    atomic.put_aside(oldest, names.retired(oldest, who.attempt.attempt))
    removal.put_back(tmp_path)
    retention.sweep(who, survey.take(tmp_path), retention.Keep(2))

    assert sorted(path.name for path in names.commits(tmp_path).glob("0_*") if "deleted" not in path.name) == [
        "0_2",
        "0_3",
    ]


def test_a_full_disk_that_cannot_rename_can_remove(two: tuple[Writer, Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    """xfs needs room for a new name, and removing is what makes room."""
    import errno
    import os

    _, new = two
    savers.save(new, "0_4", value=7.0)

    def rename(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", rename)
    path = names.payload(new.save, "policy", 0, P("0_4"))
    removal.retire(new, path)

    assert not path.exists()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("link", ["train", "train/rank_0", "commits/0_4"])
def test_nothing_behind_a_link_is_given_back_or_cleared(
    two: tuple[Writer, Writer], tmp_path_factory: pytest.TempPathFactory, link: str, live: bool
) -> None:
    """It may lead to the directory of another job, whose file lies aside for the moment."""
    old, new = two
    if live:
        savers.save(new, "0_4", value=7.0)
    save, author = new.save, new if live else old
    taken = names.vote(save, P("0_4"), 0) if link == "commits/0_4" else names.payload(save, "policy", 0, P("0_4"))
    aside = names.retired(taken, author.attempt.attempt)
    atomic.put_aside(taken, aside)
    outside = tmp_path_factory.mktemp("outside") / "its"
    (save / link).rename(outside)
    (save / link).symlink_to(outside)

    assert removal.put_back(save) == 0
    assert removal.sweep(new) == 0
    assert (outside / aside.relative_to(save / link)).exists()
