"""Trains with GRPO, taking the flags of MindRLHF's own `main.py`.

    msrun --worker_num=2 --local_worker_num=2 --join=True --log_dir=logs examples/grpo_arithmetic/main.py \\
        --config examples/grpo_arithmetic/config.yaml --actor_checkpoint_path base --save_checkpoint_dir save

Without msrun it is one process. A flag wins over the YAML file; `KEY=VALUE` arguments win over both.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic import config as configuration
from grpo_arithmetic.errors import EXIT_CODE, ConfigError
from grpo_arithmetic.settings import Config
from ms_resume import StartMode, pulse, strategies
from ms_resume.errors import ExitCode, MsResumeError
from ms_resume.framework import version
from ms_resume.resume.leaving import Leaving

KEY_OF_FLAG = {
    "dataset_file": "rl_config.dataset_file",
    "actor_checkpoint_path": "actor_config.load",
    "ref_checkpoint_path": "ref_config.load",
    "generate_checkpoint_path": "generate_config.load",
    "save_checkpoint_dir": "actor_config.save",
    "save_strategy_dir": "rl_config.save_strategy_dir",
    "epochs": "rl_config.epochs",
    "eval_interval": "example_config.eval_interval",
    "generate_interval": "example_config.generate_interval",
    "device_target": "context.device_target",
}
WITHOUT_MEANING = ("model_name", "tokenizer_type", "tokenizer_dir", "generate_checkpoint_path")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRPO on small sums.")
    parser.add_argument("--config", type=Path, required=True, help="YAML with MindRLHF's keys")
    StartMode.add_arguments(parser)
    parser.add_argument("--actor_checkpoint_path", help="the base model, a file or its directory")
    parser.add_argument("--ref_checkpoint_path", help="the reference model; default: the actor's")
    parser.add_argument("--save_checkpoint_dir", help="where checkpoints and metrics go")
    parser.add_argument("--save_strategy_dir", help="where MindSpore puts strategy files")
    parser.add_argument("--strategy", help="a name in strategy_templates/, or a YAML file")
    parser.add_argument("--dataset_file", help="a MindRecord of prompts, made when it is not there")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device_target", default=os.environ.get("DEVICE_TARGET"), help="CPU or Ascend")
    parser.add_argument("--verifier_function", help="names, separated by commas")
    parser.add_argument("--verifier_weight", help="numbers, separated by commas")
    parser.add_argument("--tensorboard", help="true, false, or the directory to log to")
    parser.add_argument("--eval_interval", type=int, help="measure the accuracy after every N global steps; 0: never")
    parser.add_argument("--generate_interval", type=int, help="show samples after every N global steps; 0: never")
    for name in WITHOUT_MEANING:
        parser.add_argument(f"--{name}", help="accepted for MindRLHF's sake, without meaning here")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as rl_config.seed=3")
    return parser.parse_intermixed_args(arguments)


def load_config(args: argparse.Namespace) -> Config:
    """The YAML file with the flags above it, then the `KEY=VALUE` arguments.

    Raises:
        ConfigError: As `config.load`; or no save directory was given.
    """
    given = {key: getattr(args, flag) for flag, key in KEY_OF_FLAG.items() if getattr(args, flag) is not None}
    explicit = dict(map(configuration.parse_override, args.overrides))
    flags = given | _strategy_flag(args) | _reward_flags(args) | _tensorboard_flag(args)
    config = configuration.load(args.config, flags | explicit)
    if not config.actor_config.save:
        raise ConfigError("--save_checkpoint_dir: found nothing, expected a directory (or actor_config.save)")
    return config


def _strategy_flag(args: argparse.Namespace) -> dict[str, Any]:
    if args.strategy is None:
        return {}
    sections = strategies.load(args.strategy).parallel_configs()
    return {f"{name}.parallel_config.{key}": v for name, cut in sections.items() for key, v in cut.items()}


def _reward_flags(args: argparse.Namespace) -> dict[str, Any]:
    names, numbers = args.verifier_function, args.verifier_weight
    functions = {"reward_config.verifier_function": names.split(",")} if names else {}
    weights = [configuration.parse_override(f"reward_config.verifier_weight=[{numbers}]")] if numbers else []
    return functions | dict(weights)


def _tensorboard_flag(args: argparse.Namespace) -> dict[str, Any]:
    if args.tensorboard is None:
        return {}
    if args.tensorboard.lower() in ("true", "false"):
        return {"rl_config.tensorboard": args.tensorboard.lower() == "true"}
    return {"rl_config.tensorboard": True, "rl_config.tensorboard_dir": args.tensorboard}


def ignored(args: argparse.Namespace, config: Config) -> list[str]:
    """Flags and keys that were given and mean nothing to this trainer."""
    flags = [f"--{name}" for name in WITHOUT_MEANING if getattr(args, name) is not None]
    return [*flags, *config.ignored]


def check_parallel(config: Config, num_ranks: int) -> None:
    """Raises ConfigError if the configuration says anything but data parallelism, `num_ranks` ways."""
    parallel = config.actor_config.parallel_config
    for name in ("model_parallel", "pipeline_stage", "expert_parallel", "context_parallel"):
        if getattr(parallel, name) != 1:
            found = getattr(parallel, name)
            raise ConfigError(f"actor_config.parallel_config.{name}: found {found}, expected 1")
    if parallel.data_parallel not in (0, num_ranks):
        found, expected = parallel.data_parallel, f"{num_ranks}, the number of workers"
        raise ConfigError(f"actor_config.parallel_config.data_parallel: found {found}, expected {expected}")


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    try:
        config = load_config(args)
        mode = StartMode.read(args, resume_training=config.rl_config.resume_training)
        return train(args, mode, config)
    except ConfigError as error:
        pulse.told(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_CODE
    except MsResumeError as error:
        pulse.told(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)


def train(args: argparse.Namespace, mode: StartMode, config: Config) -> int:
    version.require()
    leaving = Leaving()
    leaving.listen()
    # Imported here so that a wrong flag or key is answered at once, and without MindSpore.
    from grpo_arithmetic import request, sabotage, world
    from grpo_arithmetic.trainer import GRPOTrainer

    check_parallel(config, world.announced_size())
    asked = request.build(args.strategy, mode, config, world.announced_size())
    here = world.join(config.context.device_target)
    unused = ignored(args, config)
    if here.is_first and unused:
        print(f"accepted, without meaning here: {', '.join(unused)}", flush=True)
    trainer = GRPOTrainer(config, here, asked, leaving)
    sabotage.arm(trainer)
    return int(ExitCode.OK if trainer.run() else ExitCode.LEFT_ON_REQUEST)


if __name__ == "__main__":
    sys.exit(pulse.run(main, sys.argv[1:]))
