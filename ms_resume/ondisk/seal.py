"""Votes and attempt records as JSON that ends with its own digest: without it a flipped bit in a number is a number.

    { all keys but the last, "digest": "xxh3-128 of every byte before the comma" }

It is over bytes, because a start reads as many votes as there are ranks. Those say nearly the same, so what one says
like the one before it is not parsed again: `Alike`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ms_resume.ondisk import payload, reading

KEY = "digest"
_BEGIN = b"{\n "
_NEXT = b',\n "'
_LAST = f',\n "{KEY}": "'.encode()
_END = b'"\n}\n'


def encode(document: Mapping[str, Any]) -> bytes:
    body = json.dumps({key: document[key] for key in document if key != KEY}, indent=1).encode().removesuffix(b"\n}")
    return body + _LAST + payload.digest_of(body).encode() + _END


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


class Alike:
    """Decodes documents that say nearly the same, one after the other.

    A document is cut where `encode` begins a line with one of its keys. Objects with one or more members each make one
    object whose members are all of theirs, so a document that is cut at other places by whoever made it is either read
    rightly, or its parts are none and it is parsed whole. No more is remembered than the document before.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] | list[None] = []
        self._members: list[dict[str, Any]] = []

    def decode(self, content: bytes) -> Any:
        """As `seal.decode`. What two documents say alike may be one object: it must not be changed."""
        body, _, end = content.rpartition(_LAST)
        digest = payload.digest_of(body)
        if not body.startswith(_BEGIN + b'"') or end != digest.encode() + _END:
            return decode(content)
        parts = body[len(_BEGIN) + 1 :].split(_NEXT)
        if len(parts) != len(self._parts):
            self._parts, self._members = [None] * len(parts), [{}] * len(parts)
        try:
            members = [
                known if part == before else reading.parse(b'{"' + part + b"}")
                for part, before, known in zip(parts, self._parts, self._members, strict=True)
            ]
        except ValueError:
            return decode(content)
        self._parts, self._members = parts, members
        found: dict[str, Any] = {}
        for some in members:
            found |= some
        if KEY in found or len(found) < sum(map(len, members)):
            return decode(content)  # which says that it has a key twice
        found[KEY] = digest
        return found
