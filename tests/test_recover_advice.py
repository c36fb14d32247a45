"""What docs/operations.md says to do about a scheduled training: each fault is brought about, and its advice taken."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_llamafactory
import pytest
import torch_trees
import yaml

from ms_resume import cli

TOP = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]
OUT = Path("out")
FILE = "### 训练\noutput_dir: out\nfake: {steps: 40, save: 10}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training that died after step 30, with `ms-resume` and a stand-in on PATH."""
    fake_llamafactory.install(tmp_path / "bin")
    command = tmp_path / "bin" / "ms-resume"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ms_resume.cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("a.yaml").write_text(FILE, encoding="utf-8")
    torch_trees.hugging_face(OUT, 20, 30)
    return work


def sh(command: str) -> str:
    """As somebody types it."""
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout


def recover(*words: str) -> int:
    return cli.main(["recover", "a.yaml", *words])


def edit(old: str, new: str) -> None:
    text = Path("a.yaml").read_text(encoding="utf-8")
    assert old in text
    Path("a.yaml").write_text(text.replace(old, new), encoding="utf-8")


def goes_on_from() -> str:
    """What the newest recovery file says."""
    newest = max(Path().glob("a_recovery_*.yaml"), key=lambda path: path.stat().st_mtime_ns)
    return str(yaml.safe_load(newest.read_text(encoding="utf-8"))["resume_from_checkpoint"])


def cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


CASES = [
    # what is said                       code  how it comes about                               what is advised
    ("out/b: does not exist", 10, lambda: edit("out\n", "out/b\n"), lambda: edit("out/b\n", "out\n")),
    ("no whole checkpoint among 2, checkpoint-30 is torn", 10,
     lambda: sh("rm out/*/trainer_state.json"), lambda: sh("llamafactory-cli train a.yaml; rm -r out/checkpoint-40")),
    ("no YAML, line 3, column 1", 2, lambda: edit("fake", "\tfake"), lambda: edit("\tfake", "fake")),
    ("line 1 is no UTF-8", 2, lambda: sh("iconv -f UTF-8 -t GB18030 a.yaml >b && mv b a.yaml"),
     lambda: sh("iconv -f GB18030 -t UTF-8 a.yaml >b && mv b a.yaml")),
    ("'fake' is there twice, lines 3 and 4", 2, lambda: edit("fake", "fake: {}\nfake"), lambda: edit("fake: {}\n", "")),
    ("has no output_dir", 2, lambda: edit("output_dir: out\n", ""), lambda: edit("fake", "output_dir: out\nfake")),
    ("output_dir comes from elsewhere in the file", 2,
     lambda: edit("output_dir: out\n", "base: &b {output_dir: out}\n<<: *b\n"),
     lambda: edit("<<: *b\n", "<<: *b\noutput_dir: out\n")),
    ("no global_step30, and DeepSpeed is used", 10, lambda: edit("fake", "deepspeed: z3.json\nfake"),
     lambda: edit("deepspeed: z3.json\n", "")),
    ("is a file, expected the output_dir of a training", 2,
     lambda: sh("mv out kept; touch out"), lambda: sh("rm out; mv kept out")),
]  # fmt: skip  # a table


@pytest.mark.parametrize(("said", "code", "come_about", "advice"), CASES, ids=[case[0] for case in CASES])
def test_advice(
    said: str, code: int, come_about: Callable[[], object], advice: Callable[[], object], capsys: Capture
) -> None:
    """One clear error, which has what to do in it; that done, the training goes on."""
    come_about()
    assert recover() == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n  -> ") == 1
    assert not list(Path().glob("a_recovery_*"))

    advice()
    assert recover() == 0, capsys.readouterr().err
    assert goes_on_from() == "out/checkpoint-30"


