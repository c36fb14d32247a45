"""What a warm start opens, of each kind: the newest whole position, each rank's own file, and nothing but what is
asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
from conformance.trees import NUMBERS, RANKS, TREES, weights, write
from runs import tiny_run
from safetensors.numpy import save_file

import ms_resume
from ms_resume.errors import Damaged, LayoutMismatch, MsResumeError, NothingToResume, Torn, UsageError
from ms_resume.load import warm
from ms_resume.ondisk import ckpt
from ms_resume.records import Position, Rejection
from ms_resume.state import to_array

P = Position.parse
KINDS = [kind for kind, tree in TREES.items() if tree.layout not in warm.NOT_TAKEN]


def value(place: warm.Place, rank: int = 0, world_size: int = 2, role: str = "policy") -> float:
    """The first number of this rank's `w`."""
    source = warm.open_place(place, role, rank=rank, world_size=world_size)
    name = next(name for name in ("model.w", "w") if name in source.tensors)
    return float(to_array(source.read(name)).reshape(-1)[0])


def found(path: Path, role: str = "policy", world_size: int = 2, at: str = "") -> warm.Place:
    return warm.find(path, role, world_size=world_size, position=P(at) if at else None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_of_each_kind(kind: str, tmp_path: Path) -> None:
    """Each rank has its own weights, and nothing in the directory is changed by a byte."""
    tree = TREES[kind]
    tree.build(tmp_path)
    before = savers.files(tmp_path)
    place = found(tmp_path)
    expected = [3.0, 3.0] if kind == "ours" else [float(weights(3, rank)["model.w"][0, 0]) for rank in RANKS]

    assert (place.kind, place.position) == (tree.layout, tree.position(3))
    assert [value(place, rank) for rank in RANKS] == expected
    assert savers.files(tmp_path) == before
    assert warm.Place.from_json(json.loads(json.dumps(place.to_json()))) == place


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_of_each_kind(kind: str, tmp_path: Path) -> None:
    """That one and no other; of one that is not there the others are named."""
    tree = TREES[kind]
    tree.build(tmp_path)
    for number in NUMBERS[:2]:
        place = warm.find(tmp_path, "policy", world_size=2, position=tree.position(number))
        assert int(value(place)) == number

    with pytest.raises(NothingToResume, match=f"no position 77_0, there are {tree.position(3)}"):
        found(tmp_path, at="77_0")


@pytest.mark.parametrize("kind", [kind for kind in TREES if kind not in KINDS])
def test_kinds_that_are_not_taken(kind: str, tmp_path: Path) -> None:
    TREES[kind].build(tmp_path)
    with pytest.raises(UsageError, match=f"holds {TREES[kind].layout} checkpoints, of which no weights are taken"):
        found(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ours"])
def test_a_damaged_newest_is_passed_over(kind: str, tmp_path: Path) -> None:
    """With the reason; asked for by name it is the error."""
    tree = TREES[kind]
    tree.build(tmp_path)
    path = tree.file(tmp_path, 3, 1)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-7])
    place = found(tmp_path)

    assert place.position == tree.position(2)
    assert [(r.position, r.kind) for r in place.rejected] == [(tree.position(3), "damaged")]
    with pytest.raises(Damaged, match=path.name):
        warm.find(tmp_path, "policy", world_size=2, position=tree.position(3))


# -- paths that name a position


def test_paths_to_one_position(tmp_path: Path) -> None:
    """A vote's directory, the link that people follow, MindRLHF's own way to say it, an iteration."""
    tiny_run(tmp_path / "a", save_every=4).ok()
    TREES["MindFormers 2"].build(tmp_path / "b")
    latest = tmp_path / "a" / "latest"

    assert found(tmp_path / "a" / "commits" / "0_4").position == P("0_4")
    assert latest.is_symlink()
    assert found(latest).position == P("1_0")
    assert found(tmp_path / "a" / "train").position == P("1_0")
    assert found(tmp_path / "a" / "optimizer", "optimizer").position == P("1_0")
    assert found(tmp_path / "b" / "checkpoint" / "iteration_00000020").position == P("0_20")
    with pytest.raises(UsageError, match="position 0_8 are asked for"):
        found(tmp_path / "a" / "commits" / "0_4", at="0_8")


def test_an_actor_path_is_judged_by_its_votes(tmp_path: Path) -> None:
    """A file of ours without a vote is no checkpoint, wherever the path points."""
    tiny_run(tmp_path, save_every=4).ok()
    own_trees.vote_path(tmp_path, "1_0", 1).unlink()

    assert found(tmp_path / "train").position == P("0_8")


