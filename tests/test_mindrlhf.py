"""The adapter for MindRLHF, on the stand-in: each defect that stock code has is gone, or said; and both ways."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_standin as defects
from killed_runs import chained
from own_trees import flip_tensor
from runs import Scale, TinyRank
from safetensors.numpy import save_file
from standin_jobs import HERE, NUMPY, Job, modules
from test_standin import Scenario, first, job, made, named, number, payload, positions, trained

import ms_resume
from ms_resume import locate
from ms_resume.adapters import mindrlhf
from ms_resume.adapters.mindrlhf import functions
from ms_resume.adapters.mindrlhf import run as runs
from ms_resume.adapters.mindrlhf.__main__ import main, strategy_dir
from ms_resume.adapters.mindrlhf.known import PARAMETERS
from ms_resume.errors import (
    DirectoryNotEmpty,
    DiskError,
    LayoutMismatch,
    NamesMismatch,
    NothingToResume,
    UsageError,
)
from ms_resume.framework.group import Solo
from ms_resume.ondisk import names
from ms_resume.ondisk.payload import read_header

TOP = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_RESUME_HEARTBEAT_S", "0")


@contextlib.contextmanager
def adapted(words: list[str], **options: Any) -> Iterator[list[str]]:
    """The adapter in place, as its command line puts it there."""
    left, strategy = strategy_dir(words)
    mindrlhf.install(save_strategy_dir=strategy, **options)
    try:
        yield left
    finally:
        mindrlhf.remove()


def ours(root: Path, **changes: Any) -> Job:
    return replace(job(root, **changes), adapter=adapted)


# -- the defects, with the adapter

GONE: list[tuple[Scenario, str]] = [
    (defects.b1_meta_after_a_roll_over, "from 1_0"),
    (defects.b2_killed_while_meta_is_written, "whole"),
    (defects.b3_killed_between_retention_and_meta, "there"),
    (defects.b4_killed_before_the_reference, "0_2 0_2 0_2"),
    (defects.b5_killed_between_two_meta, "from 0_2 with its own weights"),
    (defects.b6_no_optimizer, "NothingToResume: .*optimizer.*"),
    (defects.b7_a_link_to_the_actor_directory, "from 0_4, moments"),
    (defects.b8_saved_as_ckpt, "from 0_4"),
    (defects.b9_no_position_in_the_file, "NothingToResume: .*no epoch_num and no step_num.*"),
    (defects.b10_no_meta_can_be_read, "from 0_2"),
    (defects.b11_more_epochs_after_the_last, "from 1_0, 12 steps"),
    (defects.b12_shorter_than_an_interval, "from 1_0"),
    (defects.b13_dev_resumes, "from 0_4, weights of 0_4: True"),
    (defects.b14_dev_with_load_format_ckpt, "from 0_4"),
    (defects.b15_other_names, r"NamesMismatch: .*nothing was loaded.*0 of .* parameters match.*cause: other names.*"),
    (defects.b16_prompts_of_the_second_epoch, "as ever"),
    (defects.b17_what_is_drawn, "as ever"),
    (defects.b18_numbers_of_metrics, "from 4, all"),
    (defects.b19_loss_scale, "as ever"),
    (defects.b20_where_output_goes, "output, no record in the checkpoints"),
    (defects.b21_disks_of_their_own, "from 0_4"),
    (defects.b22_conversion_of_a_checkpoint, "does not"),
    (defects.b23_strategies_of_another_layout, "now, then"),  # the launch script's: see below
    (defects.b24_retention_after_a_copy, "0_4 0_5"),
    (defects.b25_fewer_ranks, "LayoutMismatch: .*was made by 2 ranks, this job has 1.*"),
    (defects.b26_offloaded_optimizer, "from 0_0; from 0_0"),
    (defects.b27_save_strategy_dir, "strategy"),
    (defects.b28_modes, "0o444"),
    (defects.b29_ranks_that_differ, "from 0_2; from 0_2"),
]


@pytest.mark.parametrize(("scenario", "ends"), GONE, ids=[number(scenario) for scenario, _ in GONE])
def test_the_defect_is_gone_or_said(
    scenario: Scenario, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scenario that shows it in stock code."""
    if scenario is defects.b21_disks_of_their_own:
        monkeypatch.setenv("MS_RESUME_STORAGE", "local")
    os.umask(0o022)

    result = scenario(ours(tmp_path))

    assert re.fullmatch(ends, result, re.DOTALL), result


def test_every_defect_is_tried() -> None:
    assert [scenario for scenario, _ in GONE] == [scenario for scenario, _ in defects.STOCK]


def test_a_final_checkpoint_of_stock_code_is_read_as_what_it_means(tmp_path: Path) -> None:
    """B11 again: stock wrote (1, 6), which is (1, 0); nothing is skipped."""
    job(tmp_path).run()
    resumed = first(ours(tmp_path).run(resume=True, rl_config__epochs=2))

    assert "1_6" in positions(tmp_path / "save")
    assert resumed.positions == [(1, step) for step in range(6)]


# -- bit for bit


@pytest.mark.parametrize("branch", ["master", "dev"])
@pytest.mark.parametrize("stop", [(1, 0), (1, 2)])
def test_a_killed_run_equals_one_that_was_not(branch: str, stop: tuple[int, int], tmp_path: Path) -> None:
    """Weights, moments, scale, prompts, draws, and the numbers of metrics: three steps an epoch, and a batch left."""
    rest = {"rl_config__prompts": 10, "rl_config__num_rollouts": 3, "rl_config__epochs": 2}
    whole = first(replace(ours(made(tmp_path / "whole")), branch=branch).run(**rest, rl_config__save_ckpt_interval=1))
    run = replace(ours(made(tmp_path / "killed")), branch=branch)
    run.run(stop=stop, **rest, rl_config__save_ckpt_interval=1)
    resumed = first(run.run(resume=True, **rest, rl_config__save_ckpt_interval=1))

    assert resumed.error is None
    assert resumed.positions[0] == stop
    assert resumed.rows == whole.rows[-len(resumed.rows) :]
    assert resumed.end() == whole.end()
    assert resumed.metrics == whole.metrics[-len(resumed.metrics) :]


