"""What stock MindRLHF does wrong when it saves and resumes, shown on the stand-in for it: B1 to B29.

A scenario plays one defect and says what came of it. This is how it ends in stock code.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from standin_jobs import At, Job, Killed, Ran

from ms_resume.ondisk import meta, names
from ms_resume.records import Position

Scenario = Callable[[Job], str]

INTERVAL_2 = {"rl_config.save_ckpt_interval": 2, "rl_config.epochs": 1, "rl_config.prompts": 6}


def job(root: Path, **changes: Any) -> Job:
    """Six steps an epoch, one epoch, a save every two steps."""
    return Job(root, changes={**INTERVAL_2, **{name.replace("__", "."): value for name, value in changes.items()}})


def payload(save: Path, role: str, at: At, rank: int = 0) -> Path:
    return names.payload(save, role, rank, Position(*at))


def named(save: Path, role: str, rank: int = 0) -> str:
    return str(meta.read(names.rank_dir(save, role, rank)).position)


def positions(save: Path, role: str = "policy") -> list[str]:
    found = [names.parse_payload(path.name) for path in names.rank_dir(save, role, 0).iterdir()]
    return sorted(str(name.position) for name in found if name)


def killed_in(module: str, function: str, when: Callable[..., bool]) -> Callable[[], None]:
    """Kills the job when `function`, as `module` knows it, is called so."""

    def breaks() -> None:
        home = sys.modules[module]
        original = getattr(home, function)

        @wraps(original)
        def dying(*given: Any, **kwargs: Any) -> Any:
            if when(*given, **kwargs):
                raise Killed
            return original(*given, **kwargs)

        setattr(home, function, dying)

    return breaks


def at_meta_of(role: str, at: At) -> Callable[..., bool]:
    def when(epoch: int, step: int, ckpt_file: str, meta_json: str) -> bool:
        return (epoch, step) == at and ckpt_file.startswith(names.PREFIXES[role])

    return when


def first(ran: list[Ran]) -> Ran:
    return ran[0]


# -- scenarios, by the number of the defect


def b1_meta_after_a_roll_over(run: Job) -> str:
    """Eleven steps: `0_10` is longer than `1_0`, which is written over it."""
    long = {"rl_config__prompts": 11, "rl_config__save_ckpt_interval": 10, "rl_config__epochs": 2}
    run.run(stop=(1, 1), **long)
    return first(run.run(resume=True, **long)).outcome


def b2_killed_while_meta_is_written(run: Job) -> str:
    """The second record gets half of its bytes out."""

    def half(record: dict[str, Any], file: Any) -> None:
        text = json.dumps(record)
        file.write(text if record["last_step"] == 2 else text[: len(text) // 2])
        if record["last_step"] == 4:
            file.flush()
            os.ftruncate(file.fileno(), len(text) // 2)
            raise Killed

    def breaks() -> None:
        sys.modules["mindrlhf.utils.utils"].json = SimpleNamespace(dump=half)  # type: ignore[attr-defined]

    run.run(before=breaks, stop=(0, 5))
    return meta.read(names.rank_dir(run.save, "policy", 0)).trouble or "whole"


def b3_killed_between_retention_and_meta(run: Job) -> str:
    """With one checkpoint to keep, the one that `meta.json` names has gone by then."""
    kill = killed_in("mindrlhf.worker.train_worker", "record_last_ckpt_to_json", at_meta_of("policy", (0, 4)))
    run.run(before=kill, rl_config__save_max_ckpt_num=1)
    rank_dir = names.rank_dir(run.save, "policy", 0)
    return "there" if (rank_dir / meta.read(rank_dir).file).exists() else "gone"


def b4_killed_before_the_reference(run: Job) -> str:
    """Three directories, and nothing that says whether they belong together."""
    kill = killed_in("mindrlhf.worker.ref_worker", "record_last_ckpt_to_json", at_meta_of("ref", (0, 4)))
    run.run(before=kill)
    return " ".join(named(run.save, role) for role in ("policy", "optimizer", "ref"))


def b5_killed_between_two_meta(run: Job) -> str:
    """Policy and optimizer are located each for itself, and the optimizer's file has weights, too."""
    kill = killed_in("mindrlhf.worker.train_worker", "record_last_ckpt_to_json", at_meta_of("optimizer", (0, 4)))
    before = first(replace(run, root=made(run.root / "whole")).run()).seen
    run.run(before=kill)
    after = first(run.run(resume=True))
    same = bool(after.rows) and trained(after.start) == trained(before[after.positions[0]])
    return f"{after.outcome} with {'its own' if same else 'other'} weights"


