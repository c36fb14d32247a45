"""A save: what it writes, names and leaves out. Dying and failing in it is the campaign's matter (tests/faults)."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import savers
from runs import ThreadGroup, TinyRank, run_ranks

import ms_resume
from ms_resume import commit, locate, write
from ms_resume.errors import DiskError
from ms_resume.ondisk import atomic, ckpt, direct, names, payload
from ms_resume.records import Checkpoint, Position
from ms_resume.state import Arrays, read_all, scalar

SETTINGS = ms_resume.Settings(keep_last=2, heartbeat_s=0)


def started(save: Path, world_size: int, *, resume: bool, settings: ms_resume.Settings = SETTINGS) -> list[TinyRank]:
    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        checkpointer = me.saves_in(save, group, steps_per_epoch=100, settings=settings)
        me.start = checkpointer.start(resume=resume)
        return me

    return run_ranks(world_size, rank_main).ok()


def save_at(ranks: list[TinyRank], *steps: int) -> None:
    """All ranks at once, step after step."""

    def one(group: ThreadGroup) -> None:
        checkpointer = ranks[group.rank].checkpointer
        assert checkpointer is not None
        for step in steps:
            checkpointer.save(0, step)

    run_ranks(len(ranks), one).ok()


def latest(save: Path) -> str:
    found = locate.latest(save).checkpoint
    return str(found.position) if found else "none"


def test_a_save_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last payload finds no space: those before it would keep the disk full, as retention comes after a save."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_1")
    before = savers.files(tmp_path)
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if "state_rank" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskError, match="No space left"):
        savers.save(who, "0_2")

    assert savers.files(tmp_path) == before


def large(at: str) -> write.Snapshot:
    """Policy and optimizer, each large enough for threads."""
    roles = {
        "policy": read_all(Arrays(w=np.ones(direct.LARGE, np.uint8))),
        "optimizer": read_all(Arrays({"adam_m.w": np.ones(direct.LARGE, np.uint8)})),
        "state": {"global_step": scalar(0)},
    }
    return write.Snapshot(Position.parse(at), 0, roles)


def test_large_files_are_written_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    both, real = threading.Barrier(2), atomic.publish

    def publish(path: Path, content: atomic.Content, attempt: str) -> None:
        if names.parse_payload(path.name) and "state" not in path.name:
            both.wait(60)  # raises where the other one does not come
        real(path, content, attempt)

    monkeypatch.setattr(atomic, "publish", publish)
    vote = write.save(who, large("0_1"), savers.ABOUT, None).vote
    assert [file.role for file in vote.files] == ["policy", "optimizer", "state"]


@pytest.mark.parametrize("failing", ["policy", "optimizer", "state"])
def test_one_of_several_large_files_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    write.save(who, large("0_1"), savers.ABOUT, None)
    before, real = savers.files(tmp_path), os.fsync

    def fsync(fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        if failing in name and "0_2" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskError, match="No space left"):
        write.save(who, large("0_2"), savers.ABOUT, None)

    assert savers.files(tmp_path) == before


def test_a_reference_is_named_while_unchanged_and_written_when_changed(tmp_path: Path) -> None:
    """Gigabytes that need not be written, and the one time they must."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    first = savers.save(who, "0_1")
    same = savers.save(who, "0_2", first)
    changed = savers.save(who, "0_3", same, ref=2.0)
    back = savers.save(who, "0_4", changed, ref=1.0)
    paths = [vote.file("ref").path for vote in (first, same, changed, back)]  # type: ignore[union-attr]

    assert paths == [f"ref/rank_0/ref_rank_0-0_{step}.safetensors" for step in (1, 1, 3, 4)]
    assert same.file("ref") == first.file("ref")


@pytest.mark.parametrize("harm", ["gone", "cut", "another"])
def test_a_reference_that_does_not_stand_is_written(tmp_path: Path, harm: str) -> None:
    """Naming it would make a checkpoint that cannot be loaded."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    first = savers.save(who, "0_1")
    path = names.payload(tmp_path, "ref", 0, Position(0, 1))
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if harm == "another":
        other = names.payload(tmp_path, "policy", 0, Position(0, 1))
        shutil.copy(other, path)
    second = savers.save(who, "0_2", first)

    assert second.file("ref").path.endswith("-0_2.safetensors")  # type: ignore[union-attr]


def test_a_reference_that_vanishes_during_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at again before the vote; live memory is not, because training may have gone on. The next save
    writes it."""
    from ms_resume.write import files

    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    first = savers.save(who, "0_1")
    real = files.unchanged_reference

    def look_and_lose(*args: object) -> object:
        found = real(*args)  # type: ignore[arg-type]
        names.payload(tmp_path, "ref", 0, Position(0, 1)).unlink()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(files, "unchanged_reference", look_and_lose)
        with pytest.raises(DiskError, match="went away"):
            savers.save(who, "0_2", first)
    assert not names.payload(tmp_path, "policy", 0, Position(0, 2)).exists()
    second = savers.save(who, "0_2", first)

    assert second.file("ref").path.endswith("-0_2.safetensors")  # type: ignore[union-attr]
    assert latest(tmp_path) == "0_2"


