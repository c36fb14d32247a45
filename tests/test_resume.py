"""Going on: everything comes back, or one clear error says why not; what is left behind stays left behind."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
from runs import Outcome, ThreadGroup, TinyRank, run_ranks, tiny_run

import ms_resume
from ms_resume import locate, retention, verify
from ms_resume.errors import (
    Damaged,
    Disagreement,
    DiskError,
    LayoutMismatch,
    MsResumeError,
    NamesMismatch,
    NothingToResume,
    UsageError,
)
from ms_resume.layouts import survey
from ms_resume.load.names.match import NONE, Gaps
from ms_resume.ondisk import attempts, meta, names, payload
from ms_resume.records import Checkpoint, Position
from ms_resume.resume import choice
from ms_resume.state import Arrays

P = Position.parse


def latest(save: Path) -> str:
    found = locate.latest(save).checkpoint
    return str(found.position) if found else "none"


def tensors(save: Path, at: str, world_size: int = 2) -> dict[str, bytes]:
    """Every tensor of every payload of one position, and the plain values of the state."""
    found: dict[str, bytes] = {}
    checkpoint = next(v for v in locate.every(save) if isinstance(v, Checkpoint) and v.position == P(at))
    assert checkpoint.world_size == world_size
    for file in checkpoint.files:
        header = payload.read_header(file.path)
        with open(file.path, "rb") as opened:
            for name in header.tensors:
                found[f"{file.rank} {file.role} {name}"] = bytes(payload.read_tensor(opened, header, name))
        found[f"{file.rank} {file.role} values"] = repr(header.values).encode()
    return found


def error_of(outcome: Outcome[Any]) -> MsResumeError:
    """The one error that every rank has."""
    kinds = {type(error) for error in outcome.errors.values()}
    assert len(kinds) == 1, outcome.errors
    assert not outcome.results
    error = outcome.errors[0]
    assert isinstance(error, MsResumeError), error
    return error


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("undisturbed") / "save"
    tiny_run(save, epochs=2, steps_per_epoch=5, save_every=2).ok()
    return save


@pytest.mark.parametrize("at", [(epoch, step) for epoch in (0, 1) for step in range(5)])
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_resumed_equals_uninterrupted(tmp_path: Path, undisturbed: Path, at: tuple[int, int], how: str) -> None:
    """Interrupted before any step, in good order or by the death of one rank: every tensor of every later save is
    the same, byte for byte."""
    run = {"epochs": 2, "steps_per_epoch": 5, "save_every": 2}

    def die(rank: TinyRank, position: tuple[int, int]) -> None:
        if rank.rank == 1 and position == at:
            raise KeyboardInterrupt

    if how == "stopped":
        tiny_run(tmp_path, stop=at, **run).ok()  # type: ignore[arg-type]
    else:
        assert 1 in tiny_run(tmp_path, before_step=die, **run).errors  # type: ignore[arg-type]
    ranks = tiny_run(tmp_path, resume=True, **run).ok()  # type: ignore[arg-type]

    assert ranks[0].start == Position(at[0], at[1] - at[1] % 2)
    for position in ("1_2", "1_4", "2_0"):
        assert tensors(tmp_path, position) == tensors(undisturbed, position)


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    """It ends at once, and writes nothing but its record."""
    tiny_run(tmp_path).ok()
    before = {path: c for path, c in savers.files(tmp_path).items() if "attempts" not in path}
    rank = tiny_run(tmp_path, resume=True).ok()[0]

    assert (rank.start, rank.positions) == (Position(1, 0), [])
    assert {path: c for path, c in savers.files(tmp_path).items() if "attempts" not in path} == before


def test_a_longer_run_goes_on_after_the_end(tmp_path: Path) -> None:
    """The last epoch is neither repeated nor skipped."""
    tiny_run(tmp_path, epochs=1, steps_per_epoch=3, save_every=2).ok()
    rank = tiny_run(tmp_path, epochs=2, steps_per_epoch=3, save_every=2, resume=True).ok()[0]

    assert rank.positions == [(1, 0), (1, 1), (1, 2)]


def test_the_reference_is_named_again_after_a_resume(tmp_path: Path) -> None:
    """Not written anew by every attempt."""
    tiny_run(tmp_path, stop=(0, 7)).ok()
    tiny_run(tmp_path, resume=True).ok()

    assert savers.reference(tmp_path, "1_0", 1) == "0_5"


def test_a_resume_rewrites_meta_json_to_where_it_starts(tmp_path: Path) -> None:
    """A stock job would otherwise go on from what was left behind."""
    tiny_run(tmp_path).ok()
    names.vote(tmp_path, P("1_0"), 1).unlink()
    tiny_run(tmp_path, resume=True, stop=(0, 5)).ok()

    for role in ("policy", "optimizer", "ref"):
        for rank in (0, 1):
            assert meta.read(names.rank_dir(tmp_path, role, rank)).position == P("0_5")


def test_going_back_abandons_what_is_newer(tmp_path: Path) -> None:
    """1_0 lost a vote and came back: it belongs to a past that the run has left."""
    tiny_run(tmp_path).ok()
    vote = names.vote(tmp_path, P("1_0"), 1)
    content = vote.read_bytes()
    vote.unlink()
    tiny_run(tmp_path, resume=True, stop=(0, 7)).ok()
    vote.write_bytes(content)
    located = locate.latest(tmp_path)

    assert located.checkpoint is not None
    assert located.checkpoint.position == P("0_5")
    assert [(str(r.position), r.kind) for r in located.rejected] == [("1_0", "abandoned")]


# Damage


@pytest.mark.parametrize(
    ("role", "tensor"),
    [("policy", "w"), ("optimizer", "adam_m.bias"), ("ref", "w"), ("state", "randomness.numpy_words")],
)
def test_a_damaged_newest_is_passed_over_on_all_ranks(tmp_path: Path, role: str, tensor: str) -> None:
    """One bit in one tensor of one rank; all go on from the older one, and the banner says why."""
    tiny_run(tmp_path, save_every=2, before_step=_moving_reference).ok()
    path = own_trees.payload_path(tmp_path, "1_0", 1, role)
    own_trees.flip_tensor(path, tensor)
    ranks = tiny_run(tmp_path, save_every=2, resume=True, stop=(0, 8)).ok()

    assert [rank.start for rank in ranks] == [P("0_8")] * 2
    assert "passed over 1_0: damaged: rank 1:" in ranks[0].said[0]
    assert path.name in ranks[0].said[0]
    assert ranks[1].said == []


def _moving_reference(rank: TinyRank, position: tuple[int, int]) -> None:
    rank.ref["w"] += 1


def test_what_is_loaded_after_a_damaged_one_is_whole(tmp_path: Path) -> None:
    """Nothing of the damaged checkpoint stays in the nets: the run equals one that never saw it."""
    tiny_run(tmp_path, save_every=2).ok()
    expected = tensors(tmp_path, "1_0")
    own_trees.flip_tensor(own_trees.payload_path(tmp_path, "1_0", 1, "optimizer"), "adam_m.w")
    tiny_run(tmp_path, save_every=2, resume=True).ok()

    assert tensors(tmp_path, "1_0") == expected
    assert verify.check(locate.latest(tmp_path).checkpoint, deep=True) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("damaged", "start"), [(1, "0_8"), (2, "0_6"), (3, None)])
def test_it_passes_over_no_more_than_max_rollback(tmp_path: Path, damaged: int, start: str | None) -> None:
    """A disk that damages everything is not answered by throwing everything away."""
    tiny_run(tmp_path, save_every=2).ok()
    for at in ("1_0", "0_8", "0_6")[:damaged]:
        own_trees.flip_tensor(own_trees.payload_path(tmp_path, at, 0, "policy"), "w")
    before = savers.files(tmp_path)
    outcome = tiny_run(tmp_path, save_every=2, resume=True, stop=(0, 6))

    if start:
        assert outcome.ok()[0].start == P(start)
    else:
        assert (int(error_of(outcome).exit_code), savers.files(tmp_path)) == (21, before)


def test_no_fresh_start_on_nets_that_hold_a_part_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The policy is placed before the optimizer turns out damaged: those weights are no fresh start."""
    tiny_run(tmp_path, stop=(0, 6)).ok()
    own_trees.flip_tensor(own_trees.payload_path(tmp_path, "0_5", 1, "optimizer"), "adam_m.w")
    error = error_of(tiny_run(tmp_path, resume=True, start={"allow_fresh_start": True}))

    assert isinstance(error, (NothingToResume, Damaged))


