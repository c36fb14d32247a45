"""A survey lists names; what nobody asks about costs nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import savers
import stock_trees
from runs import tiny_run

from ms_resume import locate
from ms_resume.layouts import SaveDirectory, survey
from ms_resume.ondisk import meta, names
from ms_resume.records import Checkpoint, Position

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import large_trees

P = Position.parse


@pytest.fixture
def save(tmp_path: Path) -> Path:
    """Two ranks, ours at 0_5 and 1_0, stock's at 1_5 and 1_10."""
    tiny_run(tmp_path / "save").ok()
    stock_trees.healthy(tmp_path / "save", (1, 5), (1, 10))
    return tmp_path / "save"


def on_disk(save: Path) -> dict[Position, dict[tuple[str, int], Path]]:
    """Every payload, found the slow way."""
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    for role, directory in names.DIRECTORIES.items():
        for path in save.glob(f"{directory}/rank_*/*.safetensors"):
            parsed = names.parse_payload(path.name)
            assert parsed is not None
            found.setdefault(parsed.position, {})[role, parsed.rank] = path
    return found


def test_every_payload_is_there_by_position(save: Path) -> None:
    """Role and rank to path; a position that has none is none."""
    stock_trees.payload_path(save, "optimizer", 1, (1, 10)).unlink()
    payloads = survey.take(save).payloads

    assert dict(payloads.items()) == on_disk(save)
    assert (len(payloads), P("1_5") in payloads, P("7_7") in payloads) == (4, True, False)
    assert payloads.get(P("7_7")) is None


def test_what_one_rank_has(save: Path) -> None:
    """Of one role, whatever the other rank has; nothing of a rank that is not there."""
    stock_trees.payload_path(save, "optimizer", 1, (1, 10)).unlink()
    payloads = survey.take(save).payloads

    assert {str(p) for p in payloads.of("optimizer", 0)} == {"0_5", "1_0", "1_5", "1_10"}
    assert {str(p) for p in payloads.of("optimizer", 1)} == {"0_5", "1_0", "1_5"}
    assert payloads.of("optimizer", 2) == ()
    assert [str(p) for p in payloads.everywhere("optimizer", (0, 1))] == ["0_5", "1_0", "1_5"]
    assert payloads.everywhere("optimizer", (0, 1, 2)) == []
    assert payloads.without(P("1_10"), "optimizer", range(3)) == (1, 2)
    assert payloads.path(P("1_10"), "optimizer", 0) == stock_trees.payload_path(save, "optimizer", 0, (1, 10))
    assert payloads.path(P("1_10"), "optimizer", 1) is None


def test_ranks_that_have_the_same_are_known_by_it(save: Path) -> None:
    """Also where their files are of other formats: a thousand ranks are not compared position by position."""
    path = stock_trees.payload_path(save, "optimizer", 1, (1, 10))
    path.rename(path.with_suffix(".ckpt" if path.suffix == ".safetensors" else ".safetensors"))
    payloads = survey.take(save).payloads

    assert payloads.of("optimizer", 0) is payloads.of("optimizer", 1)


def test_paths_of_old_positions_are_not_kept(tmp_path: Path) -> None:
    """Nor is a `meta.json` read again for each position."""
    surveyed = survey.take(large_trees.stock(tmp_path / "save", 12, 2).save)
    with pytest.MonkeyPatch.context() as patch:
        read = []
        patch.setattr(meta, "read", lambda directory: read.append(directory) or meta.Meta(None, trouble="missing"))
        verdicts = list(locate.verdicts(SaveDirectory(surveyed)))

    assert len(verdicts) == 12
    assert len(surveyed.payloads._looked_at) <= 4
    assert len(read) == len(set(read)) == 4


def test_a_name_counts_with_its_own_role_and_rank(save: Path) -> None:
    """Ranks share what they have in common, never a name that is another's."""
    before = survey.take(save).positions
    train = save / "train" / "rank_1"
    (train / "policy_model_rank_0-9_0.safetensors").touch()
    (train / "policy_model_rank_1-x_rank_1-9_0.safetensors").touch()
    (train / "ref_rank_1-9_0.ckpt").touch()

    assert survey.take(save).positions == before


def test_of_two_formats_at_one_position_the_safetensors_counts(save: Path) -> None:
    """Whichever the file system lists first."""
    path = names.payload(save, "policy", 0, P("1_0"))
    path.with_suffix(".ckpt").touch()

    assert survey.take(save).payloads[P("1_0")]["policy", 0] == path


def test_a_reference_kept_elsewhere_is_no_position(tmp_path: Path) -> None:
    """It is found for the positions that are here."""
    stock_trees.healthy(tmp_path / "save", (0, 5), (0, 10))
    stock_trees.add(tmp_path / "save", "ref", [0], (9, 0))
    (tmp_path / "save" / "ref").rename(tmp_path / "elsewhere")
    surveyed = survey.take(tmp_path / "save", tmp_path / "elsewhere")

    assert [str(p) for p in surveyed.positions] == ["0_10", "0_5"]
    assert P("9_0") in surveyed.payloads


@pytest.mark.parametrize(("make", "looked_at"), [(large_trees.ours, set()), (large_trees.stock, {P("0_12")})])
def test_paths_are_made_for_what_is_looked_at(
    make: Callable[[Path, int, int], large_trees.Tree], looked_at: set[Position], tmp_path: Path
) -> None:
    """Votes name their own files; of a stock position the listing does."""
    surveyed = survey.take(make(tmp_path / "save", 12, 2).save)
    newest = next(locate.verdicts(SaveDirectory(surveyed)))

    assert (type(newest), newest.position) == (Checkpoint, P("0_12"))
    assert surveyed.payloads._looked_at.keys() == looked_at


_CALLS = """
import json, sys
from pathlib import Path
from ms_resume import locate, verify
locate.latest(Path(sys.argv[1]), check=verify.headers)
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in ("open", "os.listdir", "os.scandir") else None)
located = locate.latest(Path(sys.argv[1]), check=verify.headers)
print(json.dumps([str(located.checkpoint.position), len(seen)]))
"""


@pytest.mark.parametrize("make", [large_trees.ours, large_trees.stock])
def test_calls_do_not_grow_with_what_is_older(
    make: Callable[[Path, int, int], large_trees.Tree], tmp_path: Path
) -> None:
    """As many directories listed and files opened among three checkpoints as among forty."""
    counted = {}
    for checkpoints in (3, 40):
        tree = make(tmp_path / str(checkpoints), checkpoints, 2)
        command = [sys.executable, "-c", _CALLS, str(tree.save)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        found, counted[checkpoints] = json.loads(ended.stdout)
        assert found == f"0_{checkpoints}"

    assert counted[3] == counted[40] > 10


def test_a_survey_is_of_one_moment(tmp_path: Path) -> None:
    """What is saved later is in the next one."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    savers.save(who, "0_5")
    surveyed = survey.take(tmp_path)
    savers.save(who, "0_6")

    assert [str(p) for p in surveyed.positions] == ["0_5"]
    assert set(surveyed.payloads) == {P("0_5")}