KILLS = [
    # where SIGKILL comes, and from where the next run may go on: what was being saved may have been whole by then
    ("sync:optimizer_rank_0-0_2.safetensors", {1}),
    ("sync:commits/0_2/.rank_0.json", {1}),
    ("step:4", {3, 4}),  # between the fifth step and the sixth: the save of the fourth may be under way
    ("sync:commits/2_0", {6}),  # its vote has its name, `meta.json` says the one before
    ("sync:optimizer/rank_0/.meta.json", {6}),  # which that start would have mended
]


@pytest.mark.parametrize("branch", ["master", "dev"])
def test_killed_by_a_signal(branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in saves and between steps, one run after the other: prompts, draws, and numbers of metrics of each are
    those of a run that nobody killed, and the last one ends with its bits."""
    monkeypatch.setenv("STANDIN_BRANCH", branch)
    whole, starts = chained(TOP / "tests" / "standin_runs.py", tmp_path, KILLS)

    assert len(whole) == 3 * 3 + 1
    assert starts[-1] == 6


LEAVES = [
    # how it is asked and in which step, and from where the next run goes on: right behind it, however rarely it saves
    ("term:2", {2}),
    ("touch:2", {4}),
    ("term:3", {7}),
    ("step:1", {7}),  # before it saved anything itself
]


@pytest.mark.parametrize("branch", ["master", "dev"])
def test_asked_to_leave(branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal or the stop file, where stock code would not save for long: nothing is lost, or done twice."""
    monkeypatch.setenv("STANDIN_BRANCH", branch)
    monkeypatch.setenv("STANDIN_INTERVAL", "100")
    monkeypatch.setenv("MS_RESUME_STOP_FILE", str(tmp_path / "stop"))
    _, starts = chained(TOP / "tests" / "standin_runs.py", tmp_path, LEAVES)

    assert starts == [0, 2, 4, 7, 7]


@pytest.mark.parametrize(("step", "calls"), [(2, 1), (3, 2)])
def test_one_rank_is_asked(step: int, calls: int, tmp_path: Path) -> None:
    """All save at one position, once where stock code has just saved there, and leave with 50."""

    def before() -> None:
        maker = importlib.import_module("mindrlhf.trainer.spmd.grpo_experience_maker").GRPOExperienceMaker
        make = maker.make_experience

        @wraps(make)
        def make_experience(self: Any, *given: Any, **named: Any) -> None:
            make(self, *given, **named)
            run = runs.current()
            if self.make_exp_step == step and names_of_rank(self) == 1 and run:
                run._leaving.ask("the test")

        maker.make_experience = make_experience

    def names_of_rank(maker: Any) -> int:
        return int(importlib.import_module("mindspore.communication").get_rank())

    both = replace(ours(tmp_path), world_size=2).run(before=before)
    found = locate.latest(tmp_path / "save").checkpoint

    for ran in both:
        assert isinstance(ran.error, SystemExit)
        assert ran.error.code == 50
        assert ran.positions == [(0, number) for number in range(step)]
        assert ran.trainer.train.calls.count("save policy") == calls
    assert found is not None
    assert (str(found.position), found.world_size) == (f"0_{step}", 2)


def test_a_save_that_is_asked_for(tmp_path: Path) -> None:
    """`save_now`, between two saves of stock code; training goes on."""

    def before() -> None:
        worker = importlib.import_module("mindrlhf.worker.train_worker").TrainWorker
        train = worker.train

        def and_ask(self: Any) -> None:
            train(self)
            if self.global_training_step == 3:
                (tmp_path / "save" / "save_now").touch()

        worker.train = and_ask

    ran = first(ours(tmp_path).run(before=before))

    assert ran.error is None
    assert positions(tmp_path / "save") == ["0_2", "0_3", "0_4", "1_0"]
    assert not (tmp_path / "save" / "save_now").exists()


def test_stock_order_of_loads_and_saves_is_kept(tmp_path: Path) -> None:
    """The calls of MindRLHF's workers are those of stock code, but for the reference at the end and the conversion."""
    calls = {}
    for name, made_by in (("stock", job), ("ours", ours)):
        run = made_by(made(tmp_path / name))
        run.run(stop=(0, 5))
        resumed = first(run.run(resume=True))
        calls[name] = [call for call in resumed.trainer.train.calls if not call.startswith("convert")]

    assert calls["ours"] == [*calls["stock"], "load ref", "save ref", "offload ref"]


# -- both ways


def test_stock_code_resumes_what_we_saved(tmp_path: Path) -> None:
    """From the same position, with the same weights, moments, and reference."""
    seen = first(ours(tmp_path).run(stop=(0, 5))).seen
    resumed = first(job(tmp_path).run(resume=True))

    assert resumed.positions[0] == (0, 4)
    assert trained(resumed.start) == trained(seen[0, 4])


def test_a_job_that_alternates_never_steps_back(tmp_path: Path) -> None:
    """Stock, ours, stock, ours: each goes on from the newest position of the one before, with its weights."""
    seen: dict[Any, dict[str, str]] = {}
    starts = []
    for number_of_run, stop in enumerate([(0, 3), (0, 5), (1, 3), (1, 5), (2, 3)]):
        run = (ours if number_of_run % 2 else job)(tmp_path)
        ran = first(run.run(resume=number_of_run > 0, stop=stop, rl_config__epochs=3))
        starts.append(ran.positions[0])
        if number_of_run:
            assert trained(ran.start) == trained(seen[ran.positions[0]])
        seen.update(ran.seen)

    assert starts == [(0, 0), (0, 2), (0, 4), (1, 2), (1, 4)]


def test_stock_code_saves_over_a_checkpoint_of_ours(tmp_path: Path) -> None:
    """Killed between the last vote and `meta.json`, a run has a checkpoint that stock code does not see: it goes on
    from the one before, and saves the same position again. That is newer than what was voted for."""
    ours(tmp_path).run(stop=(0, 5))
    save = tmp_path / "save"
    for role in ("policy", "optimizer"):
        file = str(names.rank_dir(save, role, 0) / names.META)
        functions.record_last_ckpt_to_json(0, 2, payload(save, role, (0, 2)).name, file)
    halfway = made(tmp_path / "halfway")
    shutil.copytree(save, halfway / "save")
    stock = first(job(tmp_path).run(resume=True, stop=(0, 5)))
    resumed = first(ours(tmp_path).run(resume=True, stop=(0, 5)))
    payload(halfway / "save", "policy", (0, 4)).unlink()
    shutil.copy(payload(save, "policy", (0, 4)), payload(halfway / "save", "policy", (0, 4)))

    assert stock.outcome == "from 0_2"
    assert resumed.outcome == "from 0_4"
    assert trained(resumed.start) == trained(stock.seen[0, 4])
    assert first(ours(halfway).run(resume=True)).outcome == "from 0_2"  # the optimizer is still that of the other run


def test_dev_alternates(tmp_path: Path) -> None:
    """Stock code begins at 0_0 there (B13), over all that was saved: what it leaves is whole, and is gone on from."""
    run = replace(ours(tmp_path), branch="dev")
    run.run(stop=(0, 5))
    stock = first(run.stock().run(resume=True, stop=(0, 3)))
    resumed = first(run.run(resume=True, stop=(0, 5)))

    assert resumed.outcome == "from 0_2"
    assert trained(resumed.start) == trained(stock.seen[0, 2])
    assert first(run.run(resume=True)).outcome == "from 0_4"


def test_damage_is_passed_over(tmp_path: Path) -> None:
    """One bit of one moment: stock code trains on it, ours goes on from the checkpoint before, and says so."""
    seen = first(ours(tmp_path).run(stop=(0, 5))).seen
    path = payload(tmp_path / "save", "optimizer", (0, 4))
    flip_tensor(path, "adam_m.grpo_model_train.policy_model.model.w")
    copy = made(tmp_path / "copy")
    shutil.copytree(tmp_path / "save", copy / "save")
    stock, resumed = first(job(copy).run(resume=True)), first(ours(tmp_path).run(resume=True))

    assert stock.positions[0] == (0, 4)
    assert trained(stock.start) != trained(seen[0, 4])
    assert resumed.positions[0] == (0, 2)
    assert trained(resumed.start) == trained(seen[0, 2])


def test_two_ranks(tmp_path: Path) -> None:
    """Each rank its own weights, and both the same position."""
    run = replace(ours(tmp_path), world_size=2)
    killed = run.run(stop=(0, 5))
    resumed = run.run(resume=True)

    for rank in range(2):
        assert resumed[rank].positions == [(0, 4), (0, 5)]
        assert trained(resumed[rank].start) == trained(killed[rank].seen[0, 4])


def test_from_a_directory_that_is_not_written(tmp_path: Path) -> None:
    """Resuming from one place and saving to another leaves the first as it was."""
    ours(tmp_path).run(stop=(0, 5))
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "save").rglob("*"))
    resumed = first(
        ours(tmp_path).run(resume=True, source=lambda rank: tmp_path / "save", save=lambda rank: tmp_path / "new")
    )

    assert resumed.outcome == "from 0_4"
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "save").rglob("*")) == before
    assert named(tmp_path / "new", "policy") == "1_0"


