"""The kinds of damage: what is on disk instead of one file that a resume reads.

A kind belongs in `OURS` or `STOCK` only if docs/durability.md promises that it is found there.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from damage.trees import Changes, Tree, Whole
from ms_resume.layouts import mindrlhf
from ms_resume.ondisk import ckpt, names, payload, seal

Kind = Callable[[Tree, Whole, random.Random], Changes]
Edit = Callable[[Tree, bytes, random.Random], bytes]

PAGE = 4096


def flip(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def zero_page(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    return _with_page(content, chance, bytes(PAGE))


def other_page(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """Of the same file, or of another payload in the tree."""
    payloads = [path for path in tree.files if names.parse_payload(path.rpartition("/")[2])]
    source = content if chance.random() < 0.3 else tree.files[chance.choice(payloads)]
    begin = PAGE * chance.randrange(-(-len(source) // PAGE))
    return _with_page(content, chance, source[begin : begin + PAGE].ljust(PAGE, b"\0"))


def _with_page(content: bytes, chance: random.Random, page: bytes) -> bytes:
    begin = PAGE * chance.randrange(-(-len(content) // PAGE))
    return (content[:begin] + page + content[begin + PAGE :])[: len(content)]


def extend(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """With zeros, what was drawn, its own end again, or another file."""
    more = [bytes(chance.choice([1, 17, 4096])), chance.randbytes(chance.randint(1, 5000)), content[-17:], content]
    return content + chance.choice([*more, chance.choice(list(tree.files.values()))])


def byte_in_header(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """Any other byte in its place; of a `.ckpt`, in the first records."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    at = chance.randrange(end if end < len(content) else 200)
    return content[:at] + chance.randbytes(1) + content[at + 1 :]


