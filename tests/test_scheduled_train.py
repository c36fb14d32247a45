"""launch/scheduled_train.sh and launch/kill_npu_process.sh, run as a user runs them, with stand-ins on PATH."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_llamafactory
import pytest
import torch_trees
import yaml

from ms_resume.recover import leftovers

TOP = Path(__file__).parents[1]
SCRIPT, KILL = TOP / "launch" / "scheduled_train.sh", TOP / "launch" / "kill_npu_process.sh"
PAST, DATE = "202501150000", "train_yaml/gsn/202501150000"
NPU_SMI = """#!/bin/sh
# As the real one prints it, where there are two NPUs.
if [ "$2" = -m ]; then
    echo "	NPU ID                         Chip ID                        Chip Logic ID                  Chip Name"
    echo "	0                              0                              0                              Ascend 910B3"
    echo "	0                              1                              -                              Mcu"
    echo "	1                              0                              1                              Ascend 910B3"
    echo "	1                              1                              -                              Mcu"
    exit 0
fi
cat <<'END'
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| 0     910B3               | OK            | 93.4        38                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3375 / 65536         |
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 1       0                 | 2153456       | python3.10               | 3157                    |
| No running processes found in NPU 0                                                            |
END
"""
CLOCK = """#!/bin/sh
# A clock that sleep moves.
if [ "$1" = +%s ]; then cat {clock}; else exec /usr/bin/date "$@"; fi
"""
SLEEP = """#!/bin/sh
echo "$1" >> {record}
echo $(($(cat {clock}) + $1)) > {clock}
"""


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, tuple[str, int]]:
        """File name to what became of it."""
        rows = re.findall(
            r"^scheduled_train:   ([a-z ]+?) +(\d+)  (\S+)$", self.err.partition("summary:")[2], re.MULTILINE
        )
        return {Path(file).name: (became, int(code)) for became, code, file in rows}


Start = Callable[..., Ended]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / DATE).mkdir(parents=True)
    return tmp_path / "work"


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    fake_llamafactory.install(tmp_path / "venv" / "bin")
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "venv" / "bin"


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path, bin_dir: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VENV": str(bin_dir.parent)}


@pytest.fixture
def start(work: Path, environment: dict[str, str]) -> Start:
    """Runs the script to its end. Keyword arguments are environment variables."""

    def start(*words: str, user: str = "gsn", date: str = PAST, **knobs: str) -> Ended:
        command = [str(SCRIPT), "--user", user, "--date", date, *words]
        env = {**environment, **knobs}
        ended = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, timeout=600, check=False)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return start


def training(work: Path, name: str, *, home: str = DATE, **fake: Any) -> Path:
    """A training's file, with a comment and a quote to keep."""
    path = work / home / f"{name}.yaml"
    told = json.dumps({"steps": 40, "save": 10, **fake}, default=str)
    told = re.sub(r'"(\d+)":', r"\1:", told)
    path.write_text(f"### 训练 {name}\noutput_dir: out/{name}  # 输出\nresume_from_checkpoint: null\nfake: {told}\n")
    return path


