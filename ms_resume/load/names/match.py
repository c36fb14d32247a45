"""Every parameter name of both sides gets exactly one fate, decided purely from names, shapes, and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.load.names import causes, likeness
from ms_resume.load.names.causes import Diagnosis
from ms_resume.load.names.families import module_of
from ms_resume.load.names.recipes import FLOATS, Cast, Recipe, Taken, View, castable, fitting, widens
from ms_resume.load.source import Readable
from ms_resume.records import TensorInfo

_SHOWN = 3
_MODULES_SHOWN = 4
_RULES_SHOWN = 12
_LONGEST_TOLD = 16 << 10

WrongShape = tuple[str, tuple[int, ...], tuple[int, ...]]
WrongDtype = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Gaps:
    """What may differ because the caller said so. Names are patterns of `fnmatch`: `["lm_head.*"]`.

    Attributes:
        missing: Parameters that the file need not have; they keep the values they have.
        unexpected: Tensors of the file that no parameter takes.
        widen: Whether to take a narrower dtype where no value is lost by it (BF16 for F32).
        narrow: By pattern, the dtype to round to where the net's is that.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    widen: bool = False
    narrow: Mapping[str, str] = field(default_factory=dict)

    def casts(self, name: str, old: str, new: str) -> bool:
        if self.widen and widens(old, new):
            return True
        return castable(old, new) and bool(fitting([name], [key for key, dtype in self.narrow.items() if dtype == new]))


NONE = Gaps()
"""Nothing may differ."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Five disjoint groups that together hold every name of both sides, sorted.

    Attributes:
        casts: Of what is matched, those that come in another dtype, and in which.
        allowed: Of what is missing and unexpected, those that the caller named.
        nearest: For each missing name, the unexpected one that it most likely is.
        diagnosis: Why, where it is not clean.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[WrongShape, ...]
    wrong_dtype: tuple[WrongDtype, ...]
    nearest: Mapping[str, str]
    casts: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()
    diagnosis: Diagnosis = field(default_factory=Diagnosis)

    @property
    def clean(self) -> bool:
        """Nothing differs but what the caller named. Where nothing matches, nobody can have meant that."""
        named = self.allowed.issuperset(self.missing) and self.allowed.issuperset(self.unexpected)
        return bool(self.matched) and named and not (self.wrong_shape or self.wrong_dtype)

    @property
    def total(self) -> int:
        """Parameters of the net."""
        return len(self.matched) + len(self.missing) + len(self.wrong_shape) + len(self.wrong_dtype)

    def __str__(self) -> str:
        return "\n    ".join(self.lines())

    def let_through(self) -> Iterator[str]:
        """Of a clean one: a line for each kind of gap that the caller named and that is there."""
        if self.missing:
            yield f"{len(self.missing)} tensors keep their values, by allow_missing: {some(self.missing)}"
        if self.unexpected:
            yield f"{len(self.unexpected)} tensors are not taken, by allow_unexpected: {some(self.unexpected)}"
        if self.casts:
            yield f"{len(self.casts)} tensors are taken in another dtype, by widen or narrow: {some(self.casts)}"

    def lines(self) -> Iterator[str]:
        """For people: as many lines for four thousand names as for forty."""
        yield f"{len(self.matched)} of {self.total} parameters match{self._cast()}"
        for fate, names in self._groups():
            if len(names) > _SHOWN:
                yield f"{fate}: {len(names)}{self._share(fate, len(names))}, {by_module(names)}"
        yield from self._examples()
        for cause in self.diagnosis.causes:
            yield f"likely cause: {cause.said}"
        yield from self._mapping()

    def _groups(self) -> list[tuple[str, list[str]]]:
        return [
            ("missing", [name for name in self.missing if name not in self.allowed]),
            ("unexpected", [name for name in self.unexpected if name not in self.allowed]),
            ("wrong shape", [entry[0] for entry in self.wrong_shape]),
            ("wrong dtype", [entry[0] for entry in self.wrong_dtype]),
            ("named by the caller", sorted(self.allowed & {*self.missing, *self.unexpected})),
        ]

    def _share(self, fate: str, count: int) -> str:
        return f" ({100 * count / self.total:.1f} % of the net's)" if fate == "missing" else ""

    def _cast(self) -> str:
        return f", {len(self.casts)} of them in another dtype" if self.casts else ""

    def _examples(self) -> Iterator[str]:
        (_, missing), (_, unexpected), *_ = self._groups()
        for name in missing[:_SHOWN]:
            guess = self.nearest.get(name)
            yield f"missing {name}" + (f" (nearest in the file: {guess})" if guess else "")
        yield from (f"unexpected {name}" for name in unexpected[:_SHOWN])
        yield from (f"shape of {n}: the file has {s}, the net {w}" for n, s, w in self.wrong_shape[:_SHOWN])
        yield from (f"dtype of {n}: the file has {s}, the net {w}" for n, s, w in self.wrong_dtype[:_SHOWN])

    def _mapping(self) -> Iterator[str]:
        name_map = self.diagnosis.name_map
        if name_map is None:
            return
        count = f"{self.diagnosis.mended} of these {self.diagnosis.bad} parameters"
        is_rotary = any(cause.kind == "rotary" for cause in self.diagnosis.causes)
        yield f"a name map finds {count}, but not their order:" if is_rotary else f"a name map mends {count}:"
        rules = [line for line in name_map.text().splitlines()[1:] if line != "rules:"]
        yield from (f"  {line}" for line in rules[:_RULES_SHOWN])
        if len(rules) > _RULES_SHOWN:
            more = f"  ... and {len(rules) - _RULES_SHOWN} more lines; "
            yield more + "`ms-resume explain A --against B --write-map FILE` writes them to a file"

    def to_json(self) -> dict[str, Any]:
        """All of it; docs/format.md lists the keys."""
        return self.brief() | {
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "wrong_shape": [[name, list(saved), list(wanted)] for name, saved, wanted in self.wrong_shape],
            "wrong_dtype": [list(entry) for entry in self.wrong_dtype],
            "casts": dict(self.casts),
            "allowed": sorted(self.allowed),
            "nearest": dict(self.nearest),
            "name_map": self._map_text(),
        }

    def brief(self) -> dict[str, Any]:
        """Counts in the place of names, and no long map: every rank is told what all ranks found."""
        text = self._map_text()
        return {
            "clean": self.clean,
            "total": self.total,
            "matched": len(self.matched),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "wrong_shape": len(self.wrong_shape),
            "wrong_dtype": len(self.wrong_dtype),
            "causes": [
                {"kind": cause.kind, "text": cause.text, "advice": cause.advice} for cause in self.diagnosis.causes
            ],
            "name_map": text if text is not None and len(text) <= _LONGEST_TOLD else None,
            "mended": self.diagnosis.mended,
        }

    def _map_text(self) -> str | None:
        return self.diagnosis.name_map.text() if self.diagnosis.name_map else None


def match(
    saved: Mapping[str, TensorInfo],
    wanted: Mapping[str, TensorInfo],
    gaps: Gaps = Gaps(),  # frozen
    role: str | None = None,
) -> LoadReport:
    """Sorts every parameter name into exactly one fate. Nothing is read or copied.

    Args:
        saved: From the header of one rank's payload. Shapes are that rank's own, after the tensor-parallel split. An
            entry without a dtype is a name of which no more is known.
        wanted: From the net on the same rank.
        gaps: What the caller allows.
        role: For whom a mapping is suggested.

    Raises:
        UsageError: One side is empty. That is never a mismatch but a wrong path, or a net that was not built yet.

    Source:
        `mindspore.load_param_into_net` (2.7.1 to 2.10.0) fills a missing name by suffix, accepts trailing dimensions of
        1, casts floats without a word, and stops at the first wrong shape. Here one run shows all of them.
    """
    if not saved or not wanted:
        side = "the file holds" if not saved else "the net has"
        raise UsageError(
            f"{side} no parameters", hint="check the path, and that the net was built before it was loaded"
        )
    _check_dtypes(gaps)
    both = saved.keys() & wanted.keys()
    known = {name for name in both if saved[name].dtype and wanted[name].dtype}
    wrong_shape = sorted((n, saved[n].shape, wanted[n].shape) for n in known if saved[n].shape != wanted[n].shape)
    shaped = known - {entry[0] for entry in wrong_shape}
    others = sorted((n, saved[n].dtype, wanted[n].dtype) for n in shaped if saved[n].dtype != wanted[n].dtype)
    casts = {name: new for name, old, new in others if gaps.casts(name, old, new)}
    wrong_dtype = tuple(entry for entry in others if entry[0] not in casts)
    missing, unexpected = sorted(wanted.keys() - both), sorted(saved.keys() - both)
    report = LoadReport(
        matched=tuple(sorted(both - {entry[0] for entry in (*wrong_shape, *wrong_dtype)})),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong_shape),
        wrong_dtype=wrong_dtype,
        nearest={},
        casts=casts,
        allowed=frozenset([*fitting(missing, gaps.missing), *fitting(unexpected, gaps.unexpected)]),
    )
    return report if report.clean else _explained(report, saved, wanted, role)


def fitted(source: Readable, report: LoadReport) -> Readable:
    """What of `source` goes into the net, in the net's dtypes: itself, or a view of it."""
    if not report.casts and len(report.matched) == len(source.tensors):
        return source
    taken: dict[str, Recipe] = {name: Taken(name, source.tensors[name]) for name in report.matched}
    return View(source, taken | {name: Cast(taken[name], dtype) for name, dtype in report.casts.items()})


