"""Warm starts: weights alone into a new run, weights and optimizer state from two places, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
from conformance.trees import write
from runs import Outcome, ThreadGroup, TinyRank, run_ranks, tiny_run
from test_resume import error_of

import ms_resume
from ms_resume.errors import Damaged, DirectoryNotEmpty, Disagreement, LayoutMismatch, NamesMismatch, UsageError
from ms_resume.load.names.name_map import NameMap
from ms_resume.load.views import Part
from ms_resume.ondisk import attempts
from ms_resume.records import Position
from ms_resume.state import Arrays, HostTensor

P = Position.parse
Act = Callable[[ms_resume.Checkpointer, TinyRank], Any]
Prepare = Callable[[TinyRank], object]


def job(
    save: Path, act: Act, prepare: Prepare = lambda me: None, *, world_size: int = 2, **more: Any
) -> Outcome[TinyRank]:
    """`act` with the Checkpointer of each rank of a new job; `prepare` changes what the trainer has built."""

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        prepare(me)
        with me.saves_in(save, group, **more) as checkpointer:
            act(checkpointer, me)
        return me

    return run_ranks(world_size, rank_main)


def warm(*arguments: Any, **more: Any) -> Act:
    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        me.start = checkpointer.warm_start(*arguments, **more)

    return act


def resume(**more: Any) -> Act:
    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        me.start = checkpointer.start(resume=True, **more)

    return act


def held(me: TinyRank) -> dict[str, bytes]:
    """Everything that a start may change."""
    roles = {"policy": me.policy, "optimizer": me.optimizer, "ref": me.ref}
    values = {f"{role} {name}": array.tobytes() for role, arrays in roles.items() for name, array in arrays.items()}
    return {**values, "rng": repr(me.rng.bit_generator.state).encode(), "scale": repr(me.scale.value).encode()}


def changed(me: TinyRank, prepare: Prepare = lambda me: None) -> set[str]:
    """What is not as the trainer had built it."""
    fresh = TinyRank(me.rank)
    prepare(fresh)
    before, now = held(fresh), held(me)
    return {name for name in now if now[name] != before[name]}


def unchanged_by(outcome: Outcome[TinyRank], ranks: list[TinyRank], prepare: Prepare = lambda me: None) -> Any:
    """The error of a start that changed nothing."""
    error = error_of(outcome)
    assert [changed(me, prepare) for me in ranks] == [set()] * len(ranks)
    return error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks: 0_5 and 1_0."""
    save = tmp_path_factory.mktemp("trained") / "save"
    tiny_run(save).ok()
    return save


def final(save: Path, at: str = "1_0", rank: int = 0) -> TinyRank:
    """A rank as it was at a position, by a resume elsewhere."""
    start = {"source": save, "position": P(at), "allow_fresh_start": True}
    return tiny_run(save.parent / f"copy{at}", resume=True, stop=(0, 5), epochs=1, start=start).ok()[rank]


def test_weights_alone(trained: Path, tmp_path: Path) -> None:
    """Each rank's own weights, a new run at 0_0; optimizer, reference, random state, and scale are untouched, and what
    was loaded from is not changed by a byte."""
    before = savers.files(trained)
    ranks = job(tmp_path / "new", warm(trained)).ok()

    for me in ranks:
        assert me.start == P("0_0")
        assert changed(me) == {"policy w", "optimizer w"}  # one array: the optimizer updates the policy's own
        assert not np.array_equal(me.policy["w"], np.full((3, 4), float(me.rank), np.float32))
    assert not np.array_equal(ranks[0].policy["w"], ranks[1].policy["w"])
    assert savers.files(trained) == before
    assert [record.origin for record in attempts.read_all(tmp_path / "new")] == [None]


