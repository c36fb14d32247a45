"""What a person does between two runs: an abandoned position comes back bit for bit, a broken `meta.json` is mended."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import own_trees
import pytest
import savers
import stock_trees
from runs import tiny_run
from test_resume import latest, stock_job, tensors

from ms_resume import locate, ownership, repair
from ms_resume.errors import Damaged, DirectoryInUse, DiskError, MsResumeError, NothingToResume, Torn, UsageError
from ms_resume.ondisk import atomic, attempts, meta, names
from ms_resume.records import Position

P = Position.parse
RUN: dict[str, Any] = {"save_every": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, **RUN).ok()
    return save


@pytest.fixture(scope="module")
def back(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = Path(shutil.copytree(finished, tmp_path_factory.mktemp("back") / "save", symlinks=True))
    tiny_run(save, resume=True, start={"position": P("0_4")}, stop=(0, 4), **RUN).ok()
    return save


@pytest.fixture
def whole(finished: Path, tmp_path: Path) -> Path:
    """A finished run of two ranks, whole at 0_2, 0_4, 0_6, 0_8, 1_0; the reference is that of 0_2 in all of them."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


@pytest.fixture
def save(back: Path, tmp_path: Path) -> Path:
    """The same run after it has gone back to 0_4: 0_6, 0_8 and 1_0 are abandoned."""
    return Path(shutil.copytree(back, tmp_path / "save", symlinks=True))


def said(save: Path, role: str = "policy") -> list[str]:
    """What `meta.json` says, by rank."""
    ranks = sorted((save / names.DIRECTORIES[role]).iterdir())
    return [str(read.position) if not (read := meta.read(rank)).trouble else read.trouble for rank in ranks]


def temp_files(save: Path) -> list[str]:
    return [path.name for path in save.rglob("*.part")]


# restore


def _again(save: Path, **start: Any) -> None:
    at = start.get("position", Position(0, 0))
    tiny_run(save, resume="position" in start, start=start, stop=(at.epoch, at.step), **RUN).ok()


@pytest.mark.parametrize(
    "abandon",
    [
        lambda save: None,
        lambda save: _again(save, position=P("0_2")),
        lambda save: _again(save, allow_fresh_start=True),
        lambda save: tiny_run(save, resume=True, stop=(0, 7), **RUN).ok(),
    ],
    ids=["went back", "went back twice", "began anew", "went back and saved another 0_6"],
)
def test_an_abandoned_position_comes_back(save: Path, finished: Path, abandon: Callable[[Path], object]) -> None:
    """However it was left: it is taken from now on, its bytes are as they were, and the run goes on bit for bit."""
    abandon(save)
    payloads = {path: c for path, c in savers.files(save).items() if path.endswith(".safetensors")}
    attempt = repair.restore(save, P("0_8"))

    assert attempt is not None
    assert attempt == attempts.read_all(save)[-1]
    assert latest(save) == "0_8"
    assert tensors(save, "0_8") == tensors(finished, "0_8")
    assert {path: c for path, c in savers.files(save).items() if path.endswith(".safetensors")} == payloads
    assert [said(save, role) for role in ("policy", "optimizer", "ref")] == [["0_8"] * 2, ["0_8"] * 2, ["0_2"] * 2]
    assert os.readlink(save / "latest") == "commits/0_8"
    assert temp_files(save) == []

    ranks = tiny_run(save, resume=True, **RUN).ok()

    assert ranks[0].start == P("0_8")
    assert tensors(save, "1_0") == tensors(finished, "1_0")


def test_what_is_newer_is_abandoned_instead(save: Path) -> None:
    """What the line that was left for it has saved; what both lines have in common stays."""
    tiny_run(save, resume=True, stop=(0, 9), **RUN).ok()
    repair.restore(save, P("1_0"))

    assert {str(v.position): getattr(v, "kind", "whole") for v in locate.every(save)} == {
        "1_0": "whole",
        "0_8": "abandoned",
        "0_6": "abandoned",
        "0_4": "whole",
        "0_2": "whole",
    }


