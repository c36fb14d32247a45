"""Lists of names: what a net wants, written by the trainer that has it or by a person, read where neither is.

    ms_resume.load.names.listing.dump(Path("names.json"), policy=net, optimizer=optimizer)    # in the trainer
    ms-resume explain FILE --against names.json                                         # on a login node

JSON as `dump` writes it, `{"roles": {ROLE: [{"name", "dtype", "shape"}, ...]}}`; what `ms-resume show --json` prints;
the index of a sharded Hugging Face model; a JSON list; or text, a name in a line, and after it dtype and shape
(`model.norm.weight  BF16  [896]`) where they are known. `#` begins a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.framework import nets
from ms_resume.load.names.recipes import UNKNOWN
from ms_resume.ondisk import atomic, payload, reading
from ms_resume.records import TensorInfo

Infos = dict[str, TensorInfo]

_LIMIT = 64 << 20
_LINE = re.compile(r"(?P<name>\S+)(?:\s+(?P<dtype>[A-Z]\w*)\s+(?P<shape>[\[(][\d\s,]*[\])]))?")
_HINT = "docs/loading.md shows what a list of names may be"


def dump(path: Path, **roles: Any) -> None:
    """Writes the names, dtypes and shapes of nets, optimizers, or anything with the methods of `Tensors`.

    Raises:
        UsageError: Something is there already.
        DiskError: It cannot be written.
    """
    write(path, encode({role: nets.wrap(net).infos() for role, net in roles.items()}))


def encode(roles: Mapping[str, Mapping[str, TensorInfo]]) -> bytes:
    listed = {
        role: [{"name": name, "dtype": info.dtype, "shape": list(info.shape)} for name, info in infos.items()]
        for role, infos in roles.items()
    }
    return (json.dumps({"roles": listed}, indent=1) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Makes a new file. Raises UsageError where something is there: nothing is overwritten."""
    try:
        atomic.publish(path, [content], "new")
    except FileExistsError:
        raise UsageError(f"{path}: is there already", hint="give another name, or remove it") from None


def read(path: Path) -> dict[str, Infos]:
    """By role, which is empty where the list does not say. Raises UsageError where it is none."""
    content = reading.content(path, _LIMIT)
    if content.lstrip()[:1] in (b"{", b"["):
        try:
            return _of_json(reading.parse(content))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: is no list of names: {error}", hint=_HINT) from None
    try:
        lines = content.decode().splitlines()
        return {"": _collected(_of_line(line) for line in lines if line.partition("#")[0].strip())}
    except ValueError as error:  # text that is not UTF-8, too
        raise UsageError(f"{path}: is no list of names: {error}", hint=_HINT) from None


def _of_json(document: Any) -> dict[str, Infos]:
    if isinstance(document, dict) and isinstance(roles := document.get("roles"), dict):
        return {role: _collected(map(_of_entry, _list(entries))) for role, entries in roles.items()}
    if isinstance(document, dict) and isinstance(names := document.get("weight_map"), dict):
        return {"": _collected((name, UNKNOWN) for name in names)}
    if isinstance(document, dict) and "tensors" in document:
        role = document.get("role")
        return {role if isinstance(role, str) else "": _collected(map(_of_entry, _list(document["tensors"])))}
    return {"": _collected(map(_of_entry, _list(document)))}


def _list(entries: Any) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f"{reading.brief(entries)}, expected a list")
    return entries


def _of_entry(entry: Any) -> tuple[str, TensorInfo]:
    if isinstance(entry, str):
        return entry, UNKNOWN
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{reading.brief(entry)} has no name")
    if entry.get("dtype") is None and entry.get("shape") is None:
        return entry["name"], UNKNOWN
    return entry["name"], _info(entry["name"], entry.get("dtype"), entry.get("shape"))


def _of_line(line: str) -> tuple[str, TensorInfo]:
    match = _LINE.fullmatch(line.partition("#")[0].strip())
    if match is None:
        raise ValueError(f"the line {reading.brief(line)}, expected `name` or `name DTYPE [SHAPE]`")
    if match["dtype"] is None:
        return match["name"], UNKNOWN
    return match["name"], _info(match["name"], match["dtype"], [int(n) for n in re.findall(r"\d+", match["shape"])])


def _info(name: str, dtype: Any, shape: Any) -> TensorInfo:
    try:
        payload.item_bytes(dtype)
        if not isinstance(shape, list):
            raise TypeError
        return TensorInfo(dtype, tuple(map(reading.whole, shape)))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} has dtype {reading.brief(dtype)} and shape {reading.brief(shape)}") from None


def _collected(entries: Iterable[tuple[str, TensorInfo]]) -> Infos:
    found: Infos = {}
    for name, info in entries:
        if name in found:
            raise ValueError(f"{name!r} stands in it twice")
        if not name:
            raise ValueError("a name is empty")
        found[name] = info
    return found
