"""The mapping that would mend what does not fit: rules from what was recognised, tried before they are suggested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ms_resume.errors import UsageError
from ms_resume.load.names import renames
from ms_resume.load.names.families import NUMBER, families
from ms_resume.load.names.likeness import Found, Gathered, Infos, Pair, as_is, fits
from ms_resume.load.names.name_map import NameMap
from ms_resume.load.names.rules import Rule
from ms_resume.records import TensorInfo


def suggest(found: Found, saved: Infos, wanted: Infos, role: str | None) -> tuple[NameMap | None, int]:
    """The mapping after which most parameters fit, and how many more than before; none where there is none."""
    before = right(saved, wanted)
    best, mended = None, 0
    for rules in _rules(found, saved):
        name_map = NameMap((), {role: tuple(rules)}) if role else NameMap(tuple(rules))
        more = _outcome(name_map, saved, wanted, role) - before
        if more > mended:
            best, mended = name_map, more
        if before + mended == len(wanted):
            break
    return best, mended


def _rules(found: Found, saved: Infos) -> list[list[Rule]]:
    """Sets of rules to be tried one after the other: the short one, then one that names each family."""
    good = [pair for pair in found.pairs if pair.transposed or fits(pair.saved, pair.wanted, as_is)]
    pairs = {pair.saved.template: pair.wanted.template for pair in good}
    still = [family.template for family in families(saved).values() if family.template not in pairs]
    short, now = renames.rules_for(pairs, still)
    as_they_are = {template: pairs.get(template, template) for template in now}
    return [
        [*short, *_after(found, good, now)],
        [*renames.whole(pairs), *_after(found, good, as_they_are)],
    ]


def _after(found: Found, pairs: Sequence[Pair], now: Mapping[str, str]) -> list[Rule]:
    """What is done once names are right."""
    rules = [rule for gathered in found.gathered for rule in _gathering(gathered, now)]
    if turned := [pair.wanted.template for pair in pairs if pair.transposed]:
        rules.append(Rule("transpose", [renames.pattern_of(template) for template in sorted(turned)]))
    if found.tied:
        embedding, head = (next(iter(family.members.values())) for family in found.tied)
        rules.append(Rule("copy", {embedding: head}))
    return rules


def _gathering(gathered: Gathered, now: Mapping[str, str]) -> list[Rule]:
    whole, parts, axis = gathered.whole.template, [part.template for part in gathered.parts], gathered.axis
    along = {"axis": axis} if axis else {}
    if gathered.kind == "split":
        sizes = {"sizes": list(gathered.sizes)} if gathered.sizes else {}
        into = [renames.template_of(part) for part in parts]
        return [Rule("split", renames.pattern_of(now[whole]), {"into": into, **sizes, **along})]
    if gathered.kind == "fuse":
        given = [renames.pattern_of(now[part]) for part in parts]
        return [Rule("fuse", given, {"into": renames.template_of(whole), **along})]
    turn = [Rule("transpose", [renames.pattern_of(whole if gathered.kind == "stack" else parts[0])])]
    if gathered.kind == "stack":
        pattern = r"(?P<n>\d+)".join(renames.pattern_of(now[parts[0]]).rsplit(r"(\d+)", 1))
        rule = Rule("stack", pattern, {"into": renames.template_of(whole)})
    else:
        before, _, after = parts[0].rpartition(NUMBER)
        named = renames.template_of(before) + "{n}" + renames.template_of(after)
        rule = Rule("unstack", renames.pattern_of(now[whole]), {"into": named})
    return [rule, *(turn if gathered.transposed else [])]


def _outcome(name_map: NameMap, saved: Infos, wanted: Infos, role: str | None) -> int:
    """How many names are right after it, none where it cannot be applied."""
    try:
        plan = name_map.plan(saved, role)
    except UsageError:
        return 0
    return right({name: recipe.info for name, recipe in plan.items()}, wanted)


def right(saved: Infos, wanted: Infos) -> int:
    """Names that are in both, and of one shape; dtypes are the caller's to decide."""
    return sum(name in saved and _same_shape(saved[name], info) for name, info in wanted.items())


def _same_shape(one: TensorInfo, other: TensorInfo) -> bool:
    return not one.dtype or not other.dtype or one.shape == other.shape
