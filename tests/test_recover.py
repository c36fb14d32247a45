"""A failed training is recovered: which checkpoint, what is written, and how often it is run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import fake_llamafactory
import pytest
import torch_trees
import yaml

from ms_resume import cli
from ms_resume.errors import DirectoryInUse, DiskError, NothingToResume, UsageError
from ms_resume.recover import leftovers, plan, retry, running
from ms_resume.recover.plan import Plan
from ms_resume.recover.retry import Tried

Capture = pytest.CaptureFixture[str]
NOW = datetime(2025, 1, 15, 14, 30, 22)
SUFFIX = "_recovery_20250115_143022"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings run in a directory of their own, with a stand-in on PATH."""
    fake_llamafactory.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(name: str = "a.yaml", **settings: object) -> Path:
    """A training's file in the current directory."""
    path = Path(name)
    path.write_text(yaml.safe_dump({"output_dir": "out", **settings}, sort_keys=False), encoding="utf-8")
    return path


def make(path: Path, *, back: bool = False) -> Plan:
    failed = plan.read(path)
    return plan.make(failed, plan.newest(failed, back=back), NOW)


class TestPlan:
    def test_the_newest_whole_one(self) -> None:
        """By number; what is passed over is said."""
        torch_trees.hugging_face(Path("out"), 500, 9500, 10000)
        Path("out/checkpoint-10000/trainer_state.json").unlink()

        made = make(write())

        assert (made.checkpoint, made.output_dir) == ("out/checkpoint-9500", f"out{SUFFIX}")
        assert (made.yaml, made.log) == (Path(f"a{SUFFIX}.yaml"), Path(f"a{SUFFIX}.log"))
        assert [rejection.position.step for rejection in made.located.rejected] == [10000]

    @pytest.mark.parametrize(("deepspeed", "step"), [("ds_z3_config.json", 10), (None, 20)])
    def test_deepspeed_is_asked_for_where_the_file_uses_it(self, deepspeed: str | None, step: int) -> None:
        """`global_stepN` must be there, unless the YAML shows that DeepSpeed is not used."""
        torch_trees.zero3(Path("out"), 10)
        torch_trees.hugging_face(Path("out"), 20)

        assert make(write(deepspeed=deepspeed)).checkpoint == f"out/checkpoint-{step}"

    def test_every_byte_is_read(self) -> None:
        """Damage that no header shows."""
        torch_trees.hugging_face(Path("out"), 10, 20)
        path = Path("out/checkpoint-20/optimizer.pt")
        path.write_bytes(path.read_bytes().replace(b"of 20", b"of 21", 1))

        made = make(write())

        assert made.checkpoint == "out/checkpoint-10"
        assert "has CRC" in made.located.rejected[0].reason.replace("bytes have", "bytes has")

    def test_the_one_that_it_had_started_from(self) -> None:
        """Where the training died before its first save; newer ones beside it belong to another future."""
        torch_trees.hugging_face(Path("old"), 10, 20, 30)

        made = make(write(resume_from_checkpoint="old/checkpoint-20"))

        assert (made.checkpoint, made.output_dir) == ("old/checkpoint-20", f"out{SUFFIX}")

    def test_its_own_come_first(self) -> None:
        torch_trees.hugging_face(Path("old"), 20)
        torch_trees.hugging_face(Path("out"), 30)

        assert make(write(resume_from_checkpoint="old/checkpoint-20")).checkpoint == "out/checkpoint-30"

    def test_one_back(self) -> None:
        torch_trees.hugging_face(Path("out"), 10, 20)

        assert make(write(), back=True).checkpoint == "out/checkpoint-10"

    def test_nothing_is_one_back(self) -> None:
        torch_trees.hugging_face(Path("out"), 10)
        with pytest.raises(NothingToResume):
            make(write(), back=True)

    def test_suffixes_do_not_pile_up(self) -> None:
        """A recovery of a recovery has one suffix: its own."""
        torch_trees.hugging_face(Path("o/out_recovery_20240101_000000_2"), 30)
        path = write("a_recovery_20240101_000000.yaml", output_dir="o/out_recovery_20240101_000000_2/")

        made = make(path)

        assert (made.yaml.name, made.output_dir) == (f"a{SUFFIX}.yaml", f"o/out{SUFFIX}")
        assert made.checkpoint == "o/out_recovery_20240101_000000_2/checkpoint-30"

    @pytest.mark.parametrize("taken", ["a{}.yaml", "a{}.log", "out{}"])
    def test_names_that_are_taken(self, taken: str) -> None:
        """Two recoveries in one second; nothing that is there is written over."""
        torch_trees.hugging_face(Path("out"), 10)
        Path(taken.format(SUFFIX)).touch()

        made = make(write())

        assert (made.yaml.name, made.output_dir) == (f"a{SUFFIX}_2.yaml", f"out{SUFFIX}_2")

    def test_two_at_once(self) -> None:
        """Both looked before either wrote."""
        torch_trees.hugging_face(Path("out"), 10)
        path = write()
        first, second = make(path), make(path)

        written = [plan.write(first), plan.write(second)]

        assert written[0].yaml != written[1].yaml
        assert written[0].output_dir != written[1].output_dir
        assert all(yaml.safe_load(one.yaml.read_text())["output_dir"] == one.output_dir for one in written)
        assert sorted(path.name for path in Path().iterdir() if ".part" in path.name) == []

    @pytest.mark.parametrize(
        ("build", "said"),
        [
            (lambda: None, "out: does not exist"),
            (lambda: Path("out").mkdir(), "out: has no checkpoint-N in it"),
            (lambda: Path("out/checkpoint-10").mkdir(parents=True), "checkpoint-10 is torn"),
        ],
    )
    def test_no_checkpoint(self, build: Callable[[], None], said: str) -> None:
        build()
        with pytest.raises(NothingToResume, match=said):
            make(write(resume_from_checkpoint="gone/checkpoint-5"))

    def test_an_output_dir_that_is_a_file(self) -> None:
        Path("out").touch()
        with pytest.raises(UsageError, match="out: is a file"):
            make(write())

    def test_a_save_only_model_run(self) -> None:
        """Weights alone are no checkpoint."""
        torch_trees.hugging_face(Path("out"), 10)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            Path("out/checkpoint-10", name).unlink()
        with pytest.raises(NothingToResume, match="save_only_model"):
            make(write())

    def test_an_output_directory_that_cannot_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch_trees.hugging_face(Path("out"), 10)
        monkeypatch.setattr(plan.atomic, "writable", lambda path: False)
        with pytest.raises(DiskError, match=f"out{SUFFIX}: cannot be made"):
            make(write())

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is left of the file."""
        torch_trees.hugging_face(Path("out"), 10)
        made = make(write())

        def full(fd: int, data: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(DiskError, match="No space left"):
            plan.write(made)
        monkeypatch.undo()
        assert not list(made.yaml.absolute().parent.glob("*recovery*"))


DECIDED = [
    # steps that were started from           newest  what to do  after
    ([], 10, "go on", 0),
    ([10], 20, "go on", 0),
    ([10], 10, "go on", 0),
    ([10, 10], 10, "go on", 10),
    ([10, 20], 20, "go on", 0),
    ([10, 10, 10], 10, "go back", 20),
    ([10, 10, 10], 20, "go on", 0),
    ([20, 20, 20, 10], 10, "go on", 40),
    ([20, 20, 20, 10], 20, "go on", 40),
    ([20, 20, 20, 10], 30, "go on", 0),
    ([20, 20, 20, 10, 10, 10], 10, "give up", 0),
    ([20, 20, 20, 10, 20, 20], 20, "give up", 0),
    ([20, 20, 20, 10, 10, 10], 30, "go on", 0),
    ([10, 20, 30, 30, 30], 30, "go back", 20),
]


@pytest.mark.parametrize(("steps", "newest", "name", "wait_s"), DECIDED)
def test_decide(steps: list[int], newest: int, name: str, wait_s: float) -> None:
    """Each row: what was tried, what is there now, what is done."""
    action = retry.decide([Tried(step, 1) for step in steps], newest)

    assert (action.name, action.wait_s) == (name, wait_s)
    assert action.reason


class TestRunning:
    def run(self, path: Path) -> tuple[list[tuple[Plan, int]], list[float], list[str]]:
        waits: list[float] = []
        said: list[str] = []
        ran = running.until_done(plan.write(make(path)), said.append, sleep=waits.append)
        return ran, waits, said

    def test_at_once(self) -> None:
        """Its log has what it printed."""
        torch_trees.hugging_face(Path("out"), 20)

        ran, waits, said = self.run(write(fake={"steps": 30, "save": 10}))

        assert [(made.checkpoint, code) for made, code in ran] == [("out/checkpoint-20", 0)]
        assert waits == []
        made = ran[0][0]
        assert f"training {made.yaml}" in made.log.read_text()
        lines = Path(made.output_dir, "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(21, 31))
        assert said == [f"running llamafactory-cli train {made.yaml} (from out/checkpoint-20; log {made.log})"]

    def test_the_recovery_fails_too(self) -> None:
        """After progress at once, by a signal or an exit code; each goes on from what the one before saved."""
        torch_trees.hugging_face(Path("out"), 10)

        ran, waits, said = self.run(write(fake={"steps": 50, "save": 10, "dies": {10: [25, 9], 20: [43, 1]}}))

        assert [code for _, code in ran] == [-9, 1, 0]
        assert [Path(made.checkpoint).name for made, _ in ran] == ["checkpoint-10", "checkpoint-20", "checkpoint-40"]
        assert waits == [0, 0]
        assert len({made.output_dir for made, _ in ran}) == 3
        told = "\n".join(said)
        assert "was ended by SIGKILL" in told
        assert "RuntimeError: EI0002" in told

    def test_without_progress(self) -> None:
        """Three tries, one back, three tries; then it gives up with what was tried."""
        torch_trees.hugging_face(Path("out"), 10, 20)
        dies = {20: [25, 1], 10: [15, 1]}

        with pytest.raises(running.GaveUp) as caught:
            self.run(write(fake={"steps": 50, "save": 10, "dies": dies}))

        assert "6 tries without progress" in caught.value.message
        assert caught.value.exit_code == 60
        files = [Path(one["yaml"]) for one in caught.value.fields["ran"]]
        starts = [yaml.safe_load(path.read_text())["resume_from_checkpoint"] for path in files]
        assert [Path(start).name for start in starts] == ["checkpoint-20"] * 3 + ["checkpoint-10"] * 3

    def test_nothing_to_go_back_to(self) -> None:
        torch_trees.hugging_face(Path("out"), 20)
        with pytest.raises(running.GaveUp, match="no older checkpoint to go back to"):
            self.run(write(fake={"steps": 50, "save": 10, "dies": {20: [25, 1]}}))

    def test_what_a_try_leaves_behind_is_ended(self) -> None:
        """Before the next one starts: it would hold the devices."""
        torch_trees.hugging_face(Path("out"), 20)

        ran, _, _ = self.run(write(fake={"steps": 30, "save": 10, "leftover": True}))

        assert leftovers.find(ran[0][0].yaml) == []


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes of a training."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path, code: str = "import time; time.sleep(300)", *, more: str = "X=1") -> subprocess.Popen[bytes]:
        words = ["env", leftovers.mark(path), more, sys.executable, "-c", f"{code}"]
        started.append(subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


class TestLeftovers:
    def test_of_this_run_only(self, sleeper: Callable[..., subprocess.Popen[bytes]]) -> None:
        """Another file's, also one whose name begins alike, goes on."""
        mine, other = sleeper(Path("a.yaml")), sleeper(Path("a.yaml.bak"))
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)

        ended = leftovers.end(Path("./a.yaml"))

        assert [process.pid for process in ended.found] == [mine.pid]
        assert (ended.killed, ended.left) == ((), ())
        assert mine.wait(10) == -signal.SIGTERM
        assert other.poll() is None

    @pytest.mark.parametrize("how", ["deaf", "stopped"])
    def test_gently_then_hard(self, sleeper: Callable[..., subprocess.Popen[bytes]], how: str) -> None:
        """One that does not hear SIGTERM is killed; one that was stopped hears it."""
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(300)"
        process = sleeper(
            Path("a.yaml"), deaf if how == "deaf" else "print('ready', flush=True); import time; time.sleep(300)"
        )
        assert process.stdout
        process.stdout.readline()
        if how == "stopped":
            process.send_signal(signal.SIGSTOP)

        ended = leftovers.end(Path("a.yaml"), gently_s=0.3)

        assert len(ended.killed) == (how == "deaf")
        assert process.wait(10) == (-signal.SIGKILL if how == "deaf" else -signal.SIGTERM)

    def test_not_itself_nor_those_above(self) -> None:
        """Called from within a training, it does not end its caller."""
        code = "from ms_resume.recover import leftovers; print(leftovers.main(['a.yaml']))"
        words = ["env", leftovers.mark(Path("a.yaml")), "sh", "-c", f'{sys.executable} -c "{code}"; echo alive']

        ended = subprocess.run(words, capture_output=True, text=True, check=True)

        assert ended.stdout.split() == ["0", "alive"]
        assert "ended nothing" in ended.stderr

    def test_dry_run(self, sleeper: Callable[..., subprocess.Popen[bytes]], capsys: Capture) -> None:
        process = sleeper(Path("a.yaml"))
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)

        assert leftovers.main(["--dry-run", "b.yaml"]) == 0
        assert leftovers.main(["--dry-run", "a.yaml"]) == 61
        assert f"a.yaml: would end {process.pid} (" in capsys.readouterr().err
        assert process.poll() is None


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestCommand:
    """`ms-resume recover`."""

    def test_it_tells_how_to_go_on(self, capsys: Capture) -> None:
        torch_trees.hugging_face(Path("out"), 10, 20)
        Path("out/checkpoint-20/trainer_state.json").unlink()
        before = write().read_bytes()

        assert cli.main(["recover", "a.yaml"]) == 0

        printed = capsys.readouterr().out
        (made,) = Path().glob("a_recovery_*.yaml")
        assert f"{made}: goes on from out/checkpoint-10 in out_recovery_" in printed
        assert "20    torn     checkpoint-20: no trainer_state.json" in printed
        assert f"-> llamafactory-cli train {made}" in printed
        assert Path("a.yaml").read_bytes() == before
        assert not list(Path().glob("*.log"))

    def test_dry_run_writes_nothing(self, capsys: Capture) -> None:
        torch_trees.hugging_face(Path("out"), 10)
        write()
        before = sorted(Path().rglob("*"))

        assert cli.main(["recover", "a.yaml", "--dry-run", "--run"]) == 0
        assert "would go on from out/checkpoint-10" in capsys.readouterr().out
        assert sorted(Path().rglob("*")) == before

    def test_run(self, capsys: Capture) -> None:
        """With --json standard output is one object, whatever is printed meanwhile."""
        torch_trees.hugging_face(Path("out"), 20)
        write(fake={"steps": 30, "save": 10})

        assert cli.main(["recover", "a.yaml", "--run", "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ran"] == []
        assert cli.main(["recover", "a.yaml", "--run", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["ran"] == [{"yaml": document["yaml"], "code": 0}]
        assert Path(document["log"]).exists()

    def test_nothing_to_recover_from(self, capsys: Capture) -> None:
        write()

        assert cli.main(["recover", "a.yaml"]) == 10
        assert "out: does not exist" in capsys.readouterr().err
        assert [path.name for path in Path().iterdir()] == ["a.yaml"]

    def test_without_llamafactory(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        """Found before anything is written."""
        torch_trees.hugging_face(Path("out"), 20)
        write()
        monkeypatch.setenv("PATH", "/usr/bin:/bin")

        assert cli.main(["recover", "a.yaml", "--run"]) == 2
        assert "no llamafactory-cli on PATH" in capsys.readouterr().err
        assert not list(Path().glob("*recovery*"))

    def test_while_it_is_alive(self, sleeper: Callable[..., subprocess.Popen[bytes]]) -> None:
        """A second one would train into the same checkpoints."""
        torch_trees.hugging_face(Path("out"), 20)
        sleeper(write())
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)

        assert cli.main(["recover", "a.yaml"]) == DirectoryInUse.exit_code

    def test_ended_from_outside(self) -> None:
        """What it runs ends with it, and is not started again."""
        torch_trees.hugging_face(Path("out"), 20)
        path = write(fake={"steps": 30, "save": 10, "hangs": 25})
        command = subprocess.Popen([sys.executable, "-m", "ms_resume.cli", "recover", path, "--run"])
        _until(lambda: any("step 25" in log.read_text() for log in Path().glob("*.log")))
        (made,) = Path().glob("a_recovery_*.yaml")
        assert leftovers.find(made)

        command.send_signal(signal.SIGTERM)

        assert command.wait(20) == 130
        assert leftovers.find(made) == []
        assert len(list(Path().glob("a_recovery_*.yaml"))) == 1


def test_inspecting_needs_neither_numpy_nor_torch() -> None:
    """The command, too."""
    torch_trees.hugging_face(Path("out"), 20)
    write()
    code = "import sys; from ms_resume import cli; cli.main(['recover', 'a.yaml'])\n"
    code += "print({'numpy', 'mindspore', 'torch', 'pickle'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.endswith("set()\n"), ended.stdout
