"""Each node has a disk of its own: what all ranks have is found by asking them. Ranks 0 and 1 share one, rank 2 has
another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock_trees
from command import act, call
from runs import Outcome, ThreadGroup, TinyRank, run_ranks

import ms_resume
from ms_resume.errors import DirectoryInUse, DiskError, MsResumeError, NothingToResume, UsageError
from ms_resume.ondisk import atomic, attempts, names
from ms_resume.records import Position
from ms_resume.state import Arrays

P = Position.parse
NODE_OF = {0: "a", 1: "a", 2: "b"}


def save_of(top: Path, rank: int) -> Path:
    return top / NODE_OF[rank] / "save"


def run(top: Path, *steps: int, resume: bool = False, keep_last: int = 0, **start: Any) -> Outcome[TinyRank]:
    """A start, a step of training before each save, and an end in good order."""

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        settings = ms_resume.Settings(heartbeat_s=0, keep_last=keep_last, storage="local")
        with me.saves_in(save_of(top, group.rank), group, steps_per_epoch=100, settings=settings) as checkpointer:
            me.start = checkpointer.start(resume=resume, **start)
            for step in steps:
                me.train_one_step()
                checkpointer.save(0, step)
        return me

    return run_ranks(3, rank_main)


def state(ranks: list[TinyRank]) -> list[dict[str, np.ndarray]]:
    return [dict(rank.optimizer) for rank in ranks]


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> bool:
    return all(np.array_equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def error_of(outcome: Outcome[TinyRank]) -> MsResumeError:
    with pytest.raises(MsResumeError) as caught:
        outcome.ok()
    return caught.value


def records(top: Path) -> dict[str, list[str]]:
    return {node: [record.attempt for record in attempts.read_all(top / node / "save")] for node in "ab"}


def files(top: Path, node: str) -> set[str]:
    return {p.relative_to(top / node).as_posix() for p in (top / node).rglob("*") if p.is_file()}


def test_a_run_goes_on_from_what_all_ranks_have(tmp_path: Path) -> None:
    """Bit for bit; every disk has the same records, and its own ranks' files alone."""
    before = state(run(tmp_path, 2, 4).ok())
    again = run(tmp_path, resume=True).ok()
    straight = state(run(tmp_path / "other", 2, 4, 6).ok())

    assert [rank.start for rank in again] == [P("0_4")] * 3
    assert same(state(again), before)
    assert "RESUMING at 0_4" in again[0].said[0]
    assert same(state(run(tmp_path, 6, resume=True).ok()), straight)
    assert records(tmp_path)["a"] == records(tmp_path)["b"]
    assert len(records(tmp_path)["a"]) == 3
    assert not any("rank_2" in name for name in files(tmp_path, "a"))
    assert not any("rank_0" in name or "rank_1" in name for name in files(tmp_path, "b"))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_behind(tmp_path: Path, rank: int) -> None:
    """All go on from the one before, and it is said whose part is missing."""
    run(tmp_path, 2, 4).ok()
    names.vote(save_of(tmp_path, rank), P("0_4"), rank).unlink()
    again = run(tmp_path, resume=True).ok()

    assert [found.start for found in again] == [P("0_2")] * 3
    assert f"passed over 0_4: torn: rank {rank} has nothing of it" in again[0].said[0]