def digest_in_header(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """One digit of one digest."""
    digits = [match.end() + n for match in re.finditer(rb'\\":\\"', content) for n in range(32)]
    if not digits:
        return content
    at = chance.choice(digits)
    return content[:at] + chance.choice(b"0123456789abcdef").to_bytes(1, "big") + content[at + 1 :]


def of_a_payload(edit: Edit) -> Kind:
    def damage(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
        path = chance.choice(whole.payloads)
        return {path: edit(tree, tree.files[path], chance)}

    return damage


def cut(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """To nothing, at a page, before the last bytes, where a record of a `.ckpt` ends, or anywhere."""
    path = chance.choice(whole.payloads)
    return {path: tree.files[path][: chance.choice([_length(tree.files[path], chance), *_record_ends(whole, path)])]}


def cut_inside(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """As `cut`, but not where a record of a `.ckpt` ends: without a CRC only a policy file shows that."""
    path = chance.choice(whole.payloads)
    ends, length = _record_ends(whole, path), _length(tree.files[path], chance)
    if path.startswith("train/"):
        length = chance.choice([length, *ends])
    return {path: tree.files[path][: length + (length in ends and not path.startswith("train/"))]}


def _length(content: bytes, chance: random.Random) -> int:
    page = chance.randrange(0, len(content), PAGE)
    return chance.choice([0, page, len(content) - chance.randint(1, 20), chance.randrange(len(content))])


def _record_ends(whole: Whole, path: str) -> list[int]:
    if not path.endswith(".ckpt"):
        return []
    pieces = ckpt.read(whole.taken.save / path).pieces.values()
    return sorted(begin + length for each in pieces for begin, length in each)[:-1]


def missing(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    return {chance.choice(whole.payloads): None}


def from_another(wanted: str) -> Kind:
    """Another file of the tree under the name of one that is read: of an older step, another rank, or another role."""

    def damage(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
        path = chance.choice(_targets(whole, wanted))
        return {path: tree.files[source]} if (source := _other(tree, whole, path, wanted, chance)) else {}

    return damage


def swapped(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    wanted = chance.choice(["step", "rank", "role"])
    path = chance.choice(_targets(whole, wanted))
    source = _other(tree, whole, path, wanted, chance)
    return {path: tree.files[source], source: tree.files[path]} if source else {}


def _targets(whole: Whole, wanted: str) -> list[str]:
    """Of stock's reference nothing says whose or of when it is: only its role shows."""
    if whole.votes or wanted == "role":
        return whole.payloads
    return [path for path in whole.payloads if not path.startswith("ref/")]


def _other(tree: Tree, whole: Whole, path: str, wanted: str, chance: random.Random) -> str | None:
    parsed = names.parse_payload(path.rpartition("/")[2])
    assert parsed is not None

    def fits(other: str) -> bool:
        found = names.parse_payload(other.rpartition("/")[2])
        if found is None or found.format != parsed.format:
            return False
        same = (
            found.position == parsed.position or other in whole.reads,
            found.rank == parsed.rank,
            found.prefix == parsed.prefix,
        )
        return (
            same
            == {
                "step": (False, True, True),
                "rank": (True, False, True),
                "role": (True, True, False),
            }[wanted]
        )

    there = [other for other in tree.files if fits(other)]
    return chance.choice(there) if there else None


def rank_of_an_older_step(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """Policy and optimizer together, so that their weights are equal."""
    rank = chance.randrange(whole.taken.world_size)
    paths = [path for path in whole.payloads if re.match(rf"(train|optimizer)/rank_{rank}/", path)]
    return {path: tree.files[other] for path in paths if (other := _other(tree, whole, path, "step", chance))}


def bit_of_a_weight(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """In one of the two files that hold it."""
    path = chance.choice([path for path in whole.payloads if not path.startswith("ref/")])
    file = whole.taken.save / path
    name = chance.choice([name for name in mindrlhf.tensors(file) if name.startswith("model.")])
    if path.endswith(".ckpt"):
        begin, length = chance.choice(ckpt.read(file).pieces[name])
    else:
        header = payload.read_header(file)
        info = header.tensors[name]
        begin, length = header.data_start + info.begin, info.end - info.begin
    content = tree.files[path]
    weight = flip(tree, content[begin : begin + length], chance)
    return {path: content[:begin] + weight + content[begin + length :]}


def of_another_attempt(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    path = chance.choice([path for path in whole.payloads if path in tree.strays])
    return {path: tree.strays[path]}


# Votes


def of_a_vote(edit: Edit) -> Kind:
    def damage(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
        path = chance.choice(whole.votes)
        return {path: edit(tree, tree.files[path], chance)}

    return damage


def value(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """Of any key, at any depth, something else of its type; the digest of the whole stays."""
    document = json.loads(content)
    above, key = chance.choice(list(_places(document)))
    above[key] = _another(above[key], chance)
    return json.dumps(document, indent=1).encode()


def sealed_value(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """A value that something else on disk contradicts, with a digest that fits it."""
    document = json.loads(content)
    named = [
        (file, key)
        for file in document["files"]  # a `.ckpt` says neither whose it is nor what
        for key in ("path", "bytes", "digest", *(() if file["path"].endswith(".ckpt") else ("role", "attempt")))
    ]
    places = [*named, *((document, key) for key in ("epoch", "step", "rank", "attempt"))]
    above, key = chance.choice(places)
    above[key] = _another(above[key], chance)
    return seal.encode(document)


def without_a_key(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """Any but the digest: who takes that away has changed nothing."""
    document = json.loads(content)
    del document[chance.choice([key for key in document if key != seal.KEY])]
    return json.dumps(document, indent=1).encode()


def nonsense(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    """JSON of another kind, too deep, or none."""
    return chance.choice(
        [b"", b"{}", b"[]", b"3", b'"x"', b"null", b"[" * 50_000, b"\xff" * 90, b"NaN", b'{"format": {}}']
    )


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, below in items:
        if isinstance(below, (dict, list)):
            yield from _places(below)
        else:
            yield node, key


def _another(old: Any, chance: random.Random) -> Any:
    if isinstance(old, (int, float)):
        return old + chance.choice([-1, 1, 2, 1000])
    if isinstance(old, str) and old:
        at = chance.randrange(len(old))
        return old[:at] + chance.choice("0123456789abcdefxyz".replace(old[at], "")) + old[at + 1 :]
    return chance.choice([other for other in ("", "x", 0, [], None) if other != old])


def shorter(tree: Tree, content: bytes, chance: random.Random) -> bytes:
    return content[: _length(content, chance)]


def no_vote(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    return {chance.choice(whole.votes): None}


def another_vote(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """Of another rank, an older position, or an older attempt at this one."""
    path = chance.choice(whole.votes)
    others = [other for other in tree.files if names.parse_vote(other.rpartition("/")[2]) is not None]
    there = [tree.files[other] for other in others if other != path] + [tree.strays.get(path, b"")]
    return {path: chance.choice(there)}


def of_all_votes(edit: Edit) -> Kind:
    """The same in each of them."""

    def damage(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
        seed = chance.random()
        return {path: edit(tree, tree.files[path], random.Random(seed)) for path in whole.votes}

    return damage


# Attempt records


def of_a_record(edit: Edit) -> Kind:
    def damage(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
        path = chance.choice(_records(tree))
        return {path: edit(tree, tree.files[path], chance)}

    return damage


def another_record(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    first, second = chance.sample(_records(tree), 2)
    return {first: tree.files[second]}


def _records(tree: Tree) -> list[str]:
    return [path for path in tree.files if path.startswith("commits/attempts/") and path.endswith(".json")]


# Hints


def broken_meta(tree: Tree, whole: Whole, chance: random.Random) -> Changes:
    """With garbage behind it, torn, empty, missing, of other types, naming something else, with a flipped bit."""
    path = chance.choice([path for path in tree.files if path.endswith(f"/{names.META}")])
    content = tree.files[path]
    document = json.loads(content)
    broken = [
        content + b'rs"}',
        content[: chance.randrange(len(content))],
        b"",
        bytes(len(content)),
        json.dumps({**document, "last_step": str(document["last_step"])}).encode(),
        json.dumps({**document, "last_step": document["last_step"] + 5}).encode(),
        json.dumps({**document, "last_ckpt_file": "../../elsewhere.ckpt"}).encode(),
        b"[" * 50_000,
        flip(tree, content, chance),
    ]
    return {path: chance.choice([None, *broken])}


_BYTES: Mapping[str, Kind] = {
    "a bit flipped": of_a_payload(flip),
    "a page zeroed": of_a_payload(zero_page),
    "a page from elsewhere": of_a_payload(other_page),
    "cut": cut,
    "extended": of_a_payload(extend),
    "missing": missing,
    "two files swapped": swapped,
    "a file of an older step": from_another("step"),
    "policy and optimizer of an older step": rank_of_an_older_step,
    "a file of another rank": from_another("rank"),
    "a file of another role": from_another("role"),
    "a byte of a header": of_a_payload(byte_in_header),
}

OURS: Mapping[str, Kind] = {
    **_BYTES,
    "a digest in a header": of_a_payload(digest_in_header),
    "a file of another attempt": of_another_attempt,
    "a bit of a vote": of_a_vote(flip),
    "a vote cut": of_a_vote(shorter),
    "a vote extended": of_a_vote(extend),
    "a page of a vote zeroed": of_a_vote(zero_page),
    "a value of a vote": of_a_vote(value),
    "a value of a vote, with a digest that fits": of_a_vote(sealed_value),
    "the same value of all votes": of_all_votes(value),
    "a key of a vote gone": of_a_vote(without_a_key),
    "nonsense for a vote": of_a_vote(nonsense),
    "a vote gone": no_vote,
    "another vote": another_vote,
    "a bit of a record": of_a_record(flip),
    "a record cut": of_a_record(shorter),
    "a page of a record zeroed": of_a_record(zero_page),
    "a value of a record": of_a_record(value),
    "a key of a record gone": of_a_record(without_a_key),
    "nonsense for a record": of_a_record(nonsense),
    "another record": another_record,
    "meta.json": broken_meta,
}

STOCK: Mapping[str, Kind] = {**_BYTES, "meta.json": broken_meta}

PLAIN: Mapping[str, Kind] = {
    "a bit of a weight": bit_of_a_weight,
    "cut, but not where a record ends": cut_inside,
    **{kind: damage for kind, damage in STOCK.items() if kind in ("extended", "missing", "two files swapped")},
    **{kind: damage for kind, damage in STOCK.items() if " of an" in kind or kind == "meta.json"},
}
"""Stock files without a CRC, which is what stock code saves by itself."""

ALL: Mapping[str, Kind] = {**OURS, **STOCK, **PLAIN}

WEIGHTS = {"a bit flipped": 4, "a value of a vote": 3, "a value of a vote, with a digest that fits": 2, "cut": 2}
"""Of those kinds so many times as many cases are drawn."""
