"""Share of right answers on held-out prompts; the noise is always the same, so equal weights score equally.

`sampled` is the figure to quote: 4 samples a prompt at temperature 1, the distribution that GRPO trains.
`greedy` is beside it. Run as a script, it evaluates any file that holds the weights:

    python examples/grpo_arithmetic/evaluate.py --config CONFIG base/base_model.safetensors
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic import config as configuration
from grpo_arithmetic import reward, rollout, task, weights, world
from grpo_arithmetic.model import Decoder
from grpo_arithmetic.rollout import Floats, Sampler
from grpo_arithmetic.task import Prompts

NOISE_SEED = 7
SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers, 0 to 1."""

    sampled: float
    greedy: float


def accuracy(sampler: Sampler, prompts: Prompts, *, rows: int, max_tokens: int) -> Accuracy:
    """Completes `rows` prompts at a time: the shape that the sampler was compiled for, if it was."""
    repeated = prompts.repeated(SAMPLES)
    gumbel = rollout.noise(np.random.default_rng(NOISE_SEED), len(repeated), max_tokens)
    return Accuracy(
        _share_right(sampler, repeated, gumbel, rows),
        _share_right(sampler, prompts, rollout.no_noise(len(prompts), max_tokens), rows),
    )


def samples(sampler: Sampler, prompts: Prompts, *, rows: int, max_tokens: int) -> list[str]:
    """Each of the prompts with its most likely completion, as text; at most `rows`."""
    shown = prompts.rows(np.arange(min(rows, len(prompts))))
    filled = shown.rows(np.arange(rows) % len(shown))
    completed = sampler.complete(filled.tokens, rollout.no_noise(rows, max_tokens))
    return reward.texts(completed.tokens[: len(shown)])


def _share_right(sampler: Sampler, prompts: Prompts, gumbel: Floats, rows: int) -> float:
    right = 0
    for start in range(0, len(prompts), rows):
        used = min(rows, len(prompts) - start)
        index = np.minimum(np.arange(start, start + rows), len(prompts) - 1)
        completed = sampler.complete(prompts.tokens[index], gumbel[:, index])
        texts = reward.texts(completed.completions[:used])
        right += int(reward.right(texts, prompts.answers[start : start + used]).sum())
    return right / len(prompts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Share of right answers on the held-out prompts.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("weights", type=Path, help="a safetensors file, or a base model's directory")
    args = parser.parse_args(arguments)
    config = configuration.load(args.config)
    world.join(config.context.device_target)
    _, held_out = task.split(config.example_config.task.numbers, config.example_config.task.held_out)
    max_tokens = config.generate_config.sampling_config.max_tokens
    net = Decoder(config.example_config.model, held_out.tokens.shape[1] + max_tokens)
    weights.place(net, weights.base_model_file(args.weights))
    print(asdict(accuracy(Sampler(net), held_out, rows=200, max_tokens=max_tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