def test_what_stock_code_would_not_find(tmp_path: Path) -> None:
    """A job that was killed between its vote and `meta.json` left a whole checkpoint; the directory is not written."""
    seen = first(ours(tmp_path).run(stop=(0, 5))).seen
    for role in ("policy", "optimizer", "ref"):
        (names.rank_dir(tmp_path / "save", role, 0) / names.META).unlink()
    resumed = first(
        ours(tmp_path).run(resume=True, source=lambda rank: tmp_path / "save", save=lambda rank: tmp_path / "new")
    )

    assert resumed.outcome == "from 0_4"
    assert trained(resumed.start) == trained(seen[0, 4])


def test_a_file_that_is_loaded_later_is_what_it_is(tmp_path: Path) -> None:
    """What a resume read counts for its own loads only: who looks at a checkpoint afterwards has the file."""
    ours(tmp_path).run(stop=(0, 5))
    held: list[bytes] = []

    def look() -> None:
        ms = importlib.import_module("mindspore")
        maker = importlib.import_module("mindrlhf.trainer.spmd.grpo_experience_maker").GRPOExperienceMaker
        original = maker.make_experience

        @wraps(original)
        def make_experience(self: Any, *given: Any, **named: Any) -> None:
            read = ms.load_checkpoint(str(payload(tmp_path / "save", "policy", (0, 4))), format="safetensors")
            held.append(read["grpo_model_train.policy_model.model.w"].asnumpy().tobytes())
            original(self, *given, **named)

        maker.make_experience = make_experience

    resumed = first(ours(tmp_path).run(resume=True, before=look, rl_config__epochs=2))

    assert resumed.error is None
    assert len(held) == len(resumed.rows) > 6  # saves in between have changed what the adapter holds
    assert len(set(held)) == 1


def test_another_reference_than_the_checkpoints_own(tmp_path: Path) -> None:
    """It is part of the position: another one is refused, not passed over; through a link it is the same."""
    ours(made(tmp_path / "other")).run(stop=(0, 3))
    run = ours(tmp_path)
    run.run(stop=(0, 5))
    elsewhere = made(tmp_path / "elsewhere")
    (elsewhere / "train").symlink_to(run.save / "train")
    (elsewhere / "ref").symlink_to(tmp_path / "other" / "save" / "ref")
    refused = first(run.run(resume=True, source=lambda rank: elsewhere))
    (elsewhere / "ref").unlink()
    (elsewhere / "ref").symlink_to(run.save / "ref")

    assert isinstance(refused.error, UsageError)
    assert "has one of its own" in str(refused.error)
    assert refused.rows == []
    assert first(run.run(resume=True, source=lambda rank: elsewhere)).outcome == "from 0_4"


