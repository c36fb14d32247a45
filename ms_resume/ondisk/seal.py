"""Votes and attempt records as JSON that ends with its own digest: without it a flipped bit in a number is a number.

    { all keys but the last, "digest": "xxh3-128 of every byte before the comma" }

It is over bytes, because a start reads as many votes as there are ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ms_resume.ondisk import payload, reading

KEY = "digest"
_LAST = f',\n "{KEY}": "'.encode()


def encode(document: Mapping[str, Any]) -> bytes:
    body = json.dumps({key: document[key] for key in document if key != KEY}, indent=1).encode().removesuffix(b"\n}")
    return body + _LAST + payload.digest_of(body).encode() + b'"\n}\n'


def _brief(said: object) -> str:
    return said[: len(payload.digest_of(b""))] if isinstance(said, str) else reading.brief(said)


def decode(content: bytes) -> Any:
    """The JSON of a file. Raises ValueError where it is none, or was changed; one from before there were digests has
    none, and is taken as it stands."""
    document = reading.parse(content)
    if isinstance(document, dict) and KEY in document:
        found = payload.digest_of(content.rpartition(_LAST)[0])
        if found != document[KEY]:
            raise ValueError(f"its bytes have digest {found}, it says {_brief(document[KEY])}")
    return document