def b6_no_optimizer(run: Job) -> str:
    run.run(stop=(0, 5))
    shutil.rmtree(run.save / "optimizer")
    resumed = first(run.run(resume=True))
    return f"{resumed.outcome}, {moments(resumed)}"


def b7_a_link_to_the_actor_directory(run: Job) -> str:
    run.run(stop=(0, 5))
    elsewhere = run.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train").symlink_to(run.save / "train")
    (elsewhere / "ref").symlink_to(run.save / "ref")
    resumed = first(run.run(resume=True, source=lambda rank: elsewhere))
    return f"{resumed.outcome}, {moments(resumed)}"


def b8_saved_as_ckpt(run: Job) -> str:
    run.run(stop=(0, 5), rl_config__save_ckpt_format="ckpt")
    return first(run.run(resume=True, rl_config__save_ckpt_format="ckpt")).outcome


def b9_no_position_in_the_file(run: Job) -> str:
    run.stock().run(stop=(0, 3))
    path = payload(run.save, "policy", (0, 2))
    with safe_open(path, "np") as file:
        held = {name: file.get_tensor(name) for name in file.keys() if not name.endswith("_num")}  # noqa: SIM118
    path.chmod(0o600)
    save_file(held, path, {"format": "ms"})
    return first(run.run(resume=True)).outcome


def b10_no_meta_can_be_read(run: Job) -> str:
    as_ckpt = {"rl_config__save_ckpt_format": "ckpt", "rl_config__load_ckpt_format": "ckpt"}
    run.stock().run(stop=(0, 3), **as_ckpt)
    for role in ("policy", "optimizer", "ref"):
        (names.rank_dir(run.save, role, 0) / names.META).write_bytes(b"{")
    return first(run.run(resume=True, **as_ckpt)).outcome


def b11_more_epochs_after_the_last(run: Job) -> str:
    run.run()
    longer = first(run.run(resume=True, rl_config__epochs=3, rl_config__save_ckpt_interval=3))
    return f"{longer.outcome}, {len(longer.rows)} steps"


def b12_shorter_than_an_interval(run: Job) -> str:
    run.run(rl_config__save_ckpt_interval=100)
    return first(run.run(resume=True, rl_config__save_ckpt_interval=100, rl_config__epochs=2)).outcome


def b13_dev_resumes(run: Job) -> str:
    run = replace(run, branch="dev")
    before = first(run.run(stop=(0, 5))).seen
    resumed = first(run.run(resume=True))
    return f"{resumed.outcome}, weights of 0_4: {trained(resumed.start) == trained(before[0, 4])}"


def b14_dev_with_load_format_ckpt(run: Job) -> str:
    run = replace(run, branch="dev", changes={**run.changes, "rl_config.load_ckpt_format": "ckpt"})
    run.run(stop=(0, 5))
    return first(run.run(resume=True)).outcome


def b15_other_names(run: Job) -> str:
    run.run(stop=(0, 5))

    def rename() -> None:
        models = sys.modules["mindrlhf.models.grpo_models"]
        original = models.Weights.__init__  # type: ignore[attr-defined]
        models.Weights.__init__ = lambda self, prefix, size, value: original(  # type: ignore[attr-defined]
            self, prefix.replace("policy", "actor"), size, value
        )

    resumed = first(run.run(resume=True, before=rename))
    return resumed.outcome


def b16_prompts_of_the_second_epoch(run: Job) -> str:
    """Ten batches, three in a step: each epoch leaves one to the next."""
    rest = {"rl_config__prompts": 10, "rl_config__num_rollouts": 3, "rl_config__epochs": 2}
    whole = first(replace(run, root=made(run.root / "whole")).run(**rest))
    run.run(stop=(1, 2), **rest, rl_config__save_ckpt_interval=1)
    resumed = first(run.run(resume=True, **rest, rl_config__save_ckpt_interval=1))
    return "as ever" if resumed.rows == whole.rows[-len(resumed.rows) :] else "others"


