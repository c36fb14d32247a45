"""What people and disks come up with: one clear error, its exit code, and nothing that was saved is touched."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
from runs import Outcome, TinyRank, tiny_run

import ms_resume
from ms_resume import locate, verify
from ms_resume.errors import Damaged, DiskError, MsResumeError, UsageError
from ms_resume.framework import version
from ms_resume.ondisk import ckpt, names, payload, votes
from ms_resume.records import Checkpoint, Position
from ms_resume.state import Arrays

P = Position.parse


def refused(outcome: Outcome[Any], code: int, *said: str) -> MsResumeError:
    """Every rank ended with one error of this code that says all of `said`, and a hint."""
    lost_peers = [e for e in outcome.errors.values() if isinstance(e, threading.BrokenBarrierError)]
    assert not outcome.results
    assert not lost_peers
    for error in outcome.errors.values():
        assert isinstance(error, MsResumeError), error
        assert int(error.exit_code) == code
        assert [text for text in said if text not in str(error)] == []
        assert error.hint
    first = outcome.errors[0]
    assert isinstance(first, MsResumeError)
    return first


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with 0_5 and 1_0 of two ranks."""
    tiny_run(tmp_path / "save").ok()
    return tmp_path / "save"


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    """A misspelt path must not become a fresh run."""
    refused(tiny_run(tmp_path / "mispelt", resume=True), 2, "mispelt", "does not exist")

    assert not (tmp_path / "mispelt").exists()


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    """It is as it was."""
    (tmp_path / "save").write_text("mine")
    for resume in (False, True):
        refused(tiny_run(tmp_path / "save", resume=resume), 40, "is a file, expected a directory")

    assert (tmp_path / "save").read_text() == "mine"


def test_a_file_in_the_place_of_a_role_directory(tmp_path: Path) -> None:
    """The save fails with the path, and says what kind of trouble it is."""
    tmp_path.joinpath("train").write_text("mine")
    error = next(iter(tiny_run(tmp_path, world_size=1).errors.values()))

    assert isinstance(error, DiskError), error
    assert str(tmp_path / "train") in str(error)


@pytest.mark.parametrize("world_size", [1, 3, 4])
@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_more_or_fewer_ranks(tmp_path: Path, world_size: int, kind: str) -> None:
    """Both numbers, at once on every rank, and what to start instead."""
    if kind == "ours":
        tiny_run(tmp_path).ok()
    else:
        stock_trees.f1(tmp_path)
    before = savers.files(tmp_path)
    said = f"was made by 2 ranks, this job has {world_size}"
    error = refused(tiny_run(tmp_path, world_size=world_size, resume=True), 31, said, "start it with 2 workers")

    assert (error.fields["found"], error.fields["expected"]) == (2, world_size)
    assert savers.files(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda me: me.policy.update(head=np.zeros(3, np.float32)),
            "policy (*2 of 3 parameters match*missing head",
        ),
        (
            lambda me: me.ref.update(w=np.zeros((4, 3), np.float32)),
            "shape of w: the file has (3, 4), the net (4, 3)",
        ),
        (
            lambda me: me.optimizer.update(**{"moment1.w": me.optimizer.pop("adam_m.w")}),
            "the optimizer is another one*not known by name (adam_m, moment1 of 2 weights",
        ),
    ],
)
def test_parsedthat_do_not_fit(
    saved: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[TinyRank], Any], said: str
) -> None:
    """Counts and names; nothing is loaded."""
    real = TinyRank.__post_init__
    made: list[TinyRank] = []

    def spoilt(me: TinyRank) -> None:
        real(me)
        spoil(me)
        made.append(me)

    monkeypatch.setattr(TinyRank, "__post_init__", spoilt)
    before = savers.files(saved)
    refused(tiny_run(saved, resume=True), 30, "nothing was loaded", *said.split("*"))

    assert savers.files(saved) == before
    assert all((me.policy["w"] == me.rank).all() for me in made)


