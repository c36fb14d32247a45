"""What every layout promises, asked of each in the same words; a new one is a line in `trees.TREES`."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
from command import call
from conformance.trees import NUMBERS, RANKS, TREES, Tree

from ms_resume import layouts, locate
from ms_resume.errors import Damaged, UsageError
from ms_resume.records import Checkpoint, Rejection

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=TREES, ids=list(TREES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Path]:
    tree: Tree = TREES[request.param]
    save = tmp_path_factory.mktemp("tree") / "save"
    save.mkdir()
    tree.build(save)
    return tree, save


@pytest.fixture
def tree(built: tuple[Tree, Path]) -> Tree:
    return built[0]


@pytest.fixture
def save(built: tuple[Tree, Path], tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(built[1], tmp_path / "save", symlinks=True))


def judged(tree: Tree, save: Path) -> dict[int, Checkpoint | Rejection]:
    """The verdict on each number, newest first."""
    numbers = {tree.position(number): number for number in NUMBERS}
    return {numbers[verdict.position]: verdict for verdict in locate.verdicts(layouts.find(save))}


def is_whole(tree: Tree, verdict: Checkpoint | Rejection | None) -> bool:
    return isinstance(verdict, Checkpoint) if not tree.kind else getattr(verdict, "kind", "") == tree.kind


def test_it_is_recognised_by_looking(tree: Tree, save: Path) -> None:
    """And by its name, which another layout's does not replace."""
    assert layouts.find(save).positions == layouts.find(save, layout=_of_directory(tree)).positions
    assert _of_directory(tree) == layouts.find(save).NAME
    for other in set(layouts.NAMES) - {_of_directory(tree)}:
        assert layouts.find(save, layout=other).positions == []


def test_every_position_is_whole_newest_first(tree: Tree, save: Path) -> None:
    verdicts = judged(tree, save)

    assert list(verdicts) == [3, 2, 1]
    for number, verdict in verdicts.items():
        assert is_whole(tree, verdict)
        if isinstance(verdict, Checkpoint):
            assert (verdict.layout, verdict.world_size) == (tree.layout, len(tree.ranks))
            assert {tree.file(save, number, rank) for rank in tree.ranks} <= {file.path for file in verdict.files}
            assert all(file.path.is_file() for file in verdict.files)
    newest = locate.newest(layouts.find(save))
    assert [newest.warnings, newest.checkpoint] == [(), None if tree.kind else verdicts[3]]


@pytest.mark.parametrize("rank", RANKS)
def test_a_rank_without_its_file(tree: Tree, save: Path, rank: int) -> None:
    """Torn, by the rank's name; the one before is the newest whole one."""
    _needs(tree, rank)
    tree.file(save, 3, rank).unlink()

    verdicts = judged(tree, save)

    assert getattr(verdicts[3], "kind", "whole") == "torn"
    assert isinstance(verdicts[3], Rejection)
    assert verdicts[3].ranks == (rank,)
    assert is_whole(tree, verdicts[2])


def test_a_rank_without_a_directory(tree: Tree, save: Path) -> None:
    """Nothing is whole where one rank has nothing at all; no layout takes the others for the whole job. Where ranks are
    known by their directories alone it must be in the middle."""
    if tree.layout in ("mindformers-2", "numbered", "iterations"):
        pytest.skip("no directory for each rank")
    for number in NUMBERS:
        shutil.rmtree(tree.file(save, number, 0).parent, ignore_errors=True)

    assert not any(is_whole(tree, verdict) for verdict in judged(tree, save).values())


