"""Each layout says of a position that it is whole, or why not; what is not read is called by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import own_trees
import pytest
import stock_trees
from runs import tiny_run

from ms_resume import layouts
from ms_resume.layouts import mindrlhf, ours, survey
from ms_resume.records import Checkpoint, Position, Rejection


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """A finished run of two ranks, whole at 0_5 and 1_0."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


def judge(save: Path, at: str) -> Checkpoint | Rejection:
    return layouts.judge(survey.take(save), Position.parse(at))


def rejection(save: Path, at: str) -> Rejection:
    judged = judge(save, at)
    assert isinstance(judged, Rejection)
    return judged


class TestOurs:
    """By votes alone, and the sizes they name."""

    def test_whole(self, save: Path) -> None:
        """Two votes, eight files; a reference that did not change is that of an older position."""
        judged = judge(save, "1_0")

        assert isinstance(judged, Checkpoint)
        assert (judged.layout, judged.world_size, judged.warnings) == ("ms_resume", 2, ())
        assert judged.of_rank(1) == {
            "policy": own_trees.payload_path(save, "1_0", 1, "policy"),
            "optimizer": own_trees.payload_path(save, "1_0", 1, "optimizer"),
            "ref": own_trees.payload_path(save, "0_5", 1, "ref"),
            "state": own_trees.payload_path(save, "1_0", 1, "state"),
        }

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_missing_vote_is_torn(self, save: Path, rank: int) -> None:
        """Killed after its payloads and before its vote: the rank is named."""
        own_trees.vote_path(save, "1_0", rank).unlink()

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("torn", (rank,))
        assert f"no vote of rank {rank} (of 2 ranks" in judged.reason

    def test_no_vote_at_all_is_torn(self, save: Path) -> None:
        """Payloads alone are no checkpoint, and no stock checkpoint either: they carry our mark."""
        for rank in (0, 1):
            own_trees.vote_path(save, "1_0", rank).unlink()
        assert rejection(save, "1_0").kind == "torn"

        own_trees.vote_path(save, "1_0", 0).parent.rmdir()
        judged = rejection(save, "1_0")
        assert (judged.kind, judged.reason) == ("torn", "payloads of rank 0, 1 without a vote")

    @pytest.mark.parametrize("role", ["policy", "optimizer", "state"])
    def test_a_missing_payload_is_torn(self, save: Path, role: str) -> None:
        """The vote names it: its path is in the reason."""
        path = own_trees.payload_path(save, "1_0", 1, role)
        path.unlink()

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("torn", (1,))
        assert path.name in judged.reason

    def test_a_reference_that_a_later_vote_names_tears_both(self, save: Path) -> None:
        """It lies at 0_5; 1_0 names it."""
        own_trees.payload_path(save, "0_5", 0, "ref").unlink()

        assert {rejection(save, at).kind for at in ("0_5", "1_0")} == {"torn"}

    @pytest.mark.parametrize("cut", [slice(0), slice(100), slice(-1), None])
    def test_another_size_is_damaged(self, save: Path, cut: slice | None) -> None:
        """Cut or grown; both sizes are in the reason."""
        path = own_trees.payload_path(save, "1_0", 1, "optimizer")
        whole = path.read_bytes()
        path.write_bytes(whole[cut] if cut else whole + b"\0")

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("damaged", (1,))
        assert f"{path.stat().st_size} bytes, the vote says {len(whole)}" in judged.reason

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b'{"format": "ms_resume/1"}', b"\xff"])
    def test_a_damaged_vote_is_no_vote(self, save: Path, content: bytes) -> None:
        """Torn, and the reason shows the file that cannot be read."""
        own_trees.vote_path(save, "1_0", 1).write_bytes(content)

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("torn", (1,))
        assert "commits/1_0/rank_1.json" in judged.reason

    @pytest.mark.parametrize("key", ["global_step", "steps_per_epoch", "epoch", "world_size"])
    def test_a_number_that_has_changed_is_seen(self, save: Path, key: str) -> None:
        """One digit: the vote would be one like any other."""
        path = own_trees.vote_path(save, "1_0", 1)
        said = json.loads(path.read_bytes())[key]
        text = path.read_text()
        path.write_text(text.replace(f'"{key}": {said}', f'"{key}": {said + 1}', 1))
        assert path.read_text() != text

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("torn", (1,))
        assert "commits/1_0/rank_1.json: not a vote (ValueError('its bytes have digest" in judged.reason

    def test_a_vote_from_before_there_were_digests(self, save: Path) -> None:
        """Is one as it stands."""
        path = own_trees.vote_path(save, "1_0", 1)
        document = json.loads(path.read_bytes())
        path.write_text(json.dumps({key: value for key, value in document.items() if key != "digest"}))

        assert isinstance(judge(save, "1_0"), Checkpoint)

    def test_a_vote_of_a_later_format_is_not_guessed_at(self, save: Path) -> None:
        """The reason names both formats."""
        own_trees.edit_vote(save, "1_0", 0, lambda vote: vote.update(format="ms_resume/2"))

        assert "format 'ms_resume/2', this version reads 'ms_resume/1'" in rejection(save, "1_0").reason

    def test_a_vote_may_say_more_than_is_known(self, save: Path) -> None:
        """A later version adds keys."""
        own_trees.edit_vote(save, "1_0", 0, lambda vote: vote.update(colour="blue"))

        assert isinstance(judge(save, "1_0"), Checkpoint)

    @pytest.mark.parametrize("change", [{"rank": 0}, {"step": 5}, {"epoch": 2}])
    def test_a_vote_in_the_wrong_place_is_none(self, save: Path, change: dict[str, int]) -> None:
        """Copied from another rank or position."""
        own_trees.edit_vote(save, "1_0", 1, lambda vote: vote.update(change))

        assert rejection(save, "1_0").ranks == (1,)

    @pytest.mark.parametrize("path", ["/etc/passwd", "../other/train/rank_1/x.safetensors"])
    def test_a_vote_cannot_name_files_outside(self, save: Path, path: str) -> None:
        """Whoever can write a vote must not reach files beyond the save directory."""
        own_trees.edit_vote(save, "1_0", 1, lambda vote: vote["files"][0].update(path=path))

        assert "outside the save directory" in rejection(save, "1_0").reason

    def test_votes_of_another_attempt_do_not_complete_it(self, save: Path) -> None:
        """One rank of an older life, one of this: torn, by the rank that is missing from the live one."""
        old = "000000-0123456789abcdef"
        own_trees.edit_vote(save, "1_0", 1, lambda vote: vote.update(attempt=old))

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("torn", (1,))

    def test_votes_of_more_ranks_than_there_are_now_are_ignored(self, save: Path) -> None:
        """A rank of a larger, older world beside a whole checkpoint is a warning."""
        stranger = own_trees.vote_path(save, "1_0", 2)
        stranger.write_bytes(own_trees.vote_path(save, "1_0", 1).read_bytes().replace(b"rank_1", b"rank_2"))
        own_trees.edit_vote(save, "1_0", 2, lambda vote: vote.update(rank=2, world_size=3))

        judged = judge(save, "1_0")

        assert isinstance(judged, Checkpoint)
        assert "votes that belong to another save are ignored: rank 2" in judged.warnings[0]

    def test_a_vote_of_a_rank_that_the_job_did_not_have_is_ignored(self, save: Path) -> None:
        """Rank 2 of 2: what it names is no part of the checkpoint."""
        own_trees.vote_path(save, "1_0", 2).write_bytes(own_trees.vote_path(save, "1_0", 1).read_bytes())
        own_trees.edit_vote(save, "1_0", 2, lambda vote: vote.update(rank=2))

        judged = judge(save, "1_0")

        assert isinstance(judged, Checkpoint)
        assert ([vote.rank for vote in judged.votes], {file.rank for file in judged.files}) == ([0, 1], {0, 1})

    def test_temp_files_and_backups_are_nothing(self, save: Path) -> None:
        """Names that only look like checkpoints make no position and hide none."""
        before = survey.take(save).positions
        train = save / "train" / "rank_0"
        for name in (
            ".policy_model_rank_0-9_0.safetensors.000001-0123456789abcdef.part",
            "policy_model_rank_0-9_0.safetensors.superseded-000001-0123456789abcdef",
            "policy_model_rank_0-9_0.safetensors.tmp-old",
            "policy_model_rank_1-9_0.safetensors",
            "optimizer_rank_0-9_0.safetensors",
        ):
            (train / name).write_bytes(b"x")
        for name in ("9_0.tmp-old", "9_0.deleted-000001-0123456789abcdef", "step-9_0"):
            (save / "commits" / name).mkdir()
        (save / "train" / "rank_0.bak").mkdir()

        assert survey.take(save).positions == before

    def test_an_attempt_that_was_left_behind_is_abandoned(self, save: Path) -> None:
        """Going back is one record: what the newest attempt does not descend from is dead."""
        tiny_run(save, stop=(0, 3), start={"allow_fresh_start": True}).ok()

        judged = rejection(save, "1_0")

        assert (judged.kind, judged.ranks) == ("abandoned", ())
        assert "was left behind: attempt 000002-" in judged.reason

    def test_without_attempt_records_nothing_is_live(self, save: Path) -> None:
        """Votes whose attempt is unknown are not resumed from: the reason says where its record should be."""
        shutil.rmtree(save / "commits" / "attempts")

        assert "has no record in commits/attempts" in rejection(save, "1_0").reason


