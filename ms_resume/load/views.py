"""Parts of what is loaded from and of what is loaded into, and several files as one: nothing is read to make them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ms_resume.load.source import Readable
from ms_resume.ondisk import payload
from ms_resume.records import TensorInfo
from ms_resume.state import HostTensor, Tensors


class Shards:
    """Several files as one: each tensor is read from the file that `held` names for it."""

    def __init__(self, path: Path, held: Mapping[str, Readable]) -> None:
        self.path = path
        self._held = held
        self.tensors: Mapping[str, TensorInfo] = {name: source.tensors[name] for name, source in held.items()}
        self.digests: Mapping[str, str] = {
            name: source.digests[name] for name, source in held.items() if name in source.digests
        }
        self.values: Mapping[str, Any] = {}
        self.bytes = payload.total(self.tensors.values())

    def read(self, name: str) -> HostTensor:
        return self._held[name].read(name)


class Part:
    """Those tensors of a source that are wanted. What else the source can do, it does for them."""

    def __init__(self, source: Readable, wanted: Collection[str]) -> None:
        self._source = source
        self.path = source.path
        self.tensors: Mapping[str, TensorInfo] = {n: info for n, info in source.tensors.items() if n in wanted}
        self.digests: Mapping[str, str] = {n: digest for n, digest in source.digests.items() if n in wanted}
        self.values = source.values
        self.bytes = payload.total(self.tensors.values())

    def read(self, name: str) -> HostTensor:
        return self._source.read(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class Only:
    """Those live tensors that are to be filled; the others keep what they hold. Otherwise it is the whole role."""

    def __init__(self, live: Tensors, wanted: Collection[str]) -> None:
        self._live = live
        self._wanted = frozenset(wanted)

    def infos(self) -> dict[str, TensorInfo]:
        return {name: info for name, info in self._live.infos().items() if name in self._wanted}

    def read(self, name: str) -> HostTensor:
        return self._live.read(name)

    def place(self, name: str, value: HostTensor) -> None:
        self._live.place(name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)