# Fresh start or not: design section 3


def _nothing(save: Path) -> None:
    pass


def _torn(save: Path) -> None:
    tiny_run(save, world_size=1, stop=(0, 5)).ok()
    names.vote(save, P("0_5"), 0).unlink()


def _torn_after_whole(save: Path) -> None:
    tiny_run(save, world_size=1, stop=(0, 6)).ok()
    tiny_run(save, world_size=1, resume=True, epochs=2, stop=(1, 1)).ok()
    for at in ("0_5", "1_0"):
        names.vote(save, P(at), 0).unlink()


def _whole(save: Path) -> None:
    tiny_run(save, world_size=1, stop=(0, 6)).ok()


def _payload_lost(save: Path) -> None:
    _whole(save)
    own_trees.payload_path(save, "0_5", 0, "state").unlink()


def _abandoned(save: Path) -> None:
    _whole(save)
    savers.open_attempt(save)


def _stock_torn(save: Path) -> None:
    stock_trees.add(save, "policy", [0], (0, 5))


def _other_files(save: Path) -> None:
    (save / "metrics").mkdir(parents=True)
    (save / "metrics" / "steps.jsonl").touch()


@pytest.mark.parametrize(
    ("build", "resume", "allowed", "expected"),
    [
        (_nothing, False, False, "0_0"),
        (_nothing, True, False, 2),  # a wrong path is not a first start
        (Path.mkdir, False, False, "0_0"),
        (Path.mkdir, True, False, "0_0"),
        (_other_files, True, False, "0_0"),
        (_torn, False, False, "0_0"),
        (_torn, True, False, "0_0"),
        (_torn_after_whole, False, False, 62),
        (_torn_after_whole, True, False, 10),
        (_torn_after_whole, True, True, "0_0"),
        (_whole, True, False, "0_5"),
        (_whole, True, True, "0_5"),
        (_whole, False, False, 62),
        (_whole, False, True, "0_0"),
        (_payload_lost, True, False, 10),
        (_payload_lost, False, False, 62),
        (_payload_lost, True, True, "0_0"),
        (_abandoned, True, False, 10),
        (_abandoned, False, False, 62),
        (_stock_torn, True, False, 10),
        (_stock_torn, False, False, 62),
        (_stock_torn, False, True, "0_0"),
    ],
)
def test_fresh_start(
    tmp_path: Path, build: Callable[[Path], None], resume: bool, allowed: bool, expected: str | int
) -> None:
    """Each row: what lies there, --resume_training, --allow_fresh_start, and the position or the exit code."""
    save = tmp_path / "save"
    build(save)
    before = savers.files(save)
    outcome = tiny_run(save, world_size=1, resume=resume, stop=(0, 0), epochs=2, start={"allow_fresh_start": allowed})

    if isinstance(expected, int):
        assert int(error_of(outcome).exit_code) == expected
        assert savers.files(save) == before
    else:
        rank = outcome.ok()[0]
        assert str(rank.start) == expected
        assert ("FRESH START" in rank.said[0]) is (expected == "0_0")
        after = savers.files(save)
        assert [path for path in before if path not in after and not path.endswith(".part")] == []