def test_the_record_is_this_process_s(save: Path) -> None:
    """No other process may start until it has ended; its `from` names position and attempt of the votes."""
    attempt = repair.restore(save, P("0_8"))
    first = attempts.read_all(save)[0]

    assert attempt is not None
    assert (attempt.ordinal, attempt.world_size, attempt.pid) == (3, 2, os.getpid())
    assert attempt.origin == savers.origin("0_8", first.attempt)


def test_what_is_taken_already_stays(save: Path) -> None:
    """No second record; only a `meta.json` that a first try did not reach follows."""
    first = repair.restore(save, P("0_8"))
    before = savers.files(save)
    (names.rank_dir(save, "optimizer", 1) / names.META).write_bytes(stock_trees.meta_bytes("optimizer", 1, (0, 4)))
    second = repair.restore(save, P("0_8"))

    assert first is not None
    assert second is None
    assert savers.files(save) == before


def test_what_is_taken_because_the_newer_one_is_damaged(whole: Path) -> None:
    """A resume passes that one over: there is nothing to bring back."""
    own_trees.flip(own_trees.payload_path(whole, "1_0", 0, "policy"), 99)

    assert repair.restore(whole, P("0_8")) is None
    assert said(whole) == ["0_8", "0_8"]


def test_where_no_attempt_is_on_record(tmp_path: Path) -> None:
    """A directory of stock's alone stays one; its newest is taken anyway, an older one is a matter of going back."""
    stock_trees.f1(tmp_path)
    before = savers.files(tmp_path)

    assert repair.restore(tmp_path, P("0_10")) is None
    with pytest.raises(UsageError, match="a newer one is live"):
        repair.restore(tmp_path, P("0_5"))
    assert savers.files(tmp_path) == before