def b17_what_is_drawn(run: Job) -> str:
    whole, resumed = whole_and_resumed(run)
    same = [drawn for _, drawn in resumed.metrics] == [drawn for _, drawn in whole.metrics][4:]
    return "as ever" if same else "others"


def b18_numbers_of_metrics(run: Job) -> str:
    whole, resumed = whole_and_resumed(run)
    counts = resumed.trainer.train.global_training_step, resumed.trainer.experience_maker.total_processed_tokens
    wanted = whole.trainer.train.global_training_step, whole.trainer.experience_maker.total_processed_tokens
    return f"from {resumed.metrics[0][0]}, {'all' if counts == wanted else 'others lost'}"


def b19_loss_scale(run: Job) -> str:
    whole, resumed = whole_and_resumed(run)
    scales = [float(ran.trainer.train.grpo_with_grad.scale_sense.asnumpy()) for ran in (whole, resumed)]
    return "as ever" if scales[0] == scales[1] else "lost"


def b20_where_output_goes(run: Job) -> str:
    run.run(stop=(0, 5))
    left: list[str] = []

    def look() -> None:
        os.environ["LOCAL_DEFAULT_PATH"] = "/output"
        trainer = sys.modules["mindrlhf.trainer.spmd.grpo_trainer"].GRPOTrainer  # type: ignore[attr-defined]
        original = trainer.run_grpo_train

        @wraps(original)
        def run_grpo_train(self: Any) -> None:
            left.append(os.environ["LOCAL_DEFAULT_PATH"])
            original(self)

        trainer.run_grpo_train = run_grpo_train

    run.run(resume=True, before=look)
    record = list(run.save.rglob("resume_record"))
    return f"{Path(left[0]).name}, {'a record' if record else 'no record'} in the checkpoints"


def b21_disks_of_their_own(run: Job) -> str:
    run = replace(run, world_size=2)

    def disk(rank: int) -> Path:
        return run.root / f"node_{rank}" / "save"

    run.run(stop=(0, 5), save=disk)
    return first(run.run(resume=True, save=disk)).outcome


def b22_conversion_of_a_checkpoint(run: Job) -> str:
    run.run(stop=(0, 5))
    calls = first(run.run(resume=True)).trainer.train.calls
    return "converts" if any(call.startswith("convert") for call in calls) else "does not"


def b23_strategies_of_another_layout(run: Job) -> str:
    """Of one stage the first file that is listed; nothing was cleared since the job had other stages."""
    folder = run.root / "strategy" / "train_policy_strategy"
    folder.mkdir(parents=True)
    for rank, stage, when in ((0, 0, "now"), (1, 1, "then"), (2, 1, "now"), (3, 1, "now")):
        (folder / f"strategy_{rank}.ckpt").write_text(json.dumps({"stage": stage, "made": when}))
    made: list[dict[int, dict[str, Any]]] = []

    def merge() -> None:
        from mindrlhf.worker.transform_worker import merge_pipeline_strategys

        made.append(merge_pipeline_strategys(str(folder)))

    run.run(before=merge)
    return ", ".join(strategy["made"] for strategy in made[0].values())


def b24_retention_after_a_copy(run: Job) -> str:
    """Times of change that a copy has put in another order."""
    run.run(stop=(0, 5), rl_config__save_max_ckpt_num=2)
    for role in ("policy", "optimizer", "ref"):
        for second, step in enumerate((4, 2)):
            if payload(run.save, role, (0, step)).exists():
                os.utime(payload(run.save, role, (0, step)), (second, second))
    run.run(resume=True, stop=(0, 5), rl_config__save_max_ckpt_num=2, rl_config__save_ckpt_interval=5)
    return " ".join(positions(run.save))


def b25_fewer_ranks(run: Job) -> str:
    replace(run, world_size=2).run(stop=(0, 5))
    return first(run.run(resume=True)).outcome


def b26_offloaded_optimizer(run: Job) -> str:
    offloaded = first(run.run(actor_config__opt_offload=True))
    lamb = first(replace(run, root=made(run.root / "lamb")).run(actor_config__optimizer="lamb"))
    return f"{offloaded.outcome}; {lamb.outcome}"


