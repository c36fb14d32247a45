"""What the documents say is so: each check is a function from text to complaints, and is shown a text it rejects."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_architecture

import ms_resume
from ms_resume import cli
from ms_resume.cli import diff, locate, ls, prune, recover, repair, show, verify
from ms_resume.errors import ExitCode, MsResumeError
from ms_resume.framework.group import Solo
from ms_resume.load.names.match import LoadReport
from ms_resume.ondisk import attempts, payload, torchzip, votes
from ms_resume.records import Attempt, DeadStock, Located, Origin, Payload, Position, Rejection, TensorInfo, Vote
from ms_resume.recover import plan, running
from ms_resume.recover.text import Document
from ms_resume.repair import Rewritten
from ms_resume.resume import fingerprint
from ms_resume.settings import PREFIX, Settings
from ms_resume.state import Arrays
from ms_resume.supervisor import files, rules
from ms_resume.supervisor.evidence import Action
from ms_resume.verify import Finding

TOP = Path(__file__).parents[1]
DOCS = [
    "README.md",
    "README_CN.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((TOP / "docs").glob("*.md"))),
]

IN_A_SAVE_DIRECTORY = {"train", "optimizer", "ref", "state", "commits", "pins", "rollouts", "data", "metrics"}

Check = Callable[[str], list[str]]


def text_of(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """From a heading of the second level to the next."""
    return re.split(r"^## ", text.partition(f"\n## {title}")[2], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands in backticks, outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def first_cells(text: str) -> list[str]:
    """The names in backticks in the first column of the tables."""
    return [name for row in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE) for name in spans(row)]


def complain(what: str, said: Iterable[str], true: Iterable[str]) -> list[str]:
    said, true = set(said), set(true)
    return [f"{what} {name}: not documented" for name in sorted(true - said)] + [
        f"{what} {name}: documented, and does not exist" for name in sorted(said - true)
    ]


# -- the repository


@cache
def ignored_patterns() -> tuple[str, ...]:
    lines = text_of(".gitignore").splitlines()
    return tuple(line.strip("/") for line in lines if line and not line.startswith("#"))


def kept(path: Path) -> bool:
    """Whether git would keep `path`: it is not ignored, and holds a file."""
    if path.name == ".git" or any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored_patterns()):
        return False
    return path.is_file() or any(kept(below) for below in path.iterdir())


def repository() -> set[str]:
    """Every folder but those below tests/, the files at the top, and the modules at the top of the toolkit."""
    found: set[str] = set()
    todo = [TOP]
    while todo:
        here = todo.pop()
        for path in filter(kept, here.iterdir()):
            name = path.relative_to(TOP).as_posix()
            if path.is_dir():
                found.add(f"{name}/")
                todo += [path] if name != "tests" else []
            elif (here == TOP and not name.startswith(".")) or here == TOP / "ms_resume":
                found.add(name)
    return found


def drawn_tree(text: str) -> set[str]:
    """The paths in the tree of a README."""
    found, above = set(), {-1: ""}
    for line in next(block for block in blocks(text, "text") if block.startswith(".\n")).splitlines()[1:]:
        match = re.match(r"^((?:│   |    )*)[├└]── (\S+)", line)
        assert match, line
        depth = len(match[1]) // 4
        above[depth] = above[depth - 1] + match[2]
        found.add(above[depth])
    return found


def wrong_tree(text: str) -> list[str]:
    return complain("tree:", drawn_tree(text), repository())


def absent_files(text: str) -> list[str]:
    """Links, and names in backticks that look like files or folders of the repository."""
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    wrong = [f"link {link}" for link in links if not any((place / link).exists() for place in (TOP, TOP / "docs"))]
    for name in spans(text):
        if re.fullmatch(r"(?!/)[\w./-]+(\.(py|sh|md|toml|yaml)|/)", name) and not _exists(name.rstrip("/")):
            wrong.append(name)
    return wrong


def _exists(name: str) -> bool:
    if name.partition("/")[0] in IN_A_SAVE_DIRECTORY:
        return True
    direct = any((place / name).exists() for place in (TOP, TOP / "ms_resume", TOP / "docs"))
    return direct or ("/" not in name and any(kept(path) for path in TOP.glob(f"*/**/{name}")))


def absent_names(text: str) -> list[str]:
    """`module.name` in backticks, where `module` is one of the toolkit's: it must define or mention the name."""
    wrong = []
    for name in spans(text):
        match = re.fullmatch(r"(?:ms_resume\.)?(\w+)\.(?!(?:py|json)$)([A-Za-z_]\w*)(\(.*\))?", name)
        sources = list((TOP / "ms_resume").rglob(f"{match[1]}.py")) if match else []
        sources += list((TOP / "ms_resume" / match[1]).glob("__init__.py")) if match else []
        if match and sources and not any(re.search(rf"\b{match[2]}\b", path.read_text()) for path in sources):
            wrong.append(name)
    for name in spans(text):
        if re.fullmatch(r"ms_resume(\.\w+)+", name) and not _importable(name):
            wrong.append(name)
    return wrong