HARM: dict[str, Callable[[bytes], bytes]] = {
    "nothing in it": lambda content: b"",
    "half of it": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "a header of 2^60 bytes": lambda content: struct.pack("<Q", 1 << 60) + content[8:],
    "other bytes": lambda content: b"\xff" * len(content),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.parametrize("rank", RANKS)
def test_a_file_that_is_not_whole(tree: Tree, save: Path, harm: Callable[[bytes], bytes], rank: int) -> None:
    """Damaged, with its path and its rank; a resume's checks of headers are enough."""
    _needs(tree, rank)
    path = tree.file(save, 3, rank)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(harm(content))

    located = locate.newest(layouts.find(save), check=locate_check)
    verdict = located.rejected[0]

    assert (verdict.position, verdict.kind, verdict.ranks) == (tree.position(3), "damaged", (rank,))
    assert path.name in verdict.reason
    assert tree.kind or located.checkpoint is not None
    assert tree.kind or located.checkpoint.position == tree.position(2)  # type: ignore[union-attr]


def locate_check(checkpoint: Checkpoint) -> Rejection | None:
    from ms_resume import verify

    return verify.headers(checkpoint)


def test_what_lies_beside_is_left_alone(tree: Tree, save: Path) -> None:
    """Leftovers of MindSpore and MindFormers, names of no encoding, directories and links with a file's name."""
    before = {number: (type(v), getattr(v, "kind", "")) for number, v in judged(tree, save).items()}
    beside = tree.file(save, 3, 0).parent
    for name in ("x.tmp", "tmpab12cd", "param_name_map.json", "latest_checkpointed_iteration.txt.bak", "-0_5.ckpt"):
        (beside / name).write_bytes(b"{")
        (save / name).write_bytes(b"{")
    os.mkdir(os.fsencode(beside) + b"/rank_\xff\xfe")
    (beside / "rank_x").mkdir()
    (save / "rank_007").mkdir()
    (save / "resume_record").mkdir()
    (save / "resume_record" / "latest_checkpointed_iteration.txt").write_text("FOUND NO META.JSON")
    (beside / "dangling.safetensors").symlink_to("nowhere")

    assert {number: (type(v), getattr(v, "kind", "")) for number, v in judged(tree, save).items()} == before


def test_a_file_that_goes_while_it_is_looked_at(tree: Tree, save: Path) -> None:
    """A verdict, not an exception."""
    holding = layouts.find(save)
    assert len(holding.positions) == len(NUMBERS)
    tree.file(save, 3, tree.ranks[-1]).unlink()

    verdict = holding.judge(tree.position(3))

    assert isinstance(verdict, Rejection)
    assert verdict.kind in ("torn", "damaged")


def test_the_commands_say_the_same(tree: Tree, save: Path, capsys: Capture) -> None:
    """The same keys for every layout, nothing written, and exit codes as documented."""
    before = snapshot(save)
    ls = call(capsys, "ls", save, "--json")
    found = call(capsys, "locate", save, "--json")
    checked = call(capsys, "verify", save, "--all", "--deep", "--json")
    people = [call(capsys, command, save) for command in ("ls", "locate")]

    assert snapshot(save) == before
    assert [row["position"] for row in ls.json["positions"]] == [tree.position(n).to_json() for n in (3, 2, 1)]
    assert {row["layout"] for row in ls.json["positions"]} == {tree.layout}
    assert all(row["bytes"] > 0 for row in ls.json["positions"])
    wanted = {"save", "position", "attempt", "world_size", "layout", "files", "rejected", "warnings"}
    assert found.json.keys() >= wanted
    assert (found.code, found.json["position"]) == ((10, None) if tree.kind else (0, tree.position(3).to_json()))
    assert {row["verdict"] for row in checked.json["positions"]} == {tree.kind or "valid"}
    assert all(str(tree.position(3)) in told.out for told in people)


@pytest.mark.parametrize("make", hostile.NO_FILES)
def test_what_is_no_file(tree: Tree, save: Path, capsys: Capture, make: str) -> None:
    """In the place of one: said by its kind, with the rank, not opened and not waited for."""
    path = tree.file(save, 3, tree.ranks[-1])
    path.unlink()
    hostile.NO_FILES[make][0](path)
    told = hostile.look_at_all(capsys, save)

    with hostile.watched(save):
        verdict = judged(tree, save)[3]
    assert isinstance(verdict, Rejection)
    assert (verdict.kind, verdict.ranks) == ("damaged", tree.ranks[-1:])
    assert hostile.NO_FILES[make][1] in verdict.reason
    assert hostile.NO_FILES[make][1] in told["ls"][1].replace("\n", " ")


@pytest.mark.parametrize("above", [0, 1])
def test_a_link_out(tree: Tree, save: Path, capsys: Capture, tmp_path: Path, above: int) -> None:
    """In the place of a directory, or of the one above it: nothing behind it is looked at, whatever it is taken for."""
    home = tree.file(save, 3, tree.ranks[-1]).parents[above]
    if home == save:
        pytest.skip("a person gave it")
    home.rename(tmp_path / "outside")
    home.symlink_to(tmp_path / "outside")

    hostile.look_at_all(capsys, save)
    with hostile.watched(save):
        assert _newest_or_error(tree, save) in (False, "a symbolic link, expected a directory")


def _newest_or_error(tree: Tree, save: Path) -> bool | str:
    """Whether number 3 is whole, or what is said instead of a verdict."""
    try:
        verdict = judged(tree, save).get(3)
        return verdict is not None and is_whole(tree, verdict)
    except Damaged as error:
        return str(error.fields["reason"])


def test_a_directory_that_a_person_gave(tree: Tree, save: Path, tmp_path: Path) -> None:
    """It may be a link."""
    (tmp_path / "link").symlink_to(save)

    assert [is_whole(tree, verdict) for verdict in judged(tree, tmp_path / "link").values()] == [True] * 3


@pytest.mark.parametrize("how", [*hostile.NO_FILES, *hostile.DOCUMENTS])
def test_documents_that_nobody_wrote(tree: Tree, save: Path, capsys: Capture, how: str) -> None:
    """In the place of each hint, tracker and list of another tool: a verdict, or one error."""
    for path in sorted(save.rglob("*")):
        if path.suffix in (".json", ".txt") and "commits" not in path.parts:
            path.unlink()
            hostile.NO_FILES[how][0](path) if how in hostile.NO_FILES else path.write_bytes(hostile.DOCUMENTS[how])
    (save / "checkpoint").mkdir(exist_ok=True)
    for path in (save / "health_ckpts.json", save / "checkpoint" / "health_ckpts.json"):
        hostile.NO_FILES[how][0](path) if how in hostile.NO_FILES else path.write_bytes(hostile.DOCUMENTS[how])

    assert hostile.look(capsys, save, "ls")[0] == 0
    taken = not tree.documents_decide and not tree.kind
    assert hostile.look(capsys, save, "locate")[0] == (0 if taken else 10)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 50, "0" * 30 + "7"])
