"""`ms-resume`: data on standard output, talk on standard error, an exit code that means something, nothing changed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import own_trees
import pytest
import savers
import stock_trees
from command import call, example, in_terminal
from runs import tiny_run

import ms_resume.cli.locate
import ms_resume.cli.ls
import ms_resume.cli.verify
from ms_resume import cli

COMMANDS = ("ls", "locate", "verify")
MODULE = [sys.executable, "-m", "ms_resume.cli"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save, stop=(0, 7)).ok()
    tiny_run(save, epochs=2, resume=True).ok()
    return save


@pytest.fixture
def whole(finished: Path, tmp_path: Path) -> Path:
    """A run of two ranks that was resumed once, whole at 0_5, 1_0, 1_5, 2_0."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


@pytest.fixture
def save(whole: Path) -> Path:
    """2_0 is torn, a tensor of 1_5 is damaged, 1_0 and 0_5 are as they were saved."""
    own_trees.vote_path(whole, "2_0", 1).unlink()
    own_trees.flip_tensor(own_trees.payload_path(whole, "1_5", 0, "optimizer"), "adam_m.w")
    return whole


class TestLocate:
    """Which one, its files, and why not a newer one."""

    def test_keys(self, save: Path, capsys: Capture) -> None:
        """Exactly those that scripts were promised."""
        found = call(capsys, "locate", save, "--json").json

        assert list(found) == [
            "save", "position", "attempt", "world_size", "layout", "files", "rejected", "warnings"
        ]  # fmt: skip
        assert [set(file) for file in found["files"]] == [{"rank", "role", "path"}] * 8
        assert [set(row) for row in found["rejected"]] == [{"position", "reason", "ranks", "kind"}]

    def test_headers(self, save: Path, capsys: Capture) -> None:
        """Without --deep the flipped bit is not looked for."""
        called = call(capsys, "locate", save, "--json")

        assert (called.code, called.err) == (0, "")
        assert (called.json["position"], called.json["layout"], called.json["world_size"]) == ([1, 5], "ms_resume", 2)
        assert re.fullmatch(r"000002-[0-9a-f]{16}", called.json["attempt"])
        assert all(Path(file["path"]).is_file() for file in called.json["files"])

    def test_deep(self, save: Path, capsys: Capture) -> None:
        """The damaged tensor is named, and the next older one is taken."""
        found = call(capsys, "locate", save, "--json", "--deep").json

        assert found["position"] == [1, 0]
        assert [(row["position"], row["kind"], row["ranks"]) for row in found["rejected"]] == [
            ([2, 0], "torn", [1]),
            ([1, 5], "damaged", [0]),
        ]
        assert "tensor 'adam_m.w'" in found["rejected"][1]["reason"]

    def test_another_header_than_the_vote_names(self, whole: Path, capsys: Capture) -> None:
        """Found without --deep."""
        own_trees.flip(own_trees.payload_path(whole, "2_0", 1, "state"), 300)

        assert call(capsys, "locate", whole, "--json").json["position"] == [1, 5]

    def test_many_files_are_cut_short_for_people(self, tmp_path: Path, capsys: Capture) -> None:
        """And not for scripts."""
        stock_trees.healthy(tmp_path / "save", (0, 5), ranks=range(9))

        assert "... and 11 more files; --json lists all\n" in call(capsys, "locate", tmp_path / "save").out
        assert len(call(capsys, "locate", tmp_path / "save", "--json").json["files"]) == 27

    def test_a_reference_elsewhere(self, tmp_path: Path, capsys: Capture) -> None:
        """--ref-dir says where; without it nothing is whole."""
        stock_trees.f1(tmp_path / "save")
        shutil.move(tmp_path / "save" / "ref", tmp_path / "elsewhere")

        assert call(capsys, "locate", tmp_path / "save").code == 10
        called = call(capsys, "locate", tmp_path / "save", "--ref-dir", str(tmp_path / "elsewhere"), "--json")
        assert called.json["position"] == [0, 10]

    def test_a_reference_directory_that_is_none(self, save: Path, tmp_path: Path, capsys: Capture) -> None:
        """A misspelt --ref-dir is said to be that, not to hold no reference."""
        called = call(capsys, "locate", save, "--ref-dir", str(tmp_path / "nowhere"))

        assert called.code == 2
        assert "does not exist, expected the directory of the reference" in called.err


