"""A failed training is recovered: which checkpoint, what is written, and how often it is run again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import fake_llamafactory
import pytest
import torch_trees
import yaml

from ms_resume import cli
from ms_resume.errors import DirectoryInUse, DiskError, NothingToResume, UsageError
from ms_resume.records import Position
from ms_resume.recover import leftovers, plan, retry, running
from ms_resume.recover.plan import Plan
from ms_resume.supervisor import leftovers as supervisor_leftovers
from ms_resume.supervisor import processes, rules
from ms_resume.supervisor.decide import decide
from ms_resume.supervisor.evidence import Ended, Failure, Policy

Capture = pytest.CaptureFixture[str]
NOW = datetime(2025, 1, 15, 14, 30, 22)
SUFFIX = "_recovery_20250115_143022"
LOGS = Path(__file__).parent / "torchrun_logs"


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


def make(path: Path, *, limit: int | None = None) -> Plan:
    failed = plan.read(path)
    return plan.make(failed, plan.newest(failed, limit=limit), NOW)


class TestPlan:
    def test_the_newest_whole_one(self) -> None:
        """By number; what is passed over is said."""
        torch_trees.hugging_face(Path("out"), 500, 9500, 10000)
        Path("out/checkpoint-10000/trainer_state.json").unlink()

        made = make(write())

        assert (made.checkpoint, made.output_dir) == ("out/checkpoint-9500", f"out{SUFFIX}")
        assert (made.yaml, made.log) == (Path(f"a{SUFFIX}.yaml"), Path(f"a{SUFFIX}.log"))
        assert [rejection.position.step for rejection in made.located.rejected] == [10000]

    def test_the_example(self, here: Path) -> None:
        """The specification's: a run that had itself gone on from another one's checkpoint, and saved since."""
        zeta = here / "output/gsn/zeta"
        before, run = (zeta / f"qzq_run_sft_0.5b_zeta_stage_2_4{suffix}" for suffix in ("", "_continue"))
        torch_trees.zero3(before, 14500, 15500)
        torch_trees.zero3(run, 14600, 15000)
        path = write("stage.yaml", output_dir=str(run), resume_from_checkpoint=str(before / "checkpoint-14500"))

        made = plan.write(make(path))

        assert made.yaml.name == f"stage{SUFFIX}.yaml"
        assert made.yaml.read_text() == (f"output_dir: {run}{SUFFIX}\nresume_from_checkpoint: {run}/checkpoint-15000\n")

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

        assert make(write(), limit=19).checkpoint == "out/checkpoint-10"

    def test_the_one_before(self) -> None:
        """By names and headers, here and where it came from; nothing newer than what was gone on from."""
        torch_trees.hugging_face(Path("old"), 10, 20, 30)
        torch_trees.hugging_face(Path("out"), 40, 50)
        failed = plan.read(write(resume_from_checkpoint="old/checkpoint-20"))

        assert [plan.before(failed, [], step) for step in (50, 40, 20, 10)] == [40, 20, 10, None]

    def test_the_one_before_in_the_line(self) -> None:
        """Where an earlier training went on from, no newer than that: what was passed over there stays so."""
        torch_trees.hugging_face(Path("out"), 20, 25)
        path = Path("out/checkpoint-25/optimizer.pt")
        path.write_bytes(path.read_bytes().replace(b"of 25", b"of 26", 1))
        origin = plan.newest(plan.read(write()))
        torch_trees.hugging_face(Path("next"), 30)

        assert plan.before(plan.read(write("b.yaml", output_dir="next")), [origin], 30) == 20

    def test_nothing_is_one_back(self) -> None:
        torch_trees.hugging_face(Path("out"), 10)
        with pytest.raises(NothingToResume):
            make(write(), limit=9)

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


TABLE = rules.read()
HISTORY = [
    # what failed at (from, newest whole now, one before)      what  after  from
    ("killed -/10", ("restart", 0, None)),
    ("killed 10/10", ("restart", 0, None)),
    ("killed 10/10 killed 10/10", ("restart", 10, None)),
    ("killed 10/10 killed 10/20", ("restart", 0, None)),
    ("killed -/10 killed 10/10 killed 10/10", ("restart", 10, None)),
    ("killed -/10 killed 10/10 killed 10/10 killed 10/10", ("stop", 0, None)),
    ("killed -/20 killed 20/20<10 killed 20/20<10 killed 20/20<10", ("back", 20, 10)),
    ("killed 20/20<10 killed 20/20<10 killed 20/20<10 killed@10 10/10", ("restart", 40, None)),
    ("killed 20/20<10 killed 20/20<10 killed 20/20<10 killed@10 10/20", ("restart", 40, None)),
    ("killed 20/20<10 killed 20/20<10 killed 20/20<10 killed@10 10/30", ("restart", 0, None)),
    ("killed 20/20<10 killed 20/20<10 killed 20/20<10 killed@10 10/10 killed 10/10 killed 10/10", ("stop", 0, None)),
    ("npu_fault 20/30", ("restart", 0, None)),
    ("code_error! 20/30", ("stop", 0, None)),
    ("oom_npu? 20/20", ("restart", 0, None)),
    ("oom_npu? 20/20 oom_npu? 20/20", ("stop", 0, None)),
    ("oom_npu? 20/20 oom_npu? 20/30", ("restart", 0, None)),
    ("oom_npu? 20/30 oom_npu? 30/30", ("restart", 0, None)),
]


@pytest.mark.parametrize(("text", "follows"), HISTORY)
def test_what_follows(text: str, follows: tuple[str, float, int | None]) -> None:
    """What the supervisor decides on a training's history: each row was tried, `@` told to go back, `?` once more, `!`
    never again."""
    past: list[Ended] = []
    for kind, steps in re.findall(r"(\S+) (\S+)", text):
        began, newest, older = re.fullmatch(r"(\d+|-)/(\d+)(?:<(\d+))?", steps).groups()  # type: ignore[union-attr]
        kind, _, back = kind.partition("@")
        then = {"?": "once", "!": "stop"}.get(kind[-1], "restart")
        failure = Failure(kind.rstrip("?!"), then, "", detail="exit 1")
        end = retry.ended(
            past, failure, None if began == "-" else int(began), int(newest), int(older) if older else None
        )
        past.append(replace(end, back=Position(0, int(back)) if back else None))

    action = decide(past, Policy(), chance=0.5)

    assert (action.what, action.delay_s, action.back.step if action.back else None) == follows, action.reason


TRACE = "Traceback (most recent call last):\n  File 'a.py', line 1\n"
WHY = [
    # exit code, log, what it is, what comes
    (1, TRACE + "ModuleNotFoundError: No module named 'torch_npu'\n", "code_error", "stop"),
    (1, TRACE + "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0)\n", "oom_npu", "once"),
    (1, "RuntimeError: ACL stream synchronize failed, error code:507011\n", "npu_fault", "restart"),
    (1, "RuntimeError: EI0002: the wait timed out\n", "hccl_timeout", "restart"),
    (1, TRACE + "OSError: [Errno 28] No space left on device: 'optimizer.pt'\n", "disk_full", "restart"),
    (1, TRACE + "ValueError: Undefined dataset sums in dataset_info.json.\n", "code_error", "once"),
    (-9, " 12%|#2   | 12/100\r 13%|#3", "killed", "restart"),
    (-11, "", "crashed", "restart"),
    (2, "usage: llamafactory-cli\n", "usage", "stop"),
    (127, "env: 'llamafactory-cli': No such file or directory\n", "code_error", "stop"),
    (1, "", "unknown", "restart"),
    (10, "", "unknown", "restart"),  # what these codes say holds where ms_resume ends with them
    (61, "", "unknown", "restart"),
]


@pytest.mark.parametrize(("code", "log", "kind", "then"), WHY)
def test_why(code: int, log: str, kind: str, then: str) -> None:
    """By the supervisor's rules, from exit code and log."""
    Path("a.log").write_text(log)

    failure = retry.why(code, Path("a.log"), TABLE)

    assert (failure.kind, failure.then, failure.rank) == (kind, then, None)


