"""Why an attempt ended, by recorded logs: `supervisor_logs/CLASS-NAME.log`, each with its source."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ms_resume.errors import ExitCode, UsageError
from ms_resume.supervisor import rules
from ms_resume.supervisor.evidence import Evidence, RankEnd

LOGS = sorted((Path(__file__).parent / "supervisor_logs").glob("*.log"))
TABLE = rules.read()
WITHOUT_LOGS = {"done", "interrupted", "elsewhere", "launcher_died", "scheduler_died", "unknown", "bug"} | {
    "nothing_to_resume", "names", "layout", "not_empty", "in_use", "torn_checkpoint",
}  # fmt: skip  # known by the class of the error alone: the test below


def recorded(path: Path) -> Evidence:
    """The evidence that a recorded log stands for: its header says what no log says."""
    lines = path.read_text().splitlines()
    said: dict[str, Any] = {"source": ""}
    for line in lines:
        if match := re.match(r"# (\w+): (.*)", line):
            said[match[1]] = match[2] if match[1] in ("source", "message", "error") else yaml.safe_load(match[2])
    log = tuple(line for line in lines if not line.startswith("# "))
    error = {"error": said["error"], "message": said.get("message", "")} if "error" in said else {}
    outcome = {"error": error} if said.get("words", "error" in said) else None
    first = RankEnd(3, exit_code=said.get("exit_code"), outcome=outcome, phase="update", host="node-7", log=log)
    return Evidence(
        node="here",
        first=first,
        hang="rank 3 stands still" if said.get("hang") else "",
        left=said.get("left", False),
        oom_kills=int(said.get("oom_kill", False)),
    )


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_recorded_logs(path: Path):
    """Each gives its class, the rank, its node, and a line that shows it."""
    failure = rules.classify(recorded(path), TABLE)

    assert failure.kind == path.stem.partition("-")[0]
    assert (failure.rank, failure.node) == (3, "node-7")
    assert failure.says
    evident = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert not evident or failure.lines


def test_at_least_two_recorded_for_each_class():
    """But for those that an error's class decides."""
    counted = Counter(path.stem.partition("-")[0] for path in LOGS)

    assert {rule.kind for rule in TABLE} - WITHOUT_LOGS == counted.keys()
    assert min(counted.values()) >= 2


BY_HAND = {"hang-collective", "preempted-killed", "preempted-save", "vanished-unseen"}
"""Their class is decided by what no log says."""


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_each_log_names_its_source(path: Path):
    """A public thread, or a run that was made to fail for it."""
    source = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# source: (github\.com/[\w.-]+/[\w.-]+/issues/\d+|recorded: .+)", source)

    assert bool(named) == (path.stem not in BY_HAND), source


@pytest.mark.parametrize(
    ("error", "kind", "then"),
    [
        ("UsageError", "usage", "stop"),
        ("NothingToResume", "nothing_to_resume", "stop"),
        ("Torn", "torn_checkpoint", "restart"),
        ("Disagreement", "torn_checkpoint", "restart"),
        ("Damaged", "damaged_checkpoint", "once"),
        ("NamesMismatch", "names", "stop"),
        ("LayoutMismatch", "layout", "stop"),
        ("DiskError", "disk", "restart"),
        ("DirectoryInUse", "in_use", "stop"),
        ("Superseded", "in_use", "stop"),
        ("DirectoryNotEmpty", "not_empty", "stop"),
        ("MsResumeError", "bug", "once"),
    ],
)
def test_our_own_errors(error: str, kind: str, then: str):
    """What ms_resume raised is believed before any log, also one that speaks of memory."""
    log = ("HCCL timeout", "std::bad_alloc") if error != "MsResumeError" else ()
    first = RankEnd(0, exit_code=1, outcome={"error": {"error": error, "message": "m"}}, log=log)
    failure = rules.classify(Evidence("n", first), TABLE)

    assert (failure.kind, failure.then) == (kind, then)


def test_every_code_of_ours_has_a_class():
    """A rank that ends with one is never unknown."""
    for code in ExitCode:
        if code not in (ExitCode.OK, ExitCode.LEFT_ON_REQUEST, ExitCode.GAVE_UP):
            failure = rules.classify(Evidence("n", RankEnd(0, exit_code=int(code))), TABLE)
            assert failure.kind != "unknown", code


@pytest.mark.parametrize(
    ("code", "log", "kind"),
    [
        (127, ("bash: msrun: command not found",), "code_error"),
        (2, ("run_grpo: WORKERS is 'two'",), "usage"),
        (-9, (), "launcher_died"),
        (None, (), "launcher_died"),
        (1, ("RuntimeError: HCCL connect timed out",), "hccl_timeout"),
    ],
)
def test_without_a_rank(code: int | None, log: tuple[str, ...], kind: str):
    """The launcher's word, where no rank was ever seen."""
    failure = rules.classify(Evidence("here", None, launcher_code=code, launcher_log=log), TABLE)

    assert (failure.kind, failure.rank, failure.node) == (kind, None, "here")


def test_the_same_again_is_recognised():
    """By class and first line of the error, whatever pids and addresses are in it."""
    details = []
    for pid in ("41234", "51234"):
        error = {"error": "KeyError", "message": f"process {pid} at 0x7f{pid}\nmore {pid}"}
        details.append(rules.classify(Evidence("n", RankEnd(0, outcome={"error": error})), TABLE).detail)

    assert details[0] == details[1] == "KeyError: process N at N"


def test_a_site_comes_first(tmp_path: Path):
    """Its rules are asked before ours, and the line that fits is shown."""
    site = tmp_path / "site.yaml"
    site.write_text("- {class: fabric, then: stop, says: the fabric is down, when: {log: 'RoCE port \\d+ down'}}")
    first = RankEnd(0, exit_code=-9, log=("before", "RoCE port 3 down"))
    failure = rules.classify(Evidence("n", first), rules.read(site))

    assert (failure.kind, failure.then, failure.lines) == ("fabric", "stop", ("RoCE port 3 down",))
    assert rules.classify(Evidence("n", RankEnd(0, exit_code=-9)), rules.read(site)).kind == "killed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class: x", "expected a list of rules"),
        ("- {class: x, then: restart}", "rule 1: expected class, then and when"),
        ("- {class: x, then: retry, when: {}}", "then is 'retry'"),
        ("- {class: x, then: stop, when: {logs: y}}", "unknown condition 'logs'"),
        ("- {class: x, then: stop, when: {log: '('}}", "log is '\\('"),
        ("- {class: x, then: stop, when: {hang: maybe}}", "hang is 'maybe'"),
        ("- {class: x, then: stop, when: y}", "when is 'y'"),
        ("- [", "not YAML"),
    ],
)
def test_bad_rules(tmp_path: Path, text: str, message: str):
    """Found when they are read, not at the first failure; each says where."""
    site = tmp_path / "site.yaml"
    site.write_text(text)

    with pytest.raises(UsageError, match=message):
        rules.read(site)


def test_rules_that_are_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        rules.read(tmp_path / "none.yaml")