# -- what else is wrong with a position does not matter


def test_weights_without_the_rest(tmp_path: Path) -> None:
    """Stock's policy files alone, without optimizer and reference, beside each other or copied away."""
    stock_trees.f6b(tmp_path / "save")
    for path in sorted((tmp_path / "save" / "ref").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "save" / "train").rename(tmp_path / "copied")
    (tmp_path / "save").mkdir(exist_ok=True)
    place = found(tmp_path / "copied")

    assert (place.kind, place.position) == (warm.RANK_FILES, P("0_10"))
    assert [value(place, rank) for rank in RANKS] == [10.0, 10.125]
    (tmp_path / "copied").rename(tmp_path / "save" / "train")
    assert found(tmp_path / "save").position == P("0_10")
    assert found(tmp_path / "save" / "train").position == P("0_10")
    with pytest.raises(NothingToResume, match="no optimizer directory"):
        found(tmp_path / "save", "optimizer")


def test_a_copied_file_that_says_another_position(tmp_path: Path) -> None:
    """Its name was changed by hand."""
    stock_trees.f1(tmp_path)
    for rank in RANKS:
        wrong = stock_trees.payload_path(tmp_path, "policy", rank, (0, 15))
        wrong.write_bytes(stock_trees.payload_path(tmp_path, "policy", rank, (0, 5)).read_bytes())
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    place = found(tmp_path / "elsewhere")

    assert place.position == P("0_10")
    assert "the position inside is 0_5" in place.rejected[0].reason


def test_a_damaged_optimizer_is_no_reason_to_pass_weights_over(tmp_path: Path) -> None:
    """But for its state an older one is taken."""
    stock_trees.f1(tmp_path)
    path = stock_trees.payload_path(tmp_path, "optimizer", 1, (0, 10))
    path.chmod(0o600)
    path.write_bytes(b"")

    assert found(tmp_path).position == P("0_10")
    assert found(tmp_path, "optimizer").position == P("0_5")


def test_weights_saved_without_optimizer(tmp_path: Path) -> None:
    """Ours: a resume passes them over, a warm start takes them, and looks further back for optimizer state."""
    settings = ms_resume.Settings(keep_last=0, heartbeat_s=0)
    weights_alone = ms_resume.Settings(keep_last=0, heartbeat_s=0, save_optimizer=False)
    tiny_run(tmp_path, save_every=4, settings=settings, stop=(0, 6)).ok()
    tiny_run(tmp_path, save_every=4, settings=weights_alone, resume=True).ok()

    assert found(tmp_path).position == P("1_0")
    optimizer = found(tmp_path, "optimizer")
    assert optimizer.position == P("0_4")
    assert optimizer.rejected[0] == Rejection(
        P("1_0"), "weights only", "saved without optimizer", (), optimizer.rejected[0].attempt
    )


def test_mindformers_2_without_optimizer(tmp_path: Path) -> None:
    """`no_save_optim`: torn for a resume, and all that a warm start needs."""
    TREES["MindFormers 2"].build(tmp_path)
    for path in tmp_path.rglob("CKP-opt-*"):
        path.unlink()
    for path in tmp_path.rglob("metadata.json"):
        said = json.loads(path.read_text())
        said["storage_data"] = {key: v for key, v in said["storage_data"].items() if "adam_m" not in key}
        path.write_text(json.dumps(said))

    assert found(tmp_path).position == P("0_30")
    with pytest.raises(NothingToResume, match="no optimizer shard"):
        found(tmp_path, "optimizer")


# -- MindFormers 2: what replicas have in common lies in one file


def iteration(directory: Path, entries: dict[str, tuple[int, list[int]]], *, cut: bool = False) -> Path:
    """Tensors by name: the number of the file, and the ranks that have it."""
    stored: dict[str, list[dict[str, object]]] = {}
    arrays: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}}
    for name, (number, ranks) in entries.items():
        file = f"model-{number:07d}-0000002.safetensors"
        key, tensor = (str((name, (number,))), name.partition("@")[0]) if cut else (str((name, (0,))), name)
        stored[key.replace(name, tensor)] = [{"file_name": file, "storage_rank": number, "rank_group": ranks}]
        arrays[number][tensor] = np.full(3, 10 * number + len(ranks), np.float32)
    for number, held in arrays.items():
        write(directory / f"model-{number:07d}-0000002.safetensors", held)
    (directory / "common.json").write_text(json.dumps({"global_step": 7}))
    (directory / "metadata.json").write_text(json.dumps({"storage_data": stored}))
    return directory


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_replicas_share_their_files(tmp_path: Path, world_size: int) -> None:
    """Two replicas saved half of the model each: every rank gets all of it, however many there are."""
    path = iteration(tmp_path / "iteration_00000007", {"a": (0, [0, 1]), "b": (1, [0, 1])})
    place = found(path, world_size=world_size)
    for rank in range(world_size):
        source = warm.open_place(place, "policy", rank=rank, world_size=world_size)
        assert {name: float(to_array(source.read(name))[0]) for name in source.tensors} == {"a": 2.0, "b": 12.0}