def test_the_reference_of_a_stock_job_may_lie_elsewhere(tmp_path: Path) -> None:
    """Stock code reads it from wherever it is told; so do we, until there is a vote that names one."""
    run = ours(tmp_path)
    run.stock().run(stop=(0, 5))
    (run.save / "ref").rename(made(tmp_path / "elsewhere") / "ref")
    (tmp_path / "elsewhere" / "train").symlink_to(run.save / "train")
    resumed = first(run.run(resume=True, source=lambda rank: tmp_path / "elsewhere"))

    assert resumed.outcome == "from 0_4"


def test_parameters_without_memory_are_left_to_mindspore(tmp_path: Path) -> None:
    """Only its own loading knows how to slice and place them; what they hold afterwards is compared all the same."""
    seen = first(ours(tmp_path).run(stop=(0, 5))).seen
    used: list[str] = []

    def not_allocated() -> None:
        mindspore = importlib.import_module("mindspore")
        mindspore.Parameter.has_init = True
        load = mindspore.load_param_into_net
        mindspore.load_param_into_net = lambda net, values: used.append(type(net).__name__) or load(net, values)

    resumed = first(ours(tmp_path).run(resume=True, before=not_allocated))

    assert trained(resumed.start) == trained(seen[0, 4])
    assert used == ["Weights", "AdamW", "Weights"]


def test_gradients_in_accumulation_are_not_saved(tmp_path: Path) -> None:
    """They are zero where MindRLHF saves, and as large as the weights."""
    ours(tmp_path).run(stop=(0, 3))
    held = read_header(payload(tmp_path / "save", "state", (0, 2))).tensors

    assert "loss_scale.scale_sense" in held
    assert not [name for name in held if "accu_grads" in name]


def test_a_supervisor_hears_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its word a run that came to its end would be started again."""
    monkeypatch.setenv("MS_RESUME_WATCH_DIR", str(made(tmp_path / "000001-0")))
    ours(tmp_path).run()

    assert json.loads((tmp_path / "000001-0" / "rank_0.outcome").read_text())["done"] is True


def test_a_supervisor_sees_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all steps between two saves would look like one save that hangs."""
    monkeypatch.setenv("MS_RESUME_WATCH_DIR", str(made(tmp_path / "000001-0")))
    ours(tmp_path).run(stop=(0, 5))
    pulse = json.loads((tmp_path / "000001-0" / "rank_0.pulse").read_text())

    assert (pulse["phase"], pulse["position"]) == ("step", [0, 4])


def test_what_a_vote_says_of_the_job(tmp_path: Path) -> None:
    """Its configuration, whatever kinds of values that has, and its parallel layout: another one is refused."""
    ours(tmp_path).run(stop=(0, 3))
    vote = json.loads((tmp_path / "save" / "commits" / "0_2" / "rank_0.json").read_text())
    layout = {"actor_config__parallel_config": {"data_parallel": 1, "model_parallel": 2, "pipeline_stage": 1}}
    other = first(ours(tmp_path).run(resume=True, **layout))

    assert vote["parallel"] == {"dp": 1, "tp": 1, "pp": 1}
    assert vote["config"]["keys"]["actor_config.use_vllm"] == "ORIGIN"
    assert vote["config"]["keys"]["actor_config.betas"] == [0.9, 0.95]
    assert vote["config"]["keys"]["rl_config.num_rollouts"] == 1
    assert isinstance(other.error, LayoutMismatch)
    assert "tp was 1, is 2" in str(other.error)


# -- bad input


def version_with(tmp_path: Path, module: str, old: str, new: str) -> Path:
    """Another version of the stand-in: one of its modules with a line changed."""
    copy = tmp_path / "other"
    shutil.copytree(HERE, copy)
    path = copy / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return copy


OTHER = [
    ("mindrlhf.utils.utils", "def load_param_to_net(net, param_dict):", "def load_param_to_net(net, values):", "takes"),
    ("mindrlhf.utils.utils", "def ensure_total_ckpt_is_less_than_limit", "def prune", "has no ensure_total"),
    ("mindrlhf.worker.ref_worker", "def reload_ckpt(self, formats", "def reload_ckpt(self, kind, formats", "takes"),
    ("mindformers.tools.resume_ckpt", "checkpoint_dir, ckpt_format=", "ckpt_format=", "takes"),
    ("mindrlhf.trainer.spmd.grpo_trainer", "def run_grpo_train", "def train", "has no GRPOTrainer.run_grpo_train"),
]


