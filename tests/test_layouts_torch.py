"""Checkpoints of trainers that use torch: Hugging Face's, with and without DeepSpeed; numbered files; iterations."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch_trees
from command import call

from ms_resume import layouts, locate, verify
from ms_resume.layouts import huggingface
from ms_resume.records import Checkpoint, Position, Rejection

Capture = pytest.CaptureFixture[str]


AT = Position(0, 20)


def judge(save: Path, position: Position = AT) -> Checkpoint | Rejection:
    return layouts.find(save).judge(position)


def rejected(save: Path, position: Position = AT) -> Rejection:
    judged = judge(save, position)
    assert isinstance(judged, Rejection)
    return judged


class TestHuggingFace:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        torch_trees.hugging_face(tmp_path / "out", 10, 20, ranks=(0, 1))
        return tmp_path / "out"

    def test_whole(self, save: Path) -> None:
        """What is judged by what is inside; two ranks, by their random states."""
        judged = judge(save)

        assert isinstance(judged, Checkpoint)
        assert (judged.world_size, judged.warnings) == (2, ())
        assert judged.of_rank(0).keys() == {"model", "optimizer", "scheduler", "random"}
        assert judged.of_rank(1).keys() == {"random"}

    @pytest.mark.parametrize(
        ("gone", "said", "ranks"),
        [
            ("trainer_state.json", "checkpoint-20: no trainer_state.json, which is saved last", ()),
            ("optimizer.pt", "neither global_step20 nor optimizer.pt", (0,)),
            ("scheduler.pt", "no scheduler.pt, and the Trainer loads the optimizer only with it", (0,)),
            ("model.safetensors", "no weights", (0,)),
            ("rng_state_0.pth", "no rng_state of rank 0", (0,)),
        ],
    )
    def test_without_one_of_its_files(self, save: Path, gone: str, said: str, ranks: tuple[int, ...]) -> None:
        """Torn, also where the Trainer would go on with a fresh optimizer and say nothing."""
        (save / "checkpoint-20" / gone).unlink()

        judged = rejected(save)

        assert (judged.kind, judged.ranks) == ("torn", ranks)
        assert said in judged.reason

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "model.safetensors", "rng_state_1.pth"])
    def test_a_cut_file(self, save: Path, name: str) -> None:
        path = save / "checkpoint-20" / name
        path.write_bytes(path.read_bytes()[:-10])

        judged = rejected(save)

        assert (judged.kind, judged.ranks) == ("damaged", (int("1" in name),))
        assert name in judged.reason

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", '{"global_step": 10}', '{"global_step": "20"}', '{"global_step": true}']
    )
    def test_a_state_that_says_another_step(self, save: Path, content: str) -> None:
        """Or none, or cannot be read."""
        (save / "checkpoint-20" / "trainer_state.json").write_text(content)

        assert rejected(save).kind == "damaged"

    def test_a_loss_that_is_no_number(self, save: Path) -> None:
        """What was logged says nothing about the files."""
        (save / "checkpoint-20" / "trainer_state.json").write_text(
            '{"global_step": 20, "log_history": [{"loss": NaN}]}'
        )

        assert isinstance(judge(save), Checkpoint)

    def test_a_flipped_bit_in_the_optimizer(self, save: Path, capsys: Capture) -> None:
        """`verify --deep` names the record; `locate --deep` takes the one before; without it headers are checked."""
        path = save / "checkpoint-20" / "optimizer.pt"
        content = bytearray(path.read_bytes())
        content[content.index(b"optimizer.pt of 20") + 5] ^= 1
        path.write_bytes(content)

        deep = call(capsys, "verify", save, "--deep")
        assert deep.code == 21
        assert "record 'archive/data/0': its bytes have CRC" in deep.out
        assert call(capsys, "locate", save, "--deep", "--json").json["position"] == [0, 10]
        assert call(capsys, "verify", save).code == 0

    def test_by_number_not_by_time_or_name(self, tmp_path: Path) -> None:
        """9 comes before 10, and an old one that was touched stays old."""
        torch_trees.hugging_face(tmp_path, 9, 10, 100)
        os.utime(tmp_path / "checkpoint-9")
        for name in ("checkpoint-0200", "checkpoint-300.tmp", "tmp-checkpoint-400", "checkpoint-best"):
            (tmp_path / name).mkdir()

        assert [position.step for position in layouts.find(tmp_path).positions] == [100, 10, 9]

    def test_weights_alone(self, save: Path) -> None:
        """`save_only_model`: whole, and not to be resumed from."""
        for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
            (save / "checkpoint-20" / name).unlink()

        assert rejected(save).kind == "weights only"

    def test_no_random_state_is_a_warning(self, save: Path) -> None:
        """The Trainer goes on then; of one rank only it is torn."""
        for rank in (0, 1):
            (save / "checkpoint-20" / f"rng_state_{rank}.pth").unlink()

        judged = judge(save)

        assert isinstance(judged, Checkpoint)
        assert "no rng_state: the Trainer goes on with other random numbers" in judged.warnings[0]
        assert "checkpoint-20 is of 1 ranks, checkpoint-10 of 2" in judged.warnings[1]

    def test_an_adapter(self, save: Path) -> None:
        """LoRA saves no model."""
        home = save / "checkpoint-20"
        (home / "model.safetensors").rename(home / "adapter_model.safetensors")

        judged = judge(save)

        assert isinstance(judged, Checkpoint)
        assert "adapter" in judged.of_rank(0)

    def test_sharded_weights(self, save: Path) -> None:
        """Each that the index names is there, with the tensors that it should hold."""
        home = save / "checkpoint-20"
        _shard(home)
        assert isinstance(judge(save), Checkpoint)

        index = home / "model.safetensors.index.json"
        good = index.read_text()
        index.write_text(good.replace('"norm"', '"other"'))
        assert "'other' should be in model-00002-of-00002.safetensors" in rejected(save).reason
        index.write_text(good)
        (home / "model-00002-of-00002.safetensors").unlink()
        judged = rejected(save)
        assert (judged.kind, judged.ranks) == ("torn", (1,))
        index.unlink()
        assert "model.safetensors.index.json: missing" in rejected(save).reason

    @pytest.mark.parametrize("names", ['{"w": "../../secret"}', '{"w": 3}', "[]", "{}"])
    def test_an_index_that_names_no_shard(self, save: Path, names: str) -> None:
        _shard(save / "checkpoint-20")
        (save / "checkpoint-20" / "model.safetensors.index.json").write_text(f'{{"weight_map": {names}}}')

        assert rejected(save).kind == "damaged"

    def test_fsdp_in_shards(self, save: Path) -> None:
        """Their own index is saved last."""
        home = save / "checkpoint-20"
        (home / "optimizer.pt").unlink()
        (home / "model.safetensors").unlink()
        for name in ("pytorch_model_fsdp_0", "optimizer_0"):
            (home / name).mkdir()
            (home / name / "__0_0.distcp").write_bytes(b"x")
        assert rejected(save).reason.endswith("pytorch_model_fsdp_0: no .metadata in it, which is saved last")

        for name in ("pytorch_model_fsdp_0", "optimizer_0"):
            (home / name / ".metadata").write_bytes(b"x")
        assert isinstance(judge(save), Checkpoint)


def _shard(home: Path) -> None:
    (home / "model.safetensors").unlink()
    names = {"w": "model-00001-of-00002.safetensors", "norm": "model-00002-of-00002.safetensors"}
    for tensor, name in names.items():
        torch_trees.write_safetensors(home / name, {tensor: b"12"})
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


class TestDeepSpeed:
    @pytest.fixture(params=["ZeRO 3", "ZeRO 2"])
    def save(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        (torch_trees.zero3 if request.param == "ZeRO 3" else torch_trees.zero2)(tmp_path / "out", 10, 20)
        return tmp_path / "out"

    def test_whole(self, save: Path) -> None:
        judged = judge(save)

        assert isinstance(judged, Checkpoint)
        assert judged.world_size == 2
        assert all("zero_optimizer" in judged.of_rank(rank) for rank in (0, 1))

    def test_without_global_step(self, save: Path) -> None:
        """Its traces beside it say that there was one, or whoever knows that DeepSpeed is used."""
        home = save / "checkpoint-20"
        shutil.rmtree(home / "global_step20")
        assert rejected(save).reason == "checkpoint-20: no global_step20, and latest is there, so DeepSpeed was used"

        (home / "latest").unlink()
        torch_trees.write_torch(home / "optimizer.pt", b"1")
        assert isinstance(judge(save), Checkpoint)
        known = huggingface.take(save, uses_deepspeed=True).judge(Position(0, 20))
        assert isinstance(known, Rejection)
        assert known.reason == "checkpoint-20: no global_step20, and DeepSpeed is used"

    def test_another_steps_directory(self, save: Path) -> None:
        """A directory that was copied or renamed."""
        (save / "checkpoint-20" / "global_step20").rename(save / "checkpoint-20" / "global_step10")

        assert "no global_step20, and global_step10 is there" in rejected(save).reason

    def test_empty(self, save: Path) -> None:
        """There, and not whole."""
        for path in (save / "checkpoint-20" / "global_step20").iterdir():
            path.unlink()

        judged = rejected(save)

        assert (judged.kind, judged.ranks) == ("torn", (0, 1))
        assert "global_step20: no model states in it" in judged.reason

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_without_its_optimizer(self, save: Path, rank: int) -> None:
        (save / f"checkpoint-20/global_step20/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()

        judged = rejected(save)

        assert (judged.kind, judged.ranks) == ("torn", (rank,))
        assert f"no optimizer states of rank {rank}" in judged.reason

    @pytest.mark.parametrize("said", [None, "", "global_step10"])
    def test_latest_is_what_deepspeed_loads(self, save: Path, said: str | None) -> None:
        """A warning, with what to write."""
        path = save / "checkpoint-20" / "latest"
        if said is None:
            path.unlink()
        else:
            path.write_text(said)

        judged = judge(save)

        assert isinstance(judged, Checkpoint)
        assert "DeepSpeed would not load global_step20; write its name into it" in judged.warnings[0]

    def test_a_model_in_parts(self, tmp_path: Path) -> None:
        """Two model ranks of two data ranks each."""
        torch_trees.hugging_face(tmp_path, 20, ranks=range(4))
        home = tmp_path / "checkpoint-20" / "global_step20"
        for model in (0, 1):
            torch_trees.write_torch(home / f"mp_rank_0{model}_model_states.pt", b"1")
            for data in (0, 1):
                torch_trees.write_torch(home / f"zero_pp_rank_{data}_mp_rank_0{model}_optim_states.pt", b"1")
        judged = judge(tmp_path)
        assert isinstance(judged, Checkpoint)
        assert judged.world_size == 4
        assert judged.of_rank(3)["zero_optimizer"].name == "zero_pp_rank_1_mp_rank_01_optim_states.pt"

        (home / "mp_rank_01_model_states.pt").unlink()
        assert rejected(tmp_path).ranks == (1, 3)


class TestNumbered:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        for step in (500, 1000, 100000):
            torch_trees.write_torch(tmp_path / "log" / f"model_{step:05d}.pt", b"1")
        (tmp_path / "log" / "latest_checkpoint.pt").symlink_to("model_100000.pt")
        return tmp_path

    def link(self, save: Path, target: str) -> None:
        (save / "log" / "latest_checkpoint.pt").unlink()
        (save / "log" / "latest_checkpoint.pt").symlink_to(target)

    def test_by_number(self, save: Path) -> None:
        """Five digits, or more; what has a file's name besides is nothing."""
        for name in ("model_01500.pt.tmp", "model_1500.pt", "model_000500.pt", "model_x.pt", "model_00500.pth"):
            (save / "log" / name).touch()

        assert [position.step for position in layouts.find(save).positions] == [100000, 1000, 500]
        assert locate.newest(layouts.find(save)).warnings == ()

    @pytest.mark.parametrize("target", ["model_00500.pt", "/elsewhere/model_100000.pt", "../model_100000.pt"])
    def test_a_stale_link(self, save: Path, target: str) -> None:
        """The newest by number counts, and it is said why the link does not, nor the time."""
        self.link(save, target)

        located = locate.newest(layouts.find(save))

        assert located.checkpoint is not None
        assert located.checkpoint.position == Position(0, 100000)
        assert f"latest_checkpoint.pt: names {target}, the newest whole file is model_100000.pt" in located.warnings[0]
        assert "by number counts, not by time" in located.warnings[0]

    @pytest.mark.parametrize("target", ["model_100000.pt", "./model_100000.pt", "{root}/log/model_100000.pt"])
    def test_ways_to_name_the_newest(self, save: Path, target: str) -> None:
        self.link(save, target.format(root=save))

        assert locate.newest(layouts.find(save)).warnings == ()

    def test_a_dangling_link(self, save: Path, capsys: Capture) -> None:
        """What it names is torn, the scan finds the next."""
        (save / "log" / "model_100000.pt").unlink()

        called = call(capsys, "locate", save, "--json")

        assert called.json["position"] == [0, 1000]
        assert [row["kind"] for row in called.json["rejected"]] == ["torn"]
        assert "latest_checkpoint.pt names it; the newest by number counts" in called.json["rejected"][0]["reason"]
        assert "names model_100000.pt, the newest whole file is model_01000.pt" in called.json["warnings"][0]

    def test_no_link(self, save: Path) -> None:
        """Without links, or before the first was made: the trainer itself would look at times."""
        (save / "log" / "latest_checkpoint.pt").unlink()

        assert "latest_checkpoint.pt: no link" in locate.newest(layouts.find(save)).warnings[0]

    def test_times_mean_nothing(self, save: Path) -> None:
        os.utime(save / "log" / "model_00500.pt")
        os.utime(save / "log" / "model_100000.pt", (0, 0))

        assert locate.newest(layouts.find(save)).checkpoint.position.step == 100000  # type: ignore[union-attr]

    def test_the_log_directory_itself(self, save: Path) -> None:
        assert layouts.find(save / "log").positions == layouts.find(save).positions