class TestSideBySide:
    """Ours and stock's in one directory: each position is judged by those who made it."""

    def test_a_stock_position_beside_ours(self, save: Path) -> None:
        """A stock job went on from ours."""
        stock_trees.healthy(save, (1, 5))

        assert isinstance(judge(save, "1_5"), Checkpoint)
        found = {str(p): judge(save, str(p)) for p in survey.take(save).positions}
        assert {at: getattr(judged, "layout", None) for at, judged in found.items()} == {
            "1_5": "mindrlhf",
            "1_0": "ms_resume",
            "0_5": "ms_resume",
        }

    def test_our_mark_on_one_rank_makes_it_ours(self, save: Path) -> None:
        """Torn by our rules, although every file of stock's set is there."""
        shutil.rmtree(save / "commits" / "1_0")
        for rank in (0, 1):
            path = own_trees.payload_path(save, "1_0", rank, "optimizer")
            path.unlink()
            stock_trees.add(save, "optimizer", [rank], (1, 0))
            stock_trees.add(save, "ref", [rank], (1, 0))

        assert (rejection(save, "1_0").kind, ours.claims(survey.take(save), Position(1, 0))) == ("torn", True)

    def test_stock_positions_that_an_attempt_went_back_past_stay_dead(self, save: Path) -> None:
        """Until their files change."""
        stock_trees.healthy(save, (1, 5))
        tiny_run(save, stop=(0, 3), start={"allow_fresh_start": True}).ok()
        assert rejection(save, "1_5").kind == "abandoned"

        for rank in (0, 1):
            path = stock_trees.payload_path(save, "policy", rank, (1, 5))
            path.unlink()
            stock_trees.add(save, "policy", [rank], (1, 5))
        assert isinstance(judge(save, "1_5"), Checkpoint)


