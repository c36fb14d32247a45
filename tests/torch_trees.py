"""What trainers that use torch leave on disk, written without torch or NumPy: it is in the stand-in's hot path."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ONE, TWO = (0,), (0, 1)


def write_torch(path: Path, *storages: bytes, top: str = "archive") -> None:
    """As `torch.save` lays it out. The pickle is none: whoever loads it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{top}/data.pkl", b"not a pickle")
        file.writestr(f"{top}/byteorder", b"little")
        for key, content in enumerate(storages):
            file.writestr(f"{top}/data/{key}", content)
        file.writestr(f"{top}/version", b"3\n")


def write_safetensors(path: Path, tensors: Mapping[str, bytes]) -> None:
    """Tensors of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, begin = {}, 0
    for name, content in tensors.items():
        end = begin + len(content)
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def content(step: int, part: str) -> bytes:
    """Another one for each step and part."""
    return f"{part} of {step} ".encode() * 40


def hugging_face(save: Path, *steps: int, ranks: Sequence[int] = ONE) -> None:
    """Checkpoints as Hugging Face's Trainer writes them, without DeepSpeed."""
    for step in steps:
        home = save / f"checkpoint-{step}"
        write_safetensors(home / "model.safetensors", {name: content(step, name) for name in ("w", "norm")})
        for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
            write_torch(home / name, content(step, name))
        for rank in ranks:
            name = "rng_state.pth" if len(ranks) == 1 else f"rng_state_{rank}.pth"
            write_torch(home / name, content(step, name))
        (home / "trainer_state.json").write_text(json.dumps({"epoch": 0.5, "global_step": step, "log_history": []}))


def zero3(save: Path, *steps: int, ranks: Sequence[int] = TWO) -> None:
    """Checkpoints as it writes them with DeepSpeed's ZeRO 3."""
    hugging_face(save, *steps, ranks=ranks)
    for step in steps:
        home = save / f"checkpoint-{step}"
        (home / "optimizer.pt").unlink()
        (home / "latest").write_text(f"global_step{step}")
        (home / "zero_to_fp32.py").write_text("raise SystemExit")
        for rank in ranks:
            for name in (
                "zero_pp_rank_{}_mp_rank_00_model_states.pt",
                "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt",
            ):
                write_torch(home / f"global_step{step}" / name.format(rank), content(step, name.format(rank)))


def zero2(save: Path, *steps: int, ranks: Sequence[int] = TWO) -> None:
    """With ZeRO 1 or 2 the model states are there once."""
    zero3(save, *steps, ranks=ranks)
    for step in steps:
        home = save / f"checkpoint-{step}" / f"global_step{step}"
        for rank in ranks:
            (home / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").unlink()
        write_torch(home / "mp_rank_00_model_states.pt", content(step, "model"))
