"""Documents, headers, records and whole directories near good ones, made by Hypothesis: nothing but declared errors.

The same examples each time, few enough for `make test`. `make fuzz` draws others, FUZZ_EXAMPLES times as many; what it
finds prints how to see it again and belongs into `test_hostile.py`.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hostile
import own_trees
import pytest
import safetensors
import stock_trees
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runs import tiny_run

from ms_resume import cli, locate, verify
from ms_resume.errors import Damaged, MsResumeError
from ms_resume.ondisk import attempts, ckpt, meta, names, payload, reading, seal, sums, votes
from ms_resume.records import Checkpoint, Position, Rejection, TensorInfo, ordinal_of

P = Position.parse
TIMES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(number: int) -> Callable[[Any], Any]:
    """So many, always the same; other ones, and more, where that was asked for."""
    return settings(
        max_examples=number * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


# What hostile values look like


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
HOSTILE_TEXT = st.sampled_from(
    ["", ".", "..", "/", "../x", "/etc/passwd", "train/../../x", "train/\0", "\ud800", "1" * 5000, "x" * 5000,
     "\x1b[2J\n", "000001-0123456789abcdef", "policy", "ms_resume/1", "\u0665", "F32", "0" * 32]
)  # fmt: skip  # one list
HOSTILE_NUMBER = st.sampled_from([-1, 0, 1, 2, 5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, 10**4000])
PLAIN = st.none() | st.booleans() | st.integers() | HOSTILE_NUMBER | st.floats() | ANY_TEXT | HOSTILE_TEXT
VALUE = st.recursive(
    PLAIN, lambda below: st.lists(below, max_size=4) | st.dictionaries(ANY_TEXT, below, max_size=4), max_leaves=6
)


def _places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a document, from the top."""
    if above:
        yield above
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from _places(value, (*above, key))