def _importable(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.util.find_spec(name) is not None or hasattr(ms_resume, attribute)
    except ModuleNotFoundError:
        return module == "ms_resume" and hasattr(ms_resume, attribute)


def absent_tests(text: str) -> list[str]:
    """`test_...` in backticks."""
    defined = {name for path in TOP.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    return [name for name in spans(text) if re.fullmatch(r"test_\w+", name) and name not in defined]


def without_a_test(text: str) -> list[str]:
    """Rows of the tables about scheduled training, each of which says what shows it."""
    tables = section(text, "How it was checked") + section(text, "Scheduled training")
    rows = re.findall(r"^\| (?!---).*\|$", tables, re.MULTILINE)[1:]
    return [row for row in rows if not re.search(r"`test_\w+`[^|]*\|$", row)] if rows else ["no table"]


def line_numbers(text: str) -> list[str]:
    """A citation that is wrong after the next edit."""
    return re.findall(r"[\w/]+\.(?:py|sh|md|yaml|toml)(?::|#L)\d+|\blines? \d+\b", text)


# -- commands


def unknown_commands(text: str) -> list[str]:
    """`ms-resume ...` that does not parse, flags and `make` targets that nothing knows."""
    wrong = []
    for line in re.findall(r"(?<![\w/-])ms-resume ([a-z][^`\n#;]*)", code_in(text)):
        words = shlex.split(line.replace("...", "").replace("E_S", "0_5"))
        if not any(_parses([*words, *more]) for more in ([], ["SAVE"], ["SAVE", "0_5"])):
            wrong.append(f"ms-resume {line}")
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    wrong += [f"make {t}" for t in re.findall(r"(?:^|[^\w-])make (\w[\w-]*)", code_in(text)) if t not in targets]
    return wrong + [flag for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", code_in(text)) if flag not in known_flags()]


def code_in(text: str) -> str:
    shown = blocks(text, r"\w*") + [line.strip() for line in re.findall(r"^    .*", text, re.MULTILINE)]
    return "\n".join([*shown, *spans(text)])


def _parses(words: list[str]) -> bool:
    try:
        cli._parser().parse_args(words)
    except MsResumeError:
        return False
    return True


@cache
def known_flags() -> frozenset[str]:
    main = TOP / "examples/grpo_arithmetic/main.py"
    flags = TOP / "ms_resume/resume/start_mode.py"
    sources = [main, flags, TOP / "ms_resume/strategies.py", *(TOP / "ms_resume/cli").glob("*.py")]
    literal = {flag for path in sources for flag in re.findall(r'"(--[a-z][\w-]+)"', path.read_text())}
    literal |= set(re.findall(r"--[a-z][\w-]+(?=[ |)])", text_of("launch/scheduled_train.sh")))
    listed = re.search(r"WITHOUT_MEANING = \((.*?)\)", main.read_text(), re.DOTALL)
    assert listed
    literal |= {"--nonblocking", "--pid"}  # py-spy's, which the supervisor calls
    return frozenset(literal | {"--help", "--version"} | {f"--{name}" for name in re.findall(r'"(\w+)"', listed[1])})


def _filled_in(hint: str) -> str:
    """A hint in the source, as somebody reads it."""
    return re.sub(r"\{.*?\}", "SAVE", re.sub(r"\{[\w.]*position\}", "0_5", hint))


def test_the_toolkit_names_no_command_or_flag_that_does_not_exist() -> None:
    """A hint is typed as it stands."""
    for path in sorted((TOP / "ms_resume").rglob("*.py")):
        source = path.read_text()
        constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
        said = "\n".join(text for text in constants if isinstance(text, str))
        shown = [_filled_in(span) for span in spans(source) if span.startswith("ms-resume ")]
        shown += re.findall(r"(?<![\w-])--[a-z][\w-]+", said)
        assert unknown_commands("\n".join(f"`{one}`" for one in shown)) == [], path.name


# -- format, settings, exit codes


def votes_and_records(text: str) -> list[str]:
    """The tables of docs/format.md against what is written."""
    file = Payload("policy", "p", 1, "d", "000001-0")
    vote = json.loads(votes.encode(Vote(Position(0, 1), 1, 10, 0, 1, "000001-0", (file,))))
    origin = Origin(Position(0, 1), None)
    record = json.loads(attempts.encode(Attempt("000001-0", origin, 1, dead_stock=(DeadStock(Position(0, 2), ()),))))
    mark = payload.Mark("000001-0", Position(0, 1), 0, "state")
    metadata = json.loads(payload.header_block({}, {}, mark, {"a": {}})[8:])["__metadata__"]
    found = complain("vote key", first_cells(section(text, "A vote")), {*vote, *vote["files"][0]})
    found += complain("attempt key", first_cells(section(text, "An attempt record")), record)
    found += [f"from: {key}" for key in record["from"] if f"`{key}`" not in section(text, "An attempt record")]
    metadata_table = section(text, "A payload").partition("What each role holds")[0]
    return found + complain("metadata key", first_cells(metadata_table), metadata)


def compared_keys(text: str) -> list[str]:
    paragraph = text.partition("**Which configuration keys are compared.**")[2].partition("\n\n")[0]
    said = {name for name in spans(paragraph) if "." not in name}
    return complain("configuration key", said, {*fingerprint.SECTIONS, *fingerprint.LEFT_OUT})


def json_keys(text: str) -> list[str]:
    """What `--json` prints, by command."""
    rejection = Rejection(Position(0, 1), "torn", "")
    positions = {"ls": ls.Row.__slots__, "verify": verify.Result(rejection).to_json()}
    of_findings = Finding("", 0, "", "").to_json()
    reported = LoadReport((), (), (), (), (), {}).to_json()
    record = torchzip.Record("", 0, 0, 0)
    shown = show.Contents(Path(__file__), "", tensors={"w": TensorInfo("U8", ())}, records=(record,)).to_json()
    keys = {
        "ls": {"save", "positions", *positions["ls"]},
        "locate": {
            *locate.document(Located(Path(), None)),
            *rejection.to_json(),
            *("rank", "role", "path", "mindformers", "mindformers-1.0"),
            *("load_checkpoint", "resume_training", "load_ckpt_format", "not_restored"),
        },
        "verify": {"save", "deep", "positions", *positions["verify"], *of_findings},
        "show": {*shown, *shown["tensors"][0], *shown["records"][0]},
        "explain": {"file", "net", "role", *reported, "kind", "text", "advice"},
        "diff": {"a", "b", "equal", "counts", "tensors", *diff.Row(0, "", "", "").to_json(), "dtype", "shape"},
        "repair": {"save", "dry_run", "files", *repair.to_json(Rewritten(Path(), "", Position(0, 1), "", ""))},
        "restore": {"save", "dry_run", "position", "attempt", "restored", "abandoned"},
        "prune": {"save", "keep", "last", "every", "best", "done", "positions", *prune.Row.__slots__, "--yes"},
        "recover": {*_of_recovery(), *rejection.to_json()},
        "pin": {"save", "position", "changed", "pinned"},
        "run": {"save", "log_dir", "attempts", "end", *files.action_json(Action("", ""))},
        "unpin": {"save", "position", "changed", "pinned", "pin"},
    }
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section(text, "`--json` of the commands"), re.MULTILINE))
    assert set(rows) == set(keys) == set(cli._COMMANDS)
    return [fault for name in rows for fault in complain(f"{name} --json", spans(rows[name]), keys[name])]


def _of_recovery() -> dict[str, Any]:
    failed = plan.Failed(Document(Path(), "", {}, {}, False), "", None, False)
    made = plan.Plan(failed, Located(Path(), None), Path(), Path(), "", "", "")
    ran = running.Ran(made, 0, None)
    return {**recover.document(made, None, [ran], dry_run=True), **ran.to_json()}


def exit_codes(text: str) -> list[str]:
    """One section for each, in docs/operations.md."""
    return complain("exit code", re.findall(r"^## (\d+): ", text, re.MULTILINE), [str(int(code)) for code in ExitCode])


def failure_classes(text: str) -> list[str]:
    """One section for each class that the rules know: what happened, what the supervisor did, what to type."""
    part = section(text, "By failure class")
    told = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", part, re.MULTILINE | re.DOTALL))
    wrong = complain("failure class", told, {rule.kind for rule in rules.read()})
    wanted = ("* *Happened*: ", "* *Supervisor*: ", "* *You*: ")
    return wrong + [f"{name}: no {word}" for name, said in told.items() for word in wanted if word not in said]


def settings_table(text: str) -> list[str]:
    """Name and default of every setting."""
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section(text, "Settings of the toolkit"), re.MULTILINE)
    said = [f"{name} = {default}" for name, default in rows]
    shown = {field.name: "empty" if field.default == "" else field.default for field in fields(Settings)}
    true = [f"{PREFIX}{name.upper()} = {default}" for name, default in shown.items()]
    return complain("setting", said, true)