@pytest.mark.parametrize(
    ("name", "kind", "code", "shown"),
    [
        ("import", "code_error", 1, "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("oom", "oom_npu", 1, "RuntimeError: NPU out of memory"),
        ("kill", "killed", -9, "traceback : Signal 9 (SIGKILL)"),
        ("segv", "crashed", -11, "traceback : Signal 11 (SIGSEGV)"),
    ],
)
def test_why_under_torchrun(name: str, kind: str, code: int, shown: str) -> None:
    """Its root cause: the launcher ends with 1 whatever happened, and rank 0 says that it lost rank 1."""
    failure = retry.why(1, LOGS / f"{name}.log", TABLE)

    assert (failure.kind, failure.rank, failure.exit_code) == (kind, 1, code)
    how = {1: "ended with 1", -9: "was ended by SIGKILL", -11: "was ended by SIGSEGV"}[code]
    said = f"llamafactory-cli ended with 1, first rank 1, which {how}: {kind} ("
    assert running.told(failure, 1).startswith(said)
    assert shown in "\n".join(failure.lines)
    assert "Connection closed by peer" not in "\n".join(failure.lines)


def test_what_other_ranks_say() -> None:
    """Is not why the first one failed: here the one that lost it ended on an import."""
    text = (LOGS / "kill.log").read_text().replace("RuntimeError: ", "ImportError: ")
    Path("a.log").write_text(text)
    assert "[rank0]: ImportError" in text

    assert retry.why(1, Path("a.log"), TABLE).kind == "killed"


def test_only_its_own_output() -> None:
    """What an earlier run left in the same log is not why this one failed."""
    Path("a.log").write_text(TRACE + "ImportError: x\n")

    assert retry.why(1, Path("a.log"), TABLE).kind == "code_error"
    assert retry.why(1, Path("a.log"), TABLE, begin=Path("a.log").stat().st_size).kind == "unknown"


@pytest.mark.parametrize(
    ("code", "plain"), [(137, -9), (143, -15), (139, -11), (1, 1), (128, 128), (255, 255), (-9, -9)]
)
def test_exit_codes_of_a_shell(code: int, plain: int) -> None:
    assert retry.plain(code) == plain


class TestRunning:
    def run(self, path: Path, failure: Failure | None = None) -> tuple[list[running.Ran], list[float], list[str]]:
        self.waits: list[float] = []
        self.said: list[str] = []
        made = plan.write(make(path))
        ran = running.until_done(
            made, TABLE, self.said.append, failure=failure, sleep=self.waits.append, chance=lambda: 0.5
        )
        return ran, self.waits, self.said

    def test_at_once(self) -> None:
        """Its log has what it printed."""
        torch_trees.hugging_face(Path("out"), 20)

        ran, waits, said = self.run(write(fake={"steps": 30, "save": 10}))

        assert [(one.made.checkpoint, one.code) for one in ran] == [("out/checkpoint-20", 0)]
        assert waits == []
        made = ran[0].made
        assert f"training {made.yaml}" in made.log.read_text()
        lines = Path(made.output_dir, "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(21, 31))
        assert said == [f"running llamafactory-cli train {made.yaml} (from out/checkpoint-20; log {made.log})"]

    def test_the_recovery_fails_too(self) -> None:
        """After progress at once, by a signal or an exit code; each goes on from what the one before saved."""
        torch_trees.hugging_face(Path("out"), 10)

        ran, waits, said = self.run(write(fake={"steps": 50, "save": 10, "dies": {10: [25, 9], 20: [43, 1]}}))

        assert [one.code for one in ran] == [-9, 1, 0]
        starts = [Path(one.made.checkpoint).name for one in ran]
        assert starts == ["checkpoint-10", "checkpoint-20", "checkpoint-40"]
        assert waits == [0, 0]
        assert len({one.made.output_dir for one in ran}) == 3
        told = "\n".join(said)
        assert "was ended by SIGKILL: hccl_timeout (" in told
        assert "ended with 1: hccl_timeout (ranks lost each other)\n    RuntimeError: EI0002" in told

    def test_without_progress(self) -> None:
        """Three tries, later and later, one back, three tries; then it gives up with what was tried."""
        torch_trees.hugging_face(Path("out"), 10, 20)
        dies = {20: [25, 1], 10: [15, 1]}

        with pytest.raises(running.GaveUp) as caught:
            self.run(write(fake={"steps": 50, "save": 10, "dies": dies}))

        assert "not run again: 3 attempts without progress, also one checkpoint back" in caught.value.message
        assert caught.value.exit_code == 60
        assert {one["class"] for one in caught.value.fields["ran"]} == {"hccl_timeout"}
        files = [Path(one["yaml"]) for one in caught.value.fields["ran"]]
        starts = [yaml.safe_load(path.read_text())["resume_from_checkpoint"] for path in files]
        assert [Path(start).name for start in starts] == ["checkpoint-20"] * 3 + ["checkpoint-10"] * 3
        assert self.waits == [0, 10, 20, 40, 80]

    def test_back_to_what_an_earlier_one_saved(self) -> None:
        """Each has an output directory of its own, often with one checkpoint in it (save_total_limit: 1)."""
        torch_trees.hugging_face(Path("out"), 20)
        dies = {20: [32, 1], 30: [35, 1]}

        ran, _, _ = self.run(write(fake={"steps": 50, "save": 10, "dies": dies, "once": [20]}))

        starts = [Path(one.made.checkpoint).name for one in ran]
        assert starts == ["checkpoint-20", *["checkpoint-30"] * 3, "checkpoint-20"]
        assert ran[-1].made.checkpoint == "out/checkpoint-20"

    def test_nothing_to_go_back_to(self) -> None:
        torch_trees.hugging_face(Path("out"), 20)
        with pytest.raises(running.GaveUp, match="no older checkpoint to go back to"):
            self.run(write(fake={"steps": 50, "save": 10, "dies": {20: [25, 1]}}))

    @pytest.mark.parametrize(
        ("says", "tries", "reason"),
        [
            ("ImportError: cannot import name 'x'", 1, "code_error does not go away by itself"),
            ("RuntimeError: NPU out of memory. Tried to allocate 2 GiB", 2, "the same oom_npu twice at the same place"),
            ("RuntimeError: npu error code:507011", 3, "3 attempts without progress, and no older"),
        ],
    )
    def test_as_the_supervisor_decides(self, says: str, tries: int, reason: str) -> None:
        """What will not go away is not tried again."""
        torch_trees.hugging_face(Path("out"), 20)

        with pytest.raises(running.GaveUp, match=reason) as caught:
            self.run(write(fake={"steps": 50, "save": 10, "dies": {20: [25, 1]}, "says": says}))

        assert len(caught.value.fields["ran"]) == tries

    def test_the_first_failure_counts(self) -> None:
        """Where it will not go away, nothing is run; the recovery file is there for when it was corrected."""
        torch_trees.hugging_face(Path("out"), 20)

        with pytest.raises(running.GaveUp, match="usage does not go away") as caught:
            self.run(write(fake={"steps": 30, "save": 10}), Failure("usage", "stop", "wrong argument"))

        assert caught.value.fields["ran"] == []
        (made,) = Path().glob("a_recovery_*.yaml")
        assert caught.value.hint == f"see the end of a.log; correct the cause, then `llamafactory-cli train {made}`"

    def test_what_a_try_leaves_behind_is_ended(self) -> None:
        """Before the next one starts: it would hold the devices."""
        torch_trees.hugging_face(Path("out"), 20)

        ran, _, _ = self.run(write(fake={"steps": 30, "save": 10, "leftover": True}))

        assert leftovers.find(ran[0].made.yaml) == []


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
    """How processes are ended is tests/test_supervisor_processes.py's."""

    def test_of_this_run_only(self, sleeper: Callable[..., subprocess.Popen[bytes]]) -> None:
        """Another file's, also one whose name begins alike, goes on; so does a supervised run's."""
        mine, other = sleeper(Path("a.yaml")), sleeper(Path("a.yaml.bak"))
        supervised = sleeper(Path("b.yaml"), more=f"MS_RESUME_WATCH_DIR={Path('a.yaml').absolute()}")
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)

        assert leftovers.end(Path("./a.yaml")) == []
        assert mine.wait(60) == -signal.SIGTERM
        assert other.poll() is None
        assert supervised.poll() is None

    def test_not_itself_nor_those_above(self) -> None:
        """Called from within a training, it does not end its caller."""
        Path("a.yaml").touch()
        code = "from ms_resume.recover import leftovers; print(leftovers.main(['a.yaml']))"
        words = ["env", leftovers.mark(Path("a.yaml")), "sh", "-c", f'{sys.executable} -c "{code}"; echo alive']

        ended = subprocess.run(words, capture_output=True, text=True, check=True)

        assert ended.stdout.splitlines() == ["nothing is left of a.yaml", "0", "alive"]

    def test_dry_run(self, sleeper: Callable[..., subprocess.Popen[bytes]], capsys: Capture) -> None:
        process = sleeper(Path("a.yaml"))
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)
        Path("b.yaml").touch()

        assert leftovers.main(["--dry-run", "b.yaml"]) == 0
        assert leftovers.main(["--dry-run", "b.yaml", "a.yaml"]) == 61
        assert f"would end pid {process.pid}: " in capsys.readouterr().out
        assert process.poll() is None

    def test_a_file_that_is_not_there(self, capsys: Capture) -> None:
        """Most likely a slip: it is not said that all is well."""
        assert leftovers.main(["nosuch.yaml"]) == 2
        assert "nosuch.yaml: does not exist\n  -> " in capsys.readouterr().err

    def test_what_hangs_in_the_kernel(
        self, sleeper: Callable[..., subprocess.Popen[bytes]], capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No signal ends it: said, with what may."""
        process = sleeper(Path("a.yaml"))
        _until(lambda: len(leftovers.find(Path("a.yaml"))) == 1)
        monkeypatch.setattr(processes, "send", lambda process, number: True)
        monkeypatch.setattr(processes, "_UNKILLABLE_S", 0.1)
        monkeypatch.setattr(supervisor_leftovers, "GENTLY_S", 0.1)

        assert leftovers.main(["a.yaml"]) == 40
        assert f"cannot be ended: pid {process.pid}: " in (err := capsys.readouterr().err)
        assert "reset the device" in err


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
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
        assert document["ran"] == [{"yaml": document["yaml"], "code": 0, "class": "done"}]
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

    def test_why_it_failed_is_said(self, capsys: Capture) -> None:
        """From its exit code and log; without --run nothing is decided by it."""
        torch_trees.hugging_face(Path("out"), 20)
        write()
        Path("a.log").write_text("ImportError: before\nRuntimeError: EI0006\n")

        assert cli.main(["recover", "a.yaml", "--exit-code", "137", "--log-from", "20"]) == 0
        said = capsys.readouterr().err
        assert "a.yaml: llamafactory-cli was ended by SIGKILL: hccl_timeout (ranks lost each other)" in said
        assert cli.main(["recover", "a.yaml", "--exit-code", "9", "--log-from", "40", "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["class"] == "unknown"

    def test_not_run_where_it_will_not_go_away(self, capsys: Capture) -> None:
        torch_trees.hugging_face(Path("out"), 20)
        write(fake={"steps": 30, "save": 10})
        Path("a.log").write_text("ImportError: no flash_attn\n")

        assert cli.main(["recover", "a.yaml", "--run", "--exit-code", "1"]) == 60
        said = capsys.readouterr().err
        assert "code_error (the program cannot run)\n    ImportError: no flash_attn" in said
        assert "not run again: code_error does not go away by itself" in said

    def test_a_site_has_its_own_rules(self) -> None:
        """They come first: here that import goes away."""
        torch_trees.hugging_face(Path("out"), 20)
        write(fake={"steps": 30, "save": 10})
        Path("a.log").write_text("ImportError: the share is not mounted yet\n")
        Path("rules.yaml").write_text("- {class: mount, then: restart, when: {log: 'not mounted yet'}}\n")

        assert cli.main(["recover", "a.yaml", "--run", "--exit-code", "1", "--rules", "rules.yaml"]) == 0

    @pytest.mark.parametrize("words", [["--exit-code", "0"], ["--exit-code", "x"], ["--exit-code", "256"]])
    def test_what_is_no_failure(self, words: list[str], capsys: Capture) -> None:
        write()

        assert cli.main(["recover", "a.yaml", *words]) == 2
        assert "--exit-code" in capsys.readouterr().err

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

        assert command.wait(60) == 130
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