@pytest.mark.parametrize(("module", "old", "new", "said"), OTHER)
def test_another_version_is_refused_when_it_is_imported(
    module: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    """Before a trainer is made, with what was found and what is known."""
    folder = version_with(tmp_path, module, old, new)

    with modules(folders=(folder, NUMPY)), adapted([]), pytest.raises(UsageError) as refused:
        import main_master  # noqa: F401  # importing it is the test
    assert said in refused.value.message
    assert module in refused.value.message
    assert "master e8a8fc1" in refused.value.hint


NOTHING = "(lambda *given, **named: None)("
OTHER_CALLS = [
    # worker, its call, another one, what is said of it
    ("train", "ms.save_checkpoint(policy, ", "ms.save_checkpoint(self.grpo_model_train, ", "saves another net there"),
    ("ref", "ms.save_checkpoint(", NOTHING, "did not save with mindspore.save_checkpoint"),
    ("ref", "param_dict = ms.load_checkpoint(", f"return {NOTHING}", "resumed without loading ref"),
    ("train", "ms.save_checkpoint(policy, ckpt_file,", "ms.save_checkpoint(policy, ckpt_file + '0',", "asked for that"),
]


@pytest.mark.parametrize(("worker", "old", "new", "said"), OTHER_CALLS)
def test_a_version_that_calls_otherwise(worker: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    """Its signatures are known and what it does is not: the run ends before anything wrong counts."""
    module = f"mindrlhf.worker.{worker}_worker"
    other = replace(ours(tmp_path), folders=(version_with(tmp_path, module, old, new), NUMPY))
    saved = first(ours(tmp_path).run(stop=(0, 3))) if "resumed" in said else None
    ran = first(other.run(resume=saved is not None))

    assert isinstance(ran.error, UsageError)
    assert said in str(ran.error)
    assert saved is not None or not (tmp_path / "save" / "commits" / "0_2").exists()
    assert saved is None or ran.rows == []


def test_a_version_that_saves_less_at_the_end(tmp_path: Path) -> None:
    """The last checkpoint would be none, without a word."""
    both, one = "((rank_dir, ckpt_file), (rank_dir_opt, ckpt_file_opt))", "((rank_dir_opt, ckpt_file_opt),)"
    folder = version_with(tmp_path, "mindrlhf.worker.train_worker", both, one)
    ran = first(replace(ours(tmp_path), folders=(folder, NUMPY)).run(rl_config__save_ckpt_interval=100))

    assert isinstance(ran.error, UsageError)
    assert "ended with only policy, optimizer, ref of 1_0 saved, and noted optimizer, ref" in str(ran.error)


REPLACED = [
    # module that holds it, what somebody puts there after the adapter came
    ("mindrlhf.utils.utils", "load_param_to_net"),
    ("mindrlhf.worker.train_worker", "record_last_ckpt_to_json"),
    ("mindrlhf.worker.ref_worker", "get_resume_checkpoint_by_meta"),
    ("mindrlhf.worker.train_worker", "TrainWorker.save_checkpoints"),
    ("mindrlhf.trainer.spmd.grpo_trainer", "GRPOTrainer.run_grpo_train"),
]


@pytest.mark.parametrize(("module", "name"), REPLACED)
def test_a_function_that_somebody_replaces_later(module: str, name: str, tmp_path: Path) -> None:
    """Said before training, not at the first save; a wrapper that says that it is one may stay."""

    def put(change: Any) -> None:
        holder: Any = sys.modules[module]
        *owners, last = name.split(".")
        for owner in owners:
            holder = getattr(holder, owner)
        setattr(holder, last, change(getattr(holder, last)))

    def other(original: Any) -> Any:
        return lambda *given, **named: original(*given, **named)

    refused = first(ours(made(tmp_path / "other")).run(before=lambda: put(other)))
    wrapped = first(
        ours(made(tmp_path / "wrapped")).run(before=lambda: put(lambda original: wraps(original)(other(original))))
    )

    assert isinstance(refused.error, UsageError)
    assert f"{module}.{name} was replaced by" in str(refused.error)
    assert refused.rows == []
    assert not (tmp_path / "other" / "save").exists()
    assert wrapped.error is None


def test_every_replacement_is_known() -> None:
    """The table of signatures names the functions that the issue of this adapter is about."""
    known = {name for functions in PARAMETERS.values() for name in functions}

    assert known >= {"record_last_ckpt_to_json", "get_checkpoint_name", "load_param_to_net"}
    assert known >= {"ensure_total_ckpt_is_less_than_limit", "get_resume_checkpoint_by_meta"}


def test_a_function_that_somebody_else_replaced(tmp_path: Path) -> None:
    """Two that mend the same thing would each do half of it."""
    folder = version_with(
        tmp_path,
        "mindrlhf.utils.utils",
        "def load_param_to_net",
        "from posixpath import join as load_param_to_net\n\n\ndef other",
    )

    with modules(folders=(folder, NUMPY)), adapted([]), pytest.raises(UsageError, match="was replaced by"):
        import main_master  # noqa: F401


def test_too_late() -> None:
    """Others hold what would be replaced."""
    with modules():
        importlib.import_module("mindrlhf.utils")

        with pytest.raises(UsageError, match="before the adapter"):
            mindrlhf.install()


def test_a_fresh_start_into_checkpoints_is_refused(tmp_path: Path) -> None:
    """Stock code would overwrite them; with the word for it, it begins beside them."""
    ours(tmp_path).run(stop=(0, 5))
    refused = first(ours(tmp_path).run())
    allowed = replace(ours(tmp_path), adapter=lambda words: adapted(words, allow_fresh_start=True)).run(stop=(0, 3))

    assert isinstance(refused.error, DirectoryNotEmpty)
    assert refused.rows == []
    assert first(allowed).positions == [(0, 0), (0, 1), (0, 2)]


def test_resume_from_a_model(tmp_path: Path) -> None:
    """`--actor_checkpoint_path` means another thing with `--resume_training`."""
    ours(tmp_path).run(stop=(0, 5))
    (tmp_path / "save" / "train").rename(tmp_path / "save" / "actor")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train").symlink_to(tmp_path / "save" / "actor")
    ran = first(ours(tmp_path).run(resume=True, source=lambda rank: tmp_path / "elsewhere"))

    assert isinstance(ran.error, UsageError)
    assert "a resume reads <save>/train" in str(ran.error)


def test_a_resume_before_anything_was_whole(tmp_path: Path) -> None:
    """One error on all ranks, and no start that says it begins anew; without the word for a resume it does."""
    run = replace(ours(tmp_path), world_size=2)
    run.run(stop=(0, 1))
    before = sorted((tmp_path / "save").rglob("*"))
    refused = run.run(resume=True)

    assert [type(ran.error) for ran in refused] == [NothingToResume, NothingToResume]
    assert "nothing was ever whole here" in str(refused[1].error)
    assert sorted((tmp_path / "save").rglob("*")) == before
    assert first(run.run(stop=(0, 3))).positions == [(0, 0), (0, 1), (0, 2)]


def test_other_data(tmp_path: Path) -> None:
    """As many steps, but other passes: a position would mean other prompts."""
    ours(tmp_path, rl_config__prompts=12, rl_config__num_rollouts=2).run(stop=(0, 5))
    other = first(ours(tmp_path, rl_config__prompts=13, rl_config__num_rollouts=2).run(resume=True))
    fewer = first(ours(tmp_path, rl_config__prompts=8, rl_config__num_rollouts=2).run(resume=True))

    assert isinstance(other.error, NamesMismatch)
    assert "batches was 12, is 13" in str(other.error)
    assert isinstance(fewer.error, LayoutMismatch)


def test_an_unknown_format(tmp_path: Path) -> None:
    ran = first(ours(tmp_path, rl_config__save_ckpt_format="pickle").run())

    assert isinstance(ran.error, UsageError)
    assert ran.rows == []


@contextlib.contextmanager
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """What is below `tmp_path` is that user's, and so may this process be, which has imported what it needs: that user
    may not be able to read Python's own library."""
    for resume in (False, True):
        ours(made(tmp_path / "warm")).run(resume=resume, stop=(0, 5))
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """Not below pytest's own directory, which each pytest that starts on this machine shuts to all but its user."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


NOBODY = 65534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@only_root
@pytest.mark.parametrize("place", ["optimizer/rank_0", "ref", "commits", "commits/attempts"])
def test_a_directory_of_another_user(place: str, anybodys: Path) -> None:
    """Said before training, not at the first save; also where the rank's own directory is not there yet."""
    ours(anybodys).run(stop=(0, 3))
    theirs = anybodys / "save" / place
    with as_nobody(anybodys):
        if place == "ref":
            shutil.rmtree(theirs / "rank_0")
        os.chown(theirs, 0, 0)
        theirs.chmod(0o755)
        os.setresuid(NOBODY, NOBODY, 0)
        ran = first(ours(anybodys).run(resume=True))

    assert isinstance(ran.error, DiskError)
    assert f"{theirs}: not writable" in str(ran.error)
    assert "belongs to uid 0" in str(ran.error)
    assert ran.rows == []


@only_root
@pytest.mark.parametrize("saved_by", [job, ours])
def test_from_a_directory_that_cannot_be_written(saved_by: Any, anybodys: Path) -> None:
    """Resuming needs no more than to read (B20): stock code would make a directory there."""
    saved_by(anybodys).run(stop=(0, 5))
    with as_nobody(anybodys):
        for path in (anybodys / "save", *(anybodys / "save").rglob("*")):
            os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() else 0o444)
        os.setresuid(NOBODY, NOBODY, 0)
        places = {"source": lambda rank: anybodys / "save", "save": lambda rank: anybodys / "new"}
        stock = first(job(anybodys).run(resume=True, **places))
        resumed = first(ours(anybodys).run(resume=True, **places))

    assert isinstance(stock.error, PermissionError)
    assert resumed.outcome == "from 0_4"


def native(save: Path) -> ms_resume.Checkpointer:
    me, scale = TinyRank(0), Scale()
    components = [ms_resume.Fields("scale", scale, "value")]
    return me.saves_in(save, Solo(), ref=None, components=components, steps_per_epoch=6)


@pytest.mark.parametrize("take_over", [False, True])
def test_two_savers_in_one_process(take_over: bool, tmp_path: Path) -> None:
    """A trainer that also uses the Checkpointer itself, in the same directory, before the adapter or after it."""
    both = replace(ours(tmp_path), adapter=lambda words: adapted(words, take_over=take_over))
    with native(tmp_path / "save") as theirs:
        theirs.start(resume=False)
        ran = first(both.run())

        assert isinstance(ran.error, UsageError)
        assert "another Checkpointer of this process" in str(ran.error)
        assert ran.rows == []

    errors: list[UsageError] = []

    def second() -> None:
        maker = importlib.import_module("mindrlhf.trainer.spmd.grpo_experience_maker").GRPOExperienceMaker
        original = maker.__init__

        @wraps(original)
        def init(self: Any, *given: Any, **named: Any) -> None:
            with pytest.raises(UsageError, match="another Checkpointer of this process") as refused:
                native(tmp_path / "save").start(resume=True, take_over=take_over)
            errors.append(refused.value)
            original(self, *given, **named)

        maker.__init__ = init

    assert first(both.run(before=second)).error is None
    assert len(errors) == 1
    native(tmp_path / "save").start(resume=False, allow_fresh_start=True)  # the run is over


def test_a_fresh_start_is_allowed_to_a_resume(tmp_path: Path) -> None:
    """MindRLHF has no model then; and a record of a fresh start would leave behind what is only out of reach now."""
    ours(tmp_path).run(stop=(0, 5))
    (tmp_path / "save" / "optimizer").rename(tmp_path / "out of reach")
    both = replace(ours(tmp_path), adapter=lambda words: adapted(words, allow_fresh_start=True))
    refused = first(both.run(resume=True))
    (tmp_path / "out of reach").rename(tmp_path / "save" / "optimizer")

    assert isinstance(refused.error, UsageError)
    assert first(ours(tmp_path).run(resume=True)).outcome == "from 0_4"


# -- the functions, on their own


def test_meta_outside_a_run(tmp_path: Path) -> None:
    """Whole, with the three keys and nothing behind them."""
    path = tmp_path / "meta.json"
    path.write_text('{"last_epoch": 0, "last_step": 100, "last_ckpt_file": "a_rank_0-0_100.safetensors"}')
    functions.record_last_ckpt_to_json(1, 0, "a_rank_0-1_0.safetensors", str(path))

    assert path.read_text() == '{"last_epoch": 1, "last_step": 0, "last_ckpt_file": "a_rank_0-1_0.safetensors"}'


def test_a_net_is_filled_whole_or_not_at_all() -> None:
    """Where stock code warns: a name too few, a name too many, another shape, another dtype."""
    with modules():
        ms = importlib.import_module("mindspore")
        weights = importlib.import_module("mindrlhf.models.grpo_models").Weights
        net, other = weights("", 4, 1.0), {p.name: p for p in weights("", 4, 2.0).get_parameters()}
        w = other["model.w"].asnumpy()
        wrong = [
            {"model.b": other["model.b"]},
            {**other, "adam_m.model.w": other["model.w"]},
            {**other, "model.w": ms.Parameter(ms.Tensor(w[:3]), name="model.w")},
            {**other, "model.w": ms.Parameter(ms.Tensor(w.astype("float16")), name="model.w")},
        ]

        for values in wrong:
            with pytest.raises(NamesMismatch, match="nothing was loaded into it"):
                functions.load_param_to_net(net, values)
            assert net.w.asnumpy().max() == 1
        functions.load_param_to_net(net, other)
        assert net.w.asnumpy().min() == 2


# -- the command line


def environment(tmp_path: Path, branch: str = "master") -> dict[str, str]:
    """Where the stand-in is MindRLHF, and NumPy is MindSpore."""
    folders = [TOP, HERE, HERE / "numpy_backend"]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STANDIN_BRANCH": branch,
        "VENV": "/nonexistent",
    }