def b27_save_strategy_dir(run: Job) -> str:
    """A flag that MindRLHF's documents ask for, and its entry points do not know."""
    ran = first(run.run(words=("--save_strategy_dir", str(run.root / "strategy"))))
    if ran.trainer is None:
        return f"exit {ran.error}"
    return Path(ran.trainer.grpo_config.rl_config.save_strategy_dir).name


def b28_modes(run: Job) -> str:
    run.run(stop=(0, 5))
    return oct(payload(run.save, "policy", (0, 4)).stat().st_mode & 0o444)


def b29_ranks_that_differ(run: Job) -> str:
    """Rank 1's files of 0_4 are those of 0_2 under another name."""
    run = replace(run, world_size=2)
    run.stock().run(stop=(0, 5))
    for role in ("policy", "optimizer", "ref"):
        older, newer = payload(run.save, role, (0, 2), 1), payload(run.save, role, (0, 4), 1)
        newer.unlink()
        shutil.copyfile(older, newer)
    return "; ".join(ran.outcome for ran in run.run(resume=True))


# -- what scenarios share


def made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def trained(state: dict[str, str]) -> dict[str, str]:
    """Weights, moments, and the reference."""
    return {name: digest for name, digest in state.items() if "model." in name}


def moments(ran: Ran) -> str:
    if ran.trainer is None:
        return "not started"
    steps = int(ran.trainer.train.grpo_with_grad.optimizer.global_step.asnumpy()[0])
    return "moments" if steps == 6 else f"moments of {steps} steps"


def whole_and_resumed(run: Job) -> tuple[Ran, Ran]:
    """A run that was never killed, and one that went on from 0_4."""
    whole = first(replace(run, root=made(run.root / "whole")).run())
    run.run(stop=(0, 5))
    return whole, first(run.run(resume=True))


# -- how each ends in stock code

STOCK: list[tuple[Scenario, str]] = [
    (b1_meta_after_a_roll_over, "expected str, bytes or os.PathLike object, not NoneType"),
    (b2_killed_while_meta_is_written, "torn"),
    (b3_killed_between_retention_and_meta, "gone"),
    (b4_killed_before_the_reference, "0_4 0_4 0_2"),
    (b5_killed_between_two_meta, "from 0_4 with other weights"),
    (b6_no_optimizer, "from 0_4, moments of 2 steps"),
    (b7_a_link_to_the_actor_directory, "from 0_4, moments of 2 steps"),
    (b8_saved_as_ckpt, "Checkpoint not found under"),
    (b9_no_position_in_the_file, "from 0_0"),
    (b10_no_meta_can_be_read, "TypeError"),
    (b11_more_epochs_after_the_last, "from 2_0, 6 steps"),
    (b12_shorter_than_an_interval, "ValueError: There is no *.safetensors"),
    (b13_dev_resumes, "from 0_0, weights of 0_4: True"),
    (b14_dev_with_load_format_ckpt, "Checkpoint not found under"),
    (b15_other_names, "from 0_4"),
    (b16_prompts_of_the_second_epoch, "others"),
    (b17_what_is_drawn, "others"),
    (b18_numbers_of_metrics, "from 0, others lost"),
    (b19_loss_scale, "lost"),
    (b20_where_output_goes, "ref, a record in the checkpoints"),
    (b21_disks_of_their_own, "rank_1 is not found!"),
    (b22_conversion_of_a_checkpoint, "converts"),
    (b23_strategies_of_another_layout, "now, then"),
    (b24_retention_after_a_copy, "0_2 0_5"),
    (b25_fewer_ranks, "from 0_4"),
    (b26_offloaded_optimizer, "has no attribute 'exp_avg'; AttributeError"),
    (b27_save_strategy_dir, "exit 2"),
    (b28_modes, "0o400"),
    (b29_ranks_that_differ, "from 0_4; from 0_2"),
]


def number(scenario: Scenario) -> str:
    return scenario.__name__.partition("_")[0].upper()


@pytest.mark.parametrize(("scenario", "ends"), STOCK, ids=[number(scenario) for scenario, _ in STOCK])
def test_a_defect_of_stock_code(scenario: Scenario, ends: str, tmp_path: Path) -> None:
    """Without the adapter."""
    assert ends in scenario(job(tmp_path))


def test_none_is_left_out() -> None:
    """One scenario for each defect, in order."""
    assert [number(scenario) for scenario, _ in STOCK] == [f"B{n}" for n in range(1, 30)]