class TestLs:
    """Every position, newest first."""

    def test_rows(self, save: Path, capsys: Capture) -> None:
        """Verdict, layout, attempt, ranks, roles, bytes; one is marked."""
        rows = call(capsys, "ls", save, "--json").json["positions"]

        assert [(row["position"], row["verdict"], row["taken"]) for row in rows] == [
            ([2, 0], "torn", False),
            ([1, 5], "complete", True),
            ([1, 0], "complete", False),
            ([0, 5], "complete", False),
        ]
        assert [row["attempt"][:6] for row in rows] == ["000002", "000002", "000002", "000001"]
        assert {(row["layout"], row["world_size"]) for row in rows} == {("ms_resume", 2)}
        assert rows[0]["roles"] == ["policy", "optimizer", "state"]
        assert rows[1]["roles"] == ["policy", "optimizer", "ref", "state"]
        assert rows[0]["ranks"] == [1]

    def test_bytes(self, save: Path, capsys: Capture) -> None:
        """What a resume would read, and what lies there of a torn one."""
        rows = call(capsys, "ls", save, "--json").json["positions"]
        files = call(capsys, "locate", save, "--json").json["files"]

        assert rows[1]["bytes"] == sum(Path(file["path"]).stat().st_size for file in files)
        assert rows[0]["bytes"] == sum(path.stat().st_size for path in save.glob("*/rank_*/*-2_0.safetensors"))

    def test_a_damaged_header_is_not_marked(self, save: Path, capsys: Capture) -> None:
        """The mark agrees with what locate says."""
        own_trees.flip(own_trees.payload_path(save, "1_5", 1, "policy"), 300)

        rows = call(capsys, "ls", save, "--json").json["positions"]

        assert [(row["verdict"], row["taken"]) for row in rows[1:3]] == [("damaged", False), ("complete", True)]
        assert rows[2]["position"] == call(capsys, "locate", save, "--json").json["position"]

    def test_abandoned(self, whole: Path, capsys: Capture) -> None:
        """An attempt that started anew leaves the others' future behind."""
        tiny_run(whole, stop=(0, 6), start={"allow_fresh_start": True}).ok()

        rows = call(capsys, "ls", whole, "--json").json["positions"]

        assert [row["verdict"] for row in rows] == ["abandoned", "abandoned", "abandoned", "complete"]
        assert rows[3]["attempt"].startswith("000003-")

    def test_stock(self, tmp_path: Path, capsys: Capture) -> None:
        """No attempt, and a warning about what stock code could not read."""
        stock_trees.f3(tmp_path / "save")

        called = call(capsys, "ls", tmp_path / "save")

        assert called.code == 0
        assert "->  0_10      complete  mindrlhf  -        2 " in called.out
        assert "warning: train/rank_1/meta.json: torn" in called.err

    def test_weights_alone_are_not_marked(self, whole: Path, capsys: Capture) -> None:
        """A resume passes them over, so all commands do; repair does not point stock code to them."""
        for at in ("2_0", "1_0"):
            for rank in (0, 1):
                own_trees.edit_vote(whole, at, rank, lambda vote: vote["files"].pop(1))

        rows = call(capsys, "ls", whole, "--json").json["positions"]
        located = [call(capsys, "locate", whole, "--json", *deep).json for deep in ((), ("--deep",))]
        mended = call(capsys, "repair", whole, "--dry-run", "--json").json["files"]

        assert [(row["verdict"], row["taken"]) for row in rows] == [
            ("weights only", False),
            ("complete", True),
            ("weights only", False),
            ("complete", False),
        ]
        assert [found["position"] for found in located] == [[1, 5]] * 2
        assert [found["rejected"][0]["kind"] for found in located] == ["weights only"] * 2
        assert {tuple(file["position"]) for file in mended} == {(1, 5)}

    def test_nothing_whole_is_still_listed(self, tmp_path: Path, capsys: Capture) -> None:
        """With the reasons below the table; listing them is no failure."""
        stock_trees.f8(tmp_path / "save")

        called = call(capsys, "ls", tmp_path / "save")

        assert called.code == 0
        assert "0_10 is torn: policy: rank 1 has 0_5\n" in called.out


