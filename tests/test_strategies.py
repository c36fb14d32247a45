"""Strategy templates: their numbers multiply to the world size, a file that contradicts itself is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ms_resume import strategies
from ms_resume.errors import LayoutMismatch, UsageError

TEMPLATES = {  # world size, and the actor's data, tensor, pipeline, expert split
    "deepseek_v3_w512_dp4_tp8_pp16_ep32": (512, 4, 8, 16, 32),
    "grpo_arithmetic_w2_dp2_tp1_pp1": (2, 2, 1, 1, 1),
    "qwen2_5_32b_w32_dp1_tp8_pp4": (32, 1, 8, 4, 1),
    "qwen2_5_7b_w8_dp1_tp4_pp2": (8, 1, 4, 2, 1),
}
SOUND = "world_size: 8\nactor: {data_parallel: 1, model_parallel: 4, pipeline_stage: 2, micro_batch_num: 2}\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_names_lists_every_template():
    """A new template needs a row above, which is where its numbers are read a second time."""
    assert strategies.names() == sorted(TEMPLATES)


@pytest.mark.parametrize(("name", "numbers"), TEMPLATES.items())
def test_template_says_its_numbers_twice(name: str, numbers: tuple[int, ...]):
    """In the name, all of w, dp, tp, pp; inside, the same; and each net's product is the world size."""
    strategy = strategies.load(name)
    actor = strategy.actor
    inside = (
        strategy.world_size,
        actor.data_parallel,
        actor.model_parallel,
        actor.pipeline_stage,
        actor.expert_parallel,
    )

    assert inside == numbers
    tags = zip(("w", "dp", "tp", "pp", "ep"), numbers, strict=True)
    wanted = "_".join(f"{tag}{number}" for tag, number in tags if (tag, number) != ("ep", 1))
    assert name.endswith(f"_{wanted}")
    for cut in (strategy.actor, strategy.ref, strategy.generate):
        if cut is not None:
            assert (
                cut.data_parallel * cut.model_parallel * cut.pipeline_stage * cut.context_parallel
                == strategy.world_size
            )


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_gives_reasons(name: str):
    """A number without its reason is copied, not chosen."""
    (place,) = [path for path in strategies._PLACES if path.is_dir()]

    assert (place / f"{name}.yaml").read_text().count("#") >= 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("world_size: 8", "world_size: 16", "actor is dp1 x tp4 x pp2 x cp1 = 8 ranks, world_size is 16"),
        ("world_size: 8", "world_sise: 8", "unknown key 'world_sise'"),
        ("world_size: 8", "", "world_size is None, expected a whole number"),
        ("world_size: 8", "world_size: true", "world_size is True, expected a whole number"),
        ("model_parallel: 4", "tensor_parallel: 4", "unknown key 'tensor_parallel'"),
        ("model_parallel: 4, ", "", "actor lacks model_parallel"),
        ("model_parallel: 4", "model_parallel: '4'", "actor.model_parallel is '4', expected a whole number"),
        ("micro_batch_num: 2", "micro_batch_num: 0", "micro_batch_num is 0, expected a whole number from 1"),
        ("micro_batch_num: 2", "micro_batch_num: 1", "actor has micro_batch_num 1 for 2 stages"),
        ("micro_batch_num: 2", "expert_parallel: 3, micro_batch_num: 2", "parallel 3, 4 ranks a stage"),
        ("micro_batch_num: 2", "micro_batch_num: 2, use_seq_parallel: 1", "is 1, expected true or false"),
        ("actor:", "ref:", "has no section 'actor'"),
        ("actor: {", "actor: 8 # {", "the section is int, expected keys"),
        ("actor: {", "actor: {{", "is not YAML"),
        ("actor:", "ref: {data_parallel: 4, model_parallel: 1, pipeline_stage: 1}\nactor:", "ref is dp4"),
        ("micro_batch_num: 2", "context_parallel: 2, micro_batch_num: 2", "x cp2 = 16 ranks"),
    ],
)  # fmt: skip
def test_refused(write, old: str, new: str, message: str):
    """Each row: one change to a sound file, and what the error says was found."""
    assert strategies.load(write(SOUND)).world_size == 8
    broken = write(SOUND.replace(old, new), "broken.yaml")

    with pytest.raises(UsageError) as caught:
        strategies.load(broken)

    assert message in str(caught.value)
    assert str(broken) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["m_w16_dp1_tp4_pp2", "m_w8_dp2", "m_w8_tp8", "m_pp4", "m_cp2", "m_w8_ep2"])
def test_file_name_disagrees(write, name: str):
    """Any number in the name counts, also in a user's own file."""
    with pytest.raises(UsageError, match=r"the name says .*, inside it is"):
        strategies.load(write(SOUND, f"{name}.yaml"))


@pytest.mark.parametrize("name", ["m_w8_dp1_tp4_pp2_cp1_ep1", "wide_dps4", "plain", "my_w9th_try"])
def test_file_name_agrees(write, name: str):
    """Only whole tags are numbers."""
    assert strategies.load(write(SOUND, f"{name}.yaml")).name == name


def test_misspelt_name_gets_the_nearest():
    with pytest.raises(UsageError, match="did you mean qwen2_5_7b_w8_dp1_tp4_pp2") as caught:
        strategies.load("qwen2_5_7b_w8")

    assert caught.value.exit_code == 2


def test_missing_file(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.yaml: No such file"):
        strategies.load(tmp_path / "gone.yaml")


def test_check():
    """The number of workers decides, and the message names both."""
    strategy = strategies.load("qwen2_5_7b_w8_dp1_tp4_pp2")
    strategies.check(strategy, 8)

    with pytest.raises(LayoutMismatch, match=r"is for 8 ranks .*, this job has 4") as caught:
        strategies.check(strategy, 4)

    assert caught.value.exit_code == 31
    assert "WORKERS=8" in caught.value.hint


def test_parallel_configs_are_mindrlhf_sections():
    """Nets that a template does not say are left to the trainer's configuration."""
    configs = strategies.load("qwen2_5_32b_w32_dp1_tp8_pp4").parallel_configs()

    assert sorted(configs) == ["actor_config", "generate_config"]
    assert configs["actor_config"]["model_parallel"] == 8


@pytest.mark.parametrize(
    ("name", "workers", "code"),
    [("grpo_arithmetic_w2_dp2_tp1_pp1", "2", 0), ("no_such", "2", 2), ("qwen2_5_7b_w8_dp1_tp4_pp2", "2", 31)],
)
def test_command(name: str, workers: str, code: int):
    """What the launch script calls; everything wrong is on stderr."""
    command = [sys.executable, "-m", "ms_resume.strategies", "check", name, "--workers", workers]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(strategies.__file__).parents[1], check=False
    )

    assert ended.returncode == code
    assert bool(ended.stdout) == (code == 0)
    assert bool(ended.stderr) == (code != 0)
