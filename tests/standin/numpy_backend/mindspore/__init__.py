"""As much of MindSpore as the stand-ins and the toolkit's `framework/` ask for, on NumPy: a test starts at once.

What files it writes and how, and what `load_param_into_net` does with names, is as MindSpore 2.7 to 2.10 do it
(docs/format.md names the formats). Ranks are threads; `communication.join` says which one this is.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mindspore import communication, dataset, nn, ops
from mindspore._values import Parameter, ParameterTuple, Tensor
from mindspore.common import seed as _seed_module
from ms_resume.ondisk import ckpt
from ms_resume.state import HostTensor, from_array, to_array

__all__ = [
    "Parameter",
    "ParameterTuple",
    "Tensor",
    "communication",
    "dataset",
    "get_rng_state",
    "load_checkpoint",
    "load_param_into_net",
    "nn",
    "ops",
    "save_checkpoint",
    "set_rng_state",
    "set_seed",
]

_generator = [np.zeros(16, np.uint8)]


def set_seed(seed: int) -> None:
    """Seeds what MindSpore's own does: its kernels, NumPy, and the data sets."""
    _seed_module._GLOBAL_SEED = seed
    _seed_module._KERNEL_SEED.clear()
    np.random.seed(seed)
    dataset.config.set_seed(seed)


def get_rng_state() -> Tensor:
    return Tensor(_generator[0])


def set_rng_state(state: Tensor) -> None:
    _generator[0] = state.asnumpy().copy()


def save_checkpoint(
    save_obj: nn.Cell,
    ckpt_file_name: str,
    integrated_save: bool = True,
    append_dict: dict[str, int] | None = None,
    format: str = "ckpt",
) -> None:
    """The old file goes first, a `.tmp` is written and renamed, nothing is synced, and what is left can only be
    read."""
    arrays = {parameter.name: parameter.asnumpy() for parameter in save_obj.get_parameters()}
    arrays |= {name: np.array(value, np.int64) for name, value in (append_dict or {}).items()}
    target = Path(ckpt_file_name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    part = target.with_suffix(".tmp")
    part.write_bytes(_encoded(arrays, format))
    os.rename(part, target)
    target.chmod(0o400)


def load_checkpoint(ckpt_file_name: str, format: str = "ckpt") -> dict[str, Parameter]:
    if not ckpt_file_name.endswith(f".{format}"):
        raise ValueError(f"The format {format!r} does not fit the file {ckpt_file_name!r}.")
    path = Path(ckpt_file_name)
    if format == "safetensors":
        from safetensors.numpy import load_file

        return {name: Parameter(Tensor(array), name=name) for name, array in load_file(path).items()}
    contents = ckpt.read(path)
    held = {n: HostTensor(i.dtype, i.shape, ckpt.read_tensor(contents, n)) for n, i in contents.tensors.items()}
    return {name: Parameter(Tensor(to_array(value).copy()), name=name) for name, value in held.items()}


def get_context(attribute: str) -> str:
    """Only where it runs is asked for."""
    return {"device_target": "CPU"}[attribute]


def load_param_into_net(net: nn.Cell, parameter_dict: dict[str, Parameter]) -> tuple[list[str], list[str]]:
    """Nothing that is missing or left over is an error; a missing name takes the value of one that it ends."""
    missing = []
    for parameter in net.get_parameters():
        found = parameter_dict.get(parameter.name)
        if found is None:
            found = next((v for name, v in parameter_dict.items() if name.endswith(f".{parameter.name}")), None)
        if found is None:
            missing.append(parameter.name)
        elif found.shape != parameter.shape:
            raise RuntimeError(f"For 'load_param_into_net', {parameter.name} should have the same shape")
        else:
            parameter.set_data(Tensor(found.asnumpy().astype(parameter.asnumpy().dtype)))
    wanted = {parameter.name for parameter in net.get_parameters()}
    return missing, [name for name in parameter_dict if name not in wanted]


def _encoded(arrays: dict[str, np.ndarray], file_format: str) -> bytes:
    if file_format == "safetensors":
        from safetensors.numpy import save

        return save({name: np.array(array, order="C") for name, array in arrays.items()}, {"format": "ms"})
    held = {name: from_array(array) for name, array in arrays.items()}
    content = b"".join(ckpt.encode((name, value.info, value.data) for name, value in held.items()))
    return content[: -len(b"crc_num") - 10]  # saved without a CRC