class TestVerify:
    """Findings by file, rank, role, tensor, reason."""

    def test_the_newest_complete_one(self, save: Path, capsys: Capture) -> None:
        """Headers only: all is well."""
        called = call(capsys, "verify", save, "--json")

        assert (called.code, called.err) == (0, "")
        [result] = called.json["positions"]
        assert (result["position"], result["verdict"], result["files"]) == ([1, 5], "valid", 8)

    def test_deep(self, save: Path, capsys: Capture) -> None:
        """The tensor by its name, the file by its path; exit 21."""
        called = call(capsys, "verify", save, "--deep", "--json")

        assert (called.code, called.json["exit_code"], called.json["error"]) == (21, 21, "Damaged")
        [result] = called.json["positions"]
        [finding] = result["findings"]
        assert finding["path"] == str(own_trees.payload_path(save, "1_5", 0, "optimizer"))
        assert (finding["rank"], finding["role"], finding["tensor"]) == (0, "optimizer", "adam_m.w")
        assert "its bytes have digest" in finding["reason"]

    def test_what_is_not_finite(self, tmp_path: Path, capsys: Capture) -> None:
        """Only when asked for, then with exit 21; the hint does not say that a resume would pass it over."""
        attempt = savers.open_attempt(tmp_path)
        savers.save(savers.writer(tmp_path, attempt), "0_5", value=float("nan"))
        called = call(capsys, "verify", tmp_path, "--finite", "--json")
        [result] = called.json["positions"]

        assert call(capsys, "verify", tmp_path, "--deep").code == 0
        assert (called.code, result["verdict"], called.json["deep"]) == (21, "not finite", True)
        assert [(f["role"], f["tensor"], f["kind"]) for f in result["findings"]] == [
            ("policy", "w", "not finite"),
            ("optimizer", "w", "not finite"),
        ]
        assert "6 NaN and 0 infinite values" in result["reason"]
        assert "a resume takes it all the same" in called.json["hint"]

    @pytest.mark.parametrize(
        ("position", "code", "verdict"), [("2_0", 20, "torn"), ("1_5", 21, "damaged"), ("1_0", 0, "valid")]
    )
    def test_one_position(self, save: Path, capsys: Capture, position: str, code: int, verdict: str) -> None:
        """Whatever it is."""
        called = call(capsys, "verify", save, "--deep", "--json", "--position", position)

        assert (called.code, [result["verdict"] for result in called.json["positions"]]) == (code, [verdict])

    def test_all(self, save: Path, capsys: Capture) -> None:
        """Each one; the worst decides the exit code."""
        deep = call(capsys, "verify", save, "--all", "--deep", "--json")
        shallow = call(capsys, "verify", save, "--all", "--json")

        verdicts = ["torn", "damaged", "valid", "valid"]
        assert (deep.code, [result["verdict"] for result in deep.json["positions"]]) == (21, verdicts)
        assert shallow.code == 20

    def test_an_abandoned_one(self, whole: Path, capsys: Capture) -> None:
        """No fault among all of them; no comfort to who asked for it."""
        tiny_run(whole, stop=(0, 6), start={"allow_fresh_start": True}).ok()

        assert call(capsys, "verify", whole, "--all").code == 0
        asked = call(capsys, "verify", whole, "--position", "2_0")
        assert (asked.code, "abandoned" in asked.err) == (10, True)

    def test_a_position_that_is_not_there(self, save: Path, capsys: Capture) -> None:
        """What is there is listed."""
        called = call(capsys, "verify", save, "--position", "9_9")

        assert called.code == 10
        assert "no position 9_9, there are 2_0, 1_5, 1_0, 0_5" in called.err

    def test_nothing_whole(self, tmp_path: Path, capsys: Capture) -> None:
        """Nothing to verify by default; all of them with --all."""
        stock_trees.f8(tmp_path / "save")

        assert call(capsys, "verify", tmp_path / "save").code == 10
        assert call(capsys, "verify", tmp_path / "save", "--all").code == 20

    def test_position_and_all_exclude_each_other(self, save: Path, capsys: Capture) -> None:
        """A usage error, with what to type."""
        called = call(capsys, "verify", save, "--all", "--position", "1_0")

        assert (called.code, called.out) == (2, "")
        assert "ms-resume verify --help" in called.err


def empty(save: Path) -> None:
    save.mkdir()


def hugging_face(save: Path) -> None:
    save.mkdir()
    (save / "trainer_state.json").touch()


def something(save: Path) -> None:
    (save / "train" / "rank_0").mkdir(parents=True)
    (save / "train" / "rank_0" / "policy_model_rank_0-0_5.tmp").touch()


