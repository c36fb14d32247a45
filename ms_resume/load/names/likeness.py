"""Which families of a file are which of a net: by their names, by what these mean, by shape and company.

Decided from names and shapes alone. Where two guesses are nearly as good as each other there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ms_resume.load.names.families import FUSED, NUMBER, Family, families, meaning
from ms_resume.records import TensorInfo

Infos = Mapping[str, TensorInfo]

_ENOUGH = 0.5
_CLOSE = 0.01
_MANY = 40_000
_CANDIDATES = 24
_NEAREST_FROM = 50
_LIKE = 50


@dataclass(frozen=True)
class Pair:
    """A family of the file and the one of the net that it is."""

    saved: Family
    wanted: Family
    transposed: bool = False


@dataclass(frozen=True)
class Gathered:
    """Several families of the one side are one of the other: fused or split, stacked or unstacked."""

    kind: str
    whole: Family
    parts: tuple[Family, ...]
    axis: int = 0
    sizes: tuple[int, ...] = ()
    transposed: bool = False


@dataclass
class Found:
    """What has been recognised, and what is left on both sides, by template."""

    saved: dict[str, Family]
    wanted: dict[str, Family]
    same: list[Family]
    pairs: list[Pair] = field(default_factory=list)
    gathered: list[Gathered] = field(default_factory=list)
    tied: tuple[Family, Family] | None = None

    def take(self, saved: Iterable[Family], wanted: Iterable[Family]) -> None:
        for family in saved:
            del self.saved[family.template]
        for family in wanted:
            del self.wanted[family.template]


def nearest(missing: Sequence[str], unexpected: Sequence[str]) -> dict[str, str]:
    """For each missing name the unexpected one that it most likely is: of the same family's like, with its numbers."""
    here, there = named(missing), named(unexpected)
    if not there:
        return {}
    index = _Index(there)
    found = {}
    for family in here.values():
        likest = index.likest(family)
        if likest is None:
            continue
        members = there[likest].members
        some = next(iter(members.values()))
        for numbers, name in family.members.items():
            found[name] = members.get(numbers, some)
    return found


def named(names: Iterable[str]) -> dict[str, Family]:
    return families(dict.fromkeys(names, TensorInfo("", ())))


def recognise(saved: Infos, wanted: Infos) -> Found:
    here, there = families(saved), families(wanted)
    both = here.keys() & there.keys()
    found = Found(
        {template: family for template, family in here.items() if template not in both},
        {template: family for template, family in there.items() if template not in both},
        [],
    )
    for template in sorted(both):
        one, other = here[template], there[template]
        if one.members.keys() & other.members.keys():
            turned = not fits(one, other, as_is) and fits(one, other, _turned)
            found.pairs.append(Pair(one, other, turned))
            found.same.append(one)
        else:
            found.saved[template], found.wanted[template] = one, other
    _pair_by_meaning(found)
    _gather(found)
    _stack(found)
    _pair_by_likeness(found)
    _gather(found)
    _turn_squares(found)
    _tie(found)
    return found