def by_module(names: Iterable[str]) -> str:
    """How many names are in which part of a model, the most first."""
    counts = Counter(map(module_of, names)).most_common()
    said = ", ".join(f"{module} {count}" for module, count in counts[:_MODULES_SHOWN])
    rest = counts[_MODULES_SHOWN:]
    return said + (f", {len(rest)} others {sum(count for _, count in rest)}" if rest else "")


def some(names: Iterable[str]) -> str:
    """The first of them, for people."""
    found = sorted(names)
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")


def _explained(
    report: LoadReport, saved: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo], role: str | None
) -> LoadReport:
    """With its causes. What the caller named is no riddle."""
    here = _without(saved, report.allowed) or saved
    there = _without(wanted, report.allowed) or wanted
    return LoadReport(
        report.matched,
        report.missing,
        report.unexpected,
        report.wrong_shape,
        report.wrong_dtype,
        likeness.nearest(report.missing, report.unexpected),
        report.casts,
        report.allowed,
        causes.diagnose(here, there, role),
    )


def _without(infos: Mapping[str, TensorInfo], names: Collection[str]) -> dict[str, TensorInfo]:
    return {name: info for name, info in infos.items() if name not in names}


def _check_dtypes(gaps: Gaps) -> None:
    for pattern, dtype in gaps.narrow.items():
        if not castable(dtype, dtype):
            raise UsageError(
                f"narrow[{pattern!r}]: {dtype!r} is no dtype to round to",
                hint=f"one of {', '.join(FLOATS)}, or a whole number (I8 to U64)",
            )
