"""Weights from a file into a live net, in place, after every name, shape and dtype is settled.

`load_param_into_net` is not used: after the first compiled step it detaches parameters, one dict loaded into
two nets makes them share memory, and it fills missing names by suffix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor

from grpo_arithmetic.errors import ConfigError

BASE_MODEL = "base_model.safetensors"
POSITION = ("epoch_num", "step_num")
"""What a policy checkpoint holds beside the weights."""


def base_model_file(path: Path) -> Path:
    """The file itself, or the base model in a directory.

    Raises:
        ConfigError: Neither is there.
    """
    file = path / BASE_MODEL if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"{file}: no base model; make it with: "
            f"python examples/grpo_arithmetic/pretrain.py --config CONFIG --output {file.parent}"
        )
    return file


def place(net: Any, path: Path) -> None:
    """Copies the file's values into `net`.

    Raises:
        ConfigError: Names, shapes or dtypes differ; the net is then unchanged.
    """
    saved = ms.load_checkpoint(str(path), format="safetensors")
    for name in POSITION:
        saved.pop(name, None)
    wanted = {parameter.name: parameter for parameter in net.get_parameters()}
    problems = _problems(saved, wanted)
    if problems:
        raise ConfigError(f"{path} does not fit the model of this configuration: " + "; ".join(problems))
    for name, parameter in wanted.items():
        parameter.copy_(Tensor(saved[name].asnumpy().copy()))


def copy_weights(source: Any, target: Any) -> None:
    """Makes `target` equal to `source`, a net of the same class and configuration."""
    for ours, theirs in zip(target.get_parameters(), source.get_parameters(), strict=True):
        ours.copy_(theirs.value())


def _problems(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in saved]
    extra = [f"{name} is unknown" for name in saved if name not in wanted]
    other = [
        f"{name} is {_kind(saved[name])}, expected {_kind(wanted[name])}"
        for name in wanted
        if name in saved and _kind(saved[name]) != _kind(wanted[name])
    ]
    return missing + extra + other


def _kind(tensor: Any) -> str:
    return f"{tensor.dtype}{tuple(tensor.shape)}"
