"""Weights as Hugging Face's `save_pretrained` writes them, in one file or in shards with an index.

    model.safetensors                          or pytorch_model.bin; adapter_model.* of LoRA
    model-NNNNN-of-NNNNN.safetensors           with model.safetensors.index.json: tensor to file

A shard counts by its number, from 0, as ranks do. Where two forms lie side by side, the one that is loaded counts: the
one file before shards, safetensors before .bin.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_resume.layouts.ranked import MODEL, Files
from ms_resume.ondisk import payload, reading, torchzip

CONFIG = "config.json"
_FORMS = {
    MODEL: ("model.safetensors", "pytorch_model.bin"),
    "adapter": ("adapter_model.safetensors", "adapter_model.bin"),
}
"""By role, the form that is loaded first in front."""

_SHARD = re.compile(
    r"(?P<stem>model|pytorch_model|adapter_model)-(?P<number>\d{5})-of-\d{5}\.(?P<ending>safetensors|bin)", re.ASCII
)
_INDEX_LIMIT = 64 << 20
_MOST_SAID = 8


@dataclass(frozen=True)
class Weights:
    """What a directory holds of them, by names. `torn` says what is not there, and `ranks` whose that is; `index` is
    the file that names the shards."""

    files: Files
    torn: str = ""
    ranks: tuple[int, ...] = ()
    index: Path | None = None


def find(directory: Path) -> Weights:
    """The weights in a directory.

    Raises:
        Damaged: It is a symbolic link, or an index in it cannot be read.
    """
    listed = set(reading.listed(directory))
    for role, forms in _FORMS.items():
        for form in forms:
            if form in listed:
                return Weights({(role, 0): directory / form})
            shards = _shards(directory, role, form, listed)
            if shards or _index(form) in listed:
                return _sharded(directory / _index(form), role, shards)
    return Weights({}, f"{directory.name}: no weights, neither model.safetensors, shards of it, nor an adapter", (0,))


def check(path: Path) -> None:
    """Raises Damaged where a file of weights, or one that torch saved, is not whole in itself."""
    if torchzip.is_named(path):
        torchzip.read(path)
    else:
        payload.read_header(path)


def check_index(weights: Weights) -> None:
    """Raises Damaged where a shard lacks a tensor that the index says is in it; of a .bin only its pickle can tell."""
    if weights.index is None or ".safetensors." not in weights.index.name:
        return
    held = {path.name: payload.read_header(path).tensors.keys() for path in weights.files.values()}
    for tensor, file in _weight_map(weights.index).items():
        if tensor not in held[file]:
            raise reading.damaged(weights.index, f"{reading.brief(tensor)} should be in {file}, which does not hold it")


def _index(form: str) -> str:
    return f"{form}.index.json"


def _shards(directory: Path, role: str, form: str, listed: Collection[str]) -> dict[tuple[str, int], Path]:
    stem, _, ending = form.partition(".")
    found = {}
    for name in listed:
        match = _SHARD.fullmatch(name)
        if match and (match["stem"], match["ending"]) == (stem, ending):
            found[role, int(match["number"]) - 1] = directory / name
    return found


def _sharded(index: Path, role: str, shards: Mapping[tuple[str, int], Path]) -> Weights:
    try:
        named = set(_weight_map(index).values())
    except FileNotFoundError:
        return Weights(shards, f"{index.parent.name}/{index.name}: missing, there are {len(shards)} shards", (0,))
    missing = sorted(named - {path.name for path in shards.values()})
    said = ", ".join(missing[:_MOST_SAID]) + (", ..." if len(missing) > _MOST_SAID else "")
    return Weights(
        {key: path for key, path in shards.items() if path.name in named},
        f"{index.parent.name}: {said} missing, {index.name} names it" if missing else "",
        tuple(int(match["number"]) - 1 for name in missing if (match := _SHARD.fullmatch(name))),
        index,
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        document: Any = reading.parse(reading.content(index, _INDEX_LIMIT))
    except ValueError as error:
        raise reading.damaged(index, f"no JSON: {error}") from None
    found = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not found:
        raise reading.damaged(index, "no weight_map in it")
    if strange := [file for file in found.values() if not isinstance(file, str) or not _SHARD.fullmatch(file)]:
        raise reading.damaged(index, f"its weight_map names {reading.brief(strange[0])}, which is no shard")
    return found