def test_numbers_in_names(tree: Tree, save: Path, capsys: Capture, digits: str) -> None:
    """More than 64 bits hold: no number, so no name of this layout."""
    before = {number: (type(v), getattr(v, "kind", "")) for number, v in judged(tree, save).items()}
    path = tree.file(save, 3, tree.ranks[-1])
    for name in {re.sub(r"\d+(?=\D*$)", digits, path.name), re.sub(r"\d+", digits, path.name)}:
        (path.parent / name).touch()
    for above in {path.parent, path.parent.parent} - {save, save.parent}:
        (above.parent / re.sub(r"\d+", digits, above.name + "_0")).mkdir(exist_ok=True)
    hostile.look_at_all(capsys, save)

    assert {number: (type(v), getattr(v, "kind", "")) for number, v in judged(tree, save).items()} == before


def snapshot(save: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(save)): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in sorted(save.rglob("*"))
    }


def test_neither_pickle_nor_numpy_nor_mindspore(built: tuple[Tree, Path]) -> None:
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from ms_resume import layouts, locate, verify\n"
        f"located = locate.newest(layouts.find(Path({str(built[1])!r})))\n"
        "found = located.checkpoint and verify.check(located.checkpoint, deep=True)\n"
        "print(json.dumps([bool(found), *sorted({'pickle', 'numpy', 'mindspore', 'torch'} & set(sys.modules))]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert json.loads(run.stdout) == [False]


def test_two_layouts_in_one_directory(tmp_path: Path) -> None:
    """An error that names both and the words to choose one with."""
    for name in ("MindFormers 2", "MindSpeed"):
        TREES[name].build(tmp_path)
    with pytest.raises(UsageError, match=r"more than one kind of checkpoints: mindformers-2, mindspeed-ms") as caught:
        layouts.find(tmp_path)

    assert caught.value.hint == "choose one: --layout mindformers-2, or --layout mindspeed-ms"
    assert layouts.find(tmp_path, layout="mindspeed-ms").positions == [
        TREES["MindSpeed"].position(n) for n in (3, 2, 1)
    ]


def _needs(tree: Tree, rank: int) -> None:
    if rank not in tree.ranks:
        pytest.skip("one rank saves for all")


def _of_directory(tree: Tree) -> str:
    """Ours and MindRLHF's lie side by side in one directory."""
    return "mindrlhf" if tree.layout == "ms_resume" else tree.layout