def test_stages_keep_their_own(tmp_path: Path) -> None:
    """Two pipeline stages: each rank has its own tensors, a job of one rank has all."""
    path = iteration(tmp_path / "iteration_00000007", {"a": (0, [0]), "b": (1, [1])})

    def held(rank: int, world_size: int) -> set[str]:
        place = found(path, world_size=world_size)
        return set(warm.open_place(place, "policy", rank=rank, world_size=world_size).tensors)

    assert [held(0, 2), held(1, 2), held(0, 1)] == [{"a"}, {"b"}, {"a", "b"}]


def test_a_tensor_in_pieces(tmp_path: Path) -> None:
    """Each rank has its piece; another number of ranks would have to put them together, which is not done here."""
    entries = {"a@0": (0, [0]), "a@1": (1, [1])}
    path = iteration(tmp_path / "iteration_00000007", entries, cut=True)

    for rank, first in enumerate((1.0, 11.0)):
        source = warm.open_place(found(path), "policy", rank=rank, world_size=2)
        assert float(to_array(source.read("a"))[0]) == first
    with pytest.raises(LayoutMismatch, match="'a' is in 2 pieces of 2 ranks, this job has 4"):
        warm.open_place(found(path, world_size=4), "policy", rank=0, world_size=4)


# -- another number of ranks


def test_another_number_of_ranks(tmp_path: Path) -> None:
    """Refused with both numbers; replicas are taken on request; one rank's file is everybody's."""
    tiny_run(tmp_path / "two", save_every=5).ok()
    tiny_run(tmp_path / "one", world_size=1, save_every=5).ok()
    two, one = found(tmp_path / "two", world_size=3), found(tmp_path / "one", world_size=3)

    with pytest.raises(LayoutMismatch, match="saved by 2 ranks, this job has 3") as caught:
        warm.open_place(two, "policy", rank=0, world_size=3)
    assert "allow_world_size='data_parallel'" in caught.value.hint
    opened = [
        warm.open_place(two, "policy", rank=rank, world_size=3, allow_world_size=warm.DATA_PARALLEL).path.name
        for rank in range(3)
    ]
    assert opened == [f"policy_model_rank_{rank}-1_0.safetensors" for rank in (0, 1, 0)]
    assert warm.open_place(one, "policy", rank=2, world_size=3).path.name == "policy_model_rank_0-1_0.safetensors"


# -- one file


@pytest.mark.parametrize("name", ["base.safetensors", "base.ckpt"])
def test_one_file_is_every_ranks(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, weights(5, 0))
    place = found(tmp_path / name, world_size=4)

    assert [value(place, rank, world_size=4) for rank in range(4)] == [5.0] * 4
    assert place.kind == warm.ONE_FILE


@pytest.mark.parametrize("kind", ["MindRLHF", "MindFormers 1.0", "MindSpeed", "MindRLHF 0.4.0"])
def test_a_file_of_one_rank_stands_for_its_siblings(tmp_path: Path, kind: str) -> None:
    """Each rank opens its own; a job of one rank takes the file that it was given."""
    tree = TREES[kind]
    tree.build(tmp_path)
    place = found(tree.file(tmp_path, 2, 0))

    assert [value(place, rank) for rank in RANKS] == [2.0, 2.125]
    assert value(found(tree.file(tmp_path, 2, 1), world_size=1), world_size=1) == 2.125


def test_a_sibling_is_missing(tmp_path: Path) -> None:
    """Rank 1 would start from another rank's part without a word."""
    tree = TREES["MindRLHF"]
    tree.build(tmp_path)
    tree.file(tmp_path, 2, 1).unlink()
    with pytest.raises(Torn, match=r"rank_1/policy_model_rank_1-0_2\.safetensors: missing"):
        found(tree.file(tmp_path, 2, 0))