def steps(work: Path, output_dir: str) -> list[int]:
    lines = (work / output_dir / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


class TestTrainings:
    def test_in_order_with_their_logs(self, start: Start, work: Path) -> None:
        """Each in turn, on the devices that were given; a date in the past starts at once."""
        for name in ("b", "a", "c"):
            training(work, name)

        ended = start("--devices", "0,1")

        assert ended.code == 0
        assert "2025-01-15 00:00 is past: starting at once" in ended.err
        assert list(ended.summary.items()) == [(f"{name}.yaml", ("trained", 0)) for name in "abc"]
        assert [steps(work, f"out/{name}")[-1] for name in "abc"] == [40, 40, 40]
        assert "a.yaml on devices 0,1" in (work / DATE / "a.log").read_text()
        assert "no npu-smi here" in ended.err

    def test_a_failure_without_auto_recovery(self, start: Start, work: Path) -> None:
        """A recovery file, and how to run it; the next training runs all the same."""
        failed = training(work, "a", dies={"0": [25, 9]})
        training(work, "b")

        ended = start()

        assert ended.code == 1
        assert ended.summary == {"a.yaml": ("failed", 1), "b.yaml": ("trained", 0)}
        (made,) = (work / DATE).glob("a_recovery_*.yaml")
        name = made.stem.removeprefix("a_")
        wanted = failed.read_text().replace("out/a ", f"out/a_{name} ").replace("null", "out/a/checkpoint-20")
        assert made.read_text() == wanted
        assert f"llamafactory-cli train {DATE}/{made.name}" in ended.out
        assert not list((work / DATE).glob("a_recovery_*.log"))
        assert f"{DATE}/a.yaml: failed (137), see {DATE}/a.log\n" in ended.err
        assert "Killed" not in ended.err  # as bash says it
        assert "llamafactory-cli was ended by SIGKILL: hccl_timeout (ranks lost each other)\n    Runtime" in ended.err

    def test_the_recovery_file_runs_as_it_was_said(self, start: Start, work: Path, environment: dict[str, str]) -> None:
        """The seed's steps by hand."""
        training(work, "a", dies={"0": [25, 1]})
        (said,) = re.findall(r"-> (llamafactory-cli train .*)", start().out)

        env = {**environment, "PATH": f"{environment['VENV']}/bin:/usr/bin:/bin"}
        subprocess.run(said, shell=True, env=env, cwd=work, check=True, capture_output=True)

        (recovered,) = (work / "out").glob("a_recovery_*")
        assert steps(work, f"out/{recovered.name}") == list(range(21, 41))

    def test_auto_recovery(self, start: Start, work: Path) -> None:
        """At once, into its own log and directory; a recovery that fails is recovered in turn."""
        training(work, "a", dies={"0": [25, 9], "20": [38, 1]}, torn=20, leftover=True)
        training(work, "b", dies={"0": [15, 1], "10": [35, 9]})

        ended = start("--auto-recovery")

        assert ended.code == 0, ended.err
        assert ended.summary == {"a.yaml": ("recovered", 0), "b.yaml": ("recovered", 0)}
        assert len(list((work / DATE).glob("a_recovery_*.log"))) == 1  # checkpoint-20 was torn: from 10 to the end
        assert "20    torn     checkpoint-20: no trainer_state.json" in ended.out
        logs = sorted((work / DATE).glob("b_recovery_*.log"))
        assert [_start_of(log) for log in logs] == ["checkpoint-10", "checkpoint-30"]
        assert all(path.name.count("_recovery_") == 1 for path in (work / DATE).iterdir() if "recovery" in path.name)
        assert leftovers.find(work / DATE / "a.yaml") == []
        assert re.search(r"^ending pid \d+: sleep 300$", ended.out, re.MULTILINE)

    def test_deepspeed(self, start: Start, work: Path) -> None:
        """A checkpoint without its global_step is passed over."""
        path = training(work, "a", dies={"0": [35, 9]})
        path.write_text(path.read_text() + "deepspeed: ds_z3_config.json\n")
        torch_trees.hugging_face(work / "out" / "a", 33)

        ended = start("--auto-recovery")

        assert ended.code == 0, ended.err
        assert "33    torn     checkpoint-33: no global_step33, and DeepSpeed is used" in ended.out
        assert "goes on from out/a/checkpoint-30" in ended.out

    def test_no_checkpoint(self, start: Start, work: Path) -> None:
        """Says so, and goes on with the next file."""
        training(work, "a", dies={"0": [5, 1]})
        training(work, "b")

        ended = start("--auto-recovery")

        assert ended.code == 10
        assert ended.summary == {"a.yaml": ("no checkpoint", 10), "b.yaml": ("trained", 0)}
        assert "out/a: has no checkpoint-N in it" in ended.err

    def test_it_gives_up(self, start: Start, work: Path) -> None:
        """The worst code of all files. There is no older checkpoint, so after three tries."""
        training(work, "a", dies={"0": [15, 1], "10": [12, 1]})
        training(work, "b", dies={"0": [5, 1]})

        (work / "sitecustomize.py").write_text("import time; time.sleep = lambda seconds: None\n")  # between tries
        ended = start("--auto-recovery", PYTHONPATH=str(work))

        assert ended.code == 60
        assert ended.summary == {"a.yaml": ("gave up", 60), "b.yaml": ("no checkpoint", 10)}

    def test_what_will_not_go_away_is_not_tried_again(self, start: Start, work: Path) -> None:
        """By what this run said: an earlier one in the same log had another fault."""
        training(work, "a", dies={"0": [15, 1], "10": [12, 1]}, says="ImportError: no flash_attn")
        training(work, "b", dies={"0": [15, 9]}, says="")
        for name in "ab":
            (work / DATE / f"{name}.log").write_text("ImportError: of an earlier run\n")

        ended = start("--auto-recovery")

        assert ended.code == 60
        assert ended.summary == {"a.yaml": ("gave up", 60), "b.yaml": ("recovered", 0)}
        assert "not run again: code_error does not go away by itself" in ended.err
        assert len(list((work / DATE).glob("a_recovery_*.yaml"))) == 1
        assert not list((work / DATE).glob("a_recovery_*.log"))

    def test_rules_of_a_site(self, start: Start, work: Path) -> None:
        training(work, "a", dies={"0": [15, 1]}, says="ImportError: the share is not mounted yet")
        (work / "rules.yaml").write_text("- {class: mount, then: restart, when: {log: 'not mounted yet'}}\n")

        assert start("--auto-recovery", RULES="rules.yaml").code == 0

    def test_a_file_that_is_no_yaml(self, start: Start, work: Path) -> None:
        """The training says so first; the recovery has nothing to go by."""
        (work / DATE / "a.yaml").write_text("output_dir: [out\n\tb: 1\n")
        training(work, "b")

        ended = start()

        assert ended.summary == {"a.yaml": ("not recovered", 2), "b.yaml": ("trained", 0)}
        assert "a tab stands there" in ended.err

    def test_recovery_files_are_not_run_with_the_rest(self, start: Start, work: Path) -> None:
        """Started again for the same date, only the trainings themselves run."""
        training(work, "a")
        training(work, "a_recovery_20250115_143022")
        training(work, "a_recovery_notes")

        ended = start()

        assert list(ended.summary) == ["a.yaml", "a_recovery_notes.yaml"]
        assert "1 recovery files there are left out" in ended.err

    def test_a_training_that_is_still_alive(self, start: Start, work: Path) -> None:
        """Its scheduler was killed, it was not: a second one would write into the same checkpoints."""
        path = training(work, "a")
        training(work, "b")
        with subprocess.Popen(["env", leftovers.mark(path), "sleep", "300"]) as alive:
            _until(lambda: leftovers.find(path) != [])
            ended = start()
            alive.kill()

        assert ended.code == 61
        assert ended.summary == {"a.yaml": ("not started", 61), "b.yaml": ("trained", 0)}
        assert f"would end pid {alive.pid}: sleep 300" in ended.err

    def test_something_of_it_cannot_be_ended(self, start: Start, work: Path, bin_dir: Path) -> None:
        """Said; what of it is recovered all the same is up to `ms-resume recover`, which looks itself."""
        training(work, "a", dies={"0": [15, 9]})
        python = (bin_dir / "python").read_text()
        refuses = 'case "$*" in *leftovers\\ --dry-run*) ;; *leftovers\\ *) exit 40 ;; esac\n'
        put(bin_dir / "python", python.replace("exec", f"{refuses}exec"))

        ended = start()

        assert ended.summary == {"a.yaml": ("failed", 1)}
        assert "a.yaml: something of it is left, see above" in ended.err

    def test_a_log_is_continued(self, start: Start, work: Path) -> None:
        training(work, "a")
        (work / DATE / "a.log").write_text("before\n")
        start()

        assert (work / DATE / "a.log").read_text().startswith("before\ntraining ")

    def test_a_log_that_cannot_be_written(self, start: Start, work: Path) -> None:
        training(work, "a")
        (work / DATE / "a.log").mkdir()
        training(work, "b")

        ended = start()

        assert (ended.code, ended.summary["a.yaml"]) == (40, ("no log", 40))

    def test_names_with_spaces(self, start: Start, work: Path) -> None:
        """And stars, in files and directories."""
        training(work, "a b *", dies={"0": [15, 9]})

        assert start("--auto-recovery").code == 0
        assert len(list((work / "out").glob("a b ?_recovery_*"))) == 1

    def test_elsewhere(self, start: Start, work: Path, tmp_path: Path) -> None:
        """TRAIN_YAML_DIR."""
        training(work, "a")
        (work / "train_yaml").rename(tmp_path / "elsewhere")

        assert start(TRAIN_YAML_DIR=str(tmp_path / "elsewhere")).code == 0


def _start_of(log: Path) -> str:
    return Path(yaml.safe_load(log.with_suffix(".yaml").read_text())["resume_from_checkpoint"]).name


def test_the_commands_of_the_documentation(work: Path, environment: dict[str, str]) -> None:
    """As they stand: each trains what is there, or recovers it."""
    block = (TOP / "docs/scheduled_train.md").read_text().partition("```bash\n")[2].partition("```")[0]
    (work / DATE).rename(work / "train_yaml/gsn/202507152000")
    ended = []
    for number, command in enumerate(block.splitlines()):
        path = training(work, f"run{number}", home="train_yaml/gsn/202507152000", dies={"0": [15, 1]})
        words = ["bash", "-c", f"{shlex.quote(str(TOP))}/{command}"]
        ended.append(subprocess.run(words, env=environment, cwd=work, capture_output=True, text=True, check=False))
        path.unlink()

    assert [one.returncode for one in ended] == [1, 0, 0, 0], ended
    logs = [(work / f"train_yaml/gsn/202507152000/run{number}.log").read_text() for number in range(3)]
    assert ["on devices 0,1,2,3" in log for log in logs] == [False, False, True]
    assert [len(list((work / "out").glob(f"run{number}_recovery_*"))) for number in range(4)] == [0, 1, 1, 0]


class TestWaiting:
    def test_until_its_time(self, start: Start, work: Path, bin_dir: Path) -> None:
        """It shows what it waits for; files that come meanwhile run too."""
        clock, record = work / "clock", work / "record"
        clock.write_text(str(int(time.mktime((2025, 1, 14, 22, 58, 30, 0, 0, -1)))))
        put(bin_dir / "date", CLOCK.format(clock=clock))
        put(
            bin_dir / "sleep",
            SLEEP.format(clock=clock, record=record) + f"cp {work / DATE}/a.yaml {work / DATE}/b.yaml\n",
        )
        training(work, "a")

        ended = start()

        assert ended.code == 0
        assert f"waiting until 2025-01-15 00:00 {time.strftime('%Z')}, 1 h 1 min, for:" in ended.err
        assert f"  {DATE}/a.yaml" in ended.err
        assert record.read_text().split() == ["60"] * 61 + ["30"]
        assert list(ended.summary) == ["a.yaml", "b.yaml"]

    def test_dry_run(self, start: Start, work: Path) -> None:
        """What would happen, with the commands; nothing is waited for, written, or started."""
        training(work, "a b")
        (work / DATE).rename(work / "train_yaml/gsn/209901012000")
        before = sorted(work.rglob("*"))

        ended = start("--dry-run", "--auto-recovery", "--devices", "1", date="209901012000")

        assert ended.code == 0
        assert "at 2099-01-01 20:00, in this order:" in ended.out
        assert "ASCEND_RT_VISIBLE_DEVICES=1 llamafactory-cli train train_yaml/gsn/209901012000/a\\ b.yaml" in ended.out
        assert "ms-resume recover FILE --run" in ended.out
        assert sorted(work.rglob("*")) == before

    @pytest.mark.parametrize(("number", "recovering"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
    def test_ended_from_outside(
        self, work: Path, environment: dict[str, str], number: signal.Signals, recovering: bool
    ) -> None:
        """What it runs ends with it, be it a training or its recovery; the next file does not start."""
        training(work, "a", hangs=25, **({"dies": {"0": [15, 1]}} if recovering else {}))
        training(work, "b")
        command = [str(SCRIPT), "--user", "gsn", "--date", PAST, "--auto-recovery"]
        process = subprocess.Popen(
            command, env=environment, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as from a terminal
        )  # fmt: skip  # one call
        logs = "a_recovery_*.log" if recovering else "a.log"
        _until(lambda: any("step 25" in log.read_text() for log in (work / DATE).glob(logs)))
        alive = [yaml for yaml in (work / DATE).glob("a*.yaml") if leftovers.find(yaml)]
        assert len(alive) == 1

        process.send_signal(number)
        assert process.stderr
        _, err = process.communicate(timeout=600)

        assert process.returncode == (130 if number == signal.SIGINT else 143), err
        assert leftovers.find(alive[0]) == []
        assert "interrupted" in err
        assert not (work / "out" / "b").exists()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


BAD = [
    # words                                              said
    (["--user", "../gsn"], "--user is '../gsn'"),
    (["--user", ".."], "--user is '..'"),
    (["--user", ""], "--user is ''"),
    (["--user", "a/b"], "--user is 'a/b'"),
    (["--date", "../202501150000"], "--date is '../202501150000'"),
    (["--date", "202502300000"], "--date is '202502300000', expected a time as YYYYMMDDHHMM"),
    (["--date", "20250115"], "--date is '20250115'"),
    (["--date"], "--date needs a value"),
    (["--user", "nobody"], "train_yaml/nobody/202501150000: no such directory"),
    (["--devices", "0,1,"], "--devices is '0,1,'"),
    (["--devices", "0;rm"], "--devices is '0;rm'"),
    (["--devices", "0,0"], "names a device twice"),
    (["--devices", "0,2"], "device 2 does not exist, there are 0,1"),
    (["--auto-recovery=no"], "--auto-recovery takes no value"),
    (["--auto"], "unknown argument '--auto'"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_bad_arguments(start: Start, work: Path, bin_dir: Path, words: list[str], said: str) -> None:
    """One error each, exit 2, before anything is started or written."""
    training(work, "a")
    put(bin_dir / "npu-smi", NPU_SMI)
    before = sorted(work.rglob("*"))

    ended = start(*words)

    assert ended.code == 2
    assert said in ended.err
    assert "  -> " in ended.err
    assert len(ended.err.splitlines()) == 2
    assert sorted(work.rglob("*")) == before


def test_devices_that_exist(start: Start, work: Path, bin_dir: Path) -> None:
    put(bin_dir / "npu-smi", NPU_SMI)
    training(work, "a")

    ended = start("--devices=1,0")

    assert ended.code == 0
    assert "on devices 1,0" in (work / DATE / "a.log").read_text()


def test_no_yaml_at_all(start: Start, work: Path) -> None:
    (work / DATE / "a.yml").touch()

    ended = start()

    assert (ended.code, "no *.yaml in it" in ended.err) == (2, True)


def test_no_llamafactory(start: Start, work: Path, bin_dir: Path) -> None:
    training(work, "a")
    (bin_dir / "llamafactory-cli").unlink()

    ended = start()

    assert (ended.code, "no llamafactory-cli on PATH" in ended.err) == (2, True)


def test_a_python_that_cannot_run_the_toolkit(start: Start, work: Path, bin_dir: Path) -> None:
    """Found at once, not when a training has failed: here it lacks PyYAML."""
    training(work, "a")
    put(bin_dir / "python", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')

    ended = start()

    assert (ended.code, f"{bin_dir}/python cannot run ms_resume" in ended.err) == (2, True)
    assert not (work / "out").exists()


def test_rules_that_are_not_there(start: Start, work: Path) -> None:
    training(work, "a")

    ended = start(RULES="nosuch.yaml")

    assert (ended.code, "RULES=nosuch.yaml is no file" in ended.err) == (2, True)


def test_two_at_once(start: Start, work: Path) -> None:
    """The same files, by two schedulers: the second is refused, and writes nothing."""
    training(work, "a")
    held = os.open(work / DATE, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        ended = start()
    finally:
        os.close(held)

    assert ended.code == 61
    assert "another scheduled_train.sh runs these files" in ended.err
    assert not (work / "out").exists()


def test_help(start: Start) -> None:
    """The head of the script."""
    ended = start("--help")

    assert ended.code == 0
    assert ended.out.startswith("Runs the LLaMA-Factory trainings")
    assert "set -euo" not in ended.out


def test_who_else_holds_a_device(work: Path, bin_dir: Path, environment: dict[str, str]) -> None:
    """Is named and left alone."""
    put(bin_dir / "npu-smi", NPU_SMI)
    (work / "a.yaml").touch()
    env = {**environment, "PATH": f"{bin_dir}:/usr/bin:/bin"}

    ended = subprocess.run([KILL, "a.yaml"], env=env, cwd=work, capture_output=True, text=True, check=True)

    alone = "left alone: pid 2153456 (python3.10) on NPU 1 is not of this run"
    assert ended.stdout.splitlines() == ["nothing is left of a.yaml", alone]
