"""LLaMA-Factory itself, killed from outside and recovered by the scripts; skipped where it is not installed.

It wants other versions than the extra `hf`: pip install llamafactory into an environment of its own, then
`python -m pytest tests/with_transformers` there. Tried with 0.9.5.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llamafactory")
from safetensors.torch import load_file  # noqa: E402  # comes with transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from ms_resume.recover import leftovers  # noqa: E402

TOP = Path(__file__).parents[2]
FILE = """\
### 模型
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: full

dataset: sums
dataset_dir: data
template: default
cutoff_len: 64
preprocessing_num_workers: 1

output_dir: out/{name}     # 输出
save_steps: 20
logging_steps: 5
report_to: none
per_device_train_batch_size: 2
learning_rate: 1.0e-3
max_steps: 120
lr_scheduler_type: cosine
use_cpu: true
seed: 7
resume_from_checkpoint: null
"""


def _make(here: Path) -> None:
    """A data set of sums, a tokenizer for it, and a tiny random model."""
    sums = [(i, j) for i in range(10) for j in range(6)]
    rows = [{"instruction": f"what is {i} plus {j}?", "input": "", "output": f"it is {i + j}."} for i, j in sums]
    (here / "data").mkdir()
    (here / "data" / "sums.json").write_text(json.dumps(rows))
    (here / "data" / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special.values()], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(row.values()) for row in rows], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)
    fast.save_pretrained(here / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, attention_dropout=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip  # one model
    LlamaForCausalLM(config).save_pretrained(here / "model")


def _kill(yaml: Path, saved: Path) -> None:
    """SIGKILL to all of a training, soon after a save: often in the next one."""
    while not saved.exists():
        time.sleep(0.01)
    time.sleep(0.15)
    for process in leftovers.find(yaml):
        os.kill(process.pid, signal.SIGKILL)


def test_weights_are_those_of_a_run_that_was_left_alone(tmp_path: Path) -> None:
    """Bit for bit, on a CPU."""
    _make(tmp_path)
    home = tmp_path / "train_yaml" / "me" / "202501150000"
    home.mkdir(parents=True)
    for name in ("alone", "killed"):
        (home / f"{name}.yaml").write_text(FILE.format(name=name))
    saved = tmp_path / "out/killed/checkpoint-60/trainer_state.json"
    threading.Thread(target=_kill, args=(home / "killed.yaml", saved), daemon=True).start()
    words = [str(TOP / "launch/scheduled_train.sh"), "--user", "me", "--date", "202501150000", "--auto-recovery"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VENV": "/nowhere"}

    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    (recovered,) = (tmp_path / "out").glob("killed_recovery_*")
    alone, again = (load_file(path / "model.safetensors") for path in (tmp_path / "out" / "alone", recovered))
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[name], again[name]) for name in alone)