def test_the_banner(trained: Path, tmp_path: Path) -> None:
    """Where from, what, and what not; on rank 0."""
    ranks = job(tmp_path / "new", warm(trained, ref=True, allow_unexpected=["bias"], position=P("0_5"))).ok()
    first, *others = [me.said for me in ranks]
    attempt, own = (attempts.read_all(save)[-1].attempt for save in (trained, tmp_path / "new"))
    lines = re.sub(r"\d+\.\d\d s", "0.01 s", first[0]).splitlines()[1:-1]

    assert others == [[]]
    assert lines == [
        f"ms_resume: WARM START from {trained} at 0_5 (ms_resume, attempt {attempt})",
        f"  attempt {own} writes to {tmp_path / 'new'}",
        "  weights alone (0.0 MiB in 0.01 s): 2 tensors of the policy, 1 of the reference",
        "  untouched, as the trainer built it: optimizer, position, random state",
        "  1 tensors are not taken, by allow_unexpected: bias",
    ]


def test_a_new_run_goes_on_by_itself(trained: Path, tmp_path: Path) -> None:
    """With `resume` the weights are for a fresh start alone: what is started again goes on from its own checkpoint,
    and the weights need not be there any more."""
    save = tmp_path / "new"

    def run(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        me.start = checkpointer.warm_start(source, resume=True)
        if me.start == P("0_0"):
            me.train_one_step()
            checkpointer.save(0, 1)

    source = trained
    first = job(save, run).ok()
    source = tmp_path / "gone"
    second = job(save, run).ok()

    assert [me.start for me in (*first, *second)] == [P("0_0"), P("0_0"), P("0_1"), P("0_1")]
    assert held(second[1]) == held(first[1])
    assert "WARM START" in first[0].said[0]
    assert "RESUMING at 0_1" in second[0].said[0]


def test_the_reference_gets_the_same(trained: Path, tmp_path: Path) -> None:
    """In memory of its own: training the policy leaves it."""
    (me, _) = job(tmp_path / "new", warm(trained, ref=True, allow_unexpected=["bias"])).ok()

    assert np.array_equal(me.ref["w"], me.policy["w"])
    me.train_one_step()
    assert not np.array_equal(me.ref["w"], me.policy["w"])


# -- weights from one place, optimizer state from another


def test_moments_from_another_place(trained: Path, tmp_path: Path) -> None:
    """Moments and step counter of 0_5, weights of 1_0: not the weights that lie beside the moments."""
    path = trained / "commits" / "0_5"
    ranks = job(tmp_path / "new", warm(trained, optimizer_from=path)).ok()
    for rank, me in enumerate(ranks):
        weights, moments = final(trained, rank=rank), final(trained, "0_5", rank=rank)
        assert np.array_equal(me.policy["w"], weights.policy["w"])
        assert np.array_equal(me.optimizer["adam_m.w"], moments.optimizer["adam_m.w"])
        assert not np.array_equal(weights.optimizer["adam_m.w"], moments.optimizer["adam_m.w"])
        assert me.optimizer["global_step"].tolist() == [5]
        assert changed(me) == {"policy w", "optimizer w", "optimizer adam_m.w", "optimizer global_step"}
    said = ranks[0].said[0]

    assert f"optimizer state: 3 tensors from {trained} at 0_5" in said
    assert "the weights there were not taken" in said
    assert "untouched, as the trainer built it: position, random state" in said


def with_rate(rate: float) -> Prepare:
    def prepare(me: TinyRank) -> None:
        me.optimizer["learning_rate"] = np.array(rate, np.float32)

    return prepare


def saved_with_rate(save: Path, rate: float, **more: Any) -> Path:
    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=False)
        me.train_one_step()
        checkpointer.save(0, 3)

    job(save, act, with_rate(rate), **more).ok()
    return save