def test_a_reference_of_an_incomplete_checkpoint_is_not_named(tmp_path: Path) -> None:
    """Rank 1 never voted at 0_2: what rank 0 wrote there may be swept."""
    ranks = started(tmp_path, 2, resume=False)
    for step, at_work in ((2, ranks[:1]), (4, ranks), (6, ranks)):
        for rank in at_work:
            rank.checkpointer.save(0, step)  # type: ignore[union-attr]
    named = [savers.reference(tmp_path, f"0_{step}", rank) for step, rank in ((2, 0), (4, 0), (4, 1), (6, 0), (6, 1))]

    assert named == ["0_2", "0_4", "0_4", "0_4", "0_4"]


def test_a_payload_is_what_the_format_says(tmp_path: Path) -> None:
    """The mark, a digest for each tensor, data at a multiple of 4096, and other readers open it."""
    from safetensors.numpy import load_file

    savers.save(savers.writer(tmp_path, savers.open_attempt(tmp_path)), "3_7", value=2.5)
    path = names.payload(tmp_path, "policy", 0, Position(3, 7))
    header = payload.read_header(path)
    loaded = load_file(path)

    assert header.data_start % 4096 == 0
    assert header.mark is not None
    assert (header.mark.position, header.mark.rank, header.mark.role) == (Position(3, 7), 0, "policy")
    assert header.digests == {name: payload.digest_of(array.tobytes()) for name, array in loaded.items()}
    assert (int(loaded["epoch_num"]), int(loaded["step_num"]), loaded["epoch_num"].dtype) == (3, 7, np.int64)
    assert loaded["w"].tolist() == [[2.5] * 3] * 2