def test_after_an_allowed_fresh_start_the_old_future_stays_dead(tmp_path: Path) -> None:
    """And is overwritten, position by position, with the old vote out of the way first."""
    tiny_run(tmp_path).ok()
    old = tensors(tmp_path, "0_5")
    tiny_run(tmp_path, stop=(0, 6), start={"allow_fresh_start": True}).ok()

    assert latest(tmp_path) == "0_5"
    assert tensors(tmp_path, "0_5") == old  # the same seeds make the same run
    assert attempts.read_all(tmp_path)[-1].origin is None


# What a trainer may ask for


def one_rank(save: Path, act: Callable[[ms_resume.Checkpointer, TinyRank], Any], **options: Any) -> Any:
    """`act` with a Checkpointer of one rank that is not started."""

    def rank_main(group: ThreadGroup) -> Any:
        me = TinyRank(0)
        with me.saves_in(save, group, **options) as checkpointer:
            return act(checkpointer, me)

    return run_ranks(1, rank_main).ok()[0]


def test_saving_before_the_start(tmp_path: Path) -> None:
    """There is no attempt to save for."""
    with pytest.raises(UsageError, match="not started"):
        one_rank(tmp_path, lambda c, me: c.save(0, 5))

    assert savers.files(tmp_path) == {}


def test_saving_where_it_started_writes_nothing(tmp_path: Path) -> None:
    """SIGTERM right after a resume, or before the first step."""
    tiny_run(tmp_path, world_size=1, stop=(0, 6)).ok()

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=True)
        before = savers.files(tmp_path)
        assert checkpointer.save(0, 5) is None
        assert checkpointer.save(0, 0) is None
        assert savers.files(tmp_path) == before

    one_rank(tmp_path, act)


def test_an_optimizer_with_copies_of_the_weights(tmp_path: Path) -> None:
    """The trainer is wrong, not the newest checkpoint: older ones are not tried, and nothing is left behind."""
    tiny_run(tmp_path).ok()
    before = savers.files(tmp_path)

    def rank_main(group: ThreadGroup) -> list[str]:
        optimizer = Arrays({name: array.copy() for name, array in TinyRank(group.rank).optimizer.items()})
        return rank_of(group, tmp_path, resume=True, optimizer=optimizer)

    error = error_of(run_ranks(2, rank_main))

    assert not isinstance(error, Damaged)
    assert "does not hold what was placed" in error.message
    assert "copies" in error.hint
    assert savers.files(tmp_path) == before


