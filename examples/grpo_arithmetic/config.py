"""The configuration: MindRLHF's YAML keys, read into frozen dataclasses, each value checked for its type.

A key that MindRLHF knows and this trainer has no use for is reported in `ignored`, not refused; any other
unknown key is an error, because a misspelt key that is skipped trains something else than was asked for.
`example_config` holds what MindRLHF has no key for.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from grpo_arithmetic import checks, mindrlhf_keys
from grpo_arithmetic.errors import ConfigError
from grpo_arithmetic.settings import Config

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a key was read, for messages."""

    path: Path
    overridden: frozenset[str]

    def of(self, key: str) -> str:
        return "command line" if key.split("[")[0] in self.overridden else str(self.path)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a YAML file, with `overrides` ("rl_config.epochs": 3) above what it says.

    Raises:
        ConfigError: No such file, no YAML, an unknown key, a value of another type or out of its range; the
            message says what was found, what was expected and where.
    """
    source = Source(path, frozenset(overrides or {}))
    tree = _read(path)
    for key, value in (overrides or {}).items():
        _set(tree, key, value, source)
    ignored = tuple(sorted(_unused_keys(tree, source)))
    config: Config = _build(Config, tree, "", source)
    for key, message in checks.complaints(config):
        raise ConfigError(f"{source.of(key)}: {key}: {message}")
    return dataclasses.replace(config, ignored=ignored)


def parse_override(text: str) -> tuple[str, Any]:
    """`rl_config.seed=3` as a key and a YAML value.

    Raises:
        ConfigError: No `=` in it, or no YAML behind it.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"command line: found {text!r}, expected KEY=VALUE, such as rl_config.seed=3")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"command line: {key}: found {value!r}, expected a YAML value") from None


def _read(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree or {}, dict):
        found = type(tree).__name__
        raise ConfigError(f"{path}: found a {found} at the top, expected sections such as rl_config")
    return tree or {}


def _set(tree: Tree, key: str, value: Any, source: Source) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree[section] = {} if tree.get(section) is None else tree[section]
        if not isinstance(tree[section], dict):
            raise ConfigError(f"{source.path}: {section}: found {tree[section]!r}, expected a section")
        tree = tree[section]
    tree[name] = value


def _unused_keys(tree: Tree, source: Source) -> Iterator[str]:
    used, sections = _fields_of(Config, "")
    all_sections, known = sections | mindrlhf_keys.SECTIONS, used | mindrlhf_keys.KEYS
    for key in _leaves(tree, "", all_sections):
        if key not in known | all_sections:
            raise ConfigError(f"{source.of(key)}: unknown key {key!r}; the nearest known is {nearest(key, known)!r}")
        if key not in used | sections:
            yield key


def _leaves(tree: Tree, prefix: str, sections: frozenset[str]) -> Iterator[str]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key in sections:
            yield from _leaves(value, f"{key}.", sections)
        else:
            yield key


def nearest(key: str, known: frozenset[str]) -> str:
    """The most similar key; one of the same name in another section comes first."""
    same_name = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    return difflib.get_close_matches(key, sorted(same_name or known), n=1, cutoff=0.0)[0]


def _fields_of(kind: Any, prefix: str) -> tuple[frozenset[str], frozenset[str]]:
    """The dotted names of all values, and of all sections, below a configuration class."""
    values: set[str] = set()
    sections: set[str] = set()
    for name, hint in _hints(kind).items():
        if dataclasses.is_dataclass(hint):
            inner_values, inner_sections = _fields_of(hint, f"{prefix}{name}.")
            values |= inner_values
            sections |= inner_sections | {f"{prefix}{name}"}
        else:
            values.add(f"{prefix}{name}")
    return frozenset(values), frozenset(sections)


def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    hints.pop("ignored", None)
    return hints


def _build(kind: Any, tree: Tree, prefix: str, source: Source) -> Any:
    hints = _hints(kind)
    given = {name: value for name, value in tree.items() if name in hints and value is not None}
    return kind(**{name: _value(hints[name], value, prefix + name, source) for name, value in given.items()})


def _value(hint: Any, value: Any, key: str, source: Source) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _build(hint, value, f"{key}.", source)
    elif isinstance(hint, types.GenericAlias):
        if isinstance(value, list | tuple):
            (item, _) = typing.get_args(hint)
            return tuple(_value(item, entry, f"{key}[{i}]", source) for i, entry in enumerate(value))
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    found = f"found {value!r} ({type(value).__name__})"
    raise ConfigError(f"{source.of(key)}: {key}: {found}, expected {_expected(hint, value)}")


def _expected(hint: Any, value: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a section"
    if isinstance(hint, types.GenericAlias):
        return f"a list of {typing.get_args(hint)[0].__name__}"
    return f"{hint.__name__}{_exponent_note(value) if hint is float else ''}"


def _exponent_note(value: Any) -> str:
    is_exponent = isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE)
    return " (YAML reads 5e-7 as text; write 5.0e-7)" if is_exponent else ""