MASTER = "import main_master\nmain_master.build().run_grpo_train()\n"


def call(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ms_resume.adapters.mindrlhf", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment(tmp_path), timeout=600
    )


def test_the_module_runs_main(tmp_path: Path) -> None:
    """With main.py's own words, and the one that it does not know; then an error of ours is its exit code."""
    (tmp_path / "config.yaml").write_text("rl_config: {prompts: 2, epochs: 1}\n")
    words = [str(HERE / "main_master.py"), "--config", "config.yaml", "--save_checkpoint_dir", "out"]
    trained_ = call(tmp_path, *words, "--save_strategy_dir", "strategy")
    again = call(tmp_path, *words)

    assert trained_.returncode == 0, trained_.stderr
    assert "FRESH START" in trained_.stderr
    assert named(tmp_path / "out", "policy") == "1_0"
    assert again.returncode == 62
    assert "holds checkpoints" in again.stderr
    assert "Traceback" not in again.stderr


ASKED_IN = """
import os, signal
import main_master
from mindrlhf.worker import train_worker, transform_worker
method = {method}
def and_ask(self, *given, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    method(self, *given, **named)
{method} = and_ask
main_master.build().run_grpo_train()
"""


def test_a_process_that_is_asked(tmp_path: Path) -> None:
    """In its first step, then while it loads: nothing is trained then, and nothing saved that was not there."""
    (tmp_path / "config.yaml").write_text("rl_config: {prompts: 6, epochs: 1, save_ckpt_interval: 100}\n")
    methods = {"step": "train_worker.TrainWorker.train", "load": "transform_worker.TransformWorker.reshard_params"}
    for name, method in methods.items():
        (tmp_path / f"{name}.py").write_text(ASKED_IN.format(method=method))
    words = ["--config", "config.yaml", "--save_checkpoint_dir", "out"]
    paths = ["--resume_training", "--actor_checkpoint_path", "out/train", "--ref_checkpoint_path", "out/ref"]
    trained_ = call(tmp_path, "step.py", *words)
    saved = sorted(path.name for path in (tmp_path / "out" / "commits").iterdir())
    loading = call(tmp_path, "load.py", *words, *paths)

    assert trained_.returncode == 50, trained_.stderr
    assert "SIGTERM: saves at the next safe point and leaves" in trained_.stderr
    assert named(tmp_path / "out", "policy") == "0_1"
    assert loading.returncode == 50, loading.stderr
    assert "RESUMING at 0_1" in loading.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "commits").iterdir()) == saved