class TestMindrlhf:
    """By names, and by what is inside, because stock code has no commit."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        stock_trees.healthy(tmp_path / "save", (0, 5), (0, 10))
        return tmp_path / "save"

    def test_whole(self, save: Path) -> None:
        """No votes, no attempt."""
        judged = judge(save, "0_10")

        assert isinstance(judged, Checkpoint)
        assert (judged.layout, judged.world_size, judged.attempt, judged.votes) == ("mindrlhf", 2, None, ())

    @pytest.mark.parametrize("role", ["policy", "optimizer"])
    def test_a_missing_file_is_torn(self, save: Path, role: str) -> None:
        """The reason says what that rank has instead."""
        stock_trees.payload_path(save, role, 1, (0, 10)).unlink()

        judged = rejection(save, "0_10")

        assert (judged.kind, judged.reason, judged.ranks) == ("torn", f"{role}: rank 1 has 0_5", (1,))

    def test_an_older_reference_is_taken_and_said(self, save: Path) -> None:
        """Stock code does not save it at the end, and it does not change by itself."""
        stock_trees.payload_path(save, "ref", 1, (0, 10)).unlink()

        judged = judge(save, "0_10")

        assert isinstance(judged, Checkpoint)
        assert judged.of_rank(0)["ref"] == stock_trees.payload_path(save, "ref", 0, (0, 5))
        assert "0_10: the reference is that of 0_5" in judged.warnings

    def test_no_reference_is_torn(self, save: Path) -> None:
        """It has to be somewhere."""
        shutil.rmtree(save / "ref")

        assert rejection(save, "0_10").reason == "no ref directory"

    def test_a_reference_elsewhere(self, save: Path, tmp_path: Path) -> None:
        """--ref_checkpoint_path may point outside the save directory."""
        shutil.move(save / "ref", tmp_path / "elsewhere")

        judged = layouts.judge(survey.take(save, tmp_path / "elsewhere"), Position(0, 10))

        assert isinstance(judged, Checkpoint)
        assert judged.of_rank(1)["ref"].parent == tmp_path / "elsewhere" / "rank_1"

    @pytest.mark.parametrize("role", ["policy", "optimizer", "ref"])
    def test_a_cut_file_is_damaged(self, save: Path, role: str) -> None:
        """Of any role: each is whole in itself, or the position is not."""
        path = stock_trees.payload_path(save, role, 1, (0, 10))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])

        judged = rejection(save, "0_10")

        assert (judged.kind, judged.ranks) == ("damaged", (1,))
        assert path.name in judged.reason

    def test_a_renamed_file_is_damaged(self, save: Path) -> None:
        """The position inside the policy file is the one that counts."""
        path = stock_trees.payload_path(save, "policy", 0, (0, 10))
        path.unlink()
        stock_trees.payload_path(save, "policy", 0, (0, 5)).rename(path)

        assert "its name says 0_10, the position inside is 0_5" in rejection(save, "0_10").reason

    def test_an_optimizer_without_the_weights_is_damaged(self, save: Path) -> None:
        """Stock code would fill them with the moments, by name suffix, without a word."""
        _without(stock_trees.payload_path(save, "optimizer", 0, (0, 10)), "model.w")

        assert "moments without their weight, first 'model.w'" in rejection(save, "0_10").reason

    def test_a_policy_without_its_position_is_damaged(self, save: Path) -> None:
        """It is saved last, so a file without it was cut."""
        _without(stock_trees.payload_path(save, "policy", 0, (0, 10)), "step_num")

        assert "no step_num in it" in rejection(save, "0_10").reason

    def test_an_optimizer_of_another_model_is_damaged(self, save: Path) -> None:
        """It holds no moment of any weight of the policy."""
        path = stock_trees.payload_path(save, "optimizer", 0, (0, 10))
        _without(path, *(f"{kind}.model.{name}" for kind in ("adam_m", "adam_v") for name in ("w", "norm")))

        assert "holds no moment of any of the policy's 2 weights" in rejection(save, "0_10").reason

    def test_world_size_is_the_ranks_on_disk(self, tmp_path: Path) -> None:
        """Four ranks are four, whatever is missing of the last."""
        stock_trees.healthy(tmp_path / "four", (0, 5), ranks=range(4))
        stock_trees.payload_path(tmp_path / "four", "policy", 3, (0, 5)).unlink()

        assert rejection(tmp_path / "four", "0_5").ranks == (3,)

    def test_claims_what_has_files(self, save: Path) -> None:
        """And nothing else."""
        surveyed = survey.take(save)

        assert mindrlhf.claims(surveyed, Position(0, 10))
        assert not mindrlhf.claims(surveyed, Position(7, 7))


FOREIGN: list[tuple[str, list[str]]] = [
    ("mindformers-1.0 checkpoints", ["checkpoint/rank_0/llama_7b_rank_0-3_2.ckpt"]),
    ("mindformers-1.0 checkpoints", ["rank_0/llama_7b_rank_0_1-9_2.ckpt", "rank_0/meta.json"]),
    ("mindformers-1.0 checkpoints", ["rank_0/my-model_rank_0-3_2.safetensors"]),
    ("mindspeed-ms checkpoints", ["rank_0/network_rank_0_100.ckpt"]),
    ("mindformers-2 checkpoints", ["iteration_00000010/common.json", "latest_checkpointed_iteration.txt"]),
    ("mindformers-2 checkpoints", ["checkpoint/iteration_00000010/common.json"]),
    ("mindio-ttp checkpoints", ["ttp_saved_checkpoints-step_12/rank_0/meta.json"]),
    ("huggingface-trainer checkpoints", ["checkpoint-500/trainer_state.json"]),
    ("a Hugging Face Trainer checkpoint", ["trainer_state.json", "model.safetensors"]),
    ("numbered checkpoints", ["log/model_00500.pt"]),
    ("a Hugging Face model", ["config.json", "model-00001-of-00002.safetensors"]),
    ("mindrlhf-0.4.0 checkpoints", ["train/rank_0/policy_model_epoch_10.ckpt"]),
    ("only the optimizer directory of a save directory", ["rank_0/optimizer_rank_0-0_5.safetensors"]),
    ("only the ref directory of a save directory", ["rank_1/ref_rank_1-0_5.ckpt", "rank_1/meta.json"]),
    ("only the state directory of a save directory", ["rank_0/state_rank_0-0_5.safetensors"]),
    ("the files of one rank", ["policy_model_rank_0-0_5.safetensors", "meta.json"]),
    ("MindRLHF's train directory without its optimizer", ["rank_0/policy_model_rank_0-0_5.safetensors"]),
]  # fmt: skip  # one table


@pytest.mark.parametrize(("layout", "files"), FOREIGN, ids=lambda v: v if isinstance(v, str) else v[0])
def test_other_layouts_are_called_by_their_name(layout: str, files: list[str], tmp_path: Path) -> None:
    """With a file that shows it, relative to the directory, and what to do."""
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    seen = layouts.stranger(tmp_path)

    assert seen is not None
    assert seen.layout == layout
    assert (tmp_path / seen.evidence).exists()
    assert not seen.evidence.is_absolute()
    assert seen.advice


def _iterations(save: Path) -> None:
    for name in ("iter_2", "base_model"):
        (save / name).mkdir(parents=True)
        (save / name / "model.safetensors").touch()


@pytest.mark.parametrize("build", [lambda save: save.mkdir(), stock_trees.f1, stock_trees.f6b, _iterations])
def test_a_save_directory_is_no_other_layout(build: Callable[[Path], None], tmp_path: Path) -> None:
    """Empty, healthy, broken, or with nothing but iteration models, beside which a run saves."""
    build(tmp_path / "save")

    assert layouts.stranger(tmp_path / "save") is None


def _without(path: Path, *names: str) -> None:
    """Saves a stock file anew without some of its tensors."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    path.unlink()
    save_file({name: tensor for name, tensor in tensors.items() if name not in names}, path)
