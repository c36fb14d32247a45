"""A YAML file of LLaMA-Factory, and the same text with other values for some of its keys: nothing else changes.

The values are replaced where they lie in the text, so that every other line, comment and quote stays byte for byte. To
load and dump the document, by a round-trip library too, indents, wraps and quotes some of it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ms_resume.errors import Damaged, MsResumeError, UsageError
from ms_resume.ondisk import reading

_LIMIT = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+=@-]*", re.ASCII)
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_ALIAS = re.compile(r"\s*:\s*(\*[^\s,}]+)")


@dataclass(frozen=True)
class Place:
    """Where the value of a key at the top lies in the text; `column` is the key's, `quote` what it is written in."""

    begin: int
    end: int
    column: int
    quote: str


@dataclass(frozen=True)
class Document:
    """A YAML file whose top is a mapping; `in_braces` where that is written `{key: value}`."""

    path: Path
    text: str
    values: Mapping[str, Any]
    places: Mapping[str, Place]
    in_braces: bool


def read(path: Path) -> Document:
    """Reads the file that a person named; it may be a symbolic link.

    Raises:
        UsageError: There is none, or it is no YAML of that kind. The message has the line.
    """
    text = _text(path)
    try:
        values, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _no_yaml(path, text, error) from None
    except (RecursionError, ValueError) as error:  # the second for a date that is none
        raise UsageError(f"{path}: no configuration: {error}", hint="correct the file") from None
    if not isinstance(values, dict) or not isinstance(root, yaml.MappingNode):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UsageError(f"{path}: holds {found}, expected `key: value` lines", hint="give a training's YAML file")
    return Document(path, text, values, _places(path, text, root), bool(root.flow_style))


def string(document: Document, key: str) -> str:
    """The text under a key. Raises UsageError where there is none, or something else."""
    if key not in document.values:
        raise UsageError(f"{document.path}: has no {key}", hint=f"write a line `{key}: ...`: a training needs it too")
    value = document.values[key]
    if not isinstance(value, str) or not value.strip():
        found = reading.brief(value)
        raise UsageError(f"{document.path}: {key} is {found}, expected a path", hint="write the path, in quotes")
    return value


def replaced(document: Document, changes: Mapping[str, str], *, after: str) -> str:
    """The text with other values. A key that it lacks gets a line behind that of the key `after`.

    Raises:
        UsageError: `after` is not at the top of the file itself.
    """
    if after not in document.places:
        raise UsageError(
            f"{document.path}: {after} comes from elsewhere in the file (`<<:`)",
            hint=f"write `{after}: ...` at the top of the file",
        )
    pieces = []
    for key, value in changes.items():
        if (place := document.places.get(key)) is None:
            pieces.append(_inserted(document, document.places[after], f"{key}: {_written(value, '')}"))
        else:
            space = " " if place.begin == place.end else ""  # nothing stands behind the colon
            pieces.append((place.begin, place.end, space + _written(value, place.quote)))
    text = document.text
    for begin, end, instead in sorted(pieces, reverse=True):
        text = text[:begin] + instead + text[end:]
    _check(document, text, changes)
    return text


def _check(document: Document, text: str, changes: Mapping[str, str]) -> None:
    """What the new text says is looked at, not believed."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = {}
    if found.keys() != {**document.values, **changes}.keys() or any(found[key] != changes[key] for key in changes):
        by_hand = ", ".join(f"`{key}: {value}`" for key, value in changes.items())
        raise MsResumeError(f"{document.path}: could not be changed", hint=f"copy it, and write in it {by_hand}")


def _text(path: Path) -> str:
    if not path.exists():
        raise UsageError(f"{path}: does not exist, expected a training's YAML file", hint="check the path")
    try:
        content = reading.content(path.resolve(), _LIMIT)
    except Damaged as error:
        raise UsageError(error.message, hint="give a training's YAML file") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}: line {line} is no UTF-8 (byte {content[error.start]:#x})",
            hint=f"where it was written in GBK: `iconv -f GB18030 -t UTF-8 {path}`",
        ) from None


def _no_yaml(path: Path, text: str, error: yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).partition("\n")[0]
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    is_tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
    hint = "a tab stands there: indent with spaces" if is_tab else "correct that line"
    return UsageError(f"{path}: no YAML{where}: {problem}", hint=hint)


def _places(path: Path, text: str, root: yaml.MappingNode) -> dict[str, Place]:
    """Raises UsageError where a key is there twice: readers do not agree which one counts."""
    found: dict[str, Place] = {}
    lines: dict[str, int] = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            both = f"lines {lines[key.value]} and {line}"
            raise UsageError(f"{path}: {key.value!r} is there twice, {both}", hint="leave one of them")
        lines[key.value] = line
        begin, end = _span(text, key, value)
        quote = text[begin] if text[begin : begin + 1] in ("'", '"') else ""
        found[key.value] = Place(begin, end, key.start_mark.column, quote)
    return found


def _span(text: str, key: yaml.Node, value: yaml.Node) -> tuple[int, int]:
    """Without anchor and tag, which stay. An alias counts where it stands: its node is where the anchor is."""
    begin, end = value.start_mark.index, value.end_mark.index
    if begin < key.end_mark.index and (alias := _ALIAS.match(text, key.end_mark.index)):
        return alias.span(1)
    if properties := _PROPERTIES.match(text, begin, end):
        begin = properties.end()
    return begin, begin + len(text[begin:end].rstrip())


def _inserted(document: Document, place: Place, line: str) -> tuple[int, int, str]:
    if document.in_braces:
        return place.end, place.end, f", {line}"
    newline = "\r\n" if "\r\n" in document.text else "\n"
    at = document.text.find("\n", place.end) + 1
    if at == 0:
        return len(document.text), len(document.text), newline + " " * place.column + line
    return at, at, " " * place.column + line + newline


def _written(value: str, quote: str) -> str:
    """In the quotes that stood there, where the value can be."""
    if not value.isprintable():
        return json.dumps(value)
    if quote == '"':
        return json.dumps(value, ensure_ascii=False)
    if not quote and _PLAIN.fullmatch(value) and isinstance(yaml.safe_load(value), str):
        return value
    return "'" + value.replace("'", "''") + "'"