class TestIterations:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        for number in (0, 2, 10):
            torch_trees.write_safetensors(tmp_path / f"iter_{number}" / "model.safetensors", {"w": b"1"})
            (tmp_path / f"iter_{number}" / "config.json").write_text("{}")
        return tmp_path

    def test_complete(self, save: Path) -> None:
        """By number; they are weights alone."""
        assert layouts.find(save).positions == [Position(10, 0), Position(2, 0), Position(0, 0)]
        assert {rejected(save, p).kind for p in layouts.find(save).positions} == {"weights only"}

    def test_not_complete(self, save: Path) -> None:
        (save / "iter_10" / "model.safetensors").unlink()

        assert (rejected(save, Position(10, 0)).kind, rejected(save, Position(2, 0)).kind) == ("torn", "weights only")

    def test_without_config(self, save: Path) -> None:
        """Complete all the same: it can be written from the model's own."""
        (save / "iter_2" / "config.json").unlink()

        judged = rejected(save, Position(2, 0))

        assert judged.kind == "weights only"
        assert "without config.json" in judged.reason

    def test_base_model_is_iteration_0(self, tmp_path: Path, save: Path) -> None:
        """Where there is no iter_0; also inside of an iteration."""
        shutil.copytree(save / "iter_2", save / "base_model")
        (save / "base_model" / "model.safetensors").write_bytes(b"")
        assert rejected(save, Position(0, 0)).kind == "weights only"

        shutil.rmtree(save / "iter_0")
        assert rejected(save, Position(0, 0)).kind == "damaged"
        (save / "iter_2").rename(save / "moved")
        (save / "moved").rename(_made(save / "iter_2") / "base_model")
        assert rejected(save, Position(2, 0)).kind == "weights only"

    def test_a_link_to_a_base_model_elsewhere(self, save: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Is not looked into."""
        shutil.rmtree(save / "iter_0")
        (save / "base_model").symlink_to(tmp_path_factory.mktemp("elsewhere"))

        assert layouts.find(save).positions == [Position(10, 0), Position(2, 0)]

    def test_beside_trainer_checkpoints(self, save: Path, capsys: Capture) -> None:
        """Two kinds, kept apart: `--layout` says which."""
        torch_trees.hugging_face(save, 20)

        assert "holds more than one kind" in call(capsys, "ls", save).err
        assert call(capsys, "locate", save, "--layout", "huggingface-trainer", "--json").json["position"] == [0, 20]
        assert "weights only" in call(capsys, "ls", save, "--layout", "iterations").out

    @pytest.mark.parametrize("own", ["train", "commits"])
    def test_in_a_save_directory(self, save: Path, own: str) -> None:
        """They are not what it holds, and are shown when asked for."""
        (save / own).mkdir()

        assert layouts.find(save).NAME == "mindrlhf"
        assert layouts.stranger(save) is None
        assert len(layouts.find(save, layout="iterations").positions) == 3


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


Harm = Callable[[Path], object]


def test_every_file_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    """One bit in the middle of any of them is found: but in safetensors, which have no digests."""
    torch_trees.zero3(tmp_path, 20)
    found = huggingface.take(tmp_path).judge(Position(0, 20))
    assert isinstance(found, Checkpoint)
    assert len(found.files) == 8
    for file in found.files:
        if file.path.suffix == ".safetensors":
            continue
        whole = file.path.read_bytes()
        at = whole.index(b" of 20 ") + 100
        file.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

        findings = verify.check(found, deep=True)

        assert [(one.path, one.rank, one.role) for one in findings] == [(str(file.path), file.rank, file.role)]
        file.path.write_bytes(whole)
    assert verify.check(found, deep=True) == []