def test_a_reference_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    """Never a silent default."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_5")
    own_trees.edit_vote(tmp_path, "0_5", 0, lambda v: v["files"].pop(2))
    outcome = tiny_run(tmp_path, world_size=1, resume=True, steps_per_epoch=1000)

    refused(outcome, 31, "the checkpoint has no ref, this job has")


def test_a_stock_directory_without_optimizer(tmp_path: Path) -> None:
    """Stock code starts with fresh moments and says nothing."""
    stock_trees.f6b(tmp_path)
    before = savers.files(tmp_path)
    refused(tiny_run(tmp_path, resume=True), 10, "no optimizer directory")

    assert savers.files(tmp_path) == before


def test_a_half_written_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    """After a resume, so that it is no first start: a table of what there is."""
    tiny_run(tmp_path, stop=(0, 6)).ok()
    tiny_run(tmp_path, resume=True).ok()
    for at in ("0_5", "1_0"):
        names.vote(tmp_path, P(at), 1).unlink()
    error = refused(
        tiny_run(tmp_path, resume=True), 10, "no whole checkpoint", "no vote of rank 1", "--allow_fresh_start"
    )

    assert [entry["position"] for entry in error.fields["rejected"]] == [[1, 0], [0, 5]]


def test_an_attempt_record_that_is_broken(saved: Path) -> None:
    """Nobody can say what is live: not even a fresh start is allowed over it."""
    names.attempt_record(saved, 1).write_bytes(b"\0" * 100)
    before = savers.files(saved)
    for resume in (False, True):
        refused(tiny_run(saved, resume=resume), 21, "000001.json", "which checkpoints are live")

    assert savers.files(saved) == before


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"format": "ms_resume/9"}', "damaged"),
        (json.dumps({"format": "ms_resume/1"}).encode(), "damaged"),
    ],
)
def test_a_vote_that_cannot_be_read(saved: Path, content: bytes, kind: str) -> None:
    """The position is passed over, with the reason; the older one is taken."""
    names.vote(saved, P("1_0"), 1).write_bytes(content)
    located = locate.latest(saved)

    assert located.checkpoint is not None
    assert located.checkpoint.position == P("0_5")
    assert "rank_1.json" in located.rejected[0].reason


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": "2"}, {"world_size": None}, {"rank": "1"}, {"epoch": 1.5}, {"files": {}}, {"files": [1]},
        {"attempt": 3}, {"files": []},
        {"files": [{"role": "policy", "path": 3, "bytes": 1, "digest": "", "attempt": ""}]},
        {"files": [{"role": "policy", "path": "/etc/passwd", "bytes": 1, "digest": "", "attempt": ""}]},
        {"files": [{"role": "policy", "path": "../x", "bytes": 1, "digest": "", "attempt": ""}]},
    ],
    ids=str,
)  # fmt: skip  # one list
def test_a_vote_with_values_of_the_wrong_kind(saved: Path, change: dict[str, Any]) -> None:
    """Valid JSON all the same; never an exception that nobody foresaw."""
    own_trees.edit_vote(saved, "1_0", 1, lambda vote: vote.update(change))

    assert str(locate.latest(saved).checkpoint.position) == "0_5"  # type: ignore[union-attr]
    with pytest.raises(Damaged):
        votes.read(names.vote(saved, P("1_0"), 1))


def test_keys_of_a_later_version_are_ignored(saved: Path) -> None:
    """In votes."""
    own_trees.edit_vote(saved, "1_0", 1, lambda vote: vote.update(of_a_later_version=[1]))

    assert str(locate.latest(saved).checkpoint.position) == "1_0"  # type: ignore[union-attr]


def test_any_flipped_bit_of_a_header_is_damage(tmp_path: Path) -> None:
    """Whatever it hits: never an exception that nobody foresaw, never silently another tensor."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    vote = savers.save(who, "0_5")
    path = tmp_path / vote.files[0].path
    content = path.read_bytes()
    used = len(content[:4096].rstrip())
    for offset in range(used):
        own_trees.flip(path, offset, offset % 7)
        with pytest.raises(Damaged):
            verify.header_as_voted(path, vote.files[0])
        path.write_bytes(content)


def test_headers_made_by_the_enemy(tmp_path: Path) -> None:
    """Well-formed JSON with impossible content."""
    path = names.payload(tmp_path, "policy", 0, P("0_5"))
    path.parent.mkdir(parents=True)
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    mark = {"ms_resume": "1", "attempt": "a", "epoch": "0", "step": "5", "rank": "0", "role": "policy"}
    documents: list[Any] = [
        [], 3, {"w": 3}, {"w": None}, {"w": tensor | {"shape": [-1]}}, {"w": tensor | {"shape": ["x"]}},
        {"w": tensor | {"dtype": ["F32"]}}, {"w": tensor | {"dtype": "F33"}}, {"w": tensor | {"data_offsets": [4, 0]}},
        {"w": tensor | {"data_offsets": [0]}}, {"w": tensor | {"shape": [1e400]}},
        {"w": tensor | {"data_offsets": [0, 10**30]}},
        {"__metadata__": []}, {"__metadata__": mark, "w": tensor},
        {"__metadata__": mark | {"digests": "[]"}, "w": tensor},
        {"__metadata__": mark | {"digests": 3}, "w": tensor}, {"__metadata__": mark | {"digests": "3"}, "w": tensor},
        {"__metadata__": mark | {"epoch": "x", "digests": "{}"}, "w": tensor},
    ]  # fmt: skip  # one list
    for document in documents:
        text = json.dumps(document).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\0\0")
        with pytest.raises(Damaged):
            payload.read_header(path)


