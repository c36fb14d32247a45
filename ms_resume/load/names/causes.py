"""Why the names of a file do not fit a net, as a person would say it, and the mapping that would mend it.

Decided from names, dtypes and shapes alone. What a mapping cannot mend (another size of model, adapters without their
base, shards of another split) is named, and none is suggested for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ms_resume.errors import UsageError
from ms_resume.load.names import likeness, mending, renames
from ms_resume.load.names.families import (
    NUMBER,
    OPTIMIZERS,
    dialect,
    is_adapter,
    is_quantised,
    is_state,
    optimizer_of,
)
from ms_resume.load.names.likeness import Found, Gathered, Infos, Pair, as_is, fits, is_square, named
from ms_resume.load.names.name_map import NameMap
from ms_resume.load.names.recipes import FLOATS, widens
from ms_resume.load.names.rules import Rule
from ms_resume.records import TensorInfo

_NORMS = frozenset(("gamma", "beta"))
_FIRST_MOMENTS = ("adam_m", "moment1", "moments1", "exp_avg")
_RENAMED_SAID = 3
_INTERLEAVED = "where heads are interleaved, as in Megatron's linear_qkv, add `groups:`; else they are taken one by one"
_THIS_MODEL = "give the file of the model that was built"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason: its kind for scripts, what is said to people, what they can do, and whether a mapping may help."""

    kind: str
    text: str
    advice: str = ""
    mendable: bool = True

    @property
    def said(self) -> str:
        return "; ".join(filter(None, (self.text, self.advice)))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All reasons, the most telling first; the mapping that would mend them, and how many parameters it would."""

    causes: tuple[Cause, ...] = ()
    name_map: NameMap | None = None
    mended: int = 0
    bad: int = 0
    """Parameters of the net that the file does not fit."""


def diagnose(saved: Infos, wanted: Infos, role: str | None = None) -> Diagnosis:
    """Why `saved` does not fit `wanted`.

    Args:
        role: The rules of the suggested mapping are for this role alone.
    """
    found = likeness.recognise(saved, wanted)
    causes = [*_about_contents(saved, wanted), *_about_sizes(found)]
    name_map, mended = None, 0
    if all(cause.mendable for cause in causes):
        causes += _about_names(found)
        name_map, mended = mending.suggest(found, saved, wanted, role)
    if not causes:
        causes = [_nothing_in_common(saved, wanted)]
    return Diagnosis(tuple(causes), name_map, mended, len(wanted) - mending.right(saved, wanted))


def _about_contents(saved: Infos, wanted: Infos) -> list[Cause]:
    """What kind of file this is, where that is the reason."""
    adapters, wants_adapters = ([name for name in side if is_adapter(name)] for side in (saved, wanted))
    quantised, is_wanted = ([n for n, info in side.items() if is_quantised(n, info)] for side in (saved, wanted))
    state, wants_state = ([name for name in side if is_state(name)] for side in (saved, wanted))
    causes: list[Cause] = []
    if adapters and not wants_adapters:
        causes.append(_lora(adapters, saved))
    if wants_adapters and not adapters:
        text = f"the net has LoRA adapters ({_kinds(wants_adapters)}) and the file has none"
        causes.append(Cause("lora", text, "allow_missing names those that may keep their first values: ['*lora*']"))
    if quantised and not is_wanted:
        text = f"the file is quantised ({_kinds(quantised)}): its values mean nothing without their scales"
        causes.append(Cause("quantised", text, "give the file from before it was quantised", mendable=False))
    if wants_state and not state:
        causes.append(_no_state(wants_state, saved, wanted))
    elif state and not wants_state:
        causes.append(_more_than_weights(state, saved))
    elif state and wants_state:
        causes += _other_optimizer(state, wants_state)
    return causes


def _lora(adapters: Sequence[str], saved: Infos) -> Cause:
    if len(saved) - len(adapters) > len(adapters) // 4:
        text = f"the file has LoRA adapters ({_kinds(adapters)}) beside a base model, and the net has none"
        return Cause("lora", text, "merge them into the base, or leave them out: allow_unexpected=['*lora*']")
    text = f"the file holds {len(adapters)} tensors of LoRA adapters ({_kinds(adapters)}) and no base model"
    return Cause("lora", text, "load the base model, or merge the adapters into it first", mendable=False)


def _no_state(wants_state: Sequence[str], saved: Infos, wanted: Infos) -> Cause:
    kind = optimizer_of(wants_state)
    text = (
        f"a policy's file for an optimizer: it holds {len(saved)} weights and no state, the net"
        f"{f' ({kind})' if kind else ''} wants {len(wants_state)} tensors of state ({_kinds(wants_state)}) beside "
        f"{len(wanted) - len(wants_state)} weights"
    )
    return Cause("role", text, "give optimizer/rank_R/optimizer_rank_R-E_S of the same position", mendable=False)


def _more_than_weights(state: Sequence[str], saved: Infos) -> Cause:
    patterns = sorted({f"{name.partition('.')[0]}.*" if "." in name else name for name in state})
    kind = optimizer_of(state)
    text = (
        f"an optimizer's file{f' ({kind})' if kind else ''} for a net of weights: beside {len(saved) - len(state)} "
        f"weights it holds {len(state)} tensors of state ({_kinds(state)})"
    )
    return Cause("role", text, f"give the policy's file, or leave them out: allow_unexpected={patterns!r}")


def _other_optimizer(state: Sequence[str], wants_state: Sequence[str]) -> list[Cause]:
    one, other = optimizer_of(state), optimizer_of(wants_state)
    if not one or not other or one == other:
        return []
    both = all(OPTIMIZERS[kind][0] in _FIRST_MOMENTS for kind in (one, other))
    text = (
        f"an optimizer of another kind: the file's is {one} ({', '.join(OPTIMIZERS[one])}), the net's {other} "
        f"({', '.join(OPTIMIZERS[other])})"
    )
    if both:
        return [Cause("optimizer", text + "; their moments mean the same, what they do with them does not")]
    return [Cause("optimizer", text, "build the optimizer that was saved, or start it anew", mendable=False)]


def _about_sizes(found: Found) -> list[Cause]:
    """Another model, another split, or another vocabulary, by the shapes of what has the same name or meaning."""
    compared = [pair for pair in found.pairs if not pair.transposed and pair.saved.known and pair.wanted.known]
    differ = [pair for pair in compared if not fits(pair.saved, pair.wanted, as_is)]
    depth = _depths(found.pairs)
    if not differ:
        return [depth] if depth else []
    if cause := _vocabulary(differ):
        return [cause, *([depth] if depth else [])]
    if cause := _sharded(compared, differ):
        return [cause]
    return [_other_size(differ, depth)]


def _depths(pairs: Sequence[Pair]) -> Cause | None:
    """Another number of layers."""
    counts: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        if NUMBER in pair.saved.template:
            sides = [len({numbers[0] for numbers in family.members}) for family in (pair.saved, pair.wanted)]
            counts[sides[0], sides[1]] += 1
    (most, _), *_ = counts.most_common(1) or [((0, 0), 0)]
    if most[0] == most[1]:
        return None
    text = f"the file has {most[0]} layers, the net {most[1]}: another model, or pipeline stages of another split"
    return Cause("size", text, _THIS_MODEL, mendable=False)


def _first_shapes(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for numbers in pair.saved.members.keys() & pair.wanted.members.keys():
        one, other = pair.saved.infos[numbers].shape, pair.wanted.infos[numbers].shape
        if one != other:
            return one, other
    return (), ()


def _vocabulary(differ: Sequence[Pair]) -> Cause | None:
    shapes = {_first_shapes(pair) for pair in differ}
    is_rows = all({"embed", "head"} & set(pair.saved.meaning) for pair in differ)
    if is_rows and all(one[1:] == other[1:] and one[:1] != other[:1] for one, other in shapes):
        one, other = next(iter(shapes))
        rows = f"{_families(differ)} has {one[0]} rows in the file and {other[0]} in the net"
        text = f"another vocabulary, or another padding of it: {rows}"
        return Cause("vocabulary", text, "build the net with the vocabulary of the file", mendable=False)
    return None


def _sharded(compared: Sequence[Pair], differ: Sequence[Pair]) -> Cause | None:
    """Every matrix cut along one axis by one number, vectors whole: what tensor parallelism does, and no other size."""
    ratios: Counter[tuple[int, int]] = Counter()
    for pair in differ:
        here, there = _first_shapes(pair)
        sizes = [(a, b) for a, b in zip(here, there, strict=False) if a != b]
        if len(here) != len(there) or len(sizes) != 1 or 0 in sizes[0]:
            return None
        common = math.gcd(*sizes[0])
        ratios[sizes[0][0] // common, sizes[0][1] // common] += 1
    cut = {word for pair in differ for word in pair.saved.meaning}
    vectors = any("norm" in pair.saved.template for pair in differ)
    if len(ratios) != 1 or len(compared) == len(differ) or "attn" not in cut or vectors:
        return None
    (one, other), _ = next(iter(ratios.items()))
    if 1 not in (one, other):
        return None
    shapes = _first_shapes(differ[0])
    text = (
        f"tensor-parallel shards of another split: of {len(differ)} kinds of weights the file has "
        f"{f'1/{other}' if one == 1 else f'{one} times'} of one axis, the others are whole ({differ[0].wanted}: "
        f"{list(shapes[0])} in the file, {list(shapes[1])} in the net)"
    )
    return Cause("tensor-parallel", text, "start with the split that saved it, or transform it first", mendable=False)


def _other_size(differ: Sequence[Pair], depth: Cause | None) -> Cause:
    told = []
    for pair in sorted(differ, key=lambda pair: ("final" not in pair.saved.meaning, str(pair.wanted)))[:3]:
        one, other = _first_shapes(pair)
        told.append(f"{pair.wanted} is {list(one)} in the file and {list(other)} in the net")
    layers = f"{depth.text.partition(':')[0]}; " if depth else ""
    text = f"another model, or another size of it: {layers}{'; '.join(told)}"
    return Cause("size", text, _THIS_MODEL, mendable=False)


def _about_names(found: Found) -> list[Cause]:
    """What the names differ in."""
    renamed = [pair for pair in found.pairs if pair.saved.template != pair.wanted.template]
    causes = _in_other_words(renamed, found)
    for gathered in found.gathered:
        causes.append(_one_of_many(gathered))
    turned = [pair for pair in found.pairs if pair.transposed]
    if turned:
        squares = [pair for pair in turned if is_square(pair)]
        also = f"; {_families(squares)} are square, so that nothing but their company tells" if squares else ""
        causes.append(Cause("transposed", f"transposed: {_families(turned)}{also}"))
    if found.tied:
        embedding, head = found.tied
        text = f"tied embeddings: the file has no {head}, because there it is {embedding}"
        causes.append(Cause("tied", text + " (the net has both, which then train apart)"))
    heads = [family for family in found.saved.values() if family.meaning[:1] == ("head",)]
    if heads and any("embed" in one.saved.meaning for one in found.pairs):
        text = f"tied embeddings: the net has no {heads[0]}, because there it is the embedding"
        causes.append(Cause("tied", text, f"leave it out: allow_unexpected={[str(heads[0])]!r}"))
    return [*dict.fromkeys(causes), *_about_dtypes(found)]


def _in_other_words(renamed: Sequence[Pair], found: Found) -> list[Cause]:
    if not renamed:
        return []
    gathered = [family for one in found.gathered for family in (one.whole, *one.parts)]
    here = dialect([pair.saved for pair in found.pairs] + gathered)
    there = dialect([pair.wanted for pair in found.pairs] + gathered)
    rules = renames.rules_for({pair.saved.template: pair.wanted.template for pair in found.pairs}, [])[0]
    if here and there and here != there:
        pair = next((pair for pair in renamed if "q" in pair.saved.meaning), renamed[0])
        count = sum(len(pair.saved) for pair in renamed)
        text = f"{here} names in the file, {there} names in the net ({count}: {_from_to(pair)})"
        beside = [_of_rule(rule, renamed) for rule in rules if rule.kind in ("prefix", "add_prefix")]
        return [Cause("dialect", text), *beside, *_rotary(renamed, here, there)]
    told = dict.fromkeys(_of_rule(rule, renamed) for rule in rules)
    plain = [cause for cause in told if cause.kind == "renamed"]
    return [cause for cause in told if cause not in plain[_RENAMED_SAID:]]


def _rotary(renamed: Sequence[Pair], here: str, there: str) -> list[Cause]:
    is_latent = any("kva" in pair.saved.meaning for pair in renamed)
    if not is_latent or {here, there} != {"Hugging Face", "MindFormers"}:
        return []
    text = (
        "DeepSeek's rotary rows: MindFormers' converter also puts the last rows of q_b_proj and kv_a_proj_with_mqa in"
    )
    return [
        Cause("rotary", f"{text} another order, which no mapping of names does", "convert the file with MindFormers")
    ]


def _of_rule(rule: Rule, renamed: Sequence[Pair]) -> Cause:
    if rule.kind == "add_prefix":
        return _of_prefix("", rule.given, sum(len(pair.saved) for pair in renamed))
    if rule.kind == "prefix":
        old, new = next(iter(rule.given.items()))
        if is_state(old) and is_state(new):
            told = ", ".join(f"{a.rstrip('.')} is {b.rstrip('.')}" for a, b in rule.given.items())
            return Cause("moments", f"an optimizer's moments by other names: {told}")
        return _of_prefix(old, new, sum(len(pair.saved) for pair in renamed if pair.saved.template.startswith(old)))
    pair = next((pair for pair in renamed if _changes(rule, pair)), renamed[0])
    old_words = [part for part in pair.saved.parts if part not in pair.wanted.parts]
    new_words = [part for part in pair.wanted.parts if part not in pair.saved.parts]
    if (old_words and set(old_words) <= _NORMS) or (new_words and set(new_words) <= _NORMS):
        return Cause("norms", f"the scale and shift of a norm by other names: {_from_to(pair)}")
    if old_words and new_words:
        return Cause("renamed", f"other names: {_from_to(pair)}")
    words = tuple(old_words or new_words)
    count = sum(set(words) <= {*one.saved.parts, *one.wanted.parts} and len(one.saved) for one in renamed)
    if any(words == (one.saved if old_words else one.wanted).parts[: len(words)] for one in renamed):
        old, new = (".".join((*side, "")) for side in (old_words, new_words))
        return _of_prefix(old if old_words else "", new if new_words else "", count)
    side = "file" if old_words else "net"
    return Cause(
        "wrapper", f"a wrapper: {count} names of the {side} have {'.'.join(words)!r} in them ({_from_to(pair)})"
    )


def _of_prefix(old: str, new: str, count: int) -> Cause:
    if not old:
        return Cause("prefix", f"a prefix is missing: {count} names of the net begin with {new!r}, the file's do not")
    instead = f"the net's with {new!r}" if new else "the net's do not"
    return Cause("prefix", f"another prefix: {count} names of the file begin with {old!r}, {instead}")


def _changes(rule: Rule, pair: Pair) -> bool:
    name = next(iter(pair.saved.members.values()))
    info = TensorInfo("", ())
    try:
        return name not in NameMap((rule,)).plan({name: info})
    except UsageError:
        return False


def _from_to(pair: Pair) -> str:
    return f"{pair.saved} is {pair.wanted}"


def _one_of_many(gathered: Gathered) -> Cause:
    whole, parts = str(gathered.whole), ", ".join(map(str, gathered.parts))
    sure = (
        " (taken to lie one after the other; where heads are interleaved, as in Megatron's linear_qkv, add `groups:`)"
    )
    if gathered.kind == "split":
        return Cause("fused", f"fused in the file: {whole} is {parts} in the net{sure}")
    if gathered.kind == "fuse":
        return Cause("split", f"split in the file: {parts} are {whole} in the net{sure}")
    turned = ", transposed" if gathered.transposed else ""
    if gathered.kind == "stack":
        return Cause(
            "split", f"one tensor for each expert in the file: {parts} are stacked in {whole} in the net{turned}"
        )
    return Cause("fused", f"experts stacked in the file: {whole} is {parts} in the net{turned}")


def _about_dtypes(found: Found) -> list[Cause]:
    kinds: Counter[tuple[str, str]] = Counter()
    for pair in found.pairs:
        for numbers in pair.saved.members.keys() & pair.wanted.members.keys():
            old, new = pair.saved.infos[numbers].dtype, pair.wanted.infos[numbers].dtype
            if old and new and old != new:
                kinds[old, new] += 1
    return [_of_dtypes(old, new, count) for (old, new), count in kinds.most_common(3)]


def _of_dtypes(old: str, new: str, count: int) -> Cause:
    text = f"{count} tensors are {old} in the file and {new} in the net"
    if widens(old, new):
        return Cause("dtype", text, "widen=True takes them, and loses nothing")
    if {old, new} <= FLOATS.keys():
        return Cause("dtype", text, f"they would be rounded, which needs their names: narrow={{PATTERN: {new!r}}}")
    return Cause("dtype", f"{text}, which is another kind of number")


def _families(pairs: Sequence[Pair]) -> str:
    return _examples([str(pair.wanted) for pair in pairs])


def _examples(names: Sequence[str], most: int = 3) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _kinds(names: Iterable[str]) -> str:
    return _examples([str(family) for family in named(names).values()])


def _nothing_in_common(saved: Infos, wanted: Infos) -> Cause:
    missing, unexpected = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    if missing and not unexpected:
        return Cause("part", f"the file is a part: it lacks {len(missing)} names, the rest is right")
    if unexpected and not missing:
        return Cause("more", f"the file has {len(unexpected)} names more than the net, the rest is right")
    return Cause("other", "another model: what is left over on both sides has neither names nor shapes in common")