def test_ls_has_the_reasons(capsys: Capture) -> None:
    sh("rm out/checkpoint-20/trainer_state.json out/checkpoint-30/scheduler.pt")
    assert recover() == 10
    (command,) = re.findall(r"`(ms-resume ls .*?)`", capsys.readouterr().err)

    shown = sh(command)

    assert "checkpoint-20: no trainer_state.json" in shown
    assert "checkpoint-30: no scheduler.pt" in shown


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_a_damaged_one_is_passed_over(name: str, capsys: Capture) -> None:
    """A file that is cut short, or has lost a page: the one before is taken, and why is said."""
    cut(f"out/checkpoint-30/{name}")

    assert recover() == 0
    assert goes_on_from() == "out/checkpoint-20"
    assert re.search(r"^30 +damaged +.*" + re.escape(name), capsys.readouterr().out, re.MULTILINE)


def test_weights_only(capsys: Capture) -> None:
    """Without `save_only_model` the next run can be recovered."""
    sh("rm out/*/optimizer.pt out/*/scheduler.pt out/*/rng_state.pth")
    assert recover() == 10
    assert "weights only" in capsys.readouterr().err

    sh("rm -r out; llamafactory-cli train a.yaml")
    assert recover() == 0


def test_a_pointer_that_is_wrong(capsys: Capture) -> None:
    """DeepSpeed loads what its `latest` names."""
    edit("fake", "deepspeed: z3.json\nfake")
    torch_trees.zero3(OUT, 50)
    Path("out/checkpoint-50/latest").write_text("global_step40")
    assert recover() == 0
    assert "DeepSpeed would not load global_step50" in capsys.readouterr().err

    sh("echo global_step50 > out/checkpoint-50/latest")
    assert recover() == 0
    assert "would not load" not in capsys.readouterr().err


def test_a_recovery_that_fails_is_corrected_by_hand() -> None:
    """What the message names is typed, after the cause is gone."""
    edit("save: 10}", "save: 10, dies: {30: [32, 1]}, says: 'ImportError: x'}")
    assert recover("--run") == 60
    (made,) = Path().glob("a_recovery_*.yaml")

    made.write_text(made.read_text(encoding="utf-8").replace("dies", "died"), encoding="utf-8")
    sh(f"llamafactory-cli train {made}")

    assert list(Path().glob("out_recovery_*/checkpoint-40"))


def test_a_training_that_is_alive_is_ended() -> None:
    """By the command that the message names."""
    with subprocess.Popen(["env", f"TRAINING_YAML={Path('a.yaml').resolve()}", "sleep", "60"]) as alive:
        while recover("--dry-run") != 61:
            assert alive.poll() is None
        sh(f"{TOP}/launch/kill_npu_process.sh a.yaml")

    assert recover("--dry-run") == 0


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write anywhere, and no setpriv")
@pytest.mark.parametrize("place", ["yaml", "o"])
def test_an_output_directory_that_cannot_be_written(place: str, here: Path) -> None:
    """Nor the one with the YAML files: made writable, both are."""
    sh("mkdir yaml o; mv a.yaml yaml; mv out o")
    Path("yaml/a.yaml").write_text(FILE.replace("out\n", "o/out\n"))
    bound = "setpriv --bounding-set=-dac_override,-dac_read_search --" if os.geteuid() == 0 else ""

    os.chmod(place, 0o555)
    refused = subprocess.run(f"{bound} ms-resume recover yaml/a.yaml", shell=True, capture_output=True, text=True)
    os.chmod(place, 0o755)
    sh(f"{bound} ms-resume recover yaml/a.yaml")

    assert refused.returncode == 40, refused.stderr
    assert refused.stderr.count("\n") == 2, refused.stderr
    assert f"{place}/" in refused.stderr
    assert "make " in refused.stderr


def test_no_room(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the recovery file stays; with room it is written."""

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        assert recover() == 40
    assert "No space left on device" in capsys.readouterr().err
    assert not list(Path().glob("a_recovery_*"))
    assert recover() == 0