def test_going_on_in_another_directory_saves_where_it_starts(tmp_path: Path) -> None:
    """The position stands in the old one: a crash before the next save would find the new one empty."""
    tiny_run(tmp_path / "old", stop=(0, 6)).ok()
    tiny_run(tmp_path / "new", resume=True, stop=(0, 6), start={"source": tmp_path / "old"}).ok()

    assert latest(tmp_path / "new") == "0_5"
    assert tensors(tmp_path / "new", "0_5") == tensors(tmp_path / "old", "0_5")


def rank_of(group: ThreadGroup, save: Path, *, resume: bool, gaps: Gaps = NONE, **checkpointer: Any) -> list[str]:
    """One rank that starts, with arguments of its own, and what it said."""
    me = TinyRank(group.rank)
    settings = ms_resume.Settings(heartbeat_s=0, visibility_timeout_s=0)
    made = me.saves_in(save, group, settings=settings, **checkpointer)
    made.start(resume=resume, allow_fresh_start=True, gaps=gaps)
    return me.said


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"resume": False}, "--resume_training"),
        ({"steps_per_epoch": 9}, "steps_per_epoch"),
        ({"gaps": Gaps(("head",))}, "gaps"),
    ],
)
def test_ranks_that_are_started_differently(tmp_path: Path, rank: int, different: dict[str, Any], said: str) -> None:
    """One node's command lacks a flag: its ranks would take one exchange's answer for another's."""
    tiny_run(tmp_path).ok()
    before = savers.files(tmp_path)

    def rank_main(group: ThreadGroup) -> list[str]:
        return rank_of(group, tmp_path, **({"resume": True} | (different if group.rank == rank else {})))

    error = error_of(run_ranks(2, rank_main))

    assert isinstance(error, Disagreement)
    assert said in error.message
    assert savers.files(tmp_path) == before


def test_a_node_with_a_directory_of_its_own(tmp_path: Path) -> None:
    """It would find itself superseded at its first save, hours later."""
    error = error_of(run_ranks(2, lambda group: rank_of(group, tmp_path / str(group.rank), resume=False)))

    assert isinstance(error, Disagreement)
    assert "mounts the same save directory" in error.hint


def test_a_rank_that_sees_another_vote(tmp_path: Path) -> None:
    """What rank 0 judged, and what each rank opened, are in the message."""
    attempt = tiny_run(tmp_path).ok() and locate.latest(tmp_path).checkpoint.attempt  # type: ignore[union-attr]
    chosen = choice.choose(tmp_path, None, 10, ())
    own_trees.edit_vote(tmp_path, "1_0", 1, lambda vote: vote.update(attempt="000009-00000000000000aa"))

    error = error_of(run_ranks(2, lambda group: choice.confirm(group, chosen, 0)))

    assert isinstance(error, Disagreement)
    assert f"of attempt {attempt} and have digest {chosen.votes_digest}; " in error.message
    opened = f"rank 0 opened attempt {attempt}'s, rank 1 opened attempt 000009-00000000000000aa's, with digest "
    assert opened in error.message
    assert error.message.rpartition(" ")[2] not in ("", chosen.votes_digest)


def test_state_that_nobody_takes_is_named(tmp_path: Path) -> None:
    """A component or a role that the trainer lost is not left out without a word."""
    tiny_run(tmp_path, stop=(0, 6)).ok()
    said = run_ranks(2, lambda group: rank_of(group, tmp_path, resume=True, ref=None, components=())).ok()[0]

    assert "also holds ref, randomness, scale, which this job does not restore" in said[0]


def test_saving_twice_at_one_position(tmp_path: Path) -> None:
    """The second is told that it stands."""

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> tuple[Any, Any]:
        checkpointer.start(resume=False)
        return checkpointer.save(0, 5), checkpointer.save(0, 5)

    first, second = one_rank(tmp_path, act)

    assert (first.fresh, second.fresh, second.bytes) == (True, False, 0)
    assert first.vote == second.vote


