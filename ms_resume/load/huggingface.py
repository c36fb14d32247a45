"""A Hugging Face model directory as one source: `model.safetensors`, or shards and `model.safetensors.index.json`.

    index    {"metadata": {...}, "weight_map": {tensor: file}}

Headers are read when it is opened, tensors when they are asked for. The index must say of every tensor where it is, and
the headers decide. Pickle is not read. https://huggingface.co/docs/safetensors, transformers' `save_pretrained`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged, MsResumeError, Torn, UsageError
from ms_resume.load.source import Readable, Source
from ms_resume.load.views import Shards
from ms_resume.ondisk import reading

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX_LIMIT = 64 << 20
"""The largest models list some hundred thousand tensors."""

_PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth")
_ADAPTER = "adapter_model.safetensors"
_CONVERT = "pickle can run code: save it anew, where it was made, with `save_pretrained(DIR, safe_serialization=True)`"
_SHOWN = 5


def is_here(directory: Path) -> bool:
    """Whether a directory looks like one of Hugging Face's, by names alone."""
    return any(_kinds(directory).values())


def open_dir(directory: Path) -> Readable:
    """What a directory holds.

    Raises:
        UsageError: Nothing that is read here: pickle, an adapter without its base, or two models side by side.
        Torn: A shard is missing.
        Damaged: The index, or a file that it names, is not what it says.
    """
    found = _kinds(directory)
    if found["index"] and found["single"]:
        raise UsageError(
            f"{directory}: holds {SINGLE} and {INDEX}, which may be two models",
            hint=f"give one of the two files: {directory / SINGLE} or {directory / INDEX}",
            path=str(directory),
        )
    if found["single"]:
        return Source(_inside(directory, SINGLE))
    if found["index"]:
        return open_index(directory / INDEX)
    raise _not_read(directory, found)


def open_index(path: Path) -> Readable:
    """The shards that an index names. Raises as `open_dir` does."""
    weight_map = _weight_map(path)
    files = sorted(set(weight_map.values()))
    sources = _open_shards(path, {file: _inside(path.parent, file) for file in files})
    _check_said(path, weight_map, sources)
    return Shards(path.parent, {name: sources[file] for name, file in weight_map.items()})


def refuse_pickle(path: Path) -> None:
    """Raises UsageError for a file that only pickle could read."""
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in _PICKLED):
        raise UsageError(
            f"{path}: a file of PyTorch's, which is pickle and not read here; expected .safetensors or .ckpt",
            hint=_CONVERT,
            path=str(path),
        )


def _kinds(directory: Path) -> dict[str, list[str]]:
    listed = sorted(reading.listed(directory, follow=True))
    return {
        "index": [name for name in listed if name == INDEX],
        "single": [name for name in listed if name == SINGLE],
        "adapter": [name for name in listed if name == _ADAPTER],
        "pickled": [name for name in listed if any(fnmatch.fnmatch(name, f"pytorch_model*{p[1:]}") for p in _PICKLED)],
    }


def _not_read(directory: Path, found: Mapping[str, list[str]]) -> MsResumeError:
    if found["adapter"]:
        return UsageError(
            f"{directory}: holds {_ADAPTER}, the weights of an adapter without the model below it",
            hint="merge it into its base model first, where it was made, and give that directory",
            path=str(directory),
        )
    return UsageError(
        f"{directory}: holds {', '.join(found['pickled'][:_SHOWN])}, pickle, which is not read here, and no {SINGLE}",
        hint=_CONVERT,
        path=str(directory),
    )


def _weight_map(path: Path) -> dict[str, str]:
    try:
        document = reading.parse(reading.content(_inside(path.parent, path.name), _INDEX_LIMIT))
    except ValueError as error:
        raise reading.damaged(path, f"no JSON: {error}") from None
    weight_map: Any = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(type(file) is str for file in weight_map.values()):
        raise reading.damaged(path, "no weight_map in it that gives each tensor the name of its file")
    if not weight_map:
        raise reading.damaged(path, "its weight_map is empty")
    for file in sorted(set(weight_map.values())):
        if "/" in file or "\0" in file or file in ("", ".", ".."):
            raise reading.damaged(path, f"names the file {reading.brief(file)}: only files beside the index are read")
        refuse_pickle(path.parent / file)
    return weight_map


def _inside(directory: Path, name: str) -> Path:
    """The file itself. In Hugging Face's cache each name in `snapshots/R` is a link into `blobs`; no other is followed.

    Raises:
        Damaged: It is a link that leads elsewhere.
    """
    path = directory / name
    if not path.is_symlink():
        return path
    here = directory.resolve()
    cached = here.parent.parent / "blobs" if here.parent.name == "snapshots" else None
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        target = Path()
    if target.parent not in (here, cached):
        raise reading.damaged(
            path,
            f"a link that leads to {target}, out of the model's directory",
            hint="put in its place what it names, or give the directory in which the files are",
        )
    return target


def _open_shards(index: Path, files: Mapping[str, Path]) -> dict[str, Source]:
    if missing := [file for file, path in files.items() if not path.exists()]:
        listed = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise Torn(
            f"{index}: names {len(files)} files, {len(missing)} of them missing: {listed}",
            hint="finish the download or the copy, then start again",
            path=str(index),
            missing=missing,
        )
    return {file: Source(path) for file, path in files.items()}


def _check_said(index: Path, weight_map: Mapping[str, str], sources: Mapping[str, Source]) -> None:
    """Each tensor is in the file that the index names for it, in no other, and the index leaves none out."""
    where: dict[str, str] = {}
    for file, source in sources.items():
        for name in source.tensors:
            if (other := where.setdefault(name, file)) != file:
                raise Damaged(f"{index.parent}: tensor {name!r} is in {other} and in {file}", path=str(index))
    for name, file in weight_map.items():
        if where.get(name) != file:
            instead = f"it is in {where[name]}" if name in where else "it is in no file that the index names"
            raise Damaged(f"{index}: says that {reading.brief(name)} is in {file}; {instead}", path=str(index))
    if unsaid := sorted(where.keys() - weight_map.keys()):
        raise Damaged(
            f"{index}: says nothing of {len(unsaid)} tensors that its files hold, first {unsaid[0]!r} in "
            f"{where[unsaid[0]]}: index and files are not of one save",
            path=str(index),
        )