@pytest.mark.parametrize(("override", "rate"), [({}, 5e-4), ({"learning_rate": "checkpoint"}, 1e-3)])
def test_a_new_run_has_its_own_rate(tmp_path: Path, override: dict[str, str], rate: float) -> None:
    """A constant rate is a tensor beside the moments: the configuration's stays, unless the other is asked for."""
    save = saved_with_rate(tmp_path / "old", 1e-3)
    ranks = job(tmp_path / "new", warm(save, optimizer_from=save, override=override), with_rate(5e-4)).ok()
    side = "the checkpoint's" if override else "this configuration's"

    assert [float(me.optimizer["learning_rate"]) for me in ranks] == [np.float32(rate)] * 2
    assert f"learning_rate was 0.001, is 0.0005: {side} counts" in ranks[0].said[0]
    assert ranks[0].optimizer["global_step"].tolist() == [1]


def lamb(me: TinyRank) -> None:
    for name in [name for name in me.optimizer if name.startswith("adam_m")]:
        me.optimizer[name.replace("adam_m", "lamb_m")] = me.optimizer.pop(name)


def grouped(me: TinyRank) -> None:
    me.optimizer["learning_rate_group_0"] = np.array(1e-3, np.float32)


def frozen(me: TinyRank) -> None:
    del me.optimizer["adam_m.bias"]


OTHERS = [
    (lamb, r"the file holds .*\(adam_m of 2 weights, such as adam_m\.bias\); this job has .*\(lamb_m of 2 weights"),
    (grouped, "groups are others: the file holds learning_rate; this job has learning_rate_group_0"),
    (frozen, "updates other weights, no longer bias"),
]


@pytest.mark.parametrize(("change", "said"), OTHERS)
def test_an_optimizer_of_another_kind(tmp_path: Path, change: Prepare, said: str) -> None:
    """Refused with both named, on a resume and for `optimizer_from`; the nets and the directory are as they were."""
    save = saved_with_rate(tmp_path / "old", 1e-3)
    before = savers.files(save)
    kept: list[TinyRank] = []

    def prepare(me: TinyRank) -> None:
        change(me)
        kept.append(me)

    for act, place in ((resume(), save), (warm(save, optimizer_from=save, override={"x": "config"}), tmp_path / "new")):
        error = unchanged_by(job(place, act, prepare), kept, change)
        assert isinstance(error, NamesMismatch)
        assert re.search(said, str(error))
        kept.clear()
    assert savers.files(save) == before


def test_no_optimizer_state_of_this_model(tmp_path: Path) -> None:
    """A file without moments, or with those of other names."""
    write(tmp_path / "base.safetensors", {**TinyRank(0).policy, "adam_m.other": np.zeros(3, np.float32)})
    act = warm(tmp_path / "base.safetensors", optimizer_from=tmp_path / "base.safetensors", allow_unexpected=["adam*"])
    error = error_of(job(tmp_path / "new", act))

    assert isinstance(error, NamesMismatch)
    assert "holds no optimizer state of this job's weights, expected" in str(error)


def test_weights_and_optimizer_in_one_file(tmp_path: Path) -> None:
    """As MindFormers saves them, with its own numbers: each role takes its part, nobody the rest."""
    arrays = {"w": np.full((3, 4), 6, np.float32), "bias": np.full(3, 7, np.float16)}
    moments = {f"adam_m.{name}": array + 1 for name, array in arrays.items()}
    counters = {"global_step": np.array([9], np.int32), "epoch_num": np.array(1), "loss_scale": np.array(2.0)}
    path = tmp_path / "checkpoint" / "rank_0" / "CKP_rank_0-1_9.safetensors"
    write(path, {**arrays, **moments, **counters})
    (me, _) = job(tmp_path / "new", warm(path, optimizer_from=tmp_path / "checkpoint")).ok()

    assert me.start == P("0_0")
    assert me.optimizer["adam_m.w"].tolist() == [[7.0] * 4] * 3
    assert me.policy["w"].tolist() == me.optimizer["w"].tolist() == [[6.0] * 4] * 3
    assert me.optimizer["global_step"].tolist() == [9]
    assert "4 tensors in the same file are optimizer state and counters, not taken" in me.said[0]


