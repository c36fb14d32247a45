"""The rules of a name map: what each kind is given, and what it does to names and to what they are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ms_resume.load.names.recipes import FLOATS, Cast, Cut, Joined, Picked, Recipe, Stacked, Transposed, castable
from ms_resume.ondisk import reading

Table = dict[str, Recipe]
"""Names as the rules so far have made them."""

_INDEX = "n"
"""The group of a `stack` pattern, and the field of an `unstack` template, that counts."""


class Wrong(ValueError):
    """What is wrong with one rule, without where."""


@dataclass(frozen=True)
class Rule:
    """One rule: its kind, what it renames or works on, and its options as the file spells them."""

    kind: str
    given: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> dict[str, Any]:
        return {self.kind: self.given, **self.options}

    def apply(self, table: Table) -> Table:
        return _KINDS[self.kind].apply(self, table)


@dataclass(frozen=True)
class _Kind:
    """What it is given, what it does, and its options with what each must be; those in `needs` must be there."""

    check: Callable[[Any], object]
    apply: Callable[[Rule, Table], Table]
    needs: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)
    may: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)


def parse(given: Any) -> tuple[Rule, ...]:
    """Rules as YAML has them. Raises Wrong, naming the rule."""
    if not isinstance(given, list):
        raise Wrong(f"rules: {reading.brief(given)}, expected a list")
    return tuple(_rule(number, entry) for number, entry in enumerate(given, 1))


def _rule(number: int, given: Any) -> Rule:
    kinds = [kind for kind in _KINDS if isinstance(given, dict) and kind in given]
    if len(kinds) != 1:
        raise Wrong(f"rule {number}: {reading.brief(given)}, expected one of {', '.join(_KINDS)}")
    kind = kinds[0]
    options = {key: value for key, value in given.items() if key != kind}
    needs, may = _KINDS[kind].needs, _KINDS[kind].may
    if not needs.keys() <= options.keys() or not options.keys() <= {*needs, *may}:
        raise Wrong(f"rule {number} ({kind}): has {_listed(options)}, needs {_listed(needs)}, may have {_listed(may)}")
    try:
        _KINDS[kind].check(given[kind])
        for key, value in options.items():
            {**needs, **may}[key](value)
    except Wrong as wrong:
        raise Wrong(f"rule {number} ({kind}): {wrong}") from None
    return Rule(kind, given[kind], options)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "nothing"


# -- what a rule is given


def _is_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{reading.brief(value)} is not text (quote it)")
    return value


def _is_count(least: int, value: Any) -> int:
    if type(value) is not int or value < least:
        raise Wrong(f"{reading.brief(value)} is not a whole number from {least}")
    return value


def _is_beginning(value: Any) -> str:
    if not (text := _is_text(value)):
        raise Wrong("an empty beginning: add_prefix puts something before every name")
    return text


def _are(check: Callable[[Any], object], value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise Wrong(f"{reading.brief(value)} is not a list")
    for entry in value:
        check(entry)


def _maps(check: Callable[[Any], object], value: Any) -> None:
    if not isinstance(value, dict) or not value:
        raise Wrong(f"{reading.brief(value)} is not a mapping of old to new")
    for old, new in value.items():
        check(_is_text(old))
        _is_text(new)


def _pattern(value: Any) -> re.Pattern[str]:
    try:
        return re.compile(_is_text(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise Wrong(f"{value!r} is no regular expression: {error}") from None


def _one_or_many(value: Any) -> None:
    _are(_pattern, value if isinstance(value, list) else [value])


def _counting(value: Any) -> re.Pattern[str]:
    if _INDEX not in (pattern := _pattern(value)).groupindex:
        raise Wrong(f"{value!r} has no group (?P<{_INDEX}>\\d+) that counts")
    return pattern


def _numbered(value: Any) -> None:
    if f"{{{_INDEX}}}" not in _is_text(value):
        raise Wrong(f"{value!r} has no {{{_INDEX}}}, so all would get one name")


# -- what a rule does


def _rename(rule: Rule, table: Table, to: Callable[[str], str | None]) -> Table:
    made: Table = {}
    for name, recipe in table.items():
        _put(made, name if (new := to(name)) is None else new, recipe)
    return made


def _put(made: Table, name: str, recipe: Recipe) -> None:
    if not name:
        raise Wrong(f"{_of(recipe)} gets an empty name")
    if name in made:
        raise Wrong(f"{_of(made[name])} and {_of(recipe)} both become {name!r}")
    made[name] = recipe


def _of(recipe: Recipe) -> str:
    uses = recipe.uses
    return repr(uses[0]) + (f" and {len(uses) - 1} more" if len(uses) > 1 else "")


def _all_hit(given: Sequence[str], hit: set[str]) -> None:
    if left := [entry for entry in given if entry not in hit]:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise Wrong(f"{left[0]!r}{more} fits no name")


def _exact(rule: Rule, table: Table) -> Table:
    _all_hit(list(rule.given), set(table))
    return _rename(rule, table, rule.given.get)


def _copy(rule: Rule, table: Table) -> Table:
    _all_hit(list(rule.given), set(table))
    made = dict(table)
    for old, new in rule.given.items():
        _put(made, new, table[old])
    return made


def _prefix(rule: Rule, table: Table) -> Table:
    longest, hit = sorted(rule.given, key=len, reverse=True), set()

    def to(name: str) -> str | None:
        for old in longest:
            if name.startswith(old):
                hit.add(old)
                return str(rule.given[old]) + name[len(old) :]
        return None

    made = _rename(rule, table, to)
    _all_hit(longest, hit)
    return made


def _add_prefix(rule: Rule, table: Table) -> Table:
    return _rename(rule, table, lambda name: rule.given + name)


def _regex(rule: Rule, table: Table) -> Table:
    patterns, hit = [(_pattern(old), old, new) for old, new in rule.given.items()], set()

    def to(name: str) -> str | None:
        for pattern, old, new in patterns:
            if match := pattern.fullmatch(name):
                hit.add(old)
                return _expanded(match, new)
        return None

    made = _rename(rule, table, to)
    _all_hit(list(rule.given), hit)
    return made


def _expanded(match: re.Match[str], template: str) -> str:
    try:
        return match.expand(template)
    except (re.error, IndexError) as error:
        raise Wrong(f"{template!r} does not fit its pattern: {error}") from None


def _hits(pattern: str, table: Table) -> Iterator[tuple[str, re.Match[str], Recipe]]:
    compiled, found = _pattern(pattern), False
    for name, recipe in table.items():
        if match := compiled.fullmatch(name):
            found = True
            yield name, match, recipe
    if not found:
        raise Wrong(f"{pattern!r} fits no name")


def _without(table: Table, gone: Mapping[str, Any], added: Sequence[tuple[str, Recipe]]) -> Table:
    made = {name: recipe for name, recipe in table.items() if name not in gone}
    for name, recipe in added:
        _put(made, name, recipe)
    return made


def _split(rule: Rule, table: Table) -> Table:
    axis, groups = rule.options.get("axis", 0), rule.options.get("groups", 1)
    gone, added = {}, []
    for name, match, recipe in _hits(rule.given, table):
        gone[name] = recipe
        begin = 0
        for into, size in zip(rule.options["into"], _sizes(rule, name, recipe, axis, groups), strict=True):
            added.append((_expanded(match, into), Cut(recipe, axis, begin, begin + size, groups)))
            begin += size
    return _without(table, gone, added)


def _sizes(rule: Rule, name: str, recipe: Recipe, axis: int, groups: int) -> list[int]:
    into = rule.options["into"]
    if not recipe.info.dtype:
        return [0] * len(into)
    whole = _along(name, recipe, axis)
    sizes: list[int] = rule.options.get("sizes") or [whole // len(into)] * len(into)
    if len(sizes) != len(into) or sum(sizes) != whole or any(size % groups for size in sizes):
        blocks = f" in {groups} groups" if groups > 1 else ""
        raise Wrong(f"{name!r} of shape {_shape(recipe)} cannot be split into {sizes}{blocks} along axis {axis}")
    return sizes


def _along(name: str, recipe: Recipe, axis: int) -> int:
    if axis >= len(recipe.info.shape):
        raise Wrong(f"{name!r} of shape {_shape(recipe)} has no axis {axis}")
    return recipe.info.shape[axis]


def _shape(recipe: Recipe) -> str:
    return str(list(recipe.info.shape))


def _fuse(rule: Rule, table: Table) -> Table:
    axis, groups = rule.options.get("axis", 0), rule.options.get("groups", 1)
    parts: dict[str, dict[int, tuple[str, Recipe]]] = {}
    for index, pattern in enumerate(rule.given):
        for name, match, recipe in _hits(pattern, table):
            into = parts.setdefault(_expanded(match, rule.options["into"]), {})
            if index in into:
                raise Wrong(f"{into[index][0]!r} and {name!r} both become part {index + 1} of one tensor")
            into[index] = name, recipe
    for into_name, found in parts.items():
        if len(found) < len(rule.given):
            lacking = next(pattern for index, pattern in enumerate(rule.given) if index not in found)
            raise Wrong(f"{into_name!r} lacks its part {lacking!r}")
    gone = {name: None for found in parts.values() for name, _ in found.values()}
    joined = [(into, _joined([found[n] for n in sorted(found)], axis, groups)) for into, found in parts.items()]
    return _without(table, gone, joined)


def _joined(parts: list[tuple[str, Recipe]], axis: int, groups: int) -> Recipe:
    (name, first), infos = parts[0], [recipe.info for _, recipe in parts]
    if all(info.dtype for info in infos):
        for other, recipe in parts:
            size = _along(other, recipe, axis)
            same = [*recipe.info.shape[:axis], *recipe.info.shape[axis + 1 :]]
            if (
                same != [*first.info.shape[:axis], *first.info.shape[axis + 1 :]]
                or recipe.info.dtype != first.info.dtype
            ):
                raise Wrong(
                    f"{name!r} ({first.info.dtype}{_shape(first)}) and {other!r} ({recipe.info.dtype}{_shape(recipe)}) "
                    f"cannot be fused along axis {axis}"
                )
            if size % groups:
                raise Wrong(f"{other!r} of shape {_shape(recipe)} has no {groups} equal groups along axis {axis}")
    return Joined(tuple(recipe for _, recipe in parts), axis, groups)


def _stack(rule: Rule, table: Table) -> Table:
    parts: dict[str, dict[int, tuple[str, Recipe]]] = {}
    for name, match, recipe in _hits(rule.given, table):
        into = parts.setdefault(_expanded(match, rule.options["into"]), {})
        if not (match[_INDEX] or "").isdecimal():
            raise Wrong(f"{name!r}: the group {_INDEX} finds {match[_INDEX]!r}, which is no number")
        number = int(match[_INDEX])
        if number in into:
            raise Wrong(f"{into[number][0]!r} and {name!r} are both number {number} of one stack")
        into[number] = name, recipe
    added: list[tuple[str, Recipe]] = []
    for into_name, found in parts.items():
        recipes = [found[number][1] for number in sorted(found)]
        if sorted(found) != list(range(len(found))):
            raise Wrong(f"{into_name!r} would be stacked of {len(found)} that are not numbered from 0")
        if len({(recipe.info.dtype, recipe.info.shape) for recipe in recipes}) > 1:
            raise Wrong(f"{into_name!r} would be stacked of tensors that differ in dtype or shape")
        added.append((into_name, Stacked(tuple(recipes))))
    gone = {name: None for found in parts.values() for name, _ in found.values()}
    return _without(table, gone, added)


def _unstack(rule: Rule, table: Table) -> Table:
    gone, added = {}, []
    for name, match, recipe in _hits(rule.given, table):
        if not recipe.info.dtype:
            raise Wrong(f"{name!r}: its shape is not known, so neither is how many it holds")
        gone[name] = recipe
        for index in range(_along(name, recipe, 0)):
            into = rule.options["into"].replace(f"{{{_INDEX}}}", str(index))
            added.append((_expanded(match, into), Picked(recipe, index)))
    return _without(table, gone, added)


def _transpose(rule: Rule, table: Table) -> Table:
    made = dict(table)
    for pattern in rule.given if isinstance(rule.given, list) else [rule.given]:
        for name, _, recipe in _hits(pattern, table):
            if recipe.info.dtype and len(recipe.info.shape) < 2:
                raise Wrong(f"{name!r} of shape {_shape(recipe)} cannot be transposed")
            made[name] = Transposed(table[name])
    return made


def _to_dtype(rule: Rule, table: Table) -> Table:
    made = dict(table)
    for pattern, dtype in rule.given.items():
        for name, _, recipe in _hits(pattern, table):
            if recipe.info.dtype not in ("", dtype):
                if not castable(recipe.info.dtype, dtype):
                    raise Wrong(f"{name!r} is {recipe.info.dtype}, which cannot be cast to {dtype}")
                made[name] = Cast(table[name], dtype)
    return made


def _dtypes(value: Any) -> None:
    _maps(_pattern, value)
    for dtype in value.values():
        if not castable(dtype, dtype):
            raise Wrong(f"{dtype!r} is no dtype to cast to, expected {', '.join(FLOATS)}, I8, U8, ...")


_ALONG = {"axis": partial(_is_count, 0), "groups": partial(_is_count, 1)}
_KINDS: dict[str, _Kind] = {
    "exact": _Kind(partial(_maps, _is_text), _exact),
    "prefix": _Kind(partial(_maps, _is_beginning), _prefix),
    "add_prefix": _Kind(_is_beginning, _add_prefix),
    "regex": _Kind(partial(_maps, _pattern), _regex),
    "copy": _Kind(partial(_maps, _is_text), _copy),
    "split": _Kind(
        _pattern, _split, {"into": partial(_are, _is_text)}, {"sizes": partial(_are, partial(_is_count, 0)), **_ALONG}
    ),
    "fuse": _Kind(partial(_are, _pattern), _fuse, {"into": _is_text}, _ALONG),
    "stack": _Kind(_counting, _stack, {"into": _is_text}),
    "unstack": _Kind(_pattern, _unstack, {"into": _numbered}),
    "transpose": _Kind(_one_or_many, _transpose),
    "cast": _Kind(_dtypes, _to_dtype),
}
"""What a rule may be. `copy` leaves what it copies, all others take what they fit."""
