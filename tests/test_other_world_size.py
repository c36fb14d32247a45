"""Another number of ranks: refused with both numbers, or gone on with where those that saved were replicas."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
from runs import TinyRank, run_ranks
from start_flags import banner, job
from test_resume import error_of, stock_job

import ms_resume
from ms_resume.errors import Disagreement, LayoutMismatch, UsageError
from ms_resume.load import warm
from ms_resume.ondisk import meta, names
from ms_resume.records import Position
from ms_resume.resume import choice, resplit

P = Position.parse
SIZE = 48
ALLOWED = ["--auto_resume", "--allow_world_size", "data_parallel"]


def alike(me: TinyRank) -> None:
    """Replicas: the weights of all ranks are those of rank 0."""
    for name, array in TinyRank(0).optimizer.items():
        me.optimizer[name][...] = array


def data_parallel(
    save: Path, *flags: str, world_size: int, batch: int = 2, epochs: int = 2, until: tuple[int, int] | None = None,
    prepare: Callable[[TinyRank], object] = alike, **more: Any,
) -> Any:  # fmt: skip
    """Each rank adds the numbers of all ranks' samples of a step, as a reduction of gradients does."""
    cursors: dict[int, ms_resume.Cursor] = {}

    def components(me: TinyRank) -> list[Any]:
        cursors[me.rank] = ms_resume.Cursor(SIZE, batch=batch, seed=3, rank=me.rank, num_ranks=world_size)
        return [cursors[me.rank]]

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        samples = me.samples
        cursor, first = cursors[me.rank], checkpointer.position
        for epoch in range(first.epoch, epochs):
            left = range(first.step if epoch == first.epoch else 0, cursor.steps_per_epoch)
            for indices, step in zip(cursor.epoch(), left):  # noqa: B905  # as a trainer has it
                if (epoch, step) == until:
                    checkpointer.save(epoch, step)
                    return
                own = bytes(np.asarray(indices, np.int64).tobytes())
                heard = checkpointer._job.group.exchange(own)
                samples[epoch, step] = [int(i) for part in heard for i in np.frombuffer(part, np.int64)]
                me.policy["w"][...] += np.float32(sum(samples[epoch, step]))
        checkpointer.save(epochs, 0)

    return job(
        save,
        *flags,
        act=act,
        components=components,
        world_size=world_size,
        steps_per_epoch=SIZE // (batch * world_size),
        prepare=prepare,
        **more,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two replicas, 4 samples a step together, 12 steps an epoch; saved at 0_4: 16 samples are done."""
    save = tmp_path_factory.mktemp("saved") / "save"
    data_parallel(save, world_size=2, until=(0, 4)).ok()
    return save


@pytest.fixture
def save(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "save", symlinks=True))


def all_samples(ranks: Any) -> list[int]:
    return [sample for _, samples in sorted(ranks[0].samples.items()) for sample in samples]


@pytest.mark.parametrize(("world_size", "batch"), [(4, 1), (1, 4)])
def test_as_many_samples_a_step(save: Path, tmp_path: Path, world_size: int, batch: int) -> None:
    """The same samples in the same steps, none twice and none left out; every rank has the replicas' weights; random
    state is each rank's own."""
    straight = data_parallel(tmp_path / "straight", world_size=2).ok()
    ranks = data_parallel(save, *ALLOWED, world_size=world_size, batch=batch).ok()

    assert [me.start for me in ranks] == [P("0_4")] * world_size
    assert all_samples(ranks) == all_samples(straight)[16:]
    for me in ranks:
        assert np.array_equal(me.policy["w"], straight[0].policy["w"])
        assert me.rng.bit_generator.state == TinyRank(me.rank).rng.bit_generator.state
    assert banner(ranks, save=save) == [
        "ms_resume: RESUMING at 0_4 from SAVE (ours, layout ms_resume, attempt 000001)",
        "  attempt 000002 writes to SAVE",
        "  asked for: --auto_resume",
        "  restored and verified (MIB in S): policy, optimizer, ref, scale, data",
        f"  note: data: goes on at sample 16 of epoch 0 with {batch} x {world_size} samples a step, before 2 x 2: none "
        "comes twice",
        f"  warning: not bit-identical: saved by 2 ranks, this job has {world_size}, each in the place of a "
        "data-parallel replica",
        "  warning: randomness: each rank's own, as the trainer built it",
    ]
    assert [meta.read(names.rank_dir(save, "policy", me.rank)).position for me in ranks] == [P("2_0")] * world_size


def test_ranks_that_are_new_have_no_place_yet(save: Path) -> None:
    """Before its first save a rank that saved nothing there points nowhere: those files are another one's."""
    data_parallel(save, *ALLOWED, world_size=4, batch=1, until=(0, 4)).ok()

    assert [(names.rank_dir(save, "policy", rank) / names.META).exists() for rank in range(4)] == [
        True,
        True,
        False,
        False,
    ]


def test_the_position_that_it_became_is_saved(save: Path) -> None:
    """Where it has another name now nothing stands there yet."""
    data_parallel(save, *ALLOWED, world_size=1, until=(0, 8)).ok()

    assert names.vote(save, P("0_8"), 0).exists()


def test_and_back_again(save: Path) -> None:
    """What the four saved is the two's again; it is theirs, so the other number is refused now."""
    data_parallel(save, *ALLOWED, world_size=4, batch=1, until=(0, 8)).ok()
    refused = error_of(data_parallel(save, "--auto_resume", world_size=2))
    ranks = data_parallel(save, *ALLOWED, world_size=2).ok()

    assert "checkpoint 0_8 was made by 4 ranks, this job has 2" in refused.message
    assert [me.start for me in ranks] == [P("0_8")] * 2


@pytest.mark.parametrize(
    ("world_size", "at", "steps"),
    [
        (1, "0_8", 16),  # 24 steps an epoch: 16 of 48 samples are 8 of them
        (3, "0_3", 5),  # 8 steps: 16 samples are 2.67 of them, the 32 that are left 5 whole ones
    ],
)
def test_another_number_of_samples_a_step(save: Path, tmp_path: Path, world_size: int, at: str, steps: int) -> None:
    """The position is this job's own: what is left of the epoch fills what is left of its steps."""
    path = ["--resume", "--checkpoint_path", str(save), *ALLOWED[1:]]
    ranks = data_parallel(tmp_path / "new", *path, world_size=world_size).ok()
    straight = data_parallel(tmp_path / "straight", world_size=2).ok()

    assert [me.start for me in ranks] == [P(at)] * world_size
    assert f"; 0_4 is {at} here" in ranks[0].said[0]
    epoch = [sample for (e, _), found in sorted(ranks[0].samples.items()) if e == 0 for sample in found]
    assert epoch == all_samples(straight)[16 : 16 + steps * 2 * world_size]
    assert len([1 for e, _ in ranks[0].samples if e == 1]) == SIZE // (2 * world_size)


def test_no_whole_step_is_left(tmp_path: Path) -> None:
    """Then the next epoch comes, whole."""
    data_parallel(tmp_path / "old", world_size=2, until=(0, 11)).ok()
    path = ["--resume", "--checkpoint_path", str(tmp_path / "old"), *ALLOWED[1:]]
    ranks = data_parallel(tmp_path / "new", *path, world_size=4).ok()

    assert ranks[0].start == P("1_0")
    assert sorted(all_samples(ranks)) == list(range(SIZE))


def test_positions_only_grow(save: Path) -> None:
    """In the same directory what is saved must not count as older than what it went on from."""
    before = savers.files(save)
    error = error_of(data_parallel(save, *ALLOWED, world_size=4))

    assert (int(error.exit_code), "0_4, of 12 steps per epoch, is 0_2 of this job's 6" in error.message) == (31, True)
    assert "--save_checkpoint_dir NEW" in error.hint
    assert savers.files(save) == before


def test_without_the_flag(save: Path) -> None:
    """Both numbers, and the flag; nothing is changed."""
    before = savers.files(save)
    error = error_of(data_parallel(save, "--auto_resume", world_size=4, batch=1))

    assert error.message.endswith("checkpoint 0_4 was made by 2 ranks, this job has 4")
    assert "--allow_world_size data_parallel" in error.hint
    assert (int(error.exit_code), error.fields["found"], error.fields["expected"]) == (31, 2, 4)
    assert savers.files(save) == before


def test_ranks_that_were_no_replicas(tmp_path: Path) -> None:
    """The digests tell, whatever is allowed: here each rank has a part of its own."""
    data_parallel(tmp_path, world_size=2, until=(0, 4), prepare=lambda me: None).ok()
    error = error_of(data_parallel(tmp_path, *ALLOWED, world_size=4, batch=1))

    assert error.exit_code == 31
    assert "rank 1's policy is not rank 0's (first: w): the 2 ranks were no data-parallel replicas" in error.message


def test_without_a_cursor(save: Path) -> None:
    """Nothing says how many samples a step had: refused in the middle of an epoch, where steps differ."""
    error = error_of(job(save, *ALLOWED, world_size=4, steps_per_epoch=6, prepare=alike))

    assert error.exit_code == 31
    assert "was made with 12 steps per epoch, this job has 6, and no component knows" in error.message


@pytest.mark.parametrize("changed", [0, 1])
def test_a_rank_that_sees_another_vote(save: Path, changed: int) -> None:
    """With fewer ranks than saved somebody looks at the votes that are left over."""
    chosen = choice.choose(save, None, 12, ())
    own_trees.edit_vote(save, "0_4", changed, lambda vote: vote.update(attempt="000009-00000000000000aa"))
    error = error_of(run_ranks(1, lambda group: choice.confirm(group, chosen, 0)))

    assert isinstance(error, Disagreement)
    assert f"have digest {chosen.votes_digest}" in error.message


@pytest.mark.parametrize("world_size", [1, 4])
def test_stocks(tmp_path: Path, world_size: int) -> None:
    """It has no digests: the word of whoever allows it counts. Each rank takes a replica's files."""
    stock_trees.f1(tmp_path)
    ranks = stock_job(tmp_path, lambda *_: None, world_size, allow_world_size="data_parallel")

    for rank, seen in enumerate(ranks):
        assert seen["start"] == P("0_10")
        expected = stock_trees.tensors("policy", rank % 2, (0, 10))
        assert all(np.array_equal(array, expected[name]) for name, array in seen["policy"].items())
    assert "not bit-identical: saved by 2 ranks" in ranks[0]["said"][0]


def test_where_each_node_has_its_own_disk(save: Path) -> None:
    """There the files of other ranks are not."""
    chosen = choice.choose(save, None, 12, ())

    with pytest.raises(LayoutMismatch, match="made by 2 ranks, this job has 4, and each node has a disk of its own"):
        resplit.check(chosen, 4, "data_parallel", is_shared=False)


def test_a_word_that_is_none(save: Path) -> None:
    """There is one kind of ranks that can be exchanged."""
    with pytest.raises(UsageError, match="'tensor_parallel'"):
        warm.check_word("tensor_parallel")