def test_a_first_try_that_was_killed_is_made_durable(save: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record has its name, which a power cut would still take away: the answer must not come before the sync."""
    repair.restore(save, P("0_8"))
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "sync_dir", synced.append)
    repair.restore(save, P("0_8"))

    assert synced == [names.attempts(save), names.commits(save), save]


def _tear_newer_save(save: Path) -> None:
    """Saved again by the attempt that went back, on rank 0 alone."""
    attempt = attempts.read_all(save)[-1]
    savers.save(savers.writer(save, attempt), "0_8")


REFUSED: list[tuple[str, Callable[[Path], object], type[MsResumeError], str]] = [
    # asked for  what happened to it                                                      error, said
    ("0_7", lambda save: None, NothingToResume, "no position 0_7, there are 1_0, 0_8, 0_6, 0_4, 0_2"),
    ("0_2", lambda save: None, UsageError, "0_2 is not abandoned, a newer one is live"),
    ("0_8", lambda save: own_trees.payload_path(save, "0_8", 1, "state").unlink(), Torn, "state_rank_1-0_8"),
    ("0_8", lambda save: own_trees.vote_path(save, "0_8", 0).unlink(), Torn, "no vote of rank 0"),
    ("0_8", lambda save: own_trees.vote_path(save, "0_8", 1).unlink(), Torn, "no vote of rank 1"),
    ("0_8", lambda save: own_trees.vote_path(save, "0_8", 0).write_bytes(b"{"), Torn, "not a vote"),
    ("0_8", lambda save: shutil.rmtree(save / "commits" / "0_8"), Torn, "without a vote"),
    ("0_8", _tear_newer_save, Torn, "no vote of rank 1"),
    ("0_8", lambda save: own_trees.flip(own_trees.payload_path(save, "0_8", 1, "policy"), 99), Damaged, "rank_1-0_8"),
    ("0_8", lambda save: own_trees.payload_path(save, "0_2", 1, "ref").unlink(), Torn, "ref_rank_1-0_2"),
]


@pytest.mark.parametrize(("at", "happened", "kind", "reason"), REFUSED)
def test_what_is_not_whole_stays_where_it_is(
    save: Path, at: str, happened: Callable[[Path], object], kind: type[MsResumeError], reason: str
) -> None:
    """A record that names it would leave the run with less than it has."""
    happened(save)
    before = savers.files(save)
    with pytest.raises(kind) as caught:
        repair.restore(save, P(at))

    assert reason in caught.value.message
    assert savers.files(save) == before


def test_a_ckpt_without_votes_is_not_taken_for_stock_s(tmp_path: Path) -> None:
    """It has no mark: a record with no attempt in it would make a whole checkpoint of a save that died."""
    first = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    for at in ("0_5", "0_10"):
        savers.save(first, at, file_format="ckpt")
    savers.open_attempt(tmp_path, "0_5", by=first.attempt.attempt)
    names.vote(tmp_path, P("0_10"), 0).unlink()
    (names.rank_dir(tmp_path, "policy", 0) / names.META).unlink()

    with pytest.raises(Torn, match="without a vote"):
        repair.restore(tmp_path, P("0_10"))


def test_one_rank_s_save_beside_a_vote_of_another_job_s(tmp_path: Path) -> None:
    """Two ranks began anew, one of them has saved over it: rank 0's vote still makes a checkpoint of one rank."""
    alone = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(alone, "0_5", value=3.0)
    pair = savers.open_attempt(tmp_path, world_size=2)
    savers.save(savers.writer(tmp_path, pair, rank=1), "0_5")
    attempt = repair.restore(tmp_path, P("0_5"))

    assert attempt is not None
    assert attempt.world_size == 1
    assert latest(tmp_path) == "0_5"


def _stock_at(checkpointer: Any, seen: Any) -> None:
    pass


def test_a_stock_position_comes_back(tmp_path: Path) -> None:
    """It was left behind by a record that lists its files; ours that are newer are left behind for it."""
    stock_trees.f1(tmp_path)
    stock_job(tmp_path, lambda checkpointer, seen: checkpointer.save(0, 12), position=P("0_5"))
    stock = {
        path: c for path, c in savers.files(tmp_path).items() if path.endswith(("_5.safetensors", "_10.safetensors"))
    }
    attempt = repair.restore(tmp_path, P("0_10"))

    assert attempt is not None
    assert attempt.origin == savers.origin("0_10")
    assert latest(tmp_path) == "0_10"
    assert [said(tmp_path, role) for role in stock_trees.DIRECTORIES] == [["0_10"] * 2] * 3
    assert stock.items() <= savers.files(tmp_path).items()
    assert stock_job(tmp_path, _stock_at)[0]["start"] == P("0_10")


def test_a_stock_position_with_its_reference_elsewhere(tmp_path: Path) -> None:
    """Without it the position would be torn."""
    save, base = tmp_path / "save", tmp_path / "base"
    stock_trees.f1(save)
    (save / "ref").rename(base)
    stock_job(save, _stock_at, position=P("0_5"), ref_dir=base)
    before = savers.files(base)

    with pytest.raises(Torn, match="no ref directory"):
        repair.restore(save, P("0_10"))
    assert repair.restore(save, P("0_10"), ref_dir=base) is not None
    assert stock_job(save, _stock_at, ref_dir=base)[0]["start"] == P("0_10")
    assert savers.files(base) == before


def running(save: Path) -> None:
    """The newest record's process is alive: this one's parent."""
    owner = attempts.read_all(save)[-1]
    parent = replace(owner, pid=os.getppid(), pid_start=ownership._start_of(os.getppid()) or 0)
    names.attempt_record(save, owner.ordinal).write_bytes(attempts.encode(parent))


@pytest.mark.parametrize("act", [lambda save: repair.restore(save, P("0_8")), repair.repair])
def test_refused_while_a_job_is_running(save: Path, act: Callable[[Path], object]) -> None:
    """It would be superseded in the middle of its training, or have its `meta.json` rewritten under its hands."""
    running(save)
    (names.rank_dir(save, "policy", 0) / names.META).unlink()
    before = savers.files(save)
    with pytest.raises(DirectoryInUse, match="is running there"):
        act(save)

    assert savers.files(save) == before


@pytest.mark.parametrize("act", [lambda save: repair.restore(save, P("0_8")), repair.repair])
def test_a_job_that_starts_in_between_wins(
    save: Path, act: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory was free when it was asked for, and is not when it is written."""
    real, path = locate.newest, names.rank_dir(save, "policy", 0) / names.META
    before: dict[str, bytes] = {}

    def slowly(*args: Any, **named: Any) -> Any:
        monkeypatch.undo()
        _again(save, position=P("0_2"))
        path.write_bytes(b"torn")
        before.update(savers.files(save))
        return real(*args, **named)

    monkeypatch.setattr(locate, "newest", slowly)
    with pytest.raises(DirectoryInUse):
        act(save)

    assert savers.files(save) == before


def test_a_disk_that_fails_after_the_record(save: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is restored, that `meta.json` lags behind is said, and the same once more does the rest."""
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == names.META and "rank_1" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match=r"rank_1/meta.json: cannot replace: No space left") as caught:
        repair.restore(save, P("0_8"))
    monkeypatch.undo()

    assert "run this again" in caught.value.hint
    assert (latest(save), said(save)) == ("0_8", ["0_8", "0_4"])
    assert repair.restore(save, P("0_8")) is None
    assert said(save) == ["0_8", "0_8"]
    assert temp_files(save) == []


# repair

WHOLE = b'{"last_epoch": 1, "last_step": 0, "last_ckpt_file": "policy_model_rank_1-1_0.safetensors"}'
OLDER = b'{"last_epoch": 0, "last_step": 8, "last_ckpt_file": "policy_model_rank_1-0_8.safetensors"}'
BROKEN = [
    # content of train/rank_1/meta.json  what is said of it
    (b'{"last_epoch": 1, "last_s', "torn"),
    (b"", "empty"),
    (b"\0" * 64, "empty"),
    (WHOLE + b'tensors"}', "garbage after the first object: 'tensors\"}'"),
    (WHOLE.replace(b"1,", b'"1",'), "its values have the wrong types"),
    (OLDER.replace(b'8, "', b'9, "'), "it says 0_9 and names policy_model_rank_1-0_8.safetensors"),
]


@pytest.mark.parametrize(("content", "trouble"), BROKEN)
def test_a_broken_one_is_mended_and_kept(whole: Path, content: bytes, trouble: str) -> None:
    """Nothing else is touched; what stood there lies beside it; a second time there is nothing to do."""
    path = names.rank_dir(whole, "policy", 1) / names.META
    before = savers.files(whole)
    path.write_bytes(content)
    kept = path.with_name("meta.json.broken-1")

    said = content.decode()
    assert repair.broken(whole) == [repair.Rewritten(path, trouble, P("1_0"), said, WHOLE.decode())]
    assert repair.repair(whole) == [repair.Rewritten(path, trouble, P("1_0"), said, WHOLE.decode(), kept)]
    assert savers.files(whole) == {**before, kept.relative_to(whole).as_posix(): content}
    assert repair.repair(whole) == []


def test_what_disagrees_is_rewritten_and_what_is_missing_made(whole: Path) -> None:
    """Whole, but of an older position: there is nothing in it worth keeping."""
    before = savers.files(whole)
    path = names.rank_dir(whole, "policy", 1) / names.META
    path.write_bytes(OLDER)
    for rank in (0, 1):
        (names.rank_dir(whole, "ref", rank) / names.META).unlink()

    assert [(entry.path, entry.trouble, str(entry.position), entry.kept) for entry in repair.repair(whole)] == [
        (names.rank_dir(whole, "ref", 0) / names.META, "missing", "0_2", None),
        (path, "names policy_model_rank_1-0_8.safetensors", "1_0", None),
        (names.rank_dir(whole, "ref", 1) / names.META, "missing", "0_2", None),
    ]
    assert savers.files(whole) == before


def test_broken_twice(whole: Path) -> None:
    """The one that was kept first is not overwritten."""
    path = names.rank_dir(whole, "optimizer", 0) / names.META
    for content in (b"first", b"second"):
        path.write_bytes(content)
        repair.repair(whole)

    assert [path.with_name(f"meta.json.broken-{n}").read_bytes() for n in (1, 2)] == [b"first", b"second"]


def test_it_names_what_a_resume_takes(save: Path) -> None:
    """Not what is newest by number: that is abandoned, or damaged."""
    own_trees.flip(own_trees.payload_path(save, "0_4", 0, "policy"), 99)
    assert {str(entry.position) for entry in repair.repair(save)} == {"0_2"}

    assert tiny_run(save, resume=True, stop=(0, 2), **RUN).ok()[0].start == P("0_2")


def _stock(save: Path, content: bytes, *, ours: bool) -> Path:
    stock_trees.f1(save)
    if ours:
        stock_job(save, _stock_at)
    stock_trees.set_meta(save, "policy", 1, content)
    return stock_trees.meta_path(save, "policy", 1)


@pytest.mark.parametrize("ours", [False, True], ids=["stock alone", "after a start of ours"])
@pytest.mark.parametrize(
    ("content", "rewritten"),
    [
        (b"", True),
        (stock_trees.meta_bytes("policy", 1, (0, 10)) + b'"}', True),
        (stock_trees.meta_bytes("policy", 1, (0, 10)), False),
        (stock_trees.meta_bytes("policy", 1, (0, 5)), False),  # stock's own word, for its own reasons
    ],
)
def test_in_a_stock_directory_only_broken_ones(tmp_path: Path, content: bytes, rewritten: bool, ours: bool) -> None:
    """Where we were never at work no directory of ours appears."""
    path = _stock(tmp_path, content, ours=ours)
    before = savers.files(tmp_path)
    done = repair.repair(tmp_path)
    after = savers.files(tmp_path)

    assert [entry.path for entry in done] == [path] * rewritten
    assert path.read_bytes() == (stock_trees.meta_bytes("policy", 1, (0, 10)) if rewritten else content)
    assert [name.rpartition("/")[2] for name in after.keys() - before.keys()] == ["meta.json.broken-1"] * rewritten


def test_a_reference_that_is_kept_elsewhere(tmp_path: Path) -> None:
    """It makes the checkpoint whole, and nothing is written there."""
    stock_trees.f1(tmp_path / "save")
    (tmp_path / "save" / "ref").rename(tmp_path / "base")
    for path in (tmp_path / "base").rglob(names.META):
        path.write_bytes(b"")
    stock_trees.set_meta(tmp_path / "save", "optimizer", 0, b"")
    before = savers.files(tmp_path / "base")
    done = repair.repair(tmp_path / "save", ref_dir=tmp_path / "base")

    assert [entry.path for entry in done] == [stock_trees.meta_path(tmp_path / "save", "optimizer", 0)]
    assert savers.files(tmp_path / "base") == before


@pytest.mark.parametrize("ours", [False, True], ids=["stock alone", "after a start of ours"])
def test_a_repair_that_was_killed(tmp_path: Path, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rename: the broken one stands, and the next start sweeps the temp file, whatever its attempt is."""
    path = _stock(tmp_path, b"", ours=ours)

    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        repair.repair(tmp_path)
    monkeypatch.undo()
    content, [left] = path.read_bytes(), temp_files(tmp_path)
    stock_job(tmp_path, _stock_at)

    assert content == b""
    assert left.startswith(f".meta.json.{'000001' if ours else '000000'}-")
    assert temp_files(tmp_path) == []
    assert path.read_bytes() == stock_trees.meta_bytes("policy", 1, (0, 10))


def test_a_disk_that_is_full(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken one is not taken away before the new one is there."""
    path = names.rank_dir(whole, "policy", 1) / names.META
    path.write_bytes(b"torn")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("replace", "link"):
        monkeypatch.setattr(os, call, full)
        with pytest.raises(DiskError, match="No space left"):
            repair.repair(whole)
        monkeypatch.undo()
        assert path.read_bytes() == b"torn"
    assert temp_files(whole) == []


@pytest.mark.parametrize("what", ["nothing", "only torn ones"])
def test_nothing_to_name(tmp_path: Path, what: str) -> None:
    """A `meta.json` that names no whole checkpoint helps nobody."""
    if what == "only torn ones":
        stock_trees.f6b(tmp_path)
        stock_trees.set_meta(tmp_path, "policy", 1, b"")
    before = savers.files(tmp_path)
    with pytest.raises(NothingToResume, match="no whole checkpoint"):
        repair.repair(tmp_path)

    assert savers.files(tmp_path) == before


@pytest.mark.parametrize("act", [lambda save: repair.restore(save, P("0_8")), repair.repair])
def test_no_such_directory(tmp_path: Path, act: Callable[[Path], object]) -> None:
    """Nothing is made on the way."""
    with pytest.raises(UsageError, match="does not exist"):
        act(tmp_path / "save")

    assert not (tmp_path / "save").exists()