@st.composite
def near_document(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three values replaced, taken away, doubled, or put elsewhere."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        home = _at(document, way)
        kind = draw(st.sampled_from(["replace", "remove", "copy", "add"]))
        if kind == "replace":
            home[last] = draw(VALUE)
        elif kind == "remove":
            del home[last]
        elif kind == "copy":
            home[last] = copy.deepcopy(_at(document, draw(st.sampled_from(places))))
        elif isinstance(home, dict):
            home[draw(ANY_TEXT | HOSTILE_TEXT)] = draw(VALUE)
        else:
            home.insert(last, draw(VALUE))
    return document


def _at(document: Any, way: Sequence[Any]) -> Any:
    for key in way:
        document = document[key]
    return document


@st.composite
def near_bytes(draw: st.DrawFn, content: bytes, first: int = 0) -> bytes:
    """`content` with one to three bytes from `first` on flipped, cut away, doubled, or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(min(first, len(found)), len(found)))
        size = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "double", "insert", "fill"]))
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del found[at:]
        elif kind == "remove":
            del found[at : at + size]
        elif kind == "double":
            found[at:at] = found[at : at + size]
        elif kind == "insert":
            found[at:at] = draw(st.binary(max_size=12) | st.sampled_from([b"[" * 5000, b"\xff" * 20, b'"', b"\\ud800"]))
        else:
            found[at : at + size] = bytes([draw(st.sampled_from([0, 0x7F, 0xFF, 0x31]))]) * min(size, len(found) - at)
    return bytes(found)


def near_json(document: Any) -> st.SearchStrategy[bytes]:
    """A document near `document`, or bytes near those of one."""
    text = json.dumps(document).encode()
    return near_document(document).map(lambda found: json.dumps(found).encode()) | near_bytes(text)


def short(error: MsResumeError) -> None:
    """An error tells what was found, not all of it."""
    assert len(str(error)) < 5000, str(error)[:1000]


# Names


NEAR_NAMES = st.one_of(
    ANY_TEXT,
    st.from_regex(r"(policy_model|ref|x y|\n)_rank_\d{0,20}-\d{0,20}_\d{0,20}\.(ckpt|safetensors)\n?"),
    st.from_regex(r"rank_\d*(\.json)?", fullmatch=True),
    st.from_regex(r"\d*_\d*(\.deleted-\d{5,7}-[0-9a-f]{15,17}(\.\d)?)?", fullmatch=True),
    st.from_regex(r"\.?[a-z.]*\.\d{5,20}-[0-9a-f]{16}\.(part|retired)", fullmatch=True),
    st.from_regex(r"\d{5,20}\.json", fullmatch=True),
)


@examples(400)
@given(NEAR_NAMES)
def test_names(name: str) -> None:
    """Each is known or not, and what is known is spelt in one way only."""
    save, hex16 = Path(), "-0123456789abcdef"
    if (found := names.parse_payload(name)) is not None:
        assert f"{found.prefix}_rank_{found.rank}-{found.position}.{found.format}" == name
    if (rank := names.parse_rank_dir(name)) is not None:
        assert names.rank_dir(save, "ref", rank).name == name
    if (rank := names.parse_vote(name)) is not None:
        assert names.vote(save, Position(0, 0), rank).name == name
    if (position := names.parse_vote_dir(name)) is not None:
        assert names.vote_dir(save, position).name == name
    if (ordinal := names.parse_attempt_record(name)) is not None:
        assert names.attempt_record(save, ordinal).name == name.lstrip("0").rjust(11, "0")
    if (parsed := names.parse_part(name) or names.parse_retired(name)) is not None:
        assert ordinal_of(parsed[1]) >= 0
        assert name == f".{parsed[0]}.{parsed[1]}" + name[name.rindex(".") :]
    names.parse_deleted_dir(name)
    assert names.parse_payload_path(f"ref/rank_0/{name}", "state", 0) is None
    if (at := names.parse_payload_path(f"ref/rank_7/{name}", "ref", 7)) is not None:
        assert name in (f"ref_rank_7-{at}.ckpt", f"ref_rank_7-{at}.safetensors")
    assert not names.is_attempt(name) or len(name) > len(hex16)


# Documents


VOTE = {
    "format": "ms_resume/1", "epoch": 0, "step": 5, "global_step": 5, "steps_per_epoch": 6, "rank": 1, "world_size": 2,
    "attempt": "000001-0123456789abcdef",
    "files": [
        {"role": "policy", "path": "train/rank_1/policy_model_rank_1-0_5.safetensors", "bytes": 4100,
         "digest": "0123456789abcdef" * 2, "attempt": "000001-0123456789abcdef"},
        {"role": "ref", "path": "ref/rank_1/ref_rank_1-0_0.safetensors", "bytes": 4096,
         "digest": "0123456789abcdef" * 2, "attempt": "000001-0123456789abcdef"},
    ],
    "layout": "", "parallel": {"tp": 2}, "config": {"fingerprint": "x", "keys": {"a.b": [1, None]}},
    "model_config": {}, "metrics": {"reward": 0.5}, "tool": {"python": "3.11"}, "created_at": "",
}  # fmt: skip  # as it lies on disk
RECORD = {
    "format": "ms_resume/1", "attempt": "000001-0123456789abcdef",
    "from": {"epoch": 0, "step": 5, "attempt": "000000-0123456789abcdef", "save": None}, "world_size": 2, "host": "h",
    "boot_id": "b", "pid": 1, "pid_start": 1, "pid_namespace": "pid:[1]", "created_at": "", "label": "",
    "dead_stock": [{"epoch": 0, "step": 9, "files": [["train/rank_0/policy_model_rank_0-0_9.ckpt", 3, 4]]}],
}  # fmt: skip  # as it lies on disk
META = {"last_epoch": 0, "last_step": 5, "last_ckpt_file": "policy_model_rank_0-0_5.safetensors"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@examples(300)
@given(content=near_json(VOTE))
def test_votes(content: bytes) -> None:
    """A vote, which names its own rank's files, or Damaged."""
    path = names.vote(Path("save"), P("0_5"), 1)
    try:
        vote = votes.decode(path, content)
    except Damaged as error:
        short(error)
        return
    assert votes.decode(path, votes.encode(vote)) == vote or b"NaN" in content
    assert (vote.position, vote.rank) == (P("0_5"), 1)
    assert all(f"/rank_1/{names.PREFIXES[file.role]}_rank_1-" in file.path for file in vote.files)
    assert all(names.stays_inside(file.path) and file.bytes >= 0 for file in vote.files)


SEALED = seal.encode(VOTE)


def sealed_anew(content: bytes) -> bytes:
    """Whatever it says, with a digest that fits."""
    body = content.rpartition(b',\n "digest": "')[0]
    return body + b',\n "digest": "' + payload.digest_of(body).encode() + b'"\n}\n'


NEAR_SEALED = st.one_of(
    near_document(VOTE).map(seal.encode),
    near_bytes(SEALED),
    near_bytes(SEALED).map(sealed_anew),
)


@examples(400)
@given(contents=st.lists(NEAR_SEALED, min_size=1, max_size=3))
@example([SEALED, sealed_anew(SEALED.replace(b' "step": 5,', b' "step": 5,\n "step": 5,'))])
@example([SEALED, sealed_anew(SEALED.replace(b' "step": 5,', b' "step": 5, "epoch": 1,'))])
@example([SEALED, sealed_anew(SEALED.replace(b' "step": 5,', b' "step": 5,\n "digest": "x",'))])
@example([SEALED, sealed_anew(SEALED.replace(b'  "tp": 2\n', b'  "tp": 2,\n "dp": 1\n'))])
@example([SEALED, sealed_anew(SEALED.replace(b"{\n ", b"[\n "))])
def test_documents_alike(contents: list[bytes]) -> None:
    """One after the other they are read as each alone is."""
    alike = seal.Alike()

    def said(decode: Callable[[bytes], Any], content: bytes) -> str:
        try:
            return repr(decode(content))
        except ValueError as error:
            return f"ValueError: {error}"

    for content in (*contents, SEALED):
        assert said(alike.decode, content) == said(seal.decode, content)


@examples(300)
@given(content=near_json(RECORD))
def test_attempt_records(here: Path, content: bytes) -> None:
    """A record that makes a line, or Damaged."""
    record = names.attempt_record(here, 1)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(content)
    try:
        [found] = attempts.read_all(here)
    except Damaged as error:
        short(error)
        return
    assert attempts.decode(json.loads(attempts.encode(found))) == found
    line = attempts.line_of([found])
    assert line.holds(found.attempt, P("0_5"))
    with hostile.watched(here):
        line.dead_stock_at(here, P("0_9"))


@examples(300)
@given(content=near_json(META))
def test_meta_json(here: Path, content: bytes) -> None:
    """A position that is one, or trouble."""
    (here / names.META).write_bytes(content)
    found = meta.read(here)

    assert found.trouble or found.position
    assert found.position is None or min(found.position.epoch, found.position.step) >= 0
    assert len(found.trouble + found.file) < 1000


@examples(200)
@given(content=near_json([VOTE, META, None, 1.5, "x"]))
def test_any_json(content: bytes) -> None:
    """What is read can be written again as text; all else is a ValueError."""
    try:
        found = reading.parse(content)
    except ValueError:
        return
    assert json.dumps(found, ensure_ascii=False).encode()


# Headers


def _block(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text


DATA = bytes(range(28))
PLAIN_HEADER = {
    "__metadata__": {"format": "ms"},
    "model.w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "step": {"dtype": "I32", "shape": [], "data_offsets": [24, 28]},
    "empty": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [28, 28]},
}
MARKED_HEADER = {
    **PLAIN_HEADER,
    "__metadata__": {
        "format": "ms", "ms_resume": "1", "attempt": "000001-0123456789abcdef", "epoch": "0", "step": "5", "rank": "0",
        "role": "policy", "digests": json.dumps({"model.w": "x", "step": "y", "empty": "z"}), "values": '{"a": [1]}',
    },
}  # fmt: skip  # as it lies on disk
NEAR_HEADERS = st.one_of(
    near_document(PLAIN_HEADER).map(_block).map(lambda block: block + DATA),
    near_document(MARKED_HEADER).map(_block).map(lambda block: block + DATA),
    near_bytes(_block(MARKED_HEADER) + DATA),
    near_bytes(json.dumps(MARKED_HEADER).encode()).map(_block).map(lambda block: block + DATA),
    near_bytes(_block(MARKED_HEADER)[8:]).map(_block).map(lambda block: block + DATA),
)


@examples(500)
@given(content=NEAR_HEADERS)
def test_headers(here: Path, content: bytes) -> None:
    """Damaged, or a header that covers the file, whose tensors can be read, and which other readers accept."""
    path = here / "a.safetensors"
    path.write_bytes(content)
    try:
        with hostile.watched(here, megabytes=64):
            header = payload.read_header(path)
    except Damaged as error:
        short(error)
        return
    ends = [info.end for info in header.tensors.values()]
    assert header.data_start + max(ends, default=0) == len(content)
    assert header.mark is None or header.digests.keys() == header.tensors.keys()
    with reading.opened(path) as file:
        lengths = {info: info.end - info.begin for info in header.tensors.values()}
        assert not any(sums.feed(file, header.data_start + info.begin, size, ()) for info, size in lengths.items())
    try:
        header.values  # noqa: B018  # asking for it is the test
    except Damaged:
        pass
    others = {name for name, _ in safetensors.deserialize(content)}
    assert others == header.tensors.keys()


@examples(500)
@given(content=NEAR_HEADERS)
def test_headers_read_in_two_parts(content: bytes) -> None:
    """As those say that are read as one document, the ones which are too long for it."""
    path = Path("a.safetensors")

    def said(limit: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(payload, "_TABLE_LIMIT", limit)
            try:
                return payload.parse_header(path, io.BytesIO(content))
            except Damaged as error:
                return error.message

    assert said(1 << 20) == said(-1)


# .ckpt


HELD = {
    "model.w": (TensorInfo("F32", (2, 3)), bytes(24)),
    "half": (TensorInfo("BF16", (2,)), bytes(4)),
    "epoch_num": (TensorInfo("I64", ()), bytes(8)),
    "empty": (TensorInfo("U8", (0, 3)), b""),
}
CKPT = b"".join(ckpt.encode((name, info, memoryview(data)) for name, (info, data) in HELD.items()))


@examples(600)
@given(content=near_bytes(CKPT) | near_bytes(CKPT[:-17]))
def test_ckpts(here: Path, content: bytes) -> None:
    """Damaged, or tensors with all their bytes; with its CRC in place, any change is found."""
    path = here / "a.ckpt"
    path.write_bytes(content)
    try:
        with hostile.watched(here, megabytes=64):
            found = ckpt.read(path)
            ckpt.check_crc(path)
    except Damaged as error:
        short(error)
        return
    sizes = {name: payload.item_bytes(info.dtype) for name, info in found.tensors.items()}
    for name, info in found.tensors.items():
        data = ckpt.read_tensor(found, name)
        for dimension in info.shape:
            sizes[name] *= dimension
        assert len(data) == sizes[name]
    assert not found.has_crc or content == CKPT or content.endswith(b"crc_num" + content[-10:])


# Whole directories


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One rank's directories of two positions, ours and stock's."""
    top = tmp_path_factory.mktemp("originals")
    tiny_run(top / "ours", world_size=1).ok()
    stock_trees.healthy(top / "stock", (0, 5), (0, 10), ranks=[0])
    return {kind: top / kind for kind in ("ours", "stock")}


def _listing(save: Path) -> list[str]:
    return sorted(path.relative_to(save).as_posix() for path in save.rglob("*"))


SPECIAL: tuple[Callable[[Path], object], ...] = (
    os.mkfifo,
    Path.mkdir,
    Path.touch,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.symlink_to("/etc"),
    lambda path: path.symlink_to(path.name),
)


@st.composite
def spoil(draw: st.DrawFn) -> Callable[[Path], None]:
    """Does one to three things to a directory."""
    steps = draw(st.lists(st.tuples(st.sampled_from("change cut remove replace copy swap add".split()),
                                    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
                          min_size=1, max_size=3))  # fmt: skip  # read as one
    added = draw(NEAR_NAMES)

    def act(save: Path) -> None:
        for step in steps:
            _spoil(save, added, *step)

    return act


def _spoil(save: Path, added: str, kind: str, which: int, other: int, how: int) -> None:
    listed = _listing(save)
    path, second = save / listed[which % len(listed)], save / listed[other % len(listed)]
    plain = path.is_file() and not path.is_symlink()
    if kind == "change" and plain and path.stat().st_size:
        path.chmod(0o600)
        own_trees.flip(path, how % min(path.stat().st_size, 6000), how % 8)
    elif kind == "cut" and plain:
        path.chmod(0o600)
        os.truncate(path, how % (path.stat().st_size + 1))
    elif kind in ("remove", "replace"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if kind == "replace":
            SPECIAL[how % len(SPECIAL)](path)
    elif kind == "copy" and plain and second.is_file() and not second.is_symlink() and path != second:
        second.unlink()
        shutil.copyfile(path, second)
    elif kind == "swap" and path.parent.exists() and second.exists() and path != second:
        if path not in second.parents and second not in path.parents:
            aside = path.with_name("aside")
            path.rename(aside)
            second.rename(path)
            aside.rename(second)
    elif kind == "add" and path.is_dir() and not path.is_symlink():
        try:
            SPECIAL[how % len(SPECIAL)](path / added)
        except (OSError, ValueError):
            pass  # no name for a file


@pytest.mark.parametrize("kind", ["ours", "stock"])
@examples(120)
@given(act=spoil())
def test_directories(here: Path, originals: dict[str, Path], kind: str, act: Callable[[Path], None]) -> None:
    """Every command ends with a verdict, twice the same; what a deep look takes is byte for byte what was saved."""
    save, original = here / "save", originals[kind]
    if save.exists():
        shutil.rmtree(save)
    shutil.copytree(original, save, symlinks=True)
    act(save)
    with hostile.watched(save):
        for words in (["ls"], ["locate"], ["verify", "--all", "--deep", "--json"]):
            assert cli.main([words[0], str(save), *words[1:]]) in (0, 2, 10, 20, 21, 40)
        first, again = _taken(save), _taken(save)

    assert first == again
    if isinstance(first, Checkpoint) and kind == "ours":
        for found in first.files:
            assert found.path.read_bytes() == (original / found.path.relative_to(save)).read_bytes()


def _taken(save: Path) -> Checkpoint | str | None:
    try:
        return locate.latest(save, check=_deep).checkpoint
    except (MsResumeError, OSError) as error:
        return str(error)


def _deep(checkpoint: Checkpoint) -> Rejection | None:
    return verify.rejection(checkpoint, verify.check(checkpoint, deep=True))


@examples(150)
@given(act=st.integers(0, 10**6), spoilt=st.data())
def test_a_changed_header_is_never_taken(
    here: Path, originals: dict[str, Path], act: int, spoilt: st.DataObject
) -> None:
    """Of any payload of ours: whatever changed before the data is seen by `locate`."""
    save = here / "header"
    if not save.exists():
        shutil.copytree(originals["ours"], save, symlinks=True)
    checkpoint = locate.latest(save, check=verify.headers).checkpoint
    assert checkpoint is not None
    found = checkpoint.files[act % len(checkpoint.files)].path
    content = found.read_bytes()
    length = payload.read_header(found).data_start
    changed = spoilt.draw(near_bytes(content[:length])) + content[length:]
    found.write_bytes(changed)
    try:
        taken = locate.latest(save, check=verify.headers).checkpoint
    finally:
        found.write_bytes(content)

    assert changed == content or taken is None or found not in {file.path for file in taken.files}


@examples(60)
@given(change=near_document(VOTE["files"][0]))  # type: ignore[index]  # a list, as it stands above
def test_a_vote_cannot_lead_anywhere(here: Path, originals: dict[str, Path], change: Any) -> None:
    """Whatever one of its files is said to be, nothing but the save directory is opened."""
    save = here / "vote"
    if not save.exists():
        shutil.copytree(originals["ours"], save, symlinks=True)
    path = names.vote(save, P("1_0"), 0)
    content = path.read_bytes()
    document = json.loads(content)
    document["files"][0] = document["files"][0] | change if isinstance(change, dict) else change
    path.write_bytes(seal.encode(document))
    try:
        with hostile.watched(save):
            found = locate.latest(save, check=_deep)
    finally:
        path.write_bytes(content)

    assert found.checkpoint is not None
    assert found.checkpoint.position == P("0_5") or document == json.loads(content)


def test_what_all_this_is_near_to_is_whole(here: Path, originals: dict[str, Path]) -> None:
    """Else nothing above would be near anything."""
    path = names.vote(Path("save"), P("0_5"), 1)
    assert votes.decode(path, json.dumps(VOTE).encode()).rank == 1
    assert attempts.decode(RECORD).origin is not None
    for entries in (PLAIN_HEADER, MARKED_HEADER):
        (here / "whole.safetensors").write_bytes(_block(entries) + DATA)
        assert len(payload.read_header(here / "whole.safetensors").tensors) == 3
    (here / "whole.ckpt").write_bytes(CKPT)
    assert ckpt.read(here / "whole.ckpt").tensors == {name: info for name, (info, _) in HELD.items()}
    for original in originals.values():
        assert [verdict.position for verdict in locate.every(original) if isinstance(verdict, Checkpoint)]
