"""Replicas that share the work: each file is written once, and never taken for what it is not."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from runs import ThreadGroup, TinyRank, run_ranks

import ms_resume
from ms_resume import locate, strategies, verify
from ms_resume.errors import UsageError
from ms_resume.ondisk import names
from ms_resume.records import Checkpoint, Position
from ms_resume.write import replicas
from ms_resume.write.replicas import ROLES, deal

TWO = strategies.Strategy("", 2, strategies.Parallel(2, 1, 1)).as_json()


def started(save: Path, *, resume: bool = False, same: bool = True, **settings: Any) -> list[TinyRank]:
    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(0 if same else group.rank)
        chosen = ms_resume.Settings(**{"heartbeat_s": 0, "share_replicas_s": 10, **settings})
        checkpointer = me.saves_in(save, group, steps_per_epoch=100, parallel=TWO, settings=chosen)
        me.start = checkpointer.start(resume=resume)
        return me

    return run_ranks(2, rank_main).ok()


def save_at(ranks: list[TinyRank], step: int) -> None:
    """Both at once."""

    def one(group: ThreadGroup) -> None:
        checkpointer = ranks[group.rank].checkpointer
        assert checkpointer is not None
        checkpointer.save(0, step)

    run_ranks(2, one).ok()


def files(save: Path, step: int) -> dict[str, list[Path]]:
    """By role, of both ranks."""
    every = (*ROLES, "state")
    return {role: [names.payload(save, role, rank, Position(0, step)) for rank in (0, 1)] for role in every}


def test_each_file_is_written_once(tmp_path: Path) -> None:
    """Policy and reference by the first replica, the optimizer by the second one; a resume finds all of it."""
    ranks = started(tmp_path)
    for rank in ranks:
        rank.train_one_step()
    save_at(ranks, 1)
    (checkpoint,) = locate.every(tmp_path)
    again = started(tmp_path, resume=True)

    of = {role: [path.stat() for path in paths] for role, paths in files(tmp_path, 1).items()}
    assert {role for role, (one, other) in of.items() if one.st_ino == other.st_ino} == set(ROLES)
    assert isinstance(checkpoint, Checkpoint)
    assert verify.check(checkpoint, deep=True) == []
    for was, now in zip(ranks, again, strict=True):
        assert now.start == Position(0, 1)
        for role in ("policy", "optimizer", "ref"):
            held: Any = getattr(was, role)
            assert all(np.array_equal(held[name], getattr(now, role)[name]) for name in held)


def test_one_name_may_go_without_the_other(tmp_path: Path) -> None:
    """Retention, or a disk that loses a name, takes it from one rank alone."""
    ranks = started(tmp_path)
    save_at(ranks, 1)
    first, second = files(tmp_path, 1)["policy"]
    first.unlink()

    assert second.stat().st_nlink == 1
    assert locate.latest(tmp_path).checkpoint is None


def test_replicas_that_differ_share_nothing(tmp_path: Path) -> None:
    """The strategy is believed only as far as the digests go."""
    ranks = started(tmp_path, same=False)
    save_at(ranks, 1)
    save_at(ranks, 2)

    told = [text for rank in ranks for text in rank.said if "warning" in text]
    assert [text.count("from now on rank") for text in told] == [1, 1]  # policy, optimizer; the reference is the same
    assert "is not what rank 1 has, which the strategy calls a replica" in "".join(told)
    for step in (1, 2):
        shared = [role for role, (a, b) in files(tmp_path, step).items() if a.exists() and a.samefile(b)]
        assert shared == (["ref"] if step == 1 else [])
    newest = locate.latest(tmp_path).checkpoint
    assert newest is not None
    assert newest.position == Position(0, 2)
    assert verify.check(newest, deep=True) == []


def test_a_replica_that_does_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for once, and then not again; what is saved is whole."""
    slept = Mock(side_effect=time.sleep)
    monkeypatch.setattr(replicas, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept))
    ranks = started(tmp_path, share_replicas_s=0.2)
    for step in (1, 2):
        slept.reset_mock()
        for rank in reversed(ranks):  # one after the other, so each waits in vain for what the next one writes
            assert rank.checkpointer is not None
            rank.checkpointer.save(0, step)
        assert slept.called == (step == 1)
    newest = locate.latest(tmp_path).checkpoint

    assert newest is not None
    assert newest.position == Position(0, 2)
    assert any("rank 0 did not write it within 0.2 s; from now on rank 1 writes its own" in t for t in ranks[1].said)


@pytest.mark.parametrize("other", [{"staging": False}, {"save_format": "ckpt"}])
def test_what_it_needs(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a staging buffer, safetensors files, and one disk"):
        started(tmp_path, **other)


@pytest.mark.parametrize(
    ("cut", "more", "others"),
    [
        ((8, 1, 1), {}, {2: "0 1 2"}),
        ((2, 4, 1), {}, {2: "2 6 2", 5: "1 5 1"}),
        ((2, 1, 4), {}, {2: "2 3 2", 5: "4 5 4"}),
        ((2, 2, 2), {}, {2: "0 2 0", 5: "5 7 5"}),
        ((4, 1, 1), {}, {2: "2 2 2"}),  # not a strategy of eight ranks
        ((8, 1, 1), {"enable_parallel_optimizer": True}, {2: "2 2 2"}),
        ((8, 1, 1), {"ref": {"data_parallel": 1, "model_parallel": 8, "pipeline_stage": 1}}, {2: "0 1 2"}),
    ],
)
def test_who_writes_what(cut: tuple[int, int, int], more: dict[str, Any], others: dict[int, str]) -> None:
    """Of eight ranks, as the strategy cuts them; writers of policy, optimizer, reference, seen from a rank."""
    actor = dict(zip(("data_parallel", "model_parallel", "pipeline_stage"), cut, strict=True))
    for rank, wanted in others.items():
        dealt = deal({"actor": actor, **more}, rank, 8)
        assert [dealt.get(role, rank) for role in ROLES] == [int(word) for word in wanted.split()]