def knobs(text: str) -> list[str]:
    """Every variable of the launch script."""
    true = re.findall(r'^([A-Z_]+)="\$\{\1:-', text_of("launch/run_grpo.sh"), re.MULTILINE)
    return complain("knob", first_cells(section(text, "Knobs of `launch/run_grpo.sh`")), true)


def layers(text: str) -> list[str]:
    """The drawing in docs/architecture.md against the wall that the tests hold."""
    drawn = [sorted(line.split()) for line in blocks(section(text, "Layers"), "text")[0].splitlines()]
    true = [sorted(parts) for parts in test_architecture.LAYERS]
    return [] if drawn == true else [f"drawn {drawn}, held {true}"]


# -- the two languages


def shape(text: str) -> dict[str, Any]:
    """What two translations have in common."""
    code = "\n".join(blocks(text, "(?:bash|python)"))
    output = [block for block in blocks(text, "text") if not block.startswith(".\n")]
    return {
        "sections": len(re.findall(r"^## ", text, re.MULTILINE)),
        "commands": [stripped for line in code.splitlines() if (stripped := re.sub(r" *#.*", "", line).strip())],
        "output": output,
        "tables": [len(re.split(r"(?<!\\)\|", row)) for row in re.findall(r"^\|.*", text, re.MULTILINE)],
        "points": len(re.findall(r"^\* ", text, re.MULTILINE)),
        "numbers": sorted(re.findall(r"\d+\.\d+", "".join(re.findall(r"^\|.*", text, re.MULTILINE)))),
    }


