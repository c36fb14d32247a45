"""A Hugging Face directory as one source: lazily, by its headers, and not a step outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ms_resume.errors import Damaged, MsResumeError, Torn, UsageError
from ms_resume.load import huggingface, warm
from ms_resume.ondisk import payload
from ms_resume.state import to_array

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HELD = {
    A: {"model.embed_tokens.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 4), np.int8)},
    B: {"lm_head.weight": np.full((3, 2), 7, np.float16), "scale": np.array(3, np.int64)},
}


def sharded(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for file, arrays in HELD.items():
        save_file(arrays, directory / file)
    set_map(directory, lambda names: None)
    return directory


def set_map(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    names = {name: file for file, arrays in HELD.items() for name in arrays}
    change(names)
    (directory / huggingface.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


def test_shards_are_one_source(tmp_path: Path) -> None:
    """Every tensor of every shard, with its bytes, an empty and a 0-d one, too; their size is that of the tensors."""
    source = huggingface.open_dir(sharded(tmp_path))
    expected = {name: array for arrays in HELD.values() for name, array in arrays.items()}

    assert source.tensors.keys() == expected.keys()
    assert source.bytes == sum(array.nbytes for array in expected.values())
    for name, array in expected.items():
        assert source.tensors[name].shape == array.shape
        assert np.array_equal(to_array(source.read(name)), array)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """What is in the file then is what is given: opening reads headers alone."""
    source = huggingface.open_dir(sharded(tmp_path))
    header = payload.read_header(tmp_path / B)
    content = bytearray((tmp_path / B).read_bytes())
    at = header.data_start + header.tensors["scale"].begin
    content[at] = 9
    (tmp_path / B).write_bytes(content)

    assert int(to_array(source.read("scale"))) == 9


def test_one_file(tmp_path: Path) -> None:
    """A model that fits into one has no index."""
    save_file({"w": np.ones(3, np.float32)}, tmp_path / huggingface.SINGLE)

    assert huggingface.is_here(tmp_path)
    assert huggingface.open_dir(tmp_path).tensors.keys() == {"w"}


def test_bfloat16(tmp_path: Path) -> None:
    """NumPy has none: its two bytes come as they are."""
    block = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / huggingface.SINGLE).write_bytes(len(block).to_bytes(8, "little") + block + b"\x80\x3f\x00\xc0")
    value = huggingface.open_dir(tmp_path).read("w")

    assert (value.dtype, value.shape, bytes(value.data)) == ("BF16", (2,), b"\x80\x3f\x00\xc0")


def cached(directory: Path) -> Path:
    """As `huggingface_hub` downloads: each name is a link into `blobs`."""
    sharded(directory / "blobs")
    snapshot = directory / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((directory / "blobs").iterdir())):
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob{number}")
        path.rename(path.with_name(f"blob{number}"))
    return snapshot


def test_its_cache(tmp_path: Path) -> None:
    """The links that it is made of are followed."""
    source = huggingface.open_dir(cached(tmp_path / "models--org--name"))

    assert len(source.tensors) == 4
    assert int(to_array(source.read("scale"))) == 3


@pytest.mark.parametrize("name", [huggingface.INDEX, A])
def test_a_file_in_its_cache(tmp_path: Path, name: str) -> None:
    """The link has the name that says what it is."""
    place = warm.find(cached(tmp_path / "models--org--name") / name, "policy", world_size=2)
    source = warm.open_place(place, "policy", rank=1, world_size=2)

    assert len(source.tensors) == (4 if name == huggingface.INDEX else 2)
    assert np.array_equal(to_array(source.read("model.embed_tokens.weight")), HELD[A]["model.embed_tokens.weight"])


def linked_outside(directory: Path) -> None:
    (directory / B).rename(directory.parent / "elsewhere.safetensors")
    (directory / B).symlink_to("../elsewhere.safetensors")


def linked_in_a_circle(directory: Path) -> None:
    (directory / B).unlink()
    (directory / B).symlink_to(B)


def in_two_shards(directory: Path) -> None:
    save_file({**HELD[B], "empty": np.zeros((0, 4), np.int8)}, directory / B)


def an_older_shard(directory: Path) -> None:
    save_file({"scale": np.array(3, np.int64)}, directory / B)


def cut_shard(directory: Path) -> None:
    (directory / A).write_bytes((directory / A).read_bytes()[:-1])


def index(text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / huggingface.INDEX).write_text(text)


def points(name: str, file: str) -> Callable[[Path], object]:
    return lambda directory: set_map(directory, lambda names: names.update({name: file}))


def unsaid(directory: Path) -> None:
    set_map(directory, lambda names: names.pop("scale"))


BAD: list[tuple[Callable[[Path], object], type[MsResumeError], str]] = [
    (lambda d: (d / B).unlink(), Torn, f"names 2 files, 1 of them missing: {B}"),
    (points("more", "model-3.safetensors"), Torn, r"names 3 files, 1 of them missing: model-3\.safetensors"),
    (points("scale", A), Damaged, f"says that 'scale' is in {A}; it is in {B}"),
    (points("ghost", A), Damaged, f"says that 'ghost' is in {A}; it is in no file"),
    (an_older_shard, Damaged, r"'lm_head.weight' is in .*; it is in no file"),
    (unsaid, Damaged, f"says nothing of 1 tensors that its files hold, first 'scale' in {B}"),
    (in_two_shards, Damaged, f"tensor 'empty' is in {A} and in {B}"),
    (cut_shard, Damaged, f"{A}: .* its header says"),
    (points("scale", "../blobs/x.safetensors"), Damaged, "only files beside the index"),
    (points("scale", "/etc/passwd"), Damaged, "only files beside the index"),
    (points("scale", ".."), Damaged, "only files beside the index"),
    (points("scale", ""), Damaged, "only files beside the index"),
    (linked_outside, Damaged, "a link that leads to .*elsewhere"),
    (linked_in_a_circle, Damaged, "a link that leads to"),
    (points("scale", "pytorch_model-00001.bin"), UsageError, "pickle"),
    (index("{"), Damaged, "no JSON"),
    (index("[]"), Damaged, "no weight_map"),
    (index('{"weight_map": {"w": 1}}'), Damaged, "no weight_map"),
    (index('{"weight_map": {}}'), Damaged, "weight_map is empty"),
    (index('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'), Damaged, "a name twice"),
    (lambda d: save_file({"w": np.ones(1)}, d / huggingface.SINGLE), UsageError, "may be two models"),
]


@pytest.mark.parametrize(("spoil", "kind", "said"), BAD)
def test_what_is_not_as_it_says(
    tmp_path: Path, spoil: Callable[[Path], object], kind: type[MsResumeError], said: str
) -> None:
    """One clear error each, when it is opened, before anything is loaded."""
    directory = sharded(tmp_path / "model")
    spoil(directory)
    with pytest.raises(MsResumeError, match=said) as caught:
        huggingface.open_dir(directory)

    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pytorch_model.bin"], "pickle"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickle"),
        (["adapter_model.safetensors"], "an adapter without the model"),
    ],
)
def test_models_that_are_not_read(tmp_path: Path, names: list[str], said: str) -> None:
    """They are recognised, not opened, and the hint says how to make one that is."""
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x04 never looked at")

    assert huggingface.is_here(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        huggingface.open_dir(tmp_path)
    assert "where it was made" in caught.value.hint


def test_other_directories(tmp_path: Path) -> None:
    """A name alone does not make one."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "optimizer.safetensors").write_bytes(b"")

    assert not huggingface.is_here(tmp_path)
