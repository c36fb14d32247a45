"""Changes a module right after it was imported, before anybody takes a name out of it.

The adapter imports nothing of MindRLHF itself: its `main.py` decides what is set up before that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ms_resume.errors import UsageError

Change = Callable[[ModuleType], None]


class Watch(MetaPathFinder):
    """The changes to make, by the name of the module."""

    def __init__(self, changes: Mapping[str, Change]) -> None:
        self._changes = changes

    def begin(self) -> None:
        """Raises UsageError where a module is imported already: others hold what is to be replaced in it."""
        if early := [name for name in self._changes if name in sys.modules]:
            raise UsageError(
                f"{early[0]} was imported before the adapter",
                hint="import ms_resume.adapters.mindrlhf.auto in the first line of main.py",
            )
        sys.meta_path.insert(0, self)

    def end(self) -> None:
        sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._changes:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Changing(spec.loader, self._changes[fullname])
                return spec
        return None


class _Changing(Loader):
    def __init__(self, loader: Loader, change: Change) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # whoever looks for the source finds it where it always was
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._change(module)
