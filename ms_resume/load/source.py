"""One payload to load from, of either format, its bytes checked as they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ms_resume.errors import Damaged, DiskError
from ms_resume.ondisk import ckpt, payload, reading
from ms_resume.records import Payload, TensorInfo
from ms_resume.state import HostTensor
from ms_resume.verify import header_as_voted


class Source:
    """A payload held open by path. With `expected`, it must be the file that a vote names.

    Raises:
        Damaged: It is not, or it is not whole.
        DiskError: It cannot be read. That is no reason to pass it over: the disk may recover.
    """

    def __init__(self, path: Path, expected: Payload | None = None) -> None:
        self.path = path
        with _reported(path):
            self.bytes = reading.size(path)
            self._open(path, expected)

    def _open(self, path: Path, expected: Payload | None) -> None:
        self.digests: Mapping[str, str] = {}
        self.values: dict[str, Any] = {}
        if path.suffix == ".ckpt":
            self._open_ckpt(expected)
        else:
            self._header = header_as_voted(path, expected) if expected else payload.read_header(path)
            payload.check_crc(self._header)
            self.tensors: Mapping[str, TensorInfo] = self._header.tensors
            self.digests = self._header.digests
            self.values = self._header.values

    def read(self, name: str) -> HostTensor:
        """A copy of one tensor. Raises Damaged, naming it, where its digest does not hold."""
        info = self.tensors[name]
        with _reported(self.path):
            if self.path.suffix == ".ckpt":
                return HostTensor(info.dtype, info.shape, ckpt.read_tensor(self._contents, name))
            with reading.opened(self.path) as file:
                return HostTensor(info.dtype, info.shape, payload.read_tensor(file, self._header, name))

    def _open_ckpt(self, expected: Payload | None) -> None:
        """A `.ckpt` has no digest per tensor: the whole file is checked now."""
        self._contents = ckpt.read(self.path)
        self.tensors = self._contents.tensors
        ckpt.check_crc(self.path)
        found = payload.digest_file(self.path) if expected else ""
        if expected and found != expected.digest:
            raise Damaged(f"{self.path}: its bytes have digest {found}, the vote says {expected.digest}")


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot read: {error.strerror or error}",
            hint="look at `dmesg` and at the mount, then start again; nothing was changed on disk",
            path=str(path),
        ) from error