def test_ckpt_goes_and_comes_back(tmp_path: Path) -> None:
    """Tensors, shapes, and the position; state stays safetensors; the vote has the digest of the whole file."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    vote = savers.save(who, "0_5", value=2.5, file_format="ckpt")
    path = names.payload(tmp_path, "policy", 0, Position(0, 5), "ckpt")
    contents = ckpt.read(path)

    assert [file.path.rpartition(".")[2] for file in vote.files] == ["ckpt", "ckpt", "ckpt", "safetensors"]
    assert contents.has_crc
    assert {name: info.shape for name, info in contents.tensors.items()} == {
        "w": (2, 3),
        "epoch_num": (),
        "step_num": (),
    }
    assert bytes(ckpt.read_tensor(contents, "w")) == np.full((2, 3), 2.5, np.float32).tobytes()
    assert vote.files[0].digest == payload.digest_of(path.read_bytes())
    assert latest(tmp_path) == "0_5"


def test_odd_tensors_survive(tmp_path: Path) -> None:
    """Empty, 0-d, transposed, every dtype, and names that JSON has to escape."""
    from dataclasses import replace

    arrays = {
        "empty": np.zeros((0, 4), np.float32), "scalar": np.array(True), 'quo"te\\ü': np.arange(3, dtype=np.uint8),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        **{name: np.ones(3, name) for name in ("int8", "uint16", "int32", "uint64", "float16")},
    }  # fmt: skip  # one line per kind
    taken = savers.snapshot("0_1")
    taken = replace(taken, held={**taken.held, "ref": read_all(Arrays(arrays))})
    ms_resume_write(savers.writer(tmp_path, savers.open_attempt(tmp_path)), taken)
    path = names.payload(tmp_path, "ref", 0, Position(0, 1))
    header = payload.read_header(path)

    with open(path, "rb") as file:
        for name, array in arrays.items():
            assert bytes(payload.read_tensor(file, header, name)) == array.tobytes()
            assert header.tensors[name].shape == array.shape


def ms_resume_write(who: object, taken: object) -> None:
    from ms_resume import write

    write.save(who, taken, savers.ABOUT, None)  # type: ignore[arg-type]


def test_a_read_that_fails_ends_a_save_as_a_write_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle of a network file system: the trainer catches DiskError, and trains on."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_1")
    before = savers.files(tmp_path)

    def stale(*args: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "commits/0_2/rank_0.json")

    with monkeypatch.context() as patched:
        patched.setattr(commit, "standing_vote", stale)
        with pytest.raises(DiskError, match=r"commits/0_2/rank_0.json: Stale file handle"):
            savers.save(who, "0_2")

    assert savers.files(tmp_path) == before
    savers.save(who, "0_2")


@pytest.mark.parametrize(("field", "said"), [("f_bavail", "MiB are free"), ("f_favail", "inodes, 0 are free")])
def test_too_little_room_is_known_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, said: str
) -> None:
    """Neither the vote that stands at the position nor anything else."""
    from types import SimpleNamespace

    first = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(first, "0_1")
    savers.save(first, "0_2")
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_1", by=first.attempt.attempt))
    before, real = savers.files(tmp_path), os.statvfs(tmp_path)
    found = {name: getattr(real, name) for name in ("f_bavail", "f_frsize", "f_files", "f_favail")} | {field: 0}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**found))
    with pytest.raises(DiskError, match=said):
        savers.save(who, "0_2")

    assert savers.files(tmp_path) == before


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
@pytest.mark.parametrize("where", ["header", "data", "end"])
def test_what_the_disk_changes_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, where: str
) -> None:
    """One bit of what is read back, or the last byte: the save fails and leaves nothing; without harm it counts."""
    from dataclasses import replace

    from ms_resume.ondisk import direct

    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_1")
    before, real, read = savers.files(tmp_path), direct.read, []

    def damaged(path: Path) -> object:
        read.append(path)
        content = bytearray(b"".join(bytes(piece) for piece in real(path)))
        if path.name.startswith("optimizer"):
            content[{"header": 20, "data": len(content) - 2, "end": -1}[where]] ^= 1
        yield memoryview(content[:-1] if where == "end" and path.name.startswith("optimizer") else content)

    taken = replace(savers.snapshot("0_2", file_format=file_format), read_back=True)
    with monkeypatch.context() as patched:
        patched.setattr(direct, "read", damaged)
        with pytest.raises(DiskError, match=r"optimizer.* on the disk, .* was written"):
            ms_resume_write(who, taken)
    assert savers.files(tmp_path) == before
    assert read
    ms_resume_write(who, taken)
    assert latest(tmp_path) == "0_2"


def room_for(save: Path, limit: int) -> Callable[[Path], Any]:
    """A disk of `limit` bytes that holds nothing but payloads."""
    real = os.statvfs

    def size_of(file: Path) -> int:
        try:
            return file.stat().st_size
        except FileNotFoundError:  # the other rank removes its own meanwhile
            return 0

    def statvfs(path: Path) -> Any:
        used = sum(map(size_of, save.glob("*/rank_*/*.safetensors")))
        asked = real(path)
        few = {name: getattr(asked, name) for name in dir(asked) if name.startswith("f_")}
        return SimpleNamespace(**{**few, "f_frsize": 1, "f_bavail": limit - used})

    return statvfs


@pytest.mark.parametrize("early", [True, False])
def test_room_is_made_before_a_save_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Four checkpoints of two ranks fill the disk; the two oldest go, and each rank removes its own."""
    settings = ms_resume.Settings(keep_last=0, heartbeat_s=0, early_retention=early)
    ranks = started(tmp_path, 2, resume=False, settings=settings)
    save_at(ranks, 1, 2, 3, 4)
    full = sum(file.stat().st_size for file in tmp_path.glob("*/rank_*/*.safetensors"))
    monkeypatch.setattr(os, "statvfs", room_for(tmp_path, full + 200))
    if not early:
        with pytest.raises(DiskError, match="this save needs"):
            save_at(ranks, 5)
    else:
        save_at(ranks, 5)
    whole = [str(found.position) for found in locate.every(tmp_path) if isinstance(found, Checkpoint)]

    assert whole == (["0_5", "0_4", "0_3"] if early else ["0_4", "0_3", "0_2", "0_1"])


def test_each_rank_says_its_own_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its number, unless it is rank 0."""
    ranks = started(tmp_path, 2, resume=False)
    refused = DiskError("meta.json: no", hint="", path="", errno=None)
    monkeypatch.setattr(atomic, "replace", Mock(side_effect=refused))
    save_at(ranks, 1)

    assert any(text.startswith("ms_resume: warning: meta.json: no") for text in ranks[0].said)
    assert any(text.startswith("ms_resume: rank 1: warning: meta.json: no") for text in ranks[1].said)