BAD = [
    # what is there   exit  found                                             what to do
    (lambda save: None, 2, "does not exist, expected a save directory", "check the path"),
    (Path.touch, 2, "is a file, expected a save directory", "check the path"),
    (empty, 10, "is empty, expected train/rank_R/policy_model_rank_R-E_S.safetensors", "check the path"),
    (something, 10, "has no checkpoint in it (it holds train), expected", "check the path"),
    (hugging_face, 2, "a Hugging Face Trainer checkpoint (trainer_state.json)", "give the directory above it"),
]  # fmt: skip  # one table


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("build", "code", "found", "hint"), BAD)
def test_a_save_directory_that_is_none(
    command: str,
    build: Callable[[Path], None],
    code: int,
    found: str,
    hint: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """One clear error: where, what was found, what was expected, what to do; the same facts with --json."""
    save = tmp_path / "save"
    build(save)

    called = call(capsys, command, save)
    as_json = call(capsys, command, save, "--json")

    assert (called.code, called.out) == (code, "")
    assert called.err.startswith(f"ms-resume: {save}: ")
    assert found in called.err
    assert hint in called.err.partition("\n  -> ")[2]
    assert (as_json.code, as_json.err) == (code, "")
    assert as_json.json["exit_code"] == code
    assert found in as_json.json["message"]
    assert hint in as_json.json["hint"]


class TestTrainForSave:
    """MindRLHF's --actor_checkpoint_path is `<save>/train`."""

    @pytest.mark.parametrize("command", COMMANDS)
    def test_its_parent_is_taken(self, command: str, save: Path, capsys: Capture) -> None:
        """And said, on standard error."""
        called = call(capsys, command, save / "train", "--json")

        assert (called.code, called.json["save"]) == (0, str(save))
        assert called.err == f"ms-resume: {save}/train is the train directory of {save}: looking at {save}\n"

    def test_from_within(self, save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """`cd save/train; ms-resume locate .`"""
        monkeypatch.chdir(save / "train")

        assert call(capsys, "locate", ".", "--json").json["position"] == [1, 5]

    def test_a_save_directory_called_train(self, save: Path, capsys: Capture) -> None:
        """It stays itself, whatever lies beside it."""
        save = save.rename(save.parent / "train")
        (save.parent / "ref").mkdir()

        called = call(capsys, "locate", save, "--json")

        assert (called.json["position"], called.err) == ([1, 5], "")

    def test_without_anything_beside_it(self, tmp_path: Path, capsys: Capture) -> None:
        """Then it is no save directory's."""
        stock_trees.add(tmp_path / "x", "policy", [0], (0, 5))

        called = call(capsys, "locate", tmp_path / "x" / "train")

        assert called.code == 2
        assert "MindRLHF's train directory without its optimizer" in called.err


class TestUsage:
    """What does not parse."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["fly", "save"], "invalid choice: 'fly'"),
            (["locate"], "the following arguments are required: SAVE"),
            (["locate", "save", "--depe"], "unrecognized arguments: --depe"),
            (["verify", "save", "--position", "five"], "'five' is not a position"),
        ],
    )
    def test_exit_2(self, words: list[str], said: str, capsys: Capture) -> None:
        """In one line, and what to type; with --json as JSON."""
        assert cli.main(words) == 2
        printed = capsys.readouterr()
        assert (printed.out, said in printed.err, "\n  -> " in printed.err) == ("", True, True)

        assert cli.main([*words, "--json"]) == 2
        document = json.loads(capsys.readouterr().out)
        assert (document["error"], document["exit_code"]) == ("UsageError", 2)
        assert said in document["message"]

    @pytest.mark.parametrize("command", cli._COMMANDS)
    def test_help_is_the_docstring(self, command: str, capsys: Capture) -> None:
        """With its example, and every option."""
        assert cli.main([command, "--help"]) == 0

        printed = capsys.readouterr().out
        module: ModuleType = getattr(ms_resume.cli, command)
        assert module.__doc__ is not None
        assert module.__doc__.strip() in printed
        assert "--json" in printed

    def test_help_and_version(self, capsys: Capture) -> None:
        """All commands, one line each."""
        assert (cli.main(["--help"]), cli.main(["--version"])) == (0, 0)

        printed = capsys.readouterr().out
        assert all(f"\n    {command} " in printed for command in cli._COMMANDS)
        assert f"ms-resume {ms_resume.__version__}\n" in printed


@pytest.mark.parametrize("command", [*COMMANDS, "show"])
def test_the_example_in_the_help_is_real(
    command: str, save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line what the command prints for such a directory; `...` stands for what is long or differs."""
    monkeypatch.chdir(save.parent)
    words, pattern = example(command)

    called = call(capsys, words[0], words[1], *words[2:])

    assert re.fullmatch(pattern, (called.out + called.err).strip("\n"))


class TestBadEnds:
    """What else may happen to a process."""

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_reader_that_leaves(self, save: Path, unbuffered: str) -> None:
        """`ms-resume ls SAVE | head -0`: quiet, and the code that a shell gives for it."""
        read, write = os.pipe()
        os.close(read)
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

        words = [*MODULE, "ls", str(save)]
        ended = subprocess.run(words, env=environment, stdout=write, stderr=subprocess.PIPE, check=False)

        os.close(write)
        assert (ended.returncode, ended.stderr) == (141, b"")

    def test_control_c(self, save: Path) -> None:
        """Quiet, 130. It is in the middle of its work."""
        waiting, ready = os.pipe()
        stops = f"attempts.read_all = lambda save: (os.write({ready}, b'!'), time.sleep(60))"
        code = f"import os, time; from ms_resume import cli; from ms_resume.ondisk import attempts; {stops}"
        words = [sys.executable, "-c", f"{code}; raise SystemExit(cli.main(['ls', {str(save)!r}]))"]
        # A background job, as CI may be, ignores Ctrl-C, and so would what it starts.
        default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(words, **pipes, preexec_fn=default, pass_fds=[ready]) as process:
            os.close(ready)
            assert os.read(waiting, 1) == b"!"
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        os.close(waiting)

        assert (process.returncode, out, err) == (130, b"", b"")

    def test_a_directory_that_cannot_be_read(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit 40 with the path and the cause."""
        stock_trees.f1(tmp_path / "save")
        real = os.open

        def fails(path: Any, *args: Any, **kwargs: Any) -> int:
            if str(path).endswith("save/optimizer"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", fails)
        called = call(capsys, "locate", tmp_path / "save")

        assert called.code == 40
        assert "save/optimizer: cannot be read: Input/output error" in called.err

    def test_a_damaged_attempt_record(self, save: Path, capsys: Capture) -> None:
        """Exit 21, whatever the command: nothing can be said about which checkpoints are live."""
        (save / "commits" / "attempts" / "000002.json").write_bytes(b"")

        for command in COMMANDS:
            called = call(capsys, command, save, "--json")
            assert (called.code, called.json["error"]) == (21, "Damaged")

    @pytest.mark.parametrize("words", [[], ["--json"]])
    def test_a_bug(self, words: list[str], save: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 70, the trace for who repairs it, and a request to report it."""
        monkeypatch.setattr(ms_resume.cli.ls, "list_rows", lambda surveyed: 1 // 0)

        called = call(capsys, "ls", save, *words)

        assert called.code == 70
        assert "ZeroDivisionError" in called.err
        assert "please report it" in (called.out if words else called.err)
        assert not words or called.json["exit_code"] == 70


class TestTerminal:
    """Where a person looks."""

    @pytest.mark.parametrize("command", COMMANDS)
    def test_tables_are_folded(self, command: str, save: Path) -> None:
        """No row is wider than the terminal, and nothing is cut off."""
        words = [*MODULE, command, "save"]
        plain = subprocess.run(words, cwd=save.parent, capture_output=True, text=True, check=True).stdout
        shown = in_terminal(words, cwd=save.parent, columns=70)

        rows = [line for line in shown.splitlines() if not re.match(r"\S+: |\d+_\d+ is |  -> ", line)]
        assert 10 <= max(map(len, rows)) <= 70
        last_cells = [re.split(r" {2,}", line)[-1] for line in plain.splitlines()]
        assert all("".join(cell.split()) in "".join(shown.split()) for cell in last_cells)

    def test_a_bar_shows_how_far_a_deep_check_is(self, save: Path) -> None:
        """Bytes, rate, time left; none of it when standard error is no terminal."""
        words = [*MODULE, "verify", "save", "--deep", "--position", "1_0"]

        assert re.search(r"checking 1_0 .* [\d.]+/\d+\.\d KiB", in_terminal(words, cwd=save.parent, columns=100))
        ended = subprocess.run(words, cwd=save.parent, capture_output=True, check=True)
        assert ended.stderr == b""


def test_every_command_starts_quickly(save: Path) -> None:
    """Under 0.3 s warm, in processor time, when nothing else wants the processor's caches: once in ten is enough."""
    payload = own_trees.payload_path(save, "1_5", 0, "policy")
    for command, what in [*((command, save) for command in COMMANDS), ("show", payload)]:
        took_s: list[float] = []
        while not took_s or took_s[-1] >= 0.3:
            assert len(took_s) < 10, f"{command} took {took_s}"
            took_s.append(_processor_time_s([*MODULE, command, str(what)]))


def _processor_time_s(words: list[str]) -> float:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime
