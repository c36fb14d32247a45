"""Loading: all names, shapes, and dtypes first, then bytes that are checked as they are placed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
import test_ckpt
import test_payload

from ms_resume import load
from ms_resume.errors import Damaged, DiskError, MsResumeError, NamesMismatch, UsageError
from ms_resume.load.names.match import match
from ms_resume.load.source import Source
from ms_resume.ondisk import names
from ms_resume.records import Position, TensorInfo, Vote
from ms_resume.state import Arrays

Roles = dict[str, Arrays]


def infos(text: str) -> dict[str, TensorInfo]:
    """`w:2x3` is F32; `w:2x3:F16`."""
    found = {}
    for entry in text.split():
        name, shape, dtype = (entry + ":F32").split(":")[:3]
        found[name] = TensorInfo(dtype, tuple(int(size) for size in shape.split("x") if size))
    return found


@pytest.mark.parametrize(
    ("saved", "wanted", "fates"),
    [
        ("a:2 b:3", "a:2 b:3", "matched a b"),
        ("a:2", "a:2 b:3", "matched a | missing b"),
        ("a:2 b:3", "a:2", "matched a | unexpected b"),
        ("adam_m.w:2", "w:2", "missing w | unexpected adam_m.w"),  # stock code fills it by suffix
        ("model.w:2", "w:2", "missing w | unexpected model.w"),
        ("a:4x1x1", "a:4", "wrong_shape a"),  # stock code changes the net's shape
        ("a:2x3", "a:3x2", "wrong_shape a"),
        ("a:2:F16", "a:2", "wrong_dtype a"),  # stock code casts
        ("a:2:F16", "a:3", "wrong_shape a"),  # one fate each
        ("s:", "s:1", "wrong_shape s"),
    ],
)
def test_match(saved: str, wanted: str, fates: str) -> None:
    """Each row: what the file has, what the net has, and the one fate of each name."""
    report = match(infos(saved), infos(wanted))
    groups = {
        "matched": report.matched,
        "missing": report.missing,
        "unexpected": report.unexpected,
        "wrong_shape": tuple(entry[0] for entry in report.wrong_shape),
        "wrong_dtype": tuple(entry[0] for entry in report.wrong_dtype),
    }
    found = " | ".join(f"{fate} {' '.join(group)}" for fate, group in groups.items() if group)

    assert found == fates
    assert report.clean is (fates.count("|") == 0 and fates.startswith("matched"))


@pytest.mark.parametrize("sides", [("", "a:2"), ("a:2", "")])
def test_an_empty_side_is_a_wrong_path_not_a_mismatch(sides: tuple[str, str]) -> None:
    """A net that was not built yet has no parameters."""
    with pytest.raises(UsageError, match="no parameters"):
        match(infos(sides[0]), infos(sides[1]))


def saved(tmp_path: Path, file_format: str = "safetensors") -> Vote:
    return savers.save(
        savers.writer(tmp_path, savers.open_attempt(tmp_path)), "0_5", value=2.0, file_format=file_format
    )


def sources(save: Path, vote: Vote) -> dict[str, Source]:
    return {file.role: Source(save / file.path, file) for file in vote.files if file.role != "state"}


def live() -> Roles:
    weights = np.zeros((2, 3), np.float32)
    return {
        "policy": Arrays(w=weights),
        "optimizer": Arrays({"w": weights, "adam_m.w": np.ones((2, 3), np.float32)}),
        "ref": Arrays(w=np.zeros((2, 3), np.float32)),
    }


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_place(tmp_path: Path, file_format: str) -> None:
    """Values land in the arrays that training holds, in place; position tensors are not the net's; progress counts."""
    vote, roles = saved(tmp_path, file_format), live()
    bytes_read: list[int] = []
    held = roles["policy"]["w"]
    found = sources(tmp_path, vote)
    load.settle(found, roles)
    load.place(found, roles, bytes_read.append)

    assert held.tolist() == [[2.0] * 3] * 2
    assert roles["optimizer"]["adam_m.w"].tolist() == [[0.0] * 3] * 2
    assert roles["ref"]["w"].tolist() == [[1.0] * 3] * 2
    assert sum(bytes_read) >= 3 * 24


def change(role: str, **arrays: Any) -> Callable[[Roles], None]:
    return lambda roles: roles[role].update(arrays)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change("policy", extra=np.zeros(1)), "policy .*: 1 of 2 parameters match\n.*missing extra"),
        (
            change("ref", w=np.zeros((3, 2), np.float32)),
            r"ref .*shape of w: the file has \(2, 3\), the net \(3, 2\)",
        ),
        (change("ref", w=np.zeros((2, 3), np.float16)), "dtype of w: the file has F32, the net F16"),
        (lambda roles: roles["optimizer"].pop("adam_m.w"), r"optimizer .*unexpected adam_m\.w"),
    ],
)
def test_a_mismatch_places_nothing(tmp_path: Path, spoil: Callable[[Roles], None], said: str) -> None:
    """One wrong name in one role, and no byte of any role is touched."""
    vote, roles = saved(tmp_path), live()
    spoil(roles)
    before = {role: {name: array.copy() for name, array in arrays.items()} for role, arrays in roles.items()}
    with pytest.raises(NamesMismatch, match=f"(?s){said}"):
        load.settle(sources(tmp_path, vote), roles)

    for role, arrays in roles.items():
        assert all(np.array_equal(array, before[role][name]) for name, array in arrays.items())


@pytest.mark.parametrize("role", ["policy", "optimizer", "ref"])
@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_one_flipped_bit(tmp_path: Path, role: str, file_format: str) -> None:
    """The tensor is named where each has a digest; a `.ckpt` is checked as a whole."""
    vote, roles = saved(tmp_path, file_format), live()
    file = vote.file(role)
    assert file is not None
    path, tensor = tmp_path / file.path, "adam_m.w" if role == "optimizer" else "w"
    if file_format == "ckpt":
        own_trees.flip(path, -60)
    else:
        own_trees.flip_tensor(path, tensor)
    with pytest.raises(Damaged) as caught:
        load.place(sources(tmp_path, vote), roles)

    assert path.name in str(caught.value)
    if file_format == "safetensors":
        assert caught.value.fields["tensor"] == tensor


def test_a_flipped_bit_in_the_optimizers_copy_of_a_weight(tmp_path: Path) -> None:
    """We do not need it, but stock code would load it: it is damage like any other."""
    vote, roles = saved(tmp_path), live()
    own_trees.flip_tensor(names.payload(tmp_path, "optimizer", 0, Position(0, 5)), "w")

    with pytest.raises(Damaged, match="tensor 'w'"):
        load.place(sources(tmp_path, vote), roles)


def test_another_file_under_the_voted_name(tmp_path: Path) -> None:
    """Whole in itself, with right digests, and not the one that was voted for."""
    vote = saved(tmp_path)
    who = savers.writer(tmp_path / "other", savers.open_attempt(tmp_path / "other"))
    savers.save(who, "0_5", value=3.0)
    file = vote.files[0]
    (tmp_path / file.path).write_bytes((tmp_path / "other" / file.path).read_bytes())
    with pytest.raises(Damaged, match="the vote says"):
        sources(tmp_path, vote)


def test_mixed_generations_in_a_stock_tree(tmp_path: Path) -> None:
    """Policy of one position and optimizer of another, as a kill between stock's two saves leaves them."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10))
    found = {
        "policy": Source(stock_trees.payload_path(tmp_path, "policy", 0, (0, 10))),
        "optimizer": Source(stock_trees.payload_path(tmp_path, "optimizer", 0, (0, 5))),
    }
    roles = {
        role: Arrays({n: np.zeros(i.shape, _NUMPY[i.dtype]) for n, i in s.tensors.items()}) for role, s in found.items()
    }
    for name in ("epoch_num", "step_num"):
        del roles["policy"][name]
    with pytest.raises(Damaged, match="two generations"):
        load.place(found, roles)


_NUMPY = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}


class Detached(Arrays):
    """Takes values and goes on training with others, as MindSpore's `set_data` does after the first step."""

    def place(self, name: str, value: object) -> None:
        pass

    def memory(self, name: str) -> memoryview | None:
        return None


class DetachedMemory(Arrays):
    """Gives memory that was its own once."""

    def memory(self, name: str) -> memoryview | None:
        return Arrays({name: self[name].copy()}).memory(name)


@pytest.mark.parametrize("kind", [Detached, DetachedMemory])
def test_a_net_that_does_not_take_what_it_is_given(tmp_path: Path, kind: type[Arrays]) -> None:
    """Every tensor is looked at again after the load."""
    vote, roles = saved(tmp_path), live()
    roles["ref"] = kind(roles["ref"])
    with pytest.raises(MsResumeError, match="tensor 'w' does not hold what was placed"):
        load.place(sources(tmp_path, vote), roles)


def test_an_optimizer_that_updates_copies_of_the_weights(tmp_path: Path) -> None:
    """What is placed into the policy would never be trained."""
    vote, roles = saved(tmp_path), live()
    roles["optimizer"]["w"] = roles["policy"]["w"].copy()
    with pytest.raises(MsResumeError, match=r"optimizer.*: tensor 'w' does not hold what was placed"):
        load.place(sources(tmp_path, vote), roles)


def test_a_disk_that_cannot_be_read(tmp_path: Path) -> None:
    """Exit 40 with the path: the disk may recover, so no checkpoint is passed over for it."""
    vote = saved(tmp_path)
    found = sources(tmp_path, vote)
    (tmp_path / vote.files[0].path).unlink()
    with pytest.raises(DiskError, match=r"policy_model_rank_0-0_5\.safetensors"):
        load.place(found, live())


STOCK = [("a.safetensors", test_payload.BY_MINDSPORE, -1), ("a.ckpt", test_ckpt.BY_MINDSPORE, -18)]


@pytest.mark.parametrize(("name", "content", "last"), STOCK, ids=[row[0] for row in STOCK])
def test_a_stock_file_whose_crc_does_not_hold(tmp_path: Path, name: str, content: bytes, last: int) -> None:
    """In either format, while it is placed, and before a tensor of it is read by itself."""
    path = tmp_path / name
    path.write_bytes(content)
    whole = Source(path)
    roles = {"ref": load.Copy(whole, list(whole.tensors))}
    load.place({"ref": whole}, roles)
    assert all(bytes(roles["ref"].read(n).data) == bytes(whole.read(n).data) for n in whole.tensors)
    load.place({"ref": Source(path)}, {"ref": load.Copy(whole, ["epoch_num"])})
    own_trees.flip(path, last)

    with pytest.raises(Damaged, match=f"{name}: its .* have CRC"):
        load.place({"ref": Source(path)}, roles)
    with pytest.raises(Damaged, match=f"{name}: its .* have CRC"):
        Source(path).read("epoch_num")
    with pytest.raises(Damaged, match=f"{name}: its .* have CRC"):  # it is over tensors that nobody asks for, too
        load.place({"ref": Source(path)}, {"ref": load.Copy(whole, ["epoch_num"])})