def test_a_vote_names_what_is_opened(tmp_path: Path) -> None:
    """Another file under the same name, whole in itself, is not what was saved."""
    tiny_run(tmp_path / "a", save_every=5).ok()
    tiny_run(tmp_path / "b", save_every=5, before_step=lambda me, at: me.rng.normal()).ok()
    place = found(tmp_path / "a")
    mine = own_trees.payload_path(tmp_path / "a", "1_0", 0, "policy")
    mine.write_bytes(own_trees.payload_path(tmp_path / "b", "1_0", 0, "policy").read_bytes())

    with pytest.raises(Damaged, match="the vote says"):
        warm.open_place(place, "policy", rank=0, world_size=2)


# -- what is refused


def both_kinds(directory: Path) -> Path:
    stock_trees.f1(directory)
    save_file({"w": np.ones(1)}, directory / "model.safetensors")
    return directory


def touched(name: str) -> Callable[[Path], Path]:
    def build(directory: Path) -> Path:
        directory.mkdir()
        (directory / name).write_bytes(b"\x80\x04.")
        return directory / name

    return build


def empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def in_a_circle(directory: Path) -> Path:
    directory.symlink_to(directory.name)
    return directory


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lambda d: d / "nowhere", "does not exist"),
    (in_a_circle, "does not exist"),
    (empty, "holds no checkpoint, and no policy to start from"),
    (lambda d: touched("trainer_state.json")(d).parent, "holds a Hugging Face Trainer checkpoint"),
    (touched("weights.bin"), "pickle"),
    (touched("weights.pt"), "pickle"),
    (touched("weights.txt"), "is not a file of weights"),
    (both_kinds, "holds mindrlhf checkpoints and a Hugging Face model"),
]


@pytest.mark.parametrize(("build", "said"), REFUSED)
def test_what_is_not_read(tmp_path: Path, build: Callable[[Path], Path], said: str) -> None:
    """One error, with what was expected; pickle is never opened."""
    with pytest.raises(UsageError, match=said):
        found(build(tmp_path / "given"))


def test_what_has_no_position(tmp_path: Path) -> None:
    """A file, and a model, whatever its directory is called."""
    write(tmp_path / "base.ckpt", weights(1, 0))
    model = tmp_path / "iteration_00000005"
    write(model / "model.safetensors", weights(1, 0))

    assert value(found(model)) == 1.0
    for path in (tmp_path / "base.ckpt", model):
        with pytest.raises(UsageError, match="position"):
            found(path, at="0_5")


def test_links_inside_are_not_followed(tmp_path: Path) -> None:
    """The path that a person gave may be one; a rank's directory may not lead elsewhere."""
    stock_trees.f1(tmp_path / "save")
    (tmp_path / "link").symlink_to(tmp_path / "save")
    assert found(tmp_path / "link").position == P("0_10")
    (tmp_path / "save" / "train" / "rank_1").rename(tmp_path / "elsewhere")
    (tmp_path / "save" / "train" / "rank_1").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(MsResumeError, match="symbolic link"):
        found(tmp_path / "link")


def test_a_ckpt_with_a_crc_is_checked(tmp_path: Path) -> None:
    """As MindSpore does only on request."""
    write(tmp_path / "base.ckpt", weights(1, 0))
    contents = ckpt.read(tmp_path / "base.ckpt")
    own_trees.flip(tmp_path / "base.ckpt", contents.pieces["model.w"][0][0])
    with pytest.raises(Damaged, match="CRC"):
        value(found(tmp_path / "base.ckpt", world_size=1), world_size=1)


@pytest.mark.parametrize(
    ("held", "wanted", "taken"),
    [
        ("w b adam_m.w adam_v.w global_step learning_rate", "w b", "w b"),
        ("w epoch_num step_num loss_scale", "w", "w"),
        ("w moment1.w", "w moment1.w", "w moment1.w"),  # the net has it: it is a weight
        ("w adam_m.other", "w", "w adam_m.other"),  # of no weight here: the report says so
        ("m.w m.adam_m.w", "w", "m.w m.adam_m.w"),
        ("w accu_grads.w", "w", "w"),
        ("global_step", "global_step", "global_step"),
    ],
)
def test_what_of_a_file_is_weights(held: str, wanted: str, taken: str) -> None:
    """Each row: names in the file, names of the net, and what is taken; the rest is optimizer state and counters."""
    names_held = dict.fromkeys(held.split())

    assert warm.weights_in(names_held, wanted.split()) == set(taken.split())  # type: ignore[arg-type]  # names alone
