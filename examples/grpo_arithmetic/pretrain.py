"""Makes the base model: a short supervised warm-up that GRPO starts from, once for all runs.

    python examples/grpo_arithmetic/pretrain.py --config examples/grpo_arithmetic/config.yaml --output base

Writes `base_model.safetensors` and `base_model.json` (settings and accuracy). One process, not under msrun.
It stops where sampled held-out answers reach `stop_accuracy`, checked every few steps, because seeds differ
in how many steps that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic import config as configuration
from grpo_arithmetic import evaluate, grpo, task, weights, world
from grpo_arithmetic.errors import EXIT_CODE, ConfigError
from grpo_arithmetic.model import Decoder
from grpo_arithmetic.rollout import Sampler
from grpo_arithmetic.settings import Config
from grpo_arithmetic.task import PAD, Prompts

EVALUATION_ROWS = 200


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Makes the base model that GRPO starts from.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the directory for it")
    parser.add_argument("--device_target", default=os.environ.get("DEVICE_TARGET"), help="CPU or Ascend")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="above what the file says")
    args = parser.parse_intermixed_args(arguments)
    try:
        overrides = dict(map(configuration.parse_override, args.overrides))
        if args.device_target:
            overrides["context.device_target"] = args.device_target
        make(configuration.load(args.config, overrides), args.output)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


def make(config: Config, output: Path) -> None:
    """Trains and saves the base model, unless the same one is there.

    Raises:
        ConfigError: One made with other settings is there.
    """
    if (output / weights.BASE_MODEL).exists():
        _check_same(config, output / "base_model.json")
        print(f"{output / weights.BASE_MODEL} is there already")
        return
    since = time.monotonic()
    world.join(config.context.device_target)
    net, report = _train(config)
    seconds = round(time.monotonic() - since, 1)
    _save(net, output, {**report, "seconds": seconds, "settings": _settings(config)})
    print(f"{output / weights.BASE_MODEL}: {report['steps']} steps, held-out accuracy {report['sampled']:.3f}")


def _settings(config: Config) -> dict[str, Any]:
    example = asdict(config.example_config)
    made_by = {name: example[name] for name in ("task", "model", "base_model")}
    return {"max_tokens": config.generate_config.sampling_config.max_tokens, **made_by}


def _check_same(config: Config, report: Path) -> None:
    made_with = json.loads(report.read_text(encoding="utf-8"))["settings"]
    if made_with != _settings(config):
        expected = _settings(config)
        raise ConfigError(f"{report}: found a base model of {made_with}, expected {expected}; move it away")


def _train(config: Config) -> tuple[Any, dict[str, Any]]:
    settings = config.example_config.base_model
    max_tokens = config.generate_config.sampling_config.max_tokens
    train, held_out = task.split(config.example_config.task.numbers, config.example_config.task.held_out)
    start = train.tokens.shape[1]
    ms.set_seed(settings.seed)
    net = Decoder(config.example_config.model, start + max_tokens)
    update = _update_function(net, start, settings.lr)
    sampler = Sampler(net)
    batches = _batches(train, settings.seed, settings.batch_size, max_tokens)
    for step, (tokens, mask) in enumerate(batches, start=1):
        loss = update(Tensor(tokens), Tensor(mask))
        if step % settings.check_interval == 0 or step == settings.max_steps:
            found = evaluate.accuracy(sampler, held_out, rows=EVALUATION_ROWS, max_tokens=max_tokens)
            print(f"step {step}: loss {float(loss.asnumpy()):.4f}, held out {found}", flush=True)
            if found.sampled >= settings.stop_accuracy or step == settings.max_steps:
                break
    return net, {"steps": step, **asdict(found)}


def _batches(train: Prompts, seed: int, size: int, max_tokens: int) -> Iterator[tuple[Any, Any]]:
    """Endless random rows: prompt with right completion, and the mask (rows, completion) of what counts."""
    generator = np.random.default_rng(seed)
    while True:
        rows = train.rows(generator.integers(len(train), size=size))
        completions = task.answer_tokens(rows.answers, max_tokens)
        yield np.concatenate([rows.tokens, completions], axis=1), (completions != PAD).astype(np.float32)


def _update_function(net: Any, start: int, lr: float) -> Any:
    log_probs = grpo.log_prob_function(net, start, 1.0)
    optimizer = nn.Adam(net.trainable_params(), learning_rate=lr)

    def loss(tokens: Any, mask: Any) -> Any:
        return -(log_probs(tokens) * mask).sum() / mask.sum()

    gradients = ms.jit(ms.value_and_grad(loss, None, optimizer.parameters))

    def update(tokens: Tensor, mask: Tensor) -> Tensor:
        value, found = gradients(tokens, mask)
        optimizer(found)
        return value

    return update


def _save(net: Any, output: Path, report: dict[str, Any]) -> None:
    # MindSpore removes an existing target before it writes, so the file gets its name only when it is whole.
    output.mkdir(parents=True, exist_ok=True)
    scratch = output / f".{os.getpid()}.safetensors"
    ms.save_checkpoint(net, str(scratch), format="safetensors")
    (output / "base_model.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, output / weights.BASE_MODEL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
