"""Which MindSpore is here, and whether it will do."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib import metadata

from ms_resume.errors import UsageError

OLDEST = (2, 7)


def require() -> None:
    """Raises UsageError without MindSpore 2.7 or newer. Does not import it."""
    found = installed("mindspore")
    hint = "pip install 'ms-resume[cpu]', or activate the environment that holds your Ascend build"
    if not found:
        raise UsageError("MindSpore is not installed, expected 2.7 or newer", hint=hint)
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        raise UsageError(f"MindSpore {found} is installed, expected 2.7 or newer", hint=hint)


@cache
def installed(package: str) -> str:
    """The version of an installed package, empty when it is not there. Looked up once: it is a search of the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def tool() -> dict[str, str]:
    """What a vote says of the software it was made with: another MindSpore goes on, but not bit for bit."""
    found = {package: installed(package) for package in ("ms_resume", "mindspore", "numpy")}
    return {**{name: version for name, version in found.items() if version}, "python": platform.python_version()}