def not_as_in_english(text: str) -> list[str]:
    here, there = shape(text), shape(text_of("README.md"))
    return [f"{what}: {here[what]} for {there[what]}" for what in here if here[what] != there[what]]


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_the_wiring_in_the_readme_runs(name: str, tmp_path: Path) -> None:
    """As it stands, with arrays in the place of nets: it trains, is started again, and goes on at the end."""
    (block,) = blocks(text_of(name), "python")
    ran: list[tuple[int, int]] = []
    weights, reference = Arrays(w=np.zeros(3, np.float32)), Arrays(w=np.ones(3, np.float32))
    scaler = SimpleNamespace(scale=2.0, good_steps=0)

    def run(resume: bool) -> None:
        given = {
            "ms_resume": SimpleNamespace(
                Checkpointer=partial(ms_resume.Checkpointer, group=Solo(), say=lambda text: None),
                Randomness=ms_resume.Randomness,
                Fields=ms_resume.Fields,
            ),
            "save_dir": tmp_path, "policy": weights, "optimizer": Arrays(weights), "ref": reference,
            "steps_per_epoch": 12, "config": {}, "generator": np.random.default_rng(0), "scaler": scaler, "epochs": 1,
            "prompts": ms_resume.Fields("prompts", SimpleNamespace(at=0), "at"),
            "args": SimpleNamespace(resume_training=resume),
            "train_one_step": lambda epoch, step: ran.append((epoch, step)),
        }  # fmt: skip  # one table
        exec(block, given)

    run(resume=False)
    run(resume=True)

    assert ran == [(0, step) for step in range(12)]


# -- that it is so, and that each check can fail