def test_weights_from_where_there_is_nothing_to_resume(trained: Path, tmp_path: Path) -> None:
    """Then it is a warm start, and the banner calls it one."""
    (tmp_path / "new").mkdir()
    (me, _) = job(tmp_path / "new", resume(weights_from=trained)).ok()

    assert me.start == P("0_0")
    assert changed(me) == {"policy w", "optimizer w"}
    assert "WARM START" in me.said[0]
    assert "in the place of" not in me.said[0]


def test_training_state_of_the_one_and_weights_of_the_other(trained: Path, tmp_path: Path) -> None:
    """A resume in all but the weights, which are put in the place of the checkpoint's."""
    save = tmp_path / "run"
    tiny_run(save, stop=(0, 7)).ok()
    iteration = tmp_path / "iter_2.safetensors"
    write(iteration, {"w": np.full((3, 4), 42, np.float32), "bias": np.full(3, 7, np.float16)})
    whole = job(tmp_path / "other", resume(source=save)).ok()
    mixed = job(save, resume(weights_from=iteration)).ok()
    weights = {"policy w", "policy bias", "optimizer w", "optimizer bias"}

    for me, other in zip(mixed, whole, strict=True):
        assert me.start == P("0_5")
        assert {name for name, value in held(me).items() if value != held(other)[name]} == weights
        assert me.policy["w"].tolist() == [[42.0] * 4] * 3
    said = mixed[0].said[0]
    assert "RESUMING at 0_5" in said
    assert f"2 tensors of the policy, from {iteration} (one file), in the place of the checkpoint's" in said
    assert "untouched" not in said


def test_weights_that_do_not_fit_stop_a_resume_before_it_changes_anything(tmp_path: Path) -> None:
    """They are looked at first."""
    save = tmp_path / "run"
    tiny_run(save, stop=(0, 7)).ok()
    write(tmp_path / "other.safetensors", {"w": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float16)})
    kept: list[TinyRank] = []
    error = unchanged_by(job(save, resume(weights_from=tmp_path / "other.safetensors"), kept.append), kept)

    assert isinstance(error, NamesMismatch)
    assert len(attempts.read_all(save)) == 1


# -- a resume with another rate


@pytest.mark.parametrize(("override", "rate"), [("config", 5e-4), ("checkpoint", 1e-3), (None, None)])
def test_a_resume_with_another_rate(tmp_path: Path, override: str | None, rate: float | None) -> None:
    """Stock code takes the checkpoint's without a word. Here somebody says which, and the banner repeats it."""
    save = saved_with_rate(tmp_path, 1e-3)
    kept: list[TinyRank] = []

    def prepare(me: TinyRank) -> None:
        with_rate(5e-4)(me)
        kept.append(me)

    outcome = job(save, resume(override={"learning_rate": override} if override else None), prepare)
    if rate is None:
        error = unchanged_by(outcome, kept, with_rate(5e-4))
        assert isinstance(error, LayoutMismatch)
        assert "learning_rate was 0.001, is 0.0005; nothing was loaded" in str(error)
        assert "override={'learning_rate': 'config'}" in error.hint
        assert error.hint.endswith("--override learning_rate=config")
        assert len(attempts.read_all(save)) == 1
        return
    for me in outcome.ok():
        assert float(me.optimizer["learning_rate"]) == np.float32(rate)
        assert me.optimizer["global_step"].tolist() == [1]
        assert me.start == P("0_3")
    side = {"config": "this configuration's", "checkpoint": "the checkpoint's"}[str(override)]
    (banner,) = [me.said[0] for me in kept if me.said]
    assert f"warning: learning_rate was 0.001, is 0.0005: {side} counts" in banner


def test_a_rate_that_is_gone(tmp_path: Path) -> None:
    """Constant once, a schedule now: the names differ, and one flag goes on."""
    save = saved_with_rate(tmp_path, 1e-3)
    error = error_of(job(save, resume()))
    (me, _) = job(save, resume(override={"learning_rate": "config"})).ok()

    assert "learning_rate was 0.001, is not constant" in str(error)
    assert me.start == P("0_3")
    assert me.optimizer["global_step"].tolist() == [1]


