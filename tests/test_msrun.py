"""The real trainer under the real msrun: kills, resumes, and comparisons, two ranks on a CPU.

One undisturbed run and its base model serve all tests here and in `test_supervisor_msrun.py`; each launch takes 15 to
20 s on two cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msrun_demo
import pytest
from msrun_demo import CONFIG, EXAMPLE, TOP, environment

from ms_resume import locate, verify
from ms_resume.ondisk import names

pytestmark = [
    pytest.mark.msrun,
    pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"),
]


def main_alone(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The trainer as one process, without msrun."""
    command = [sys.executable, str(EXAMPLE / "main.py"), "--config", str(CONFIG), *arguments]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(demo):
    """The undisturbed run's save directory. Nobody may write there."""
    return demo[0] / "a"


def test_demo_ends_in_yes(demo):
    """Both kills are proven, and every tensor and logged number is the same."""
    _, run = demo

    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert re.fullmatch(r"resumed run equals uninterrupted run: yes \(\d{3} tensors, 0 differ\)", last)
    assert "it left optimizer/rank_1/.optimizer_rank_1-0_6.safetensors." in run.stdout
    assert "commits/0_6/rank_1.json is missing" in run.stdout
    assert "rank 0 was killed in step 1_2" in run.stdout
    assert "passed over 0_6: torn: no vote of rank 1" in run.stdout


def test_demo_with_a_state_left_out_ends_in_no(demo, tmp_path):
    """A resume without the sampling noise is found out: the comparison can fail."""
    run = msrun_demo.run(tmp_path, "--reuse", str(demo[0]), "--break", "rng")

    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"equals uninterrupted run: no \(\d+ tensors, [1-9]\d* differ\)$", run.stdout.strip())


def test_random_kills_leave_no_trace(demo, tmp_path):
    """Five times a random worker dies at a random time; the end is that of the run that nobody disturbed.

    That is a twentieth of what `make exact` does under msrun.
    """
    sizes = ["--config", str(CONFIG), "--kills", "5", "--most_steps", "4"]
    command = [
        sys.executable,
        str(EXAMPLE / "random_kills.py"),
        "--reuse",
        str(demo[0]),
        "--output",
        str(tmp_path / "o"),
    ]
    run = subprocess.run([*command, *sizes], env=environment(), capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"run with 5 kills equals uninterrupted run: yes \(\d{3} tensors, 0 differ\)", run.stdout)
    assert run.stdout.count("killed") >= 5
    [(generated, given_back)] = re.findall(r"rollouts: (\d+) generated, (\d+) given back", run.stdout)
    assert int(given_back) >= 0 < int(generated)


def test_what_msrun_left_is_valid_to_the_last_byte(finished):
    """Every digest of every rank, MindRLHF's three keys and nothing else, and no temp file."""
    checkpoint = locate.latest(finished).checkpoint
    assert checkpoint is not None
    rank_dirs = [names.rank_dir(finished, role, rank) for role in ("policy", "optimizer", "ref") for rank in (0, 1)]

    assert verify.check(checkpoint, deep=True) == []
    for directory in rank_dirs:
        assert json.loads((directory / "meta.json").read_bytes()).keys() == {
            "last_epoch",
            "last_step",
            "last_ckpt_file",
        }
    assert not list(finished.rglob("*.part"))


def test_retention_left_the_newest_five(finished):
    """save_max_ckpt_num is 5 by default: no older payload stays behind on any rank."""
    positions = sorted(path.name for path in names.commits(finished).iterdir() if names.parse_vote_dir(path.name))

    assert len(positions) <= 5
    for rank in (0, 1):
        kept = {
            names.parse_payload(p.name).position for p in names.rank_dir(finished, "policy", rank).glob("*.safetensors")
        }
        assert sorted(map(str, kept)) == positions


def test_another_number_of_ranks_is_refused(finished, tmp_path):
    """Both numbers, what to type, exit 31, and nothing is touched."""
    before = sorted(path.name for path in finished.rglob("*"))
    run = main_alone(
        "--resume_training", "--save_checkpoint_dir", str(tmp_path), "--actor_checkpoint_path", f"{finished}/train"
    )

    assert run.returncode == 31, run.stdout + run.stderr
    assert "made by 2 ranks, this job has 1" in run.stderr
    assert sorted(path.name for path in finished.rglob("*")) == before


def test_a_directory_with_checkpoints_is_not_begun_anew(demo, tmp_path):
    """Exit 62, with both ways out."""
    save = tmp_path / "copy"
    shutil.copytree(demo[0] / "a", save, symlinks=True)
    run = main_alone("--save_checkpoint_dir", str(save), "--actor_checkpoint_path", str(demo[0] / "base"))

    assert run.returncode == 62, run.stdout + run.stderr
    assert "--resume_training" in run.stderr
    assert "--allow_fresh_start" in run.stderr


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    """Before MindSpore is imported, and without a trace."""
    save = tmp_path / "save"
    run = main_alone("--save_checkpoint_dir", str(save), "rl_config.save_ckpt_intervall=5")

    assert run.returncode == 2
    assert "save_ckpt_interval" in run.stderr
    assert not save.exists()


def test_resuming_from_nowhere_is_an_error(tmp_path):
    """A mistyped path does not become a fresh run."""
    run = main_alone("--resume_training", "--save_checkpoint_dir", str(tmp_path / "typo"))

    assert run.returncode == 2, run.stdout + run.stderr
    assert "does not exist" in run.stderr
    assert not (tmp_path / "typo").exists()


def run_on_two_disks(top: Path, *arguments: str) -> str:
    """What both ranks said; each has a save directory of its own."""
    bin_dir = Path(sys.executable).parent  # msrun starts `python`, whichever comes first
    msrun = [str(bin_dir / "msrun"), "--worker_num=2", "--local_worker_num=2", "--join=True"]
    settings = environment(MS_RESUME_STORAGE="local", PATH=f"{bin_dir}:{os.environ['PATH']}")
    command = [*msrun, f"--master_port={settings['MASTER_PORT']}", f"--log_dir={top / 'logs'}"]
    command += [str(TOP / "tests/node_local_main.py"), str(top), "--config", str(CONFIG), *arguments]
    command += ["--dataset_file", str(top / "sums.mindrecord")]  # the one thing that all nodes must have
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    said = "".join(path.read_text() for path in sorted((top / "logs").glob("worker_*.log")))

    assert run.returncode == 0, run.stdout + run.stderr + said
    return said


def test_node_local_disks(demo, tmp_path):
    """Both ranks go on from the newest that both have, although rank 0 has a newer one."""
    said = run_on_two_disks(tmp_path, "--epochs", "1", "--actor_checkpoint_path", str(demo[0] / "base"))
    assert "FRESH START" in said
    newest = max(names.commits(tmp_path / "node_1").glob("*_*"), key=lambda path: names.parse_vote_dir(path.name))
    before = sorted(names.commits(tmp_path / "node_1").glob("*_*"), key=lambda path: names.parse_vote_dir(path.name))[
        -2
    ]
    shutil.rmtree(newest)
    said = run_on_two_disks(tmp_path, "--epochs", "1", "--resume_training")

    assert f"RESUMING at {before.name}" in said
    assert f"passed over {newest.name}: torn: rank 1 has nothing of it" in said
    for rank in (0, 1):
        found = {path.parent.name for path in (tmp_path / f"node_{rank}").glob("*/rank_*/*.safetensors")}
        assert found == {f"rank_{rank}"}
        assert (names.commits(tmp_path / f"node_{rank}") / newest.name).is_dir()