ON: list[tuple[Check, list[str]]] = [
    (wrong_tree, ["README.md", "README_CN.md"]),
    (absent_files, DOCS),
    (absent_names, DOCS),
    (absent_tests, DOCS),
    (without_a_test, ["docs/operations.md", "docs/scheduled_train.md"]),
    (line_numbers, DOCS),
    (unknown_commands, ["README.md", "README_CN.md", "CHANGELOG.md", "docs/operations.md", "docs/scheduled_train.md"]),
    (votes_and_records, ["docs/format.md"]),
    (compared_keys, ["docs/format.md"]),
    (json_keys, ["docs/format.md"]),
    (exit_codes, ["docs/operations.md"]),
    (failure_classes, ["docs/operations.md"]),
    (settings_table, ["docs/operations.md"]),
    (knobs, ["docs/operations.md"]),
    (layers, ["docs/architecture.md"]),
    (not_as_in_english, ["README_CN.md"]),
]


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, names in ON for name in names])
def test_the_documents_say_what_is_so(check: Check, name: str) -> None:
    """No complaint about any of them."""
    assert check(text_of(name)) == []


BROKEN: list[tuple[Check, str, str, str]] = [
    # check             document                what is there                     and what stands there instead
    (wrong_tree, "README.md", "├── commit.py", "├── comit.py"),
    (wrong_tree, "README.md", "├── launch/ ", "├── lunch/ "),
    (absent_files, "docs/architecture.md", "`ondisk/`", "`indisk/`"),
    (absent_files, "docs/architecture.md", "`names.py`", "`name.py`"),
    (absent_files, "README.md", "(docs/format.md)", "(docs/formats.md)"),
    (absent_names, "docs/architecture.md", "`write.save`", "`write.safe`"),
    (absent_names, "CONTRIBUTING.md", "`ondisk/names.py`", "`ms_resume.ondisk.nams`"),
    (absent_tests, "docs/scheduled_train.md", "`test_deepspeed`", "`test_deep_speed`"),
    (absent_tests, "docs/operations.md", "`test_weights_only`", "`test_weight_only`"),
    (without_a_test, "docs/operations.md", "`test_weights_only`", "weights"),
    (without_a_test, "docs/scheduled_train.md", "## How it was checked", "## How it was done"),
    (line_numbers, "docs/architecture.md", "`session.py`", "`session.py:12`"),
    (line_numbers, "docs/architecture.md", "`session.py`", "`session.py`, line 12"),
    (unknown_commands, "README.md", "ms-resume ls hurt", "ms-resume list hurt"),
    (unknown_commands, "README.md", "verify hurt --deep;", "verify hurt --depth;"),
    (unknown_commands, "README.md", "make setup", "make everything"),
    (unknown_commands, "docs/operations.md", "`--allow_fresh_start`", "`--allow-fresh-start`"),
    (votes_and_records, "docs/format.md", "| `steps_per_epoch` |", "| `steps_an_epoch` |"),
    (votes_and_records, "docs/format.md", "| `pid_start` |", "| pid_start |"),
    (votes_and_records, "docs/format.md", "| `digests` |", "| `digest_list` |"),
    (compared_keys, "docs/format.md", "`checkpoint_name`", "checkpoint_name"),
    (json_keys, "docs/format.md", "`rejected` (list", "`passed_over` (list"),
    (exit_codes, "docs/operations.md", "## 31: ", "## 32: "),
    (failure_classes, "docs/operations.md", "### hang\n", "### hangs\n"),
    (failure_classes, "docs/operations.md", "* *You*: `df -h", "* You: `df -h"),
    (settings_table, "docs/operations.md", "| 90.0 |", "| 60.0 |"),
    (knobs, "docs/operations.md", "`BASE_MODEL` | ", "`BASE` | "),
    (layers, "docs/architecture.md", "ownership pulse\nremoval", "removal\nownership pulse"),
    (not_as_in_english, "README_CN.md", "make test ", "make tests "),
    (not_as_in_english, "README_CN.md", "0.923", "0.932"),
    (not_as_in_english, "README_CN.md", "\n## 限制", "\n### 限制"),
]


@pytest.mark.parametrize(("check", "name", "there", "instead"), BROKEN)
def test_each_check_can_fail(check: Check, name: str, there: str, instead: str) -> None:
    """A document with one thing wrong is complained about."""
    text = text_of(name)
    assert there in text

    assert check(text.replace(there, instead, 1)) != []