def test_a_rate_that_training_moves(tmp_path: Path) -> None:
    """The configuration is the same as when it was saved: the checkpoint's is the one to go on with."""
    config = {"actor_config": {"optimizer": {"lr": 1e-3}}}
    save = saved_with_rate(tmp_path, 3e-5, config=config)
    (me, _) = job(save, resume(), with_rate(1e-3), config=config).ok()

    assert float(me.optimizer["learning_rate"]) == np.float32(3e-5)
    assert "learning_rate" not in me.said[0]


def test_weight_decay_is_the_trainers(tmp_path: Path) -> None:
    """No tensor has it: the configuration's counts, and only on request."""
    config = {"actor_config": {"optimizer": {"weight_decay": 0.1}}}
    other = {"actor_config": {"optimizer": {"weight_decay": 0.0}}}
    save = saved_with_rate(tmp_path, 1e-3, config=config)
    key = "actor_config.optimizer.weight_decay"
    error = error_of(job(save, resume(), with_rate(1e-3), config=other))
    wrong = error_of(job(save, resume(override={"weight_decay": "checkpoint"}), with_rate(1e-3), config=other))
    (me, _) = job(save, resume(override={"weight_decay": "config"}), with_rate(1e-3), config=other).ok()

    assert f"{key} was 0.1, is 0.0" in str(error)
    assert "only the trainer can build it" in str(wrong)
    assert f"warning: config {key} was 0.1, is 0.0" in me.said[0]


# -- names that do not fit


def other_model(directory: Path) -> Path:
    path = directory / "base.safetensors"
    write(path, {"w": np.ones((3, 4), np.float32), "lm_head": np.ones(2, np.float32)})
    return path


def test_gaps_are_named_or_refused(tmp_path: Path) -> None:
    """Nothing is changed, and no attempt opened, until both sides are spoken for."""
    path = other_model(tmp_path)
    kept: list[TinyRank] = []
    error = unchanged_by(job(tmp_path / "new", warm(path), kept.append), kept)
    (me, _) = job(tmp_path / "new", warm(path, allow_missing=["bias"], allow_unexpected=["lm_*"])).ok()

    assert "missing bias" in str(error)
    assert "unexpected lm_head" in str(error)
    assert changed(me) == {"policy w", "optimizer w"}
    assert "1 tensors keep their values, by allow_missing: bias" in me.said[0]
    assert "1 tensors are not taken, by allow_unexpected: lm_head" in me.said[0]


def half(directory: Path) -> Path:
    """A model in bfloat16, and its bias in float32."""
    directory.mkdir()
    entries = {
        "w": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
        "bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
    }
    block = json.dumps(entries).encode()
    data = b"\x80\x3f" * 12 + np.full(3, 1.0001, np.float32).tobytes()
    (directory / "model.safetensors").write_bytes(len(block).to_bytes(8, "little") + block + data)
    return directory


def test_other_dtypes(tmp_path: Path) -> None:
    """Exact unless asked for: wider where no value is lost, narrower by name alone."""
    path, new = half(tmp_path / "model"), tmp_path / "new"
    refused = [error_of(job(new, warm(path, **asked))) for asked in ({}, {"widen": True}, {"narrow": {"bias": "F16"}})]
    ranks = job(new, warm(path, widen=True, narrow={"bias": "F16"})).ok()

    assert [("w: the file has BF16" in str(e), "bias: the file has F32" in str(e)) for e in refused] == [
        (True, True),
        (False, True),
        (True, False),
    ]
    for me in ranks:
        assert me.policy["w"].tolist() == [[1.0] * 4] * 3
        assert me.policy["bias"].tolist() == [1.0] * 3
    assert "2 tensors are taken in another dtype, by widen or narrow: bias, w" in ranks[0].said[0]