def test_any_cut_or_flipped_ckpt_is_damage_or_the_same(tmp_path: Path) -> None:
    """No CRC is asked for here: parsing alone must not fall over; with its CRC every flip is found."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    vote = savers.save(who, "0_5", file_format="ckpt")
    path = tmp_path / vote.files[0].path
    content = path.read_bytes()
    chance = random.Random(1)
    for _ in range(400):
        spoilt = bytearray(content[: chance.randrange(1, len(content) + 1)])
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        try:
            ckpt.read(path)
            ckpt.check_crc(path)
        except Damaged:
            continue
        assert len(spoilt) != len(content) or spoilt[-17:-10] != b"crc_num"  # the CRC itself was cut or renamed


# Disks


@contextmanager
def mounted(where: Path, size: str) -> Iterator[None]:
    """A file system in memory of `size` at `where`."""
    where.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_read_only_directory(tmp_path: Path) -> None:
    """It can be resumed from; saving into it is an error before the first step, and looking needs no right to write."""
    save, other = tmp_path / "mounted", tmp_path / "other"
    with mounted(save, "4m"):
        tiny_run(save, stop=(0, 7)).ok()
        subprocess.run(["mount", "-o", "remount,ro", str(save)], check=True)
        before = savers.files(save)
        for resume in (True, False):
            refused(tiny_run(save, resume=resume), 40, "not writable", "save elsewhere")
        ranks = tiny_run(other, resume=True, start={"source": save}).ok()

        assert ranks[0].start == P("0_5")
        assert isinstance(locate.every(save)[0], Checkpoint)
        assert savers.files(save) == before
    assert str(locate.latest(other).checkpoint.position) == "1_0"  # type: ignore[union-attr]


def test_a_full_disk(tmp_path: Path) -> None:
    """The save fails with the number of the cause; what was there stands, and after making room the run goes on."""
    save = tmp_path / "mounted"
    with mounted(save, "600k"):
        outcome = tiny_run(save, world_size=1, epochs=9, save_every=1)
        error = outcome.errors[0]
        assert isinstance(error, DiskError)
        assert (error.fields["errno"], int(error.exit_code)) == (errno.ENOSPC, 40)
        assert "df -h" in error.hint
        newest = locate.latest(save).checkpoint
        assert newest is not None
        assert verify.check(newest, deep=True) == []
        assert list(save.rglob("*.part")) == []
        held = {str(parsed.position) for p in save.rglob("*.*") if (parsed := names.parse_payload(p.name))}
        assert max(P(at) for at in held) == newest.position  # what did fit of the failed save made room again
        settings = ms_resume.Settings(keep_last=2, heartbeat_s=0)
        for at in ("0_1", "0_2", "0_3"):
            for role in ("policy", "optimizer", "state"):  # not the reference, which all votes name
                own_trees.payload_path(save, at, 0, role).unlink()
        ranks = tiny_run(save, world_size=1, epochs=9, save_every=1, resume=True, settings=settings).ok()

        assert ranks[0].start == newest.position
        assert str(locate.latest(save).checkpoint.position) == "9_0"  # type: ignore[union-attr]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_the_right_to_write(saved: Path) -> None:
    """Of another user."""
    saved.chmod(0o555)
    try:
        refused(tiny_run(saved, resume=True), 40, "not writable")
    finally:
        saved.chmod(0o755)


# MindSpore


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("", "MindSpore is not installed, expected 2.7 or newer"),
        ("2.6.0", "MindSpore 2.6.0 is installed, expected 2.7 or newer"),
        ("1.10.1", "MindSpore 1.10.1 is installed"),
    ],
)
def test_mindspore_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, said: str) -> None:
    """Said when the Checkpointer is made, without importing it."""
    monkeypatch.setattr(version, "installed", lambda package: found)
    with pytest.raises(UsageError, match=said) as caught:
        ms_resume.Checkpointer(
            tmp_path, policy=Arrays(w=np.zeros(1)), optimizer=Arrays(w=np.zeros(1)), steps_per_epoch=1
        )

    assert "ms-resume[cpu]" in caught.value.hint


@pytest.mark.parametrize("found", ["2.7.0", "2.10.0", "2.10.0rc1", "3.0"])
def test_mindspore_new_enough(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """2.10 is newer than 2.7."""
    monkeypatch.setattr(version, "installed", lambda package: found)
    version.require()
