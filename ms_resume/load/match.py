"""Every parameter name of both sides gets exactly one fate, decided purely from names, shapes, and dtypes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.records import TensorInfo

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Five disjoint groups that together hold every name of both sides, sorted; `nearest` guesses at the missing."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    wrong_dtype: tuple[tuple[str, str, str], ...]
    nearest: Mapping[str, str]

    @property
    def clean(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape or self.wrong_dtype)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.wrong_shape) + len(self.wrong_dtype)
        lines = [f"{len(self.matched)} of {total} parameters match"]
        for name in self.missing[:_SHOWN]:
            guess = self.nearest.get(name)
            lines.append(f"missing {name}" + (f" (nearest in the file: {guess})" if guess else ""))
        lines += [f"unexpected {name}" for name in self.unexpected[:_SHOWN]]
        lines += [f"shape of {n}: the file has {s}, the net {w}" for n, s, w in self.wrong_shape[:_SHOWN]]
        lines += [f"dtype of {n}: the file has {s}, the net {w}" for n, s, w in self.wrong_dtype[:_SHOWN]]
        hidden = self._bad() - (len(lines) - 1)
        return "\n    ".join([*lines, f"and {hidden} more"] if hidden else lines)

    def _bad(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong_shape) + len(self.wrong_dtype)

    def to_json(self) -> dict[str, Any]:
        return {
            "matched": len(self.matched),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "wrong_shape": [list(entry) for entry in self.wrong_shape],
            "wrong_dtype": [list(entry) for entry in self.wrong_dtype],
        }


def match(saved: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo]) -> LoadReport:
    """Sorts every parameter name into exactly one fate. Nothing is read or copied.

    Args:
        saved: From the header of one rank's payload. Shapes are that rank's own, after the tensor-parallel split.
        wanted: From the net on the same rank.

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
    both = saved.keys() & wanted.keys()
    wrong_shape = sorted((n, saved[n].shape, wanted[n].shape) for n in both if saved[n].shape != wanted[n].shape)
    shaped = both - {entry[0] for entry in wrong_shape}
    wrong_dtype = sorted((n, saved[n].dtype, wanted[n].dtype) for n in shaped if saved[n].dtype != wanted[n].dtype)
    missing = tuple(sorted(wanted.keys() - both))
    unexpected = tuple(sorted(saved.keys() - both))
    return LoadReport(
        matched=tuple(sorted(shaped - {entry[0] for entry in wrong_dtype})),
        missing=missing,
        unexpected=unexpected,
        wrong_shape=tuple(wrong_shape),
        wrong_dtype=tuple(wrong_dtype),
        nearest={name: guess for name in missing[:_SHOWN] if (guess := _nearest(name, unexpected))},
    )


def _nearest(name: str, candidates: tuple[str, ...]) -> str:
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)), "")
