"""What a run is: its command, where it saves and logs, and how patient its supervisor is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ms_resume.errors import UsageError
from ms_resume.supervisor.evidence import Limits, Policy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Read once, at the start; a change needs a new supervisor, which takes a running attempt over."""

    command: tuple[str, ...]
    save: Path
    log_dir: Path
    ranks: int = 0
    """Ranks on this node; the run is done when so many are. 0: not known."""
    on_restart: tuple[str, ...] = ()
    """Arguments that every start after the first one gets."""
    environment: Mapping[str, str] = field(default_factory=dict)
    job_id: str = ""
    ports: tuple[int, ...] = ()
    """Must be free before a start."""
    free_gib: float = 1.0
    """Must be free on the save directory's disk before a start."""
    strategy_dir: Path | None = None
    """Where MindSpore puts strategy files, if the command does not clear it: none of another topology may be there."""
    rules: Path | None = None
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    gently_s: float = 1.0
    """Between SIGTERM and SIGKILL for what is left of an attempt that failed."""
    read_s: float = 1.0
    """Between two readings of the pulses: a phase that is shorter counts as so long."""
    leave_s: float = 600.0
    """How long ranks may take to save and leave when the supervisor itself is asked to end."""
    nodes: int = 1
    """Of the whole run. With several each logs in `node_K` of the log directory, which all of them must see."""
    node: int = 0
    """Which one this is; 0 is where the others' ranks find msrun's scheduler."""
    join_s: float = 1800.0
    """How long a node waits for the others: to be ready, to end, to decide."""
    same: tuple[Path, ...] = ()
    """Files and directories that must be equal on all nodes, beside the toolkit itself."""

    @property
    def attempts(self) -> Path:
        return self.log_dir / "attempts"


def read(path: Path) -> dict[str, Any]:
    """A YAML file with the names of `Plan`'s fields, as keyword arguments for `make`.

    Raises:
        UsageError: It is not there or not YAML, or has a key that is not known.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}", hint="correct the file") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: expected keys and values, `command` among them", hint="see docs/supervisor.md")
    known = _known(Plan, document, str(path))
    for name, kind in (("policy", Policy), ("limits", Limits)):
        if name in known:
            known[name] = _part(kind, known[name], f"{path}: {name}")
    return known


def make(values: Mapping[str, Any], where: str = "the command line") -> Plan:
    """A plan of what was given; each value is checked, and its name said where it is wrong.

    Raises:
        UsageError: No command, no save directory, or a value of the wrong kind.
    """
    given = dict(values)
    for name, what in (("command", "a list of words"), ("save", "the save directory")):
        if not given.get(name):
            raise UsageError(f"{where}: no {name}, expected {what}", hint=f"give {name}: docs/supervisor.md")
    for name in ("command", "on_restart"):
        given[name] = _words(given.get(name, ()), f"{where}: {name}")
    given["ports"] = tuple(_whole(port, f"{where}: ports", 65535) for port in given.get("ports", ()))
    given["ranks"] = _whole(given.get("ranks", 0), f"{where}: ranks", 1 << 18)
    given["nodes"] = _whole(given.get("nodes", 1), f"{where}: nodes", 1 << 16)
    given["node"] = _whole(given.get("node", 0), f"{where}: node", max(0, given["nodes"] - 1))
    given["same"] = tuple(_there(path, f"{where}: same") for path in given.get("same", ()))
    for name in ("free_gib", "gently_s", "read_s", "leave_s", "join_s"):
        if name in given:
            given[name] = _number(given[name], f"{where}: {name}")
    given["environment"] = _variables(given.get("environment", {}), f"{where}: environment")
    save = Path(str(given["save"])).absolute()
    logs = Path(str(given.get("log_dir") or save.with_name(f"{save.name}.logs"))).absolute()
    if given["nodes"] > 1:
        logs /= f"node_{given['node']}"
    given |= {"save": save, "log_dir": logs, "job_id": str(given.get("job_id") or save.name)}
    given["strategy_dir"] = Path(str(given["strategy_dir"])) if given.get("strategy_dir") else None
    if given["strategy_dir"] and not given["ranks"]:
        raise UsageError(f"{where}: strategy_dir without ranks", hint="give ranks, of this node: docs/supervisor.md")
    given["rules"] = Path(str(given["rules"])) if given.get("rules") else None
    return Plan(**given)


def _part(kind: type[T], document: Any, where: str) -> T:
    if not isinstance(document, dict):
        raise UsageError(f"{where}: expected keys and values", hint="see docs/supervisor.md")
    values = _known(kind, document, where)
    phases = values.pop("phases", None)
    checked: dict[str, Any] = {name: _number(value, f"{where}.{name}") for name, value in values.items()}
    for name in ("attempts", "known_after"):
        if name in checked:
            checked[name] = _whole(values[name], f"{where}.{name}", 1000)
    if phases is not None:
        if not isinstance(phases, dict):
            raise UsageError(f"{where}.phases: expected phases and seconds", hint="see docs/supervisor.md")
        more = {str(phase): _number(value, f"{where}.phases.{phase}") for phase, value in phases.items()}
        checked["phases"] = {**Limits().phases, **more}
    return kind(**checked)


def _known(kind: Any, document: Mapping[Any, Any], where: str) -> dict[str, Any]:
    names = [entry.name for entry in fields(kind)]
    for name in document:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: unknown key {name!r}", hint=f"did you mean {nearest}?")
    return {str(name): value for name, value in document.items()}


def _words(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(word, str | int | float) for word in value):
        raise UsageError(f"{where}: found {value!r}, expected a list of words", hint="write [python, main.py]")
    return tuple(map(str, value))


def _whole(value: Any, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UsageError(f"{where}: found {value!r}, expected a whole number up to {most}", hint="correct it")
    return value


def _there(value: Any, where: str) -> Path:
    path = Path(str(value)).absolute()
    if not path.exists():
        raise UsageError(f"{where}: {path} is not there", hint="correct the path")
    return path


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UsageError(f"{where}: found {value!r}, expected a number from 0", hint="correct it")
    return float(value)


def _variables(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: found {value!r}, expected names and values", hint="write {WORKERS: 8}")
    return {str(name): str(text) for name, text in value.items()}
