"""What a data set is recognised by, as plain values that a checkpoint can hold, and what of them has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ms_resume.errors import LayoutMismatch, NamesMismatch
from ms_resume.ondisk import payload

_WHOLE = 16 << 20
_BLOCKS = 64
_BLOCK = 64 << 10


def of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Paths become sizes and digests, arrays shapes and digests; anything else stays as it is.

    Of a file above 16 MiB 64 blocks are read, spread over it: a data set of terabytes must not be read at each start.
    """
    return {name: _of(value) for name, value in data.items()}


def check(what: str, saved: Mapping[str, Any], now: Mapping[str, Any], hint: str) -> None:
    """Raises LayoutMismatch that names each value that is another one."""
    keys = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if keys:
        listed = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in keys)
        raise LayoutMismatch(f"{what}: {listed}", hint=hint, changed=keys)


def check_version(what: str, state: Mapping[str, Any], version: int) -> None:
    """Raises NamesMismatch where the state is of a version that this code does not know."""
    if (found := state.get("version")) != version:
        raise NamesMismatch(
            f"component {what}: its saved state has version {found!r}, this ms_resume reads {version}",
            hint="resume with the version of ms_resume that saved it",
        )


def _of(value: Any) -> Any:
    if isinstance(value, Path):
        return _of_file(value)
    if hasattr(value, "dtype"):
        import numpy as np

        array = np.ascontiguousarray(value)
        return {"shape": list(array.shape), "dtype": str(array.dtype), "digest": payload.digest_of(array.tobytes())}
    return value


def _of_file(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return {"bytes": size, "digest": payload.digest_of(file.read())}
        read = bytearray()
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
            read += file.read(_BLOCK)
    return {"bytes": size, "sampled": payload.digest_of(bytes(read))}
