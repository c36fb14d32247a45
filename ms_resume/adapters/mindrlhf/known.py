"""What of MindRLHF and MindFormers the adapter replaces, and the parameters by which it knows a version.

Source: MindRLHF master e8a8fc1 and dev 5d87d08 (both of 2025-08-08), MindFormers 051d65f. Another version is refused
when its module is imported, which is before anything trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ms_resume.errors import UsageError

UTILS = "mindrlhf.utils.utils"
LOCATOR = "mindformers.tools.resume_ckpt"
TRAIN = "mindrlhf.worker.train_worker"
REF = "mindrlhf.worker.ref_worker"
TRAINER = "mindrlhf.trainer.spmd.grpo_trainer"
MAKER = "mindrlhf.trainer.spmd.grpo_experience_maker"

VERSIONS = "MindRLHF master e8a8fc1 or dev 5d87d08"

_SAVE = ("self", "epochs", "steps", "start_epoch", "start_step", "formats")

PARAMETERS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    UTILS: {
        "get_checkpoint_name": (("ckpt_path", "prefix", "epoch_num", "step_num", "formats"),),
        "ensure_total_ckpt_is_less_than_limit": (("ckpt_path", "limit", "formats"),),
        "load_param_to_net": (("net", "param_dict"),),
        "record_last_ckpt_to_json": (("epoch", "step", "ckpt_file", "meta_json"),),
    },
    LOCATOR: {
        "get_resume_checkpoint_by_meta": (
            ("checkpoint_dir", "ckpt_format", "use_checkpoint_health_monitor", "health_ckpts_record_dir"),
        ),
    },
    TRAIN: {
        "TrainWorker.__init__": (("self", "grpo_config", "args"), ("self", "grpo_config", "kwargs")),
        "TrainWorker.save_checkpoints": (_SAVE,),
        "TrainWorker.reload_ckpt": (("self", "formats"),),
    },
    REF: {
        "RefWorker.save_checkpoints": (_SAVE,),
        "RefWorker.reload_ckpt": (("self", "formats"),),
    },
    TRAINER: {
        "GRPOTrainer.__init__": (("self", "no_patch_tensor_shape", "args"), ("self", "config_from_yaml", "kwargs")),
        "GRPOTrainer._load_checkpoint": (("self",),),
        "GRPOTrainer.rename_safetensors_weights": (("self",),),
        "GRPOTrainer.run_grpo_train": (("self",),),
    },
    MAKER: {
        "GRPOExperienceMaker._init_grpo_experience_dataset": (("self",),),
        "GRPOExperienceMaker._get_batch": (("self", "num_rollouts"),),
        "GRPOExperienceMaker.make_experience": (("self", "num_rollouts", "num_generations"),),
    },
}
"""Module, then function or method, then the names of its parameters: on master, and on dev where that differs."""


def check(module: ModuleType) -> None:
    """Raises UsageError where something the adapter replaces is missing, has other parameters, or was replaced by
    somebody else."""
    for name, expected in PARAMETERS[module.__name__].items():
        found = _find(module, name)
        if found is None:
            raise _unknown(f"{module.__name__} has no {name}")
        home = getattr(found, "__module__", "")
        if home.partition(".")[0] != module.__name__.partition(".")[0]:
            raise UsageError(
                f"{module.__name__}.{name} was replaced by {home or found!r} before the adapter came",
                hint="leave the other replacement out, or start without the adapter",
            )
        parameters = tuple(inspect.signature(found).parameters)
        if parameters not in expected:
            listed = " or ".join(f"({', '.join(names)})" for names in expected)
            raise _unknown(f"{module.__name__}.{name} takes ({', '.join(parameters)}), expected {listed}")


_put: dict[tuple[str, str], Any] = {}
"""What was in its place when a module's changes were made, by module and name; the newest import of it counts."""


def remember(module: ModuleType) -> None:
    """Called when `module` was changed."""
    _put.update({(module.__name__, name): _find(module, name) for name in PARAMETERS[module.__name__]})


def check_unchanged(modules: Mapping[str, ModuleType]) -> None:
    """Raises UsageError where somebody replaced something since: in its module, or where a worker has it from there.
    What says that it wraps it (`functools.wraps`) may stay."""
    for (home, name), put in _put.items():
        holders = (home, TRAIN, REF) if home in (UTILS, LOCATOR) else (home,)
        for holder in filter(modules.__contains__, holders):
            held = _find(modules[holder], name)
            if held is not None and not _wraps(held, put):
                by = getattr(held, "__module__", "") or held
                raise UsageError(
                    f"{holder}.{name} was replaced by {by!r} after the adapter came",
                    hint="leave the other replacement out, or start without the adapter",
                )


def _wraps(held: Any, put: Any) -> bool:
    return inspect.unwrap(held, stop=lambda found: found is put) is put


def need(owner: Any, path: str) -> Any:
    """What `path`, names with dots between them, leads to from `owner`. Raises UsageError, saying where it ends."""
    held = owner
    for name in path.split("."):
        if not hasattr(held, name):
            raise _unknown(f"{type(owner).__name__}.{path}: {type(held).__name__} has no {name!r}")
        held = getattr(held, name)
    return held


def _find(module: ModuleType, name: str) -> Any:
    held: Any = module
    for part in name.split("."):
        held = getattr(held, part, None)
    return held


def _unknown(what: str) -> UsageError:
    return UsageError(
        f"this version of MindRLHF or MindFormers is not known: {what}",
        hint=f"use {VERSIONS}, or start without the adapter",
    )
