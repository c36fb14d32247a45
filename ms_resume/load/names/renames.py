"""From pairs of families that are the same tensors to the fewest rules that say so.

A rule is as general as it may be without touching a name that is right already: one line for a prefix, one for a word
that is another word, a pattern for a family of its own where nothing shorter would be true.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ms_resume.load.names.families import NUMBER
from ms_resume.load.names.rules import Rule

Parts = tuple[str, ...]

_ROUNDS = 48
_ROUNDS_OF_MANY = 8
_MANY = 2000
_TRIED = 12
_LONGEST = 64
"""Parts of a name: comparing takes the square of them, and no model nests so deeply."""


@dataclass(frozen=True, order=True, slots=True)
class Edit:
    """`old` becomes `new`: at the start of a name, or wherever it stands."""

    old: Parts
    new: Parts
    at_start: bool

    def on(self, parts: Parts) -> Parts | None:
        """The name after it, None where it has nothing to change. The last place counts, as it does to a pattern."""
        size = len(self.old)
        if self.at_start:
            return (*self.new, *parts[size:]) if parts[:size] == self.old and len(parts) > size else None
        for at in range(len(parts) - size, -1, -1):
            if parts[at : at + size] == self.old:
                return (*parts[:at], *self.new, *parts[at + size :])
        return None

    def rule(self) -> Rule:
        if self.at_start and not self.old:
            return Rule("add_prefix", _dotted(self.new))
        if self.at_start:
            return Rule("prefix", {_dotted(self.old): _dotted(self.new)})
        pattern, groups = _pattern(".".join(self.old), 2)
        if not self.new:  # it goes with the dot after it
            return Rule("regex", {rf"(.*\.)?{pattern}\.(.*)": rf"\1\{groups}"})
        made = _template(".".join(self.new), 2)
        before = r"\g<1>" if made[0].isdigit() else r"\1"
        return Rule("regex", {rf"(.*\.)?{pattern}(\..*)?": rf"{before}{made}\{groups}"})


def rules_for(pairs: Mapping[str, str], still: Sequence[str]) -> tuple[list[Rule], dict[str, str]]:
    """Rules after which each template of the file is the net's.

    Args:
        pairs: Template in the file to template of the net; equal ones are right already.
        still: Further templates of the file, which no rule has to be right about.

    Returns:
        The rules, and what each template has become.
    """
    now = {template: tuple(template.split(".")) for template in (*pairs, *still)}
    goal = {template: tuple(wanted.split(".")) for template, wanted in pairs.items()}
    done: list[tuple[Edit, set[str]]] = []
    for _ in range(_ROUNDS if len(now) < _MANY else _ROUNDS_OF_MANY):
        edit = _best(now, goal)
        if edit is None:
            break
        changed = {template: parts for template, before in now.items() if (parts := edit.on(before)) is not None}
        done.append((edit, set(changed)))
        now |= changed
    rules = _merged(done)
    left = {".".join(now[t]): ".".join(goal[t]) for t in goal if now[t] != goal[t]}
    if left:
        rules += whole(left)
    return rules, {template: ".".join(goal.get(template, parts)) for template, parts in now.items()}


def whole(pairs: Mapping[str, str]) -> list[Rule]:
    """One pattern for each family, all at once, so that none is changed twice."""
    plain = {old: new for old, new in pairs.items() if NUMBER not in old and old != new}
    numbered = {_pattern(old)[0]: _template(new) for old, new in pairs.items() if NUMBER in old and old != new}
    rules = [Rule("exact", plain)] if plain else []
    return rules + ([Rule("regex", numbered)] if numbered else [])


def pattern_of(template: str) -> str:
    return _pattern(template)[0]


def template_of(template: str) -> str:
    return _template(template)


def _best(now: Mapping[str, Parts], goal: Mapping[str, Parts]) -> Edit | None:
    """The edit that brings most templates nearer to where they belong, and none away from it."""
    wanted = Counter(edit for template, parts in goal.items() for edit in _edits(now[template], parts))
    likely = sorted(wanted.items(), key=lambda item: (-item[1], _clumsiness(item[0])))[:_TRIED]
    return next((edit for edit, _ in likely if _is_true(edit, now, goal)), None)


def _is_true(edit: Edit, now: Mapping[str, Parts], goal: Mapping[str, Parts]) -> bool:
    made: set[Parts] = set()
    for template, parts in now.items():
        changed = edit.on(parts)
        if changed is not None and template in goal and not _nearer(changed, parts, goal[template]):
            return False
        after = changed or parts
        if after in made:
            return False
        made.add(after)
    return True


def _nearer(changed: Parts, parts: Parts, goal: Parts) -> bool:
    return _distance(changed, goal) < _distance(parts, goal)


def _distance(one: Parts, other: Parts) -> int:
    from rapidfuzz.distance import Indel

    return int(Indel.distance(one, other))


def _clumsiness(edit: Edit) -> tuple[int, bool, Edit]:
    return len(edit.old) + len(edit.new), not edit.at_start, edit


@lru_cache(maxsize=1 << 15)
def _edits(parts: Parts, goal: Parts) -> frozenset[Edit]:
    if parts == goal or max(len(parts), len(goal)) > _LONGEST:
        return frozenset()
    return frozenset(_each_edit(parts, goal))


def _each_edit(parts: Parts, goal: Parts) -> Iterator[Edit]:
    """What would bring `parts` to `goal`, each place by itself, alone and with what stands beside it."""
    opcodes = difflib.SequenceMatcher(None, parts, goal, autojunk=False).get_opcodes()
    for tag, begin, end, new_begin, new_end in opcodes:
        if tag == "equal":
            continue
        old, new = parts[begin:end], goal[new_begin:new_end]
        if begin == 0 and not _counted(old, new):
            yield Edit(old, new, at_start=True)
        for left, right in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (2, 1)):
            if begin - left < 0 or end + right > len(parts):
                continue
            around = parts[begin - left : begin], parts[end : end + right]
            wide = Edit((*around[0], *old, *around[1]), (*around[0], *new, *around[1]), at_start=False)
            counts = [sum(part.count(NUMBER) for part in side) for side in (wide.old, wide.new)]
            if set(wide.old) - {NUMBER} and counts[0] == counts[1] and (wide.new or end < len(parts)):
                yield wide


def _counted(*sides: Parts) -> bool:
    return any(NUMBER in part for side in sides for part in side)


def _merged(done: Sequence[tuple[Edit, set[str]]]) -> list[Rule]:
    """Those of one kind that follow each other as one rule, where no name is changed by two of them."""
    made: list[tuple[Rule, set[str]]] = []
    for edit, changed in done:
        rule = edit.rule()
        before, touched = made[-1] if made else (None, set())
        if before and before.kind == rule.kind and isinstance(rule.given, dict) and not touched & changed:
            made[-1] = Rule(rule.kind, {**before.given, **rule.given}), touched | changed
        else:
            made.append((rule, changed))
    return [rule for rule, _ in made]


def _dotted(parts: Parts) -> str:
    return "".join(f"{part}." for part in parts)


def _pattern(template: str, first: int = 1) -> tuple[str, int]:
    """A pattern with a group for each number, and the number of the next group."""
    pieces = [re.escape(piece) for piece in template.split(NUMBER)]
    return r"(\d+)".join(pieces), first + len(pieces) - 1


def _template(template: str, first: int = 1) -> str:
    pieces = [piece.replace("\\", r"\\") for piece in template.split(NUMBER)]
    made = pieces[0]
    for number, piece in enumerate(pieces[1:], first):
        # A digit after \1 would make it another group.
        made += (rf"\g<{number}>" if piece[:1].isdigit() else rf"\{number}") + piece
    return made