def test_a_rank_whose_file_is_damaged(tmp_path: Path) -> None:
    """Found while it is loaded: all ranks go to the one before together."""
    run(tmp_path, 2, 4).ok()
    path = names.payload(save_of(tmp_path, 2), "optimizer", 2, P("0_4"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = run(tmp_path, resume=True).ok()

    assert [found.start for found in again] == [P("0_2")] * 3
    assert "passed over 0_4: damaged" in again[0].said[0]


def test_a_node_that_is_new(tmp_path: Path) -> None:
    """Its disk is empty: nothing is whole, and nothing begins anew by itself."""
    run(tmp_path, 2, 4).ok()
    shutil.rmtree(tmp_path / "b")
    error = error_of(run(tmp_path, resume=True))

    assert isinstance(error, NothingToResume)
    assert "0_4  torn: rank 2 has nothing of it" in error.message
    assert "0_2  torn: rank 2 has nothing of it" in error.message
    assert records(tmp_path)["b"] == []
    assert [rank.start for rank in run(tmp_path, resume=True, allow_fresh_start=True).ok()] == [P("0_0")] * 3


def test_a_first_save_that_was_cut_short(tmp_path: Path) -> None:
    """Rank 2 did not vote: nothing was ever whole, and a resume begins anew, as on a shared disk."""
    run(tmp_path, 2).ok()
    names.vote(save_of(tmp_path, 2), P("0_2"), 2).unlink()
    again = run(tmp_path, 4, resume=True).ok()

    assert [rank.start for rank in again] == [P("0_0")] * 3
    assert [rank.start for rank in run(tmp_path, resume=True).ok()] == [P("0_4")] * 3


def _loses_a_file(top: Path) -> None:
    names.payload(save_of(top, 2), "optimizer", 2, P("0_2")).unlink()


def _loses_a_record(top: Path) -> None:
    names.vote(save_of(top, 2), P("0_2"), 2).unlink()
    names.attempt_record(save_of(top, 2), 1).unlink()


def _is_damaged(top: Path) -> None:
    names.vote(save_of(top, 2), P("0_2"), 2).unlink()
    names.vote(save_of(top, 0), P("0_2"), 0).write_bytes(b"{")


def _went_on(top: Path) -> None:
    run(top, resume=True).ok()
    names.vote(save_of(top, 2), P("0_2"), 2).unlink()


@pytest.mark.parametrize("happened", [_loses_a_file, _loses_a_record, _is_damaged, _went_on])
def test_what_may_have_been_whole(happened: Callable[[Path], object], tmp_path: Path) -> None:
    """All ranks voted, or nobody can tell, or a start went on from it: exit 10, and not a fresh start."""
    run(tmp_path, 2).ok()
    happened(tmp_path)

    assert isinstance(error_of(run(tmp_path, resume=True)), NothingToResume)


def test_nothing_anywhere(tmp_path: Path) -> None:
    """A first start with --resume_training."""
    assert [rank.start for rank in run(tmp_path, 2, resume=True).ok()] == [P("0_0")] * 3


def test_retention_on_each_disk(tmp_path: Path) -> None:
    """The newest two that all ranks have, on every disk; the reference that they name stays once."""
    run(tmp_path, 2, 4, 6, 8, keep_last=2).ok()

    for rank, node in NODE_OF.items():
        save = save_of(tmp_path, rank)
        positions = sorted(path.name for path in names.commits(save).iterdir() if names.parse_vote_dir(path.name))
        assert positions == ["0_6", "0_8"]
        for role, count in (("policy", 2), ("optimizer", 2), ("state", 2), ("ref", 1)):
            assert len([*names.rank_dir(save, role, rank).glob("*.safetensors")]) == count, (node, role)


def test_what_one_rank_lacks_does_not_count_for_retention(tmp_path: Path) -> None:
    """Rank 2 has lost its part of 0_8: 0_6 and 0_4 are the newest two that are whole, and stay on every disk."""
    run(tmp_path, 2, 4, 6, 8).ok()
    names.vote(save_of(tmp_path, 2), P("0_8"), 2).unlink()
    run(tmp_path, resume=True, keep_last=2).ok()

    for rank in NODE_OF:
        there = {path.name for path in names.commits(save_of(tmp_path, rank)).iterdir()}
        assert {"0_4", "0_6"} <= there
        assert "0_2" not in there


def test_going_back(tmp_path: Path) -> None:
    """To a position that all have; what is newer is left behind on every disk."""
    run(tmp_path, 2, 4, 6).ok()
    back = run(tmp_path, resume=True, position=P("0_2")).ok()
    again = run(tmp_path, resume=True).ok()

    assert [rank.start for rank in (*back, *again)] == [P("0_2")] * 6
    error = error_of(run(tmp_path, resume=True, position=P("0_5")))
    assert isinstance(error, NothingToResume)


def test_one_disk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job has just opened an attempt on rank 2's disk: refused, and no disk keeps a record of this start."""
    run(tmp_path, 2).ok()
    before = records(tmp_path)
    publish = atomic.publish

    def failing(path: Path, content: Any, attempt: str) -> None:
        if "attempts" in path.parts and "b" in path.parts:
            raise FileExistsError
        publish(path, content, attempt)

    monkeypatch.setattr(atomic, "publish", failing)
    assert isinstance(error_of(run(tmp_path, resume=True)), DirectoryInUse)
    assert records(tmp_path) == before


def test_one_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, 2).ok()
    before, publish = records(tmp_path), atomic.publish

    def failing(path: Path, content: Any, attempt: str) -> None:
        if "attempts" in path.parts and "b" in path.parts:
            raise DiskError("no room", hint="", path=str(path), errno=28)
        publish(path, content, attempt)

    monkeypatch.setattr(atomic, "publish", failing)
    assert isinstance(error_of(run(tmp_path, resume=True)), DiskError)
    assert records(tmp_path) == before


def test_stock_checkpoints(tmp_path: Path) -> None:
    """Of a stock job whose nodes have disks of their own: the newest position that all have."""
    for rank in NODE_OF:
        stock_trees.healthy(save_of(tmp_path, rank), (0, 2), (0, 4), ranks=[rank])
    stock_trees.payload_path(save_of(tmp_path, 2), "optimizer", 2, (0, 4)).unlink()

    def rank_main(group: ThreadGroup) -> Any:
        held = {role: stock_trees.tensors(role, 7, (9, 9)) for role in stock_trees.DIRECTORIES}
        policy = Arrays({name: array for name, array in held["policy"].items() if not name.endswith("_num")})
        nets = {"policy": policy, "optimizer": Arrays({**held["optimizer"], **policy}), "ref": Arrays(held["ref"])}
        settings = ms_resume.Settings(heartbeat_s=0, storage="local")
        with ms_resume.Checkpointer(
            save_of(tmp_path, group.rank),
            **nets,
            steps_per_epoch=100,
            settings=settings,
            group=group,
            say=lambda t: None,
        ) as checkpointer:
            at = checkpointer.start(resume=True)
        return at, float(nets["policy"]["model.w"][0, 0])

    assert run_ranks(3, rank_main).ok() == [(P("0_2"), 2 + rank / 8) for rank in NODE_OF]


def test_the_commands_look_at_one_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself a disk's checkpoints lack the other ranks' votes; `--storage local` asks for this node's alone."""
    run(tmp_path, 2, 4).ok()
    save = tmp_path / "a" / "save"

    assert call(capsys, "locate", save).code == 10
    located = call(capsys, "locate", save, "--storage", "local", "--json")
    assert (located.code, located.json["position"], located.json["world_size"]) == (0, [0, 4], 3)
    assert {file["rank"] for file in located.json["files"]} == {0, 1}
    assert call(capsys, "verify", save, "--storage", "local", "--all", "--deep").code == 0


def test_what_a_rank_of_this_disk_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not on another node's disk: rank 1 has files here, and no vote at 0_4."""
    run(tmp_path, 2, 4).ok()
    save = save_of(tmp_path, 1)
    names.vote(save, P("0_4"), 1).unlink()
    located = call(capsys, "locate", save, "--storage", "local", "--json")

    assert located.json["position"] == [0, 2]
    assert [entry["ranks"] for entry in located.json["rejected"]] == [[1]]


def test_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each disk for itself, rank 2's as well as that of rank 0; by default such a disk has nothing to name."""
    run(tmp_path, 2, 4).ok()
    for node, rank in (("a", 1), ("b", 2)):
        save = tmp_path / node / "save"
        path = names.rank_dir(save, "policy", rank) / names.META
        whole = path.read_bytes()
        path.write_bytes(b'{"last_ep')
        refused = call(capsys, "repair", save)
        dry = call(capsys, "repair", save, "--storage", "local", "--dry-run", "--json")
        done = act(capsys, "repair", save, "--storage", "local", "--json")

        assert refused.code == 10
        assert [entry["path"] for entry in dry.json["files"]] == [str(path)]
        assert [entry["path"] for entry in done.json["files"]] == [str(path)]
        assert path.read_bytes() == whole
        assert "as it should be" in act(capsys, "repair", save, "--storage", "local").out


def test_a_pin_keeps_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pinned on both disks 0_2 stays whole; unpinned on one, its part there goes, and it is said beforehand."""
    run(tmp_path, 2, 4, 6).ok()
    pinned = [act(capsys, "pin", tmp_path / node / "save", "0_2", "--storage", "local") for node in "ab"]
    run(tmp_path, 8, 10, resume=True, keep_last=2).ok()
    kept = [names.vote(save_of(tmp_path, rank), P("0_2"), rank).exists() for rank in NODE_OF]
    freed = act(capsys, "unpin", tmp_path / "b" / "save", "0_2", "--storage", "local")
    run(tmp_path, 12, resume=True, keep_last=2).ok()

    assert [(called.code, "warning" in called.err) for called in pinned] == [(0, False)] * 2
    for called in (*pinned, freed):
        assert "one node's disk: type the same on each node" in called.err
    assert kept == [True] * 3
    assert [names.vote(save_of(tmp_path, rank), P("0_2"), rank).exists() for rank in NODE_OF] == [True, True, False]


def test_restore_on_each_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was left behind comes back bit for bit once it was typed on both; before, the common past is gone on from,
    and what is restored afterwards still comes."""
    left = state(run(tmp_path, 2, 4, 6).ok())
    run(tmp_path, 3, resume=True, position=P("0_2")).ok()
    words = ("0_6", "--storage", "local")
    a, b = (tmp_path / node / "save" for node in "ab")
    dry = call(capsys, "restore", b, *words, "--dry-run", "--json")
    first = act(capsys, "restore", a, *words)
    between = shutil.copytree(tmp_path, tmp_path / "between", ignore=shutil.ignore_patterns("between"))
    second = act(capsys, "restore", b, *words, "--json")

    assert act(capsys, "restore", a, "0_4").code == 20
    assert (first.code, "a resume takes 0_6 from now on" in first.out) == (0, True)
    assert "type the same on each node" in first.err
    changes = {"restored": [[0, 6], [0, 4]], "abandoned": [[0, 3]]}
    assert changes.items() <= dry.json.items()
    assert changes.items() <= second.json.items()
    assert [rank.start for rank in run(between, resume=True).ok()] == [P("0_2")] * 3
    for node in "ab":
        act(capsys, "restore", between / node / "save", *words)
    for top in (tmp_path, between):
        again = run(top, resume=True).ok()
        assert [rank.start for rank in again] == [P("0_6")] * 3
        assert same(state(again), left)


def test_restore_of_what_another_disk_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run on that one says so; where it was typed on the other one nevertheless, the common past is safe."""
    run(tmp_path, 2, 4).ok()
    run(tmp_path, 3, resume=True, position=P("0_2")).ok()
    names.payload(save_of(tmp_path, 2), "optimizer", 2, P("0_4")).unlink()
    words = ("0_4", "--storage", "local")
    dry = call(capsys, "restore", tmp_path / "b" / "save", *words, "--dry-run")
    act(capsys, "restore", tmp_path / "a" / "save", *words)

    assert (dry.code, "missing, the vote names it" in dry.err) == (20, True)
    assert [rank.start for rank in run(tmp_path, resume=True).ok()] == [P("0_2")] * 3


@pytest.mark.parametrize("words", [(), ("--yes",)])
def test_prune_is_refused(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One disk does not show what is whole on all: here 0_2 alone is, and by disk a's own files it would go."""
    run(tmp_path, 2, 4, 6).ok()
    for step in (4, 6):
        names.vote(save_of(tmp_path, 2), Position(0, step), 2).unlink()
    a = tmp_path / "a" / "save"
    refused = call(capsys, "prune", a, "--keep-last", "2", "--storage", "local", *words)
    nothing = call(capsys, "prune", a, "--keep-last", "2", *words)

    assert (refused.code, "MS_RESUME_STORAGE=local and MS_RESUME_KEEP_LAST=N" in refused.err) == (2, True)
    assert (nothing.code, "nothing to prune" in nothing.out) == (0, True)
    assert [rank.start for rank in run(tmp_path, resume=True).ok()] == [P("0_2")] * 3


def test_stock_commands_on_one_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock's files carry no number of ranks: those that have a file are looked at."""
    for rank in NODE_OF:
        stock_trees.healthy(save_of(tmp_path, rank), (0, 2), (0, 4), ranks=[rank])
    b = tmp_path / "b" / "save"
    stock_trees.set_meta(b, "policy", 2, b"")

    assert call(capsys, "locate", b).code == 10
    assert call(capsys, "locate", b, "--storage", "local", "--json").json["position"] == [0, 4]
    assert act(capsys, "repair", b, "--storage", "local").out.endswith("1 file rewritten\n")


def test_replicas_cannot_share(tmp_path: Path) -> None:
    """What another node wrote is not there to be linked."""

    def rank_main(group: ThreadGroup) -> None:
        settings = ms_resume.Settings(heartbeat_s=0, storage="local", share_replicas_s=1)
        TinyRank(0).saves_in(save_of(tmp_path, group.rank), group, settings=settings).start(resume=False)

    with pytest.raises(UsageError, match="one disk for all ranks"):
        run_ranks(3, rank_main).ok()


def test_one_disk_for_all_is_a_shared_one(tmp_path: Path) -> None:
    """`local` where all ranks see one directory changes nothing."""
    for rank in NODE_OF:
        save_of(tmp_path, rank).parent.mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").symlink_to("a")
    run(tmp_path, 2, 4).ok()

    assert [rank.start for rank in run(tmp_path, resume=True).ok()] == [P("0_4")] * 3
    assert len(json.loads(names.attempt_record(save_of(tmp_path, 0), 1).read_text())["attempt"]) == 23