@pytest.mark.parametrize("at", [(0, 3), (0, 10), (0, 11), (-1, 0), (1, -1)])
def test_a_position_that_cannot_be(tmp_path: Path, at: tuple[int, int]) -> None:
    """Older than the start, or outside an epoch: (0, 10) of ten steps is (1, 0), and was read as (0, 0) once."""
    tiny_run(tmp_path, world_size=1, stop=(0, 6)).ok()

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=True)
        before = savers.files(tmp_path)
        with pytest.raises(UsageError):
            checkpointer.save(*at)
        assert savers.files(tmp_path) == before

    one_rank(tmp_path, act)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DiskError("commits: cannot rename"), "commits: cannot rename"),
        (OSError(errno.ESTALE, "Stale file handle"), "[Errno 116] Stale file handle"),
    ],
)
def test_retention_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """The vote is cast, the position counts: an error would say that it does not."""

    def fail(*args: object) -> None:
        raise error

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> list[str]:
        checkpointer.start(resume=False)
        with monkeypatch.context() as patched:
            patched.setattr(retention, "sweep", fail)
            checkpointer.save(0, 5)
            checkpointer._saver.rest()
        return me.said

    assert one_rank(tmp_path, act)[1:] == [f"ms_resume: warning: retention: {said}"]
    assert latest(tmp_path) == "0_5"


def test_retention_that_fails_at_the_end_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is saved: the run went well."""

    def fail(*args: object) -> None:
        raise DiskError("commits: cannot rename")

    monkeypatch.setattr(retention, "sweep", fail)
    tiny_run(tmp_path).ok()

    assert latest(tmp_path) == "1_0"


def test_a_rank_whose_saves_failed_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk is full, its trainer goes on, as the docstring allows; at the end all ranks meet all the same."""
    from ms_resume import write

    real = write.save

    def save(writer: Any, *rest: Any) -> Any:
        if writer.rank == 1:
            raise DiskError("full")
        return real(writer, *rest)

    def rank_main(group: ThreadGroup) -> None:
        with TinyRank(group.rank).saves_in(tmp_path, group) as checkpointer:
            checkpointer.start(resume=False)
            try:
                checkpointer.save(0, 5)
            except DiskError:
                pass

    monkeypatch.setattr(write, "save", save)
    run_ranks(2, rank_main).ok()

    assert latest(tmp_path) == "none"


def test_a_component_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    """An error that names it, before anything is placed; or anew, by name."""
    tiny_run(tmp_path, world_size=1, stop=(0, 6)).ok()
    cursor = Cursor()

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        with pytest.raises(NamesMismatch, match="no state of cursor, it has randomness, scale"):
            checkpointer.start(resume=True)
        assert me.policy["w"].sum() == 0
        checkpointer.start(resume=True, allow_missing=["cursor"])
        assert "starts anew, the checkpoint has nothing for it: cursor" in me.said[-1]

    me = TinyRank(0)
    one_rank(tmp_path, act, components=[*me.components(), cursor])

    assert cursor.sought == [(0, 5)]


class Cursor:
    """A data cursor that can be put at a position at least."""

    name = "cursor"

    def __init__(self) -> None:
        self.sought: list[tuple[int, int]] = []

    def state(self) -> dict[str, Any]:
        return {"sought": len(self.sought)}

    def restore(self, state: Any) -> None:
        self.sought = [(-1, -1)]

    def seek(self, epoch: int, step: int) -> None:
        self.sought.append((epoch, step))


class Seeding:
    """A component that seeds NumPy when it is restored, as opening a dataset does."""

    name = "seeding"

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        np.random.seed(7)


