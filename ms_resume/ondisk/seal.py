"""The digest that a vote and an attempt record carry of themselves: without it a flipped bit in a number is a number.

It is over the values, as canonical JSON, and not over the bytes of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ms_resume.ondisk import payload

KEY = "digest"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its digest."""
    return {**document, KEY: _digest(json.loads(json.dumps(document)))}


def check(document: Mapping[str, Any]) -> None:
    """Raises ValueError where the digest is not that of the rest. What was written before there were any has none."""
    if KEY in document and (found := _digest(document)) != document[KEY]:
        raise ValueError(f"its values have digest {found}, it says {document[KEY]}")


def _digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != KEY}
    return payload.digest_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
