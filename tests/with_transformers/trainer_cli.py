"""In the place of `llamafactory-cli`: Hugging Face's real Trainer on a tiny random model, told by the same YAML keys.

    llamafactory-cli train FILE.yaml

LLaMA-Factory hands such keys to the Trainer as they are. `die_at: {0: 25}`: started at step 0, SIGKILL in the middle of
step 25; `die_in_save: {0: 20}`: in the save at step 20, with the optimizer half written. Each happens once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

OWN = ("die_at", "die_in_save", "resume_from_checkpoint")


class Sums(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Token sequences that follow from their number."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([(index * 7 + place * place) % 31 + 1 for place in range(16)])
        return {"input_ids": tokens, "labels": tokens}


class Dying(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for mypy
    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(step: int) -> None:
    """Ends this process when the optimizer of that step is half written."""
    save = torch.save

    def half(state: Any, path: Any, *more: Any, **options: Any) -> None:
        save(state, path, *more, **options)
        if str(path).endswith(f"checkpoint-{step}/optimizer.pt"):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def once(how: str, step: int | None) -> int | None:
    """None the second time."""
    try:
        Path(f".{how}_{step}").touch(exist_ok=False)
    except FileExistsError:
        return None
    return step


def main(path: Path) -> None:
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = settings.get("resume_from_checkpoint")
    begin = int(Path(before).name.removeprefix("checkpoint-")) if before else 0
    at, in_save = (once(how, settings.get(how, {}).get(begin)) for how in ("die_at", "die_in_save"))
    if in_save is not None:
        die_in_save(in_save)
    arguments = TrainingArguments(**{key: value for key, value in settings.items() if key not in OWN})
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, attention_dropout=0.1,
    )  # fmt: skip  # one model
    model = LlamaForCausalLM(config)
    callbacks = [Dying(at)]
    trainer = Trainer(model=model, args=arguments, train_dataset=Sums(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=before)
    trainer.save_model()


if __name__ == "__main__":
    assert sys.argv[1] == "train"
    main(Path(sys.argv[2]))