def test_nothing_fits(tmp_path: Path) -> None:
    """Whatever is allowed."""
    write(tmp_path / "other.safetensors", {"x": np.ones(3, np.float32)})
    act = warm(tmp_path / "other.safetensors", allow_missing=["*"], allow_unexpected=["*"])

    assert "0 of 2 parameters match" in str(error_of(job(tmp_path / "new", act)))


class Renamed:
    """A name map, as far as a warm start knows one: the policy's names have a prefix in the file."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def apply(self, source: Part, role: str | None = None) -> View:
        return View(self.prefix, source, role)


class View:
    """A source under the names without the prefix."""

    def __init__(self, prefix: str, source: Part, role: str | None) -> None:
        self.prefix, self.source, self.role = prefix, source, role
        self.path, self.bytes, self.values = source.path, source.bytes, source.values
        self.digests: dict[str, str] = {}
        self.tensors = {name.removeprefix(prefix): info for name, info in source.tensors.items()}

    def read(self, name: str) -> HostTensor:
        assert self.role == "policy"
        return self.source.read(self.prefix + name)


def test_a_name_map(tmp_path: Path) -> None:
    """Applied to the weights, after what is no weight was left out."""
    arrays = {f"net.{name}": array + 3 for name, array in TinyRank(0).policy.items()}
    write(tmp_path / "base.ckpt", {**arrays, "adam_m.net.w": np.ones((3, 4), np.float32)})
    (me, _) = job(tmp_path / "new", warm(tmp_path / "base.ckpt", name_map=Renamed("net."))).ok()

    assert me.policy["bias"].tolist() == [3.0] * 3
    assert "1 tensors in the same file are optimizer state and counters, not taken: adam_m.net.w" in me.said[0]


def under_net(me: TinyRank) -> None:
    """The same model, whose names have another beginning now."""
    me.policy = Arrays({f"net.{name}": array for name, array in me.policy.items()})
    moments = {f"adam_m.net.{name}": me.optimizer[f"adam_m.{name}"] for name in ("w", "bias")}
    me.optimizer = Arrays({**me.policy, **moments, "global_step": me.optimizer["global_step"]})


def test_a_resume_under_other_names(trained: Path, tmp_path: Path) -> None:
    """All of policy and optimizer, each where it belongs; the reference keeps its names."""
    save = shutil.copytree(trained, tmp_path / "save")
    names = {"w": "net.w", "bias": "net.bias"}
    moments = {f"adam_m.{old}": f"adam_m.{new}" for old, new in names.items()}
    rules = {"policy": [{"exact": names}], "optimizer": [{"exact": {**names, **moments}}]}
    name_map = NameMap.parse(json.dumps({"ms_resume_name_map": 1, "roles": rules}))

    refused = unchanged_by(job(save, resume(), under_net), [], under_net)
    assert "0 of 2 parameters match" in str(refused)
    ranks = job(save, resume(name_map=name_map), under_net).ok()

    for rank, me in enumerate(ranks):
        was = final(trained, rank=rank)
        assert me.start == P("1_0")
        assert {name.removeprefix("net."): array.tobytes() for name, array in me.policy.items()} == {
            name: array.tobytes() for name, array in was.policy.items()
        }
        assert me.optimizer["adam_m.net.w"].tobytes() == was.optimizer["adam_m.w"].tobytes()
        assert me.optimizer["global_step"] == was.optimizer["global_step"]


# -- what else goes wrong


def test_damage_is_found_as_it_is_placed(trained: Path, tmp_path: Path) -> None:
    """No attempt is opened: the next start finds a directory as it was."""
    save = tmp_path / "source"
    tiny_run(save).ok()
    own_trees.flip_tensor(own_trees.payload_path(save, "1_0", 1, "policy"), "w")
    error = error_of(job(tmp_path / "new", warm(save)))

    assert isinstance(error, Damaged)
    assert "rank 1" in str(error)
    assert not (tmp_path / "new" / "commits").exists()


def test_nets_in_doubt(trained: Path, tmp_path: Path) -> None:
    """After damage no run begins with them, nor with other weights above them, until a whole load has succeeded."""
    save = tmp_path / "source"
    tiny_run(save).ok()
    own_trees.flip_tensor(own_trees.payload_path(save, "1_0", 1, "policy"), "w")

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        with pytest.raises(Damaged, match="tensor 'w'"):
            checkpointer.warm_start(save)
        for again in (lambda: checkpointer.warm_start(trained), lambda: checkpointer.start(resume=False)):
            with pytest.raises(Damaged, match="may hold a part of a checkpoint"):
                again()
        me.start = checkpointer.start(resume=True, source=trained)

    assert [me.start for me in job(tmp_path / "new", act).ok()] == [P("1_0")] * 2


def test_a_directory_with_checkpoints_is_not_begun_anew(trained: Path, tmp_path: Path) -> None:
    """As in `start`: with `allow_fresh_start` they are abandoned."""
    save = tmp_path / "run"
    tiny_run(save, save_every=5).ok()
    error = error_of(job(save, warm(trained)))
    (me, _) = job(save, warm(trained, allow_fresh_start=True)).ok()

    assert isinstance(error, DirectoryNotEmpty)
    assert me.start == P("0_0")
    assert attempts.read_all(save)[-1].origin is None


def test_ranks_that_ask_for_different_things(trained: Path, tmp_path: Path) -> None:
    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.warm_start(trained, ref=me.rank == 1)

    error = error_of(job(tmp_path / "new", act))

    assert isinstance(error, Disagreement)
    assert "whether the reference is loaded, too" in str(error)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"override": {"learning_rate": "both"}}, "expected 'checkpoint' or 'config'"),
    ({"allow_world_size": "any"}, "allow_world_size is 'any'"),
    ({"ref": True}, "the job has none"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_arguments(trained: Path, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    def rank_main(group: ThreadGroup) -> None:
        TinyRank(group.rank).saves_in(tmp_path / "new", group, ref=None).warm_start(trained, **arguments)

    assert said in str(error_of(run_ranks(2, rank_main)))


def test_weights_from_is_for_a_resume(trained: Path, tmp_path: Path) -> None:
    """Without one it is a warm start, which has its own name."""

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        checkpointer.start(resume=False, weights_from=trained)

    error = error_of(job(tmp_path / "new", act))
    assert isinstance(error, UsageError)
    assert "warm_start(PATH)" in error.hint


def test_node_local_disks(trained: Path, tmp_path: Path) -> None:
    """Every rank finds its own part where it looks; what they find must be one checkpoint."""

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        disk = tmp_path / f"disk{group.rank}"
        settings = ms_resume.Settings(heartbeat_s=0, storage="local")
        me.start = me.saves_in(disk / "new", group, settings=settings).warm_start(disk / "old")
        return me

    for rank in range(2):
        copied = shutil.copytree(trained, tmp_path / f"disk{rank}" / "old", symlinks=True)
        for path in (*copied.rglob(f"*rank_{1 - rank}-*"), *copied.rglob(f"rank_{1 - rank}.json")):
            path.unlink()
    ranks = run_ranks(2, rank_main).ok()

    assert [me.start for me in ranks] == [P("0_0")] * 2
    assert [np.array_equal(me.policy["w"], final(trained, rank=me.rank).policy["w"]) for me in ranks] == [True] * 2


def test_arrays_stay_where_training_holds_them(trained: Path, tmp_path: Path) -> None:
    """In place: the optimizer's weights are the policy's own."""
    policies: list[tuple[Arrays, np.ndarray]] = []
    job(tmp_path / "new", warm(trained), lambda me: policies.append((me.policy, me.policy["w"]))).ok()

    assert all(policy["w"] is array for policy, array in policies)
