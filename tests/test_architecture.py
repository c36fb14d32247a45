"""The walls of the house: what may import what, who may write, who may read the environment, what the public names are.

Each wall is a function from sources to violations, so that a test can show that it holds and, with a small broken
example, that it would not stand by if it were crossed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from runs import tiny_run

import ms_resume
from ms_resume.ondisk import attempts, names

Sources = Mapping[str, str]
"""Module name to source."""

PACKAGE = Path(ms_resume.__file__).parent

LAYERS = (
    ("errors",),
    ("records",),
    ("progress", "settings", "state", "strategies"),
    ("ondisk",),
    ("framework",),
    ("layouts",),
    ("ownership", "pulse"),
    ("removal",),
    ("commit", "locate", "verify", "retention"),
    ("repair",),
    ("write", "load"),
    ("resume",),
    ("supervisor", "adapters"),
    ("recover",),
    ("cli",),
)
"""From the bottom. A part imports from layers below its own, and from itself."""

HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}

PUBLIC = [
    "Checkpointer",
    "Component",
    "Cursor",
    "DatasetCursor",
    "Draws",
    "Fields",
    "LearningRates",
    "MetricsLog",
    "MsResumeError",
    "Position",
    "Randomness",
    "Schedule",
    "Settings",
    "StartMode",
    "__version__",
]

MAY_WRITE = {
    "ms_resume.ondisk.atomic": "the one door",
    "ms_resume.ondisk.direct": "its way for large files",
    "ms_resume.recover.running": "appends to the log of the training that it runs, beside its YAML file",
    "ms_resume.adapters.mindrlhf.shelf": "a temporary directory, which MindRLHF looks at instead of a save directory",
    "ms_resume.pulse": "the file that faulthandler writes stacks to, in the supervisor's directory",
    "ms_resume.supervisor.files": "the supervisor's own files, in its log directory",
    "ms_resume.resume.leaving": "lines on standard error, also where the main thread is inside sys.stderr",
    "ms_resume.cli": "opens /dev/null, so that the interpreter's last flush into a closed pipe is quiet",
}

MAY_READ_ENVIRONMENT = {
    ("ms_resume.settings", "os.environ"): "the one place for knobs",
    ("ms_resume.pulse", "os.environ.get('MS_ROLE', '')"): "msrun's own variable",
    ("ms_resume.pulse", "os.environ.get('RANK_ID', '0')"): "msrun's own variable",
    ("ms_resume.supervisor.run", "os.environ"): "handed on to the run that is started",
    ("ms_resume.framework.group", "os.environ.get('MS_WORKER_NUM', '1')"): "msrun's own variable, not a knob",
    (
        "ms_resume.adapters.mindrlhf.__main__",
        "os.environ.setdefault('HYDRA_FULL_ERROR', '1')",
    ): "hydra's own, or it would make every exit code 1",
    ("ms_resume.adapters.mindrlhf.hooks", "os.environ"): "LOCAL_DEFAULT_PATH, put back after MindRLHF's loads",
}

_WRITING_METHODS = {
    "write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "makedirs", "removedirs", "chmod", "chown",
    "symlink", "symlink_to", "hardlink_to", "truncate", "ftruncate", "renames", "mkfifo", "mknod", "utime",
}  # fmt: skip  # on a path or in `os`: no other object here has methods of these names
_WRITING_FUNCTIONS = {"os.rename", "os.replace", "os.remove", "os.link", "os.write", "os.pwrite", "os.sendfile"}
_WRITING_FLAGS = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND")
_WRITING_MODULES = {"shutil", "tempfile"}


def real_sources() -> dict[str, str]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def against_the_layers(sources: Sources) -> list[str]:
    """Imports that do not point down; those inside functions count."""
    violations = []
    for module, target in _imports_within(sources):
        here, there = _part(module), _part(target)
        if here == there or not there:
            continue
        if here not in HEIGHT or there not in HEIGHT:
            violations.append(f"{module} imports {target}: a part without a layer")
        elif HEIGHT[there] >= HEIGHT[here]:
            violations.append(f"{module} imports {target}")
    return violations


def hidden_imports(sources: Sources) -> list[str]:
    """Relative and computed imports, which the other walls cannot see."""
    violations = []
    for module, tree in _trees(sources):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                violations.append(f"{module}:{node.lineno}: a relative import")
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "import_module",
                "__import__",
            ):
                violations.append(f"{module}: {ast.unparse(node)}")
    return violations


def mindspore_elsewhere(sources: Sources) -> list[str]:
    """Imports of mindspore outside `framework`, and in it outside functions."""
    violations = []
    for module, tree in _trees(sources):
        inside = {id(node) for function in _functions(tree) for node in ast.walk(function)}
        for node in ast.walk(tree):
            if "mindspore" in {name.partition(".")[0] for name in _imported(node)}:
                if _part(module) != "framework":
                    violations.append(f"{module} imports mindspore")
                elif id(node) not in inside:
                    violations.append(f"{module} imports mindspore when it is imported itself")
    return violations


def writers(sources: Sources) -> list[str]:
    """Calls that could change a file or a directory, outside those that may."""
    violations = []
    for module, tree in _trees(sources):
        for node in ast.walk(tree) if module not in MAY_WRITE else ():
            if isinstance(node, ast.Call) and _writes(node):
                violations.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
            if _WRITING_MODULES & set(_imported(node)) or _from_os(node) & {"rename", "replace", "remove", "link"}:
                violations.append(f"{module}:{ast.unparse(node)}")
    return violations


def environment_readers(sources: Sources) -> list[str]:
    """Looks into the environment, outside those that may."""
    violations = []
    for module, tree in _trees(sources):
        above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb"):
                text = ast.unparse(_whole(node, above))
                if (module, text) not in MAY_READ_ENVIRONMENT:
                    violations.append(f"{module}: {text}")
            if _from_os(node) & {"environ", "getenv", "environb"}:
                violations.append(f"{module}: {ast.unparse(node)}")
    return violations


def loaded_after(code: str) -> set[str]:
    """Which costly modules a fresh interpreter has loaded after `code`."""
    report = "import json, sys; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return {"mindspore", "numpy", "rich"} & set(json.loads(ended.stderr))


WALLS: list[Callable[[Sources], list[str]]] = [
    against_the_layers,
    mindspore_elsewhere,
    writers,
    environment_readers,
]


@pytest.mark.parametrize("wall", WALLS)
def test_the_toolkit_keeps_to_it(wall: Callable[[Sources], list[str]]) -> None:
    """No violation in any module."""
    assert wall(real_sources()) == []


def test_no_import_is_hidden() -> None:
    """But the one by which the package loads its public names when they are first used."""
    assert hidden_imports(real_sources()) == ["ms_resume: import_module(_HOMES[name])"]


def test_every_part_has_a_layer() -> None:
    """A new one has to be given its place."""
    assert {_part(module) for module in real_sources()} - {"", "strategy_templates"} <= HEIGHT.keys()


def test_every_permission_is_needed() -> None:
    """An allowance that nobody uses any more is withdrawn."""
    sources = real_sources()
    for module in MAY_WRITE:
        alone = {f"{module}.elsewhere": sources[module]}
        assert writers(alone), module
    for module, text in MAY_READ_ENVIRONMENT:
        alone = {f"{module}.elsewhere": sources[module]}
        assert f"{module}.elsewhere: {text}" in environment_readers(alone)


BROKEN = [
    # wall                  a module that crosses it            and its source
    (against_the_layers, "ms_resume.ondisk.votes", "from ms_resume.commit import cast"),
    (against_the_layers, "ms_resume.ondisk.votes", "from ms_resume import commit"),
    (against_the_layers, "ms_resume.locate", "def f():\n    import ms_resume.verify"),
    (against_the_layers, "ms_resume.commit", "def f():\n    from ms_resume.write.files import write"),
    (against_the_layers, "ms_resume.repair", "from ms_resume.write import save"),
    (against_the_layers, "ms_resume.records", "from ms_resume.state import scalar"),
    (against_the_layers, "ms_resume.oddments", "from ms_resume.errors import Torn"),
    (against_the_layers, "ms_resume.load.names.match", "if TYPE_CHECKING:\n    from ms_resume.resume import session"),
    (hidden_imports, "ms_resume.locate", "from . import verify"),
    (hidden_imports, "ms_resume.locate", "importlib.import_module('ms_resume.verify')"),
    (mindspore_elsewhere, "ms_resume.state", "def f():\n    from mindspore import Tensor"),
    (mindspore_elsewhere, "ms_resume.cli.ls", "import mindspore.common.seed"),
    (mindspore_elsewhere, "ms_resume.framework.nets", "import mindspore as ms"),
    (mindspore_elsewhere, "ms_resume.framework.nets", "class A:\n    from mindspore import Tensor"),
    (writers, "ms_resume.commit", "open(path, 'w')"),
    (writers, "ms_resume.commit", "open(path, mode='r+b')"),
    (writers, "ms_resume.commit", "open(path, mode)"),
    (writers, "ms_resume.commit", "path.open('ab')"),
    (writers, "ms_resume.commit", "io.open(path, 'x')"),
    (writers, "ms_resume.commit", "os.open(path, os.O_WRONLY | os.O_CREAT)"),
    (writers, "ms_resume.commit", "os.fdopen(fd, 'wb')"),
    (writers, "ms_resume.retention", "path.unlink(missing_ok=True)"),
    (writers, "ms_resume.retention", "os.unlink(path)"),
    (writers, "ms_resume.retention", "os.remove(path)"),
    (writers, "ms_resume.retention", "import shutil"),
    (writers, "ms_resume.retention", "from shutil import rmtree"),
    (writers, "ms_resume.retention", "from os import replace"),
    (writers, "ms_resume.retention", "path.rename(other)"),
    (writers, "ms_resume.retention", "path.replace(other)"),
    (writers, "ms_resume.retention", "os.rename(path, other)"),
    (writers, "ms_resume.ownership", "path.write_text('1')"),
    (writers, "ms_resume.ownership", "path.mkdir(parents=True)"),
    (writers, "ms_resume.ondisk.meta", "os.link(a, b)"),
    (writers, "ms_resume.ondisk.meta", "link.symlink_to(target)"),
    (environment_readers, "ms_resume.write.files", "os.environ['HOME']"),
    (environment_readers, "ms_resume.write.files", "os.getenv('HOME')"),
    (environment_readers, "ms_resume.write.files", "from os import environ"),
    (environment_readers, "ms_resume.write.files", "def f(e=os.environ): ..."),
    (environment_readers, "ms_resume.framework.group", "os.environ.get('RANK_ID')"),
]


@pytest.mark.parametrize(("wall", "module", "source"), BROKEN)
def test_a_broken_example_is_seen(wall: Callable[[Sources], list[str]], module: str, source: str) -> None:
    """One violation, which names the module."""
    [violation] = wall({module: source})

    assert violation.startswith(module)


FINE = """
from ms_resume.errors import Torn
from ms_resume.ondisk import atomic, names
from dataclasses import replace