def as_is(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if len(shape) >= 2 else (-1,)


def fits(saved: Family, wanted: Family, how: Callable[[tuple[int, ...]], tuple[int, ...]]) -> bool:
    """Whether all that both have is of one shape, as it is or turned; what is not known fits."""
    if saved.template.count(NUMBER) != wanted.template.count(NUMBER):
        return False
    common = saved.members.keys() & wanted.members.keys()
    if not common:
        return False
    if saved.shape is not None and wanted.shape is not None:
        return how(saved.shape) == wanted.shape
    infos = [(saved.infos[numbers], wanted.infos[numbers]) for numbers in common]
    return all(not one.dtype or not other.dtype or how(one.shape) == other.shape for one, other in infos)


def _pair_by_meaning(found: Found) -> None:
    """Families that say the same in other words. Shapes may differ: then they tell of another size."""
    here, there = _by_meaning(found.saved), _by_meaning(found.wanted)
    for said in sorted(here.keys() & there.keys()):
        theirs, ours = here[said], there[said]
        if len(ours) == 1 and len(theirs) == 1 and ours[0].members.keys() & theirs[0].members.keys():
            _pair(found, theirs[0], ours[0])


def _by_meaning(found: Mapping[str, Family]) -> dict[tuple[str, ...], list[Family]]:
    by_meaning: dict[tuple[str, ...], list[Family]] = defaultdict(list)
    for family in found.values():
        by_meaning[family.meaning].append(family)
    return by_meaning


def _pair(found: Found, saved: Family, wanted: Family) -> None:
    turned = not fits(saved, wanted, as_is) and fits(saved, wanted, _turned)
    found.pairs.append(Pair(saved, wanted, turned))
    found.take([saved], [wanted])


def _pair_by_likeness(found: Found) -> None:
    """Each with what is most like it among those of its shape. Where others are like it as well, letters are not
    enough: a word must tell them apart, for a wrong guess is worse than none."""
    scored = sorted(_scored(found), key=lambda entry: (-entry[0], entry[1], entry[2]))
    of_saved: dict[str, list[tuple[float, str]]] = defaultdict(list)
    of_wanted: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for score, saved, wanted in scored:
        of_saved[saved].append((score, wanted))
        of_wanted[wanted].append((score, saved))
    for score, saved, wanted in scored:
        if saved in found.saved and wanted in found.wanted:
            one, other = found.saved[saved], found.wanted[wanted]
            ours = [(rival, found.wanted[name]) for rival, name in of_saved[saved] if name in found.wanted]
            theirs = [(rival, found.saved[name]) for rival, name in of_wanted[wanted] if name in found.saved]
            if _is_told(score, one, other, ours) and _is_told(score, other, one, theirs):
                _pair(found, one, other)


def _is_told(score: float, one: Family, other: Family, rivals: Sequence[tuple[float, Family]]) -> bool:
    """Whether `other` is better than every rival, and has a word in common with `one` that the rival has not."""
    shared = _in_common(one, other)
    return all(
        rival is other or (score - rivals_score > _CLOSE and shared - _in_common(one, rival))
        for rivals_score, rival in rivals
    )


def _in_common(one: Family, other: Family) -> set[str]:
    """Words of `one` that `other` has: in meaning, or as they are written, whole or cut short."""
    others = _written(other)
    written = {word for word in _written(one) if word in others or any(_is_short(word, there) for there in others)}
    return written | {f"={word}" for word in set(one.meaning) & set(other.meaning)}


def _is_short(word: str, other: str) -> bool:
    return min(len(word), len(other)) > 1 and (word.startswith(other) or other.startswith(word))


def _scored(found: Found) -> list[tuple[float, str, str]]:
    few = len(found.saved) * len(found.wanted) <= _MANY
    index = None if few else _Index(found.saved)
    scored = []
    for template, wanted in found.wanted.items():
        for candidate in found.saved if index is None else index.candidates(wanted, _CANDIDATES):
            saved = found.saved[candidate]
            if not (fits(saved, wanted, as_is) or fits(saved, wanted, _turned)):
                continue
            score = _likeness(saved, wanted)
            if score >= _ENOUGH:
                scored.append((score, candidate, template))
    return scored


def _likeness(saved: Family, wanted: Family) -> float:
    """In meaning, and by letters in what is between the parts that both begin and end with; 1 where all is the same."""
    from rapidfuzz import fuzz
    from rapidfuzz.distance import Indel

    one, other = saved.parts, wanted.parts
    begin = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[begin:], other[begin:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    letters = fuzz.ratio(".".join(one), ".".join(other)) if one and other else 100.0
    return 0.6 * Indel.normalized_similarity(saved.meaning, wanted.meaning) + 0.004 * letters


class _Index:
    """Families by their words and sizes: of ten thousand, the few that have the rarest words in common."""

    def __init__(self, found: Mapping[str, Family]) -> None:
        self._found = found
        self._by_word: dict[str, list[str]] = defaultdict(list)
        for template, family in found.items():
            for word in _words(family):
                self._by_word[word].append(template)

    def candidates(self, like: Family, most: int) -> list[str]:
        words = sorted(_words(like), key=lambda word: len(self._by_word.get(word, ())))
        seen: dict[str, None] = {}
        for word in words:
            for other in self._by_word.get(word, ()):
                if len(seen) >= most:
                    return list(seen)
                seen[other] = None
        return list(seen)

    def likest(self, like: Family) -> str | None:
        from rapidfuzz import fuzz, process

        choices = self.candidates(like, _NEAREST_FROM)
        meant = [_spoken(choice) for choice in choices]
        best = process.extractOne(_spoken(like.template), meant, scorer=fuzz.ratio, score_cutoff=_LIKE)
        return choices[best[2]] if best else None


def _spoken(template: str) -> str:
    return " ".join(meaning(template)).replace(NUMBER, "0")


def _words(family: Family) -> set[str]:
    """And the sizes, in an order that a transposed one has too."""
    sizes = {str(sorted(family.shape))} if family.shape else set()
    return ({*family.meaning, *_written(family)} - {NUMBER}) | sizes


def _written(family: Family) -> set[str]:
    plain = family.template.replace(NUMBER, ".").replace("_", ".").replace("/", ".")
    return set(plain.split(".")) - {""}


# -- several that are one


def _gather(found: Found) -> None:
    for whole in list(found.saved.values()):
        if parts := _parts_of(whole, found.wanted.values(), found.pairs, split=True):
            found.gathered.append(parts)
            found.take([whole], parts.parts)
    for whole in list(found.wanted.values()):
        if parts := _parts_of(whole, found.saved.values(), found.pairs, split=False):
            found.gathered.append(parts)
            found.take(parts.parts, [whole])


def _parts_of(whole: Family, others: Iterable[Family], pairs: Sequence[Pair], *, split: bool) -> Gathered | None:
    """The families that `whole` is fused of, in order, where there is one for each part and their sizes add up."""
    for place, word in enumerate(whole.meaning):
        chosen: list[Family] = []
        for part in FUSED.get(word, ()):
            said = (*whole.meaning[:place], part, *whole.meaning[place + 1 :])
            if (likest := _likest(said, part, whole, others)) is None:
                break
            chosen.append(likest)
        else:
            if chosen and (sizes := _sizes(whole, chosen)) is not None:
                return Gathered("split" if split else "fuse", whole, tuple(chosen), *sizes)
    return None


def _likest(said: tuple[str, ...], part: str, whole: Family, others: Iterable[Family]) -> Family | None:
    from rapidfuzz.distance import Indel

    best, most = None, 0.69
    for other in others:
        if part in other.meaning and other.members.keys() == whole.members.keys():
            likeness = Indel.normalized_similarity(other.meaning, said)
            best, most = (other, likeness) if likeness > most else (best, most)
    return best


def _sizes(whole: Family, parts: Sequence[Family]) -> tuple[int, tuple[int, ...]] | None:
    """(axis, sizes along it), without sizes where shapes are not known."""
    if not all(family.known for family in (whole, *parts)):
        return 0, ()
    shapes = [part.shape for part in parts]
    if whole.shape is None or None in shapes:
        return None
    for axis in range(len(whole.shape)):
        rest = _but(whole.shape, axis)
        if all(shape is not None and len(shape) == len(whole.shape) and _but(shape, axis) == rest for shape in shapes):
            sizes = tuple(shape[axis] for shape in shapes if shape is not None)
            if sum(sizes) == whole.shape[axis]:
                return axis, sizes
    return None


def _but(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _stack(found: Found) -> None:
    """Experts that lie in one tensor on the one side, each in its own on the other."""
    for kind, ones, manys in (("stack", found.wanted, found.saved), ("unstack", found.saved, found.wanted)):
        by_words: dict[tuple[str, ...], list[Family]] = defaultdict(list)
        for one in ones.values():
            by_words[_uncounted(one)].append(one)
        for many in [family for family in manys.values() if NUMBER in family.template]:
            said = _uncounted(many)
            # The leaf may have gone with the number: `experts.0.w1.weight` in `experts.w1`.
            for one in (*by_words[said], *by_words[said[:-1]]):
                if (turned := _stacks(many, one)) is not None and one.template in ones:
                    found.gathered.append(Gathered(kind, one, (many,), transposed=turned))
                    found.take(*(([many], [one]) if kind == "stack" else ([one], [many])))
                    break


def _uncounted(family: Family) -> tuple[str, ...]:
    return tuple(word for word in family.meaning if word != NUMBER)


def _stacks(many: Family, one: Family) -> bool | None:
    """Whether `one` is `many` by its last number, transposed or not; None where it is not."""
    if many.template.count(NUMBER) != one.template.count(NUMBER) + 1 or many.shape is None or one.shape is None:
        return None
    counts = Counter(numbers[:-1] for numbers in many.members)
    if set(counts) != set(one.members) or len(set(counts.values())) != 1:
        return None
    stacked = (next(iter(counts.values())), *many.shape)
    return False if stacked == one.shape else True if _turned(stacked) == one.shape else None


def _turn_squares(found: Found) -> None:
    """A square weight looks the same transposed: where all other matrices of the layers are, it is taken to be, too."""
    inner = [(n, pair) for n, pair in enumerate(found.pairs) if _is_matrix(pair)]
    plain = [pair for _, pair in inner if not pair.transposed and not is_square(pair)]
    if plain or not any(pair.transposed for _, pair in inner):
        return
    for n, pair in inner:
        if is_square(pair):
            found.pairs[n] = Pair(pair.saved, pair.wanted, transposed=True)


def _is_matrix(pair: Pair) -> bool:
    return NUMBER in pair.saved.template and pair.saved.shape is not None and len(pair.saved.shape) == 2


def is_square(pair: Pair) -> bool:
    return pair.saved.shape is not None and len(set(pair.saved.shape)) == 1 and pair.wanted.shape == pair.saved.shape


def _tie(found: Found) -> None:
    """A head that the file lacks, and the embedding that it shares its values with."""
    heads = [family for family in found.wanted.values() if "head" in family.meaning and len(family) == 1]
    embeddings = [pair for pair in found.pairs if "embed" in pair.saved.meaning and len(pair.saved) == 1]
    if len(heads) == 1 and len(embeddings) == 1:
        head, pair = heads[0], embeddings[0]
        if head.known is False or pair.saved.known is False or head.shape == pair.wanted.shape == pair.saved.shape:
            found.tied = pair.wanted, head
            found.take([], [head])