def test_tensors_that_may_differ(tmp_path: Path) -> None:
    """What the caller names, and the banner says; anything else is refused still, before anything is placed."""

    def save(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=False)
        me.policy["w"][...] = 5
        checkpointer.save(0, 5)

    one_rank(tmp_path, save, ref=Arrays(w=np.ones((3, 4), np.float32), stale=np.ones(2)))
    wide, head = np.zeros((3, 4)), np.full(2, 7.0)
    moments = {name: array for name, array in TinyRank(0).optimizer.items() if name not in ("w", "bias")}
    policy = Arrays(w=wide, bias=np.zeros(3, np.float16), head=head)
    named = {"missing": ("head",), "unexpected": ("st*",), "widen": True}

    def load(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        for less in ({}, *({key: named[key] for key in named if key != left} for left in named)):
            with pytest.raises(NamesMismatch):
                checkpointer.start(resume=True, gaps=Gaps(**less))
            assert not wide.any()
        assert checkpointer.start(resume=True, gaps=Gaps(**named)) == Position(0, 5)
        for line in (
            "1 tensors keep their values, by allow_missing: head",
            "1 tensors are not taken, by allow_unexpected: stale",
            "1 tensors are taken in another dtype, by widen or narrow: w",
        ):
            assert line in me.said[-1]

    one_rank(tmp_path, load, policy=policy, optimizer=Arrays({**policy, **moments}))

    assert (wide == 5).all()
    assert (head == 7).all()


def test_random_sources_are_restored_last(tmp_path: Path) -> None:
    """Whatever a component does to them on the way, and in whatever order they were given."""

    def components() -> dict[str, Any]:
        return {"components": [ms_resume.Randomness(), Seeding()]}

    def save(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> float:
        checkpointer.start(resume=False)
        checkpointer.save(0, 5)
        return float(np.random.random())

    def resume(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> float:
        checkpointer.start(resume=True)
        return float(np.random.random())

    drawn = one_rank(tmp_path, save, **components())

    assert one_rank(tmp_path, resume, **components()) == drawn


def test_state_that_cannot_be_saved_is_found_at_the_start(tmp_path: Path) -> None:
    """Not at the first save, hours later; and before there is a record of this start."""
    with pytest.raises(UsageError, match=r"counters\.by_step"):
        one_rank(
            tmp_path,
            lambda c, me: c.start(resume=False),
            components=[ms_resume.Fields("counters", type("Counters", (), {"by_step": {1: 2}})(), "by_step")],
        )

    assert savers.files(tmp_path) == {}


def test_starting_twice(tmp_path: Path) -> None:
    """A second attempt would supersede the first."""

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=False)
        with pytest.raises(UsageError, match="started already"):
            checkpointer.start(resume=False)

    one_rank(tmp_path, act)

    assert attempts.newest_ordinal(tmp_path) == 1


def test_a_reference_kept_elsewhere_is_no_position_here(tmp_path: Path) -> None:
    """A first start with --resume_training always on, and the reference of another run."""
    tiny_run(tmp_path / "old").ok()
    (tmp_path / "new").mkdir()
    ranks = tiny_run(tmp_path / "new", resume=True, start={"ref_dir": tmp_path / "old" / "ref"}).ok()

    assert "FRESH START" in ranks[0].said[0]


def test_another_parallel_strategy(tmp_path: Path) -> None:
    """Both values; nothing is loaded."""
    tiny_run(tmp_path, world_size=1, stop=(0, 6), parallel={"model_parallel": 1}).ok()
    error = error_of(tiny_run(tmp_path, world_size=1, resume=True, parallel={"model_parallel": 2}))

    assert (type(error), int(error.exit_code)) == (LayoutMismatch, 31)
    assert "model_parallel was 1, is 2" in str(error)


@pytest.mark.parametrize(
    "now",
    [
        {"name": "template", "actor": {"data_parallel": 2}},
        {"name": "", "actor": {"data_parallel": 2}, "generate": {"data_parallel": 1}},
        {"name": "", "actor": {"data_parallel": 2}, "ref": {"data_parallel": 2}},
        {},
    ],
    ids=["named by a template", "another split of rollouts", "says more", "says nothing"],
)
def test_a_strategy_that_gives_the_same_payloads(tmp_path: Path, now: dict[str, Any]) -> None:
    """Only what both sides say, and what decides shapes, is compared."""
    saved = {"name": "", "actor": {"data_parallel": 2}, "ref": None, "generate": None}

    def save(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=False)
        checkpointer.save(0, 5)

    one_rank(tmp_path, save, parallel=saved)

    assert one_rank(tmp_path, lambda c, me: c.start(resume=True), parallel=now) == P("0_5")


def test_another_number_of_steps_per_epoch(tmp_path: Path) -> None:
    """0_6 of ten steps is other data than 0_6 of five; it is neither passed over nor read as 0_0."""
    tiny_run(tmp_path, save_every=2, stop=(0, 9)).ok()
    for steps in (5, 7, 8, 20):
        error = error_of(tiny_run(tmp_path, steps_per_epoch=steps, resume=True))
        assert int(error.exit_code) == 31
        assert f"checkpoint 0_8 was made with 10 steps per epoch, this job has {steps}" in str(error)


def test_another_configuration_goes_on_and_says_so(tmp_path: Path) -> None:
    """Not bit for bit; where it saves and for how long is no difference."""
    config = {"rl_config": {"seed": 1, "epochs": 1, "save_ckpt_interval": 5}}
    tiny_run(tmp_path, world_size=1, stop=(0, 6), config=config).ok()
    same, other = (
        tiny_run(
            tmp_path, world_size=1, resume=True, stop=(0, 5),
            config={"rl_config": {"seed": seed, "epochs": 9, "save_ckpt_interval": 2}},
        ).ok()[0].said[0]
        for seed in (1, 2)
    )  # fmt: skip  # one call

    assert "warning" not in same
    assert "warning: config rl_config.seed was 1, is 2: not bit for bit" in other


# Another directory


def test_resuming_from_one_directory_and_saving_to_another(tmp_path: Path) -> None:
    """The source is not changed by a byte, and the run equals the one that stayed."""
    source, save = tmp_path / "source", tmp_path / "save"
    tiny_run(source, stop=(0, 7)).ok()
    before = savers.files(source)
    ranks = tiny_run(save, resume=True, start={"source": source}).ok()
    shutil.copytree(source, tmp_path / "stayed")
    tiny_run(tmp_path / "stayed", resume=True).ok()

    assert ranks[0].start == P("0_5")
    assert savers.files(source) == before
    assert tensors(save, "1_0") == tensors(tmp_path / "stayed", "1_0")
    origin = attempts.read_all(save)[-1].origin
    assert origin is not None
    assert (origin.position, origin.save) == (P("0_5"), str(source))


def test_a_target_that_holds_other_checkpoints(tmp_path: Path) -> None:
    """The same command after a crash would begin again from the source and leave the newer ones behind."""
    source, save = tmp_path / "source", tmp_path / "save"
    tiny_run(source, stop=(0, 7)).ok()
    tiny_run(save, resume=True, start={"source": source}).ok()
    error = error_of(tiny_run(save, resume=True, start={"source": source}))

    assert int(error.exit_code) == 62
    assert tiny_run(save, resume=True).ok()[0].start == P("1_0")


# Stock


def stock_job(
    save: Path, act: Callable[[ms_resume.Checkpointer, dict[str, Any]], Any], world_size: int = 2, **start: Any
) -> Any:
    """A job whose nets are those of the stock trees; `act` runs on every rank after the start."""
    zeros: dict[str, np.ndarray[Any, Any]] = {
        "model.w": np.zeros((2, 3), np.float32),
        "model.norm": np.zeros(3, np.float16),
    }

    def rank_main(group: ThreadGroup) -> Any:
        weights = {name: array.copy() for name, array in zeros.items()}
        moments = {f"{kind}.{n}": np.ones_like(a) for kind in ("adam_m", "adam_v") for n, a in zeros.items()}
        seen: dict[str, Any] = {
            "policy": Arrays(weights),
            "optimizer": Arrays({**weights, **moments, "global_step": np.zeros(1, np.int32)}),
            "ref": Arrays({"model.w": np.zeros((2, 3), np.float32)}),
            "cursor": Cursor(),
            "said": [],
        }
        with ms_resume.Checkpointer(
            save,
            policy=seen["policy"],
            optimizer=seen["optimizer"],
            ref=seen["ref"],
            components=[seen["cursor"]],
            steps_per_epoch=100,
            settings=ms_resume.Settings(keep_last=0, heartbeat_s=0),
            group=group,
            say=seen["said"].append,
        ) as checkpointer:
            seen["start"] = checkpointer.start(resume=True, **start)
            act(checkpointer, seen)
        return seen

    return run_ranks(world_size, rank_main).ok()


def _no_more(checkpointer: ms_resume.Checkpointer, seen: dict[str, Any]) -> None:
    pass


def test_a_stock_checkpoint_is_resumed(tmp_path: Path) -> None:
    """Policy, optimizer, reference; components start anew at the position; the banner says all of it."""
    stock_trees.f1(tmp_path)
    ranks = stock_job(tmp_path, _no_more)

    for rank, seen in enumerate(ranks):
        assert seen["start"] == P("0_10")
        for role in ("policy", "optimizer", "ref"):
            expected = stock_trees.tensors(role, rank, (0, 10))
            assert all(np.array_equal(array, expected[name]) for name, array in seen[role].items())
        assert seen["cursor"].sought == [(0, 10)]
    banner = ranks[0]["said"][0]
    assert "RESUMING at 0_10" in banner
    assert "stock MindRLHF's" in banner
    assert "starts anew, the checkpoint has nothing for it: cursor" in banner
    assert "not bit for bit" in banner


def test_our_saves_stand_beside_stocks(tmp_path: Path) -> None:
    """Each position is judged by its own kind; the newest wins, whichever it is; stock's files are as they were."""
    stock_trees.f1(tmp_path)
    stock = {path: c for path, c in savers.files(tmp_path).items() if "meta" not in path}
    stock_job(tmp_path, lambda checkpointer, seen: checkpointer.save(0, 12))
    ours = latest(tmp_path)
    stock_trees.healthy(tmp_path, (0, 15))
    theirs = locate.latest(tmp_path)
    after = stock_job(tmp_path, lambda checkpointer, seen: checkpointer.save(0, 20))

    assert ours == "0_12"
    assert theirs.checkpoint is not None
    assert (str(theirs.checkpoint.position), theirs.checkpoint.layout) == ("0_15", "mindrlhf")
    assert after[0]["start"] == P("0_15")
    assert latest(tmp_path) == "0_20"
    layouts = [v.layout for v in locate.every(tmp_path) if isinstance(v, Checkpoint)]
    assert layouts == [
        "ms_resume",
        "mindrlhf",
        "mindrlhf",
        "mindrlhf",
    ]  # 0_12 was not the start of the newest attempt
    assert {path: c for path, c in savers.files(tmp_path).items() if path in stock} == stock


@pytest.mark.parametrize("left", ["0_10", "0_10.deleted-000001-0123456789abcdef"])
def test_an_empty_directory_of_ours_does_not_hide_a_stock_checkpoint(tmp_path: Path, left: str) -> None:
    """Our save died before its vote, or retention deleted ours of that number; a stock job saved it since."""
    stock_trees.f1(tmp_path)
    (tmp_path / "commits" / left).mkdir(parents=True)

    assert latest(tmp_path) == "0_10"


def test_stock_positions_gone_back_past_are_dead_until_they_change(tmp_path: Path) -> None:
    """A stock job that saves them again brings them to life, when every rank has."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10))
    torn = stock_trees.payload_path(tmp_path, "optimizer", 1, (0, 10))
    content = torn.read_bytes()
    torn.unlink()
    assert stock_job(tmp_path, _no_more)[0]["start"] == P("0_5")
    torn.write_bytes(content)
    found = [latest(tmp_path)]
    for rank in (0, 1):
        for role in stock_trees.DIRECTORIES:
            stock_trees.payload_path(tmp_path, role, rank, (0, 10)).unlink()
            stock_trees.add(tmp_path, role, [rank], (0, 10))
        found.append(latest(tmp_path))

    assert found == ["0_5", "0_5", "0_10"]


def test_mixed_generations_of_stock_are_refused(tmp_path: Path) -> None:
    """The optimizer file of 0_10 holds the weights of 0_5: that is no checkpoint, the older one is."""
    stock_trees.f1(tmp_path)
    for rank in (0, 1):
        target = stock_trees.payload_path(tmp_path, "optimizer", rank, (0, 10))
        target.unlink()
        shutil.copy(stock_trees.payload_path(tmp_path, "optimizer", rank, (0, 5)), target)
    ranks = stock_job(tmp_path, _no_more)

    assert ranks[0]["start"] == P("0_5")
    assert "two generations" in ranks[0]["said"][0]


def test_stocks_final_position_is_the_end_of_the_epoch_before(tmp_path: Path) -> None:
    """(epochs, steps per epoch) means (epochs, 0): a longer run skips no epoch and repeats none."""
    stock_trees.healthy(tmp_path, (0, 50), (1, 100))
    for rank in (0, 1):
        stock_trees.payload_path(tmp_path, "ref", rank, (1, 100)).unlink()  # stock does not save it at the end
    ranks = stock_job(tmp_path, lambda checkpointer, seen: checkpointer.save(1, 5))

    assert ranks[0]["start"] == Position(1, 0)
    assert ranks[0]["cursor"].sought == [(1, 0)]
    assert latest(tmp_path) == "1_5"


def test_a_stock_ckpt_start_stays_a_fallback(tmp_path: Path) -> None:
    """Our first save moves meta.json away from it; a `.ckpt` has no mark; the attempt's record vouches for it."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_5", file_format="ckpt")
    shutil.rmtree(tmp_path / "commits")
    shutil.rmtree(tmp_path / "state")
    attempt = savers.open_attempt(tmp_path, "0_5")
    savers.save(savers.writer(tmp_path, attempt), "0_10", file_format="ckpt")
    assert latest(tmp_path) == "0_10"
    names.vote(tmp_path, P("0_10"), 0).unlink()
    survey.take(tmp_path)

    assert latest(tmp_path) == "0_5"


# Formats and settings


def test_ckpt_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Saved as `.ckpt`, gone on with, and the last save equals that of a run that stayed with safetensors."""
    settings = ms_resume.Settings(save_format="ckpt", keep_last=0, heartbeat_s=0)
    tiny_run(tmp_path / "a", settings=settings, stop=(0, 7)).ok()
    assert names.payload(tmp_path / "a", "policy", 0, P("0_5"), "ckpt").exists()
    tiny_run(tmp_path / "a", resume=True).ok()
    tiny_run(tmp_path / "b").ok()

    assert tensors(tmp_path / "a", "1_0") == tensors(tmp_path / "b", "1_0")


def test_a_label_is_for_people(tmp_path: Path) -> None:
    """Two starts of one label are still two attempts."""
    settings = ms_resume.Settings(label="night", heartbeat_s=0)
    for resume in (False, True):
        tiny_run(tmp_path, resume=resume, settings=settings).ok()
    records = attempts.read_all(tmp_path)

    assert [record.label for record in records] == ["night", "night"]
    assert records[0].attempt != records[1].attempt