def f(path, text):
    with open(path, "rb") as file:
        file.read()
    path.open()
    os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    atomic.replace(path, b"", text)
    atomic.rename(path, path)
    atomic.remove(path)
    [1].remove(1)
    replace(text, a=1)
    return text.replace("a", "b")
"""


@pytest.mark.parametrize("wall", [*WALLS, hidden_imports])
def test_what_is_fine_is_not_reported(wall: Callable[[Sources], list[str]]) -> None:
    """Reading, and writing through the door."""
    assert wall({"ms_resume.commit": FINE}) == []


def test_public_names() -> None:
    """Pinned, at most 15, and each can be had."""
    assert ms_resume.__all__ == PUBLIC
    assert len(PUBLIC) <= 15
    assert all(hasattr(ms_resume, name) for name in PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any other module."""
    with pytest.raises(AttributeError, match="has no attribute 'Manager'"):
        ms_resume.Manager  # noqa: B018  # asking for it is the test


@pytest.mark.parametrize(
    "code",
    ["import ms_resume", "import ms_resume.cli", "from ms_resume import MsResumeError, Position, Settings, Component"],
)
def test_importing_costs_nothing(code: str) -> None:
    """Neither MindSpore nor NumPy nor the tables."""
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["locate", "--deep"],
        ["verify", "--deep", "--all"],
        ["verify", "--finite"],
        ["repair"],
        ["restore", "1_0"],
        ["pin", "0_5"],
        ["prune", "--yes"],
    ],
)
def test_commands_need_neither_mindspore_nor_numpy(words: list[str], tmp_path: Path) -> None:
    """Not only when imported: when they read every byte of a checkpoint of ours, too."""
    tiny_run(tmp_path / "save").ok()
    record = names.attempt_record(tmp_path / "save", 1)
    ended = replace(attempts.read_all(tmp_path / "save")[0], boot_id="the one before")
    record.write_bytes(attempts.encode(ended))  # the job was this process
    command = [words[0], str(tmp_path / "save"), *words[1:]]

    assert loaded_after(f"from ms_resume import cli; assert cli.main({command!r}) == 0") == set()