def test_a_supervisor_hears_of_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that comes before there is a run."""
    monkeypatch.setenv("MS_RESUME_WATCH_DIR", str(made(tmp_path / "000001-0")))
    ended = call(tmp_path, "absent.py")
    told = json.loads((tmp_path / "000001-0" / "rank_0.outcome").read_text())

    assert ended.returncode == told["exit_code"] == 2
    assert "is no program" in told["error"]["message"]


def test_one_import_at_the_top_does_the_same(tmp_path: Path) -> None:
    """With the command as it was."""
    (tmp_path / "config.yaml").write_text("rl_config: {prompts: 2, epochs: 1}\n")
    program = tmp_path / "main.py"
    program.write_text("import ms_resume.adapters.mindrlhf.auto\n" + MASTER)
    command = [sys.executable, str(program), "--config", "config.yaml", "--save_checkpoint_dir", "out"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment(tmp_path), timeout=600
    )

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "commits" / "1_0" / "rank_0.json").exists()


@pytest.mark.parametrize("words", [[], ["--take_over"], ["--resume_training"], ["absent.py"]])
def test_no_program(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"expected MindRLHF's main\.py"):
        main(words)


# -- the launch script, and the document

MSRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
if [[ "$1" == python ]]; then shift; fi
exec python "$@"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory as in docs/mindrlhf.md: the launch scripts, MindRLHF, its configuration, a model, an msrun."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "msrun").write_text(MSRUN)
    (tmp_path / "bin" / "msrun").chmod(0o755)
    (tmp_path / "launch").symlink_to(TOP / "launch")
    (tmp_path / "config.yaml").write_text("rl_config: {prompts: 6, epochs: 1, save_ckpt_interval: 2}\n")
    (tmp_path / "model").mkdir()
    return tmp_path


def launch(site: Path, *words: str, branch: str = "master", **knobs: str) -> subprocess.CompletedProcess[str]:
    given = {"MAIN": str(HERE / f"main_{branch}.py"), "MODEL": "model", "SAVE_DIR": "out", "WORKERS": "1", **knobs}
    if branch == "master":
        given.setdefault("CONFIG", "config.yaml")
    return subprocess.run(
        ["bash", "launch/run_mindrlhf.sh", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
        env={**environment(site, branch), "BRANCH": branch, **given},
        timeout=600,
    )


def test_flags_on_master(site: Path) -> None:
    shown = launch(site, "--resume_training", "--take_over", DRY_RUN="1").stdout

    assert "python -m ms_resume.adapters.mindrlhf --take_over" in shown
    assert "--resume_training --actor_checkpoint_path out/train --ref_checkpoint_path out/ref" in shown
    assert "--save_strategy_dir out.strategy" in shown
    assert "--join=True" in shown


def test_overrides_on_dev(site: Path) -> None:
    shown = launch(site, "--resume_training", "rl_config.epochs=3", branch="dev", DRY_RUN="1").stdout

    assert f"rl_config.resume_training=True actor_config.load={site}/out/train ref_config.load={site}/out/ref" in shown
    assert f"actor_config.save={site}/out rl_config.save_strategy_dir={site}/out.strategy" in shown
    assert shown.split()[-1] == "rl_config.epochs=3"
    assert "--resume_training" not in shown


def test_hydra_itself(site: Path) -> None:
    """It reads the overrides, keeps the configuration, and lets our exit code through."""
    pytest.importorskip("hydra")
    (site / "conf.yaml").write_text("defaults: [grpo, _self_]\nrl_config: {prompts: 3, epochs: 1}\n")
    (site / "grpo.py").symlink_to(HERE / "main_hydra.py")
    knobs = {"branch": "dev", "MAIN": "grpo.py", "CONFIG": "conf.yaml"}
    trained_, resumed = launch(site, **knobs), launch(site, "--resume_training", "rl_config.epochs=2", **knobs)
    shutil.rmtree(site / "out" / "optimizer")
    without = launch(site, "--resume_training", "rl_config.epochs=3", **knobs)

    assert trained_.returncode == 0, trained_.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert f"RESUMING at 1_0 from {site}/out " in resumed.stderr
    assert named(site / "out", "policy") == "2_0"
    assert without.returncode == 10
    assert "no whole checkpoint to resume from" in without.stderr
    assert "Traceback" not in without.stderr


HYDRA_ASKED = """
import os, runpy, signal
from mindrlhf.worker.train_worker import TrainWorker
TrainWorker.load_model = lambda self: os.kill(os.getpid(), signal.SIGTERM)
runpy.run_path("grpo.py", run_name="__main__")
"""


def test_hydra_lets_a_run_leave(site: Path) -> None:
    """With its own exit code, and without a traceback."""
    pytest.importorskip("hydra")
    (site / "grpo.py").symlink_to(HERE / "main_hydra.py")
    (site / "asked.py").write_text(HYDRA_ASKED)
    left = launch(site, "rl_config.epochs=1", branch="dev", MAIN="asked.py", CONFIG="")

    assert left.returncode == 50, left.stderr
    assert "Traceback" not in left.stderr
    assert named(site / "out", "policy") == "0_1"


def test_stock_again(site: Path) -> None:
    """ADAPTER=0 is MindRLHF's own command."""
    shown = launch(site, "--resume_training", ADAPTER="0", DRY_RUN="1").stdout

    assert "ms_resume" not in shown
    assert "--save_strategy_dir" not in shown


