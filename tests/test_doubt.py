"""Nets that hold a part of a checkpoint are in doubt: nothing of ms_resume saves them or goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
from runs import Outcome, ThreadGroup, run_ranks

import ms_resume
from ms_resume.errors import Damaged, MsResumeError, NothingToResume, UsageError
from ms_resume.framework.group import Solo
from ms_resume.ondisk import payload
from ms_resume.state import Arrays

NAMES = ("a", "b", "c", "d")


SMALL, LARGE = 1 << 16, 5 << 16
"""Numbers of a tensor: four small ones are read in one call, of large ones each by itself."""


class Nets:
    """One rank's; `c` is the third tensor of the policy's file."""

    def __init__(self, value: float, size: int = SMALL) -> None:
        self.policy = Arrays({name: np.full(size, value, np.float32) for name in NAMES})
        self.optimizer = Arrays({**self.policy, **{f"adam_m.{n}": np.full(8, value, np.float32) for n in NAMES}})
        self.ref = Arrays(w=np.full(8, value, np.float32))

    def checkpointer(self, save: Path, group: ThreadGroup | None = None, **settings: Any) -> ms_resume.Checkpointer:
        return ms_resume.Checkpointer(
            save,
            policy=self.policy,
            optimizer=self.optimizer,
            ref=self.ref,
            steps_per_epoch=10,
            settings=ms_resume.Settings(heartbeat_s=0, **settings),
            group=group or Solo(),
            say=lambda text: None,
        )

    def found(self) -> set[float]:
        """Every value in them."""
        roles = (self.policy, self.optimizer, self.ref)
        return {float(value) for role in roles for array in role.values() for value in np.unique(array)}

    def check_part_of(self, loaded: float, before: float) -> None:
        """What `damage` leaves of a load: the damaged bytes in `c`, all before it loaded. What comes after it is as it
        was, but what was read in the same call."""
        values = {name: set(np.unique(array).tolist()) for name, array in self.policy.items()}
        after = loaded if len(self.policy["d"]) == SMALL else before

        assert (values["a"], values["b"], values["d"]) == ({loaded}, {loaded}, {after})
        assert np.flatnonzero(self.policy["c"] != loaded).tolist() == [0]
        assert self.policy["c"][0] != before
        for role, names in ((self.optimizer, [f"adam_m.{n}" for n in NAMES]), (self.ref, ["w"])):
            assert all(set(np.unique(role[name])) <= {loaded, before} for name in names)


def saved(save: Path, *positions: int, size: int = SMALL) -> None:
    """Position 0_S holds nothing but S."""
    nets = Nets(0, size)
    with nets.checkpointer(save) as checkpointer:
        checkpointer.start(resume=False)
        for step in positions:
            for array in (*nets.optimizer.values(), nets.ref["w"]):
                array[...] = step
            checkpointer.save(0, step)


def damage(save: Path, step: int, rank: int = 0) -> Path:
    path = own_trees.payload_path(save, f"0_{step}", rank, "policy")
    in_order = sorted(payload.read_header(path).tensors.items(), key=lambda item: item[1].begin)
    third = [name for name, info in in_order if info.shape][2]
    own_trees.flip_tensor(path, third)
    return path


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_third_tensor_fails(tmp_path: Path, size: int) -> None:
    """The nets hold some of it; no start without a whole load, no save; another start that loads mends it."""
    saved(tmp_path, 5, size=size)
    path, nets = damage(tmp_path, 5), Nets(-1, size)
    (tmp_path / "new").mkdir()
    broken = nets.checkpointer(tmp_path)
    with pytest.raises(NothingToResume, match="damaged"):
        broken.start(resume=True)

    nets.check_part_of(5.0, before=-1.0)
    with pytest.raises(UsageError, match="not started"):
        broken.save(0, 6)
    for allowed in ({}, {"allow_fresh_start": True}):
        with pytest.raises(MsResumeError):
            nets.checkpointer(tmp_path / "new").start(resume=False, **allowed)
    with pytest.raises(Damaged, match="policy, optimizer, ref: may hold a part of a checkpoint"):
        nets.checkpointer(tmp_path / "new").start(resume=True, allow_fresh_start=True)
    assert not any((tmp_path / "new").iterdir())
    own_trees.flip_tensor(path, next(n for n in NAMES if not _holds(path, n)))
    with nets.checkpointer(tmp_path) as checkpointer:
        checkpointer.start(resume=True)
        assert nets.found() == {5.0}
        checkpointer.save(0, 6)


def _holds(path: Path, name: str) -> bool:
    header = payload.read_header(path)
    with open(path, "rb") as file:
        try:
            payload.check_tensor(file, header, name)
            return True
        except Damaged:
            return False


def test_the_next_older_one_is_a_whole_load(tmp_path: Path) -> None:
    """Nothing of the newer one is left, and the run goes on."""
    saved(tmp_path, 5, 8)
    damage(tmp_path, 8)
    nets = Nets(-1)
    with nets.checkpointer(tmp_path) as checkpointer:
        assert checkpointer.start(resume=True) == ms_resume.Position(0, 5)
        assert nets.found() == {5.0}
        checkpointer.save(0, 9)


def test_a_run_whose_nets_somebody_else_loaded_into(tmp_path: Path) -> None:
    """`begin`, `save`, and `fence` refuse, until that other load succeeds."""
    saved(tmp_path / "old", 5)
    path, nets = damage(tmp_path / "old", 5), Nets(-1)
    with nets.checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.start(resume=False)
        checkpointer.save(0, 1)
        with pytest.raises(NothingToResume):
            nets.checkpointer(tmp_path / "old").start(resume=True)
        before = sorted(tmp_path.rglob("*"))
        for refused in (lambda: checkpointer.begin(0, 2), lambda: checkpointer.save(0, 2), checkpointer.fence):
            with pytest.raises(Damaged, match="may hold a part"):
                refused()
        assert sorted(tmp_path.rglob("*")) == before
        own_trees.flip_tensor(path, next(n for n in NAMES if not _holds(path, n)))
        with nets.checkpointer(tmp_path / "old") as other:
            other.start(resume=True)
        checkpointer.save(0, 2)


def test_staged_it_is_all_or_nothing(tmp_path: Path) -> None:
    """For one host copy: what fails leaves the nets as they were, and they are good for anything else."""
    saved(tmp_path, 5, 8)
    path, nets = damage(tmp_path, 5), Nets(-1)
    damage(tmp_path, 8)
    with pytest.raises(NothingToResume, match="damaged"):
        nets.checkpointer(tmp_path, staged_load=True).start(resume=True)

    assert nets.found() == {-1.0}
    with nets.checkpointer(tmp_path / "new", staged_load=True) as checkpointer:
        checkpointer.start(resume=False)
        checkpointer.save(0, 1)
    own_trees.flip_tensor(path, next(n for n in NAMES if not _holds(path, n)))
    with nets.checkpointer(tmp_path, staged_load=True) as checkpointer:
        checkpointer.start(resume=True)
    assert nets.found() == {5.0}


@pytest.mark.parametrize("staged", [False, True])
def test_one_ranks_damage_is_every_ranks(tmp_path: Path, staged: bool) -> None:
    """Rank 0 has loaded all of its own, of a checkpoint that rank 1 has not: it is in doubt too. Staged, neither is."""

    def save_main(group: ThreadGroup) -> None:
        nets = Nets(5)
        with nets.checkpointer(tmp_path / "save", group) as checkpointer:
            checkpointer.start(resume=False)
            checkpointer.save(0, 5)

    def load_main(group: ThreadGroup) -> tuple[Nets, str]:
        nets = Nets(-1)
        with pytest.raises(NothingToResume):
            nets.checkpointer(tmp_path / "save", group, staged_load=staged).start(resume=True)
        try:
            with nets.checkpointer(tmp_path / "new", group) as checkpointer:
                checkpointer.start(resume=False)
            return nets, "started"
        except Damaged as error:
            return nets, error.message

    run_ranks(2, save_main).ok()
    damage(tmp_path / "save", 5, rank=1)
    outcome: Outcome[tuple[Nets, str]] = run_ranks(2, load_main)
    (first, said), (second, too) = outcome.ok()

    assert said == too
    if staged:
        assert (first.found(), second.found(), said) == ({-1.0}, {-1.0}, "started")
    else:
        assert first.found() == {5.0}
        second.check_part_of(5.0, before=-1.0)
        assert "may hold a part of a checkpoint" in said


def test_ranks_that_stage_and_ranks_that_do_not(tmp_path: Path) -> None:
    """They would wait for each other in different places."""
    saved(tmp_path, 5)

    def main(group: ThreadGroup) -> None:
        Nets(0).checkpointer(tmp_path, group, staged_load=group.rank == 1).start(resume=True)

    with pytest.raises(MsResumeError, match="staged_load"):
        run_ranks(2, main).ok()


def test_a_component_that_does_not_take_its_state(tmp_path: Path) -> None:
    """The nets are loaded, the rest is not: no start on them but one that loads everything."""

    class Broken:
        name = "cursor"
        taken = True

        def state(self) -> dict[str, int]:
            return {"at": 3}

        def restore(self, state: Any) -> None:
            if not self.taken:
                raise ValueError("no")

    cursor, nets = Broken(), Nets(1)

    def checkpointer(where: Path) -> ms_resume.Checkpointer:
        return ms_resume.Checkpointer(
            where,
            policy=nets.policy,
            optimizer=nets.optimizer,
            components=[cursor],
            steps_per_epoch=10,
            settings=ms_resume.Settings(heartbeat_s=0),
            group=Solo(),
            say=lambda text: None,
        )

    with checkpointer(tmp_path / "a") as first:
        first.start(resume=False)
        first.save(0, 1)
    cursor.taken = False
    with pytest.raises(MsResumeError, match="cannot take its saved state"):
        checkpointer(tmp_path / "a").start(resume=True)
    with pytest.raises(Damaged, match="may hold a part"):
        checkpointer(tmp_path / "b").start(resume=False)
    cursor.taken = True
    with checkpointer(tmp_path / "a") as again:
        again.start(resume=True)