def test_a_costly_import_is_seen() -> None:
    """By the check above."""
    assert loaded_after("import ms_resume, numpy") == {"numpy"}
    assert loaded_after("from ms_resume.state import scalar, Arrays; import rich") == {"rich"}


def _trees(sources: Sources) -> Iterator[tuple[str, ast.Module]]:
    for module, source in sources.items():
        yield module, ast.parse(source)


def _part(module: str) -> str:
    """`commit` of `ms_resume.commit`, `ondisk` of `ms_resume.ondisk.votes`, nothing of the package itself."""
    return [*module.split("."), ""][1]


def _imports_within(sources: Sources) -> Iterator[tuple[str, str]]:
    """Every import of one of our modules by another. The package itself, which only names them, is left out."""
    for module, tree in _trees(sources):
        for node in ast.walk(tree) if module != "ms_resume" else ():
            for name in _imported(node):
                if name.partition(".")[0] == "ms_resume" and name.rpartition(".")[2] != "__version__":
                    yield module, name


def _imported(node: ast.AST) -> list[str]:
    """What an import statement names: `from a import b` as `a.b` where `a` is the package itself, else as `a`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ms_resume" else [node.module]
    return []


def _from_os(node: ast.AST) -> set[str]:
    found = isinstance(node, ast.ImportFrom) and node.module == "os"
    return {alias.name for alias in node.names} if found else set()  # type: ignore[attr-defined]  # found says so


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _writes(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    name = called.rpartition(".")[2]
    if called == "os.open":
        return any(flag in ast.unparse(call) for flag in _WRITING_FLAGS)
    if name in ("open", "fdopen"):
        return not _reads_only(call, position=0 if called not in ("open", "io.open", "os.fdopen") else 1)
    if name in ("rename", "replace") and isinstance(call.func, ast.Attribute) and len(call.args) == 1:
        return True  # of a path: that of a string has two arguments
    return called in _WRITING_FUNCTIONS or (isinstance(call.func, ast.Attribute) and name in _WRITING_METHODS)


def _reads_only(call: ast.Call, position: int) -> bool:
    """Whether a file is opened in a mode that is written down and only reads."""
    keywords = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = keywords or call.args[position : position + 1]
    if not modes:
        return True
    return isinstance(modes[0], ast.Constant) and not set("wax+") & set(str(modes[0].value))


def _whole(node: ast.AST, above: Mapping[ast.AST, ast.AST]) -> ast.AST:
    """The call or subscript that `node` is looked up with."""
    while isinstance(above.get(node), ast.Attribute | ast.Subscript) or _is_called(node, above):
        node = above[node]
    return node


def _is_called(node: ast.AST, above: Mapping[ast.AST, ast.AST]) -> bool:
    call = above.get(node)
    return isinstance(call, ast.Call) and call.func is node