@pytest.mark.parametrize(
    ("knobs", "words", "said"),
    [
        ({"BRANCH": "main"}, [], "BRANCH is 'main'"),
        ({"MAIN": "absent.py"}, [], "MAIN='absent.py' is no file"),
        ({"CONFIG": ""}, [], "CONFIG='' is no file"),
        ({"MODEL": ""}, [], "MODEL is empty"),
        ({"WORKERS": "many"}, [], "WORKERS is 'many'"),
        ({"STRATEGY_DIR": "/"}, [], "not cleared"),
    ],
)
def test_a_knob_that_is_wrong(knobs: dict[str, str], words: list[str], said: str, site: Path) -> None:
    """Before anything is started or cleared."""
    ended = launch(site, *words, **knobs)

    assert ended.returncode == 2
    assert said in ended.stderr


def test_b23_is_cleared_before_a_start(site: Path) -> None:
    """What is left of another layout cannot be merged."""
    stale = site / "out.strategy" / "train_policy_strategy" / "strategy_1.ckpt"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    ended = launch(site)

    assert ended.returncode == 0, ended.stderr
    assert not stale.exists()


DEV = """
import os
os.environ["STANDIN_BRANCH"] = "dev"
import main_dev
main_dev.build().run_grpo_train()
"""


def commands(text: str) -> str:
    """Every bash block of the document but the first, whose paths are the reader's."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks[1:])


def test_every_command_of_the_document_runs(site: Path) -> None:
    """In order, in one shell that stops at the first error."""
    script = commands((TOP / "docs" / "mindrlhf.md").read_text())
    environ = environment(site) | {"MAIN": str(HERE / "main_master.py"), "CONFIG": "config.yaml", "MODEL": "model"}
    (site / "dev.py").write_text(DEV)
    mindformers = site / "mindformers" / "checkpoint" / "rank_0" / "llama_rank_0-1_2.safetensors"
    made(mindformers.parent)
    numbers = {name: np.array(2, np.int64) for name in ("epoch_num", "step_num")}
    save_file({"w": np.ones(2, np.float32), **numbers}, mindformers)
    environ |= {"DEV_MAIN": "dev.py", "MINDFORMERS_OUTPUT": "mindformers"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
        env=environ,
        timeout=600,
    )

    assert script.count("run_mindrlhf.sh") > 3
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("refused") == 1
    assert ended.stderr.count("RESUMING at") == 3
    assert f"resume_training   {mindformers.name}" in ended.stdout


def test_the_document_has_a_row_for_each_defect() -> None:
    """Gone, detected, or not ours, and why."""
    text = (TOP / "docs" / "mindrlhf.md").read_text()
    rows = re.findall(r"^\| B(\d+) \| [^|]+ \| (gone|detected|not ours)[^|]* \| [^|]+ \|$", text, re.MULTILINE)

    assert [int(row) for row, _ in rows] == list(range(1, 30))
