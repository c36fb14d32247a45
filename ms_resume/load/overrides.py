"""What a checkpoint and the new configuration both say, and differ about: listed, and decided by who starts the run.

A constant learning rate is a tensor of the optimizer, so a load puts the checkpoint's in place of the configured one
without a word. Weight decay and betas are no tensors: the vote's configuration has them. Values that training itself
moves (global_step, beta powers, moments, a rate that is set step by step) are no difference.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms_resume.errors import LayoutMismatch, UsageError
from ms_resume.load.source import Readable
from ms_resume.state import HostTensor, Tensors, to_array

SIDES = ("checkpoint", "config")

_TENSORS = ("learning_rate", "learning_rate_group_*", "momentum", "weight_decay*")
"""Tensors of MindSpore's optimizers that hold what the configuration said (2.10.0, every optimizer tried)."""

_RATES = ("lr", "learning_rate", "*_lr", "lr_*", "warmup_step*", "decay_steps")
_OTHERS = ("momentum", "weight_decay*", "beta*", "*_beta1", "*_beta2", "*_beta", "eps", "epsilon", "*_eps")
"""Last parts of the configuration keys that an optimizer is built from. An objective's own `*_beta` counts, too."""

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing of which the checkpoint says `saved` and this job `now`; empty where one of them has no such tensor.
    `placeable`: the checkpoint's can be put in the place of this job's."""

    key: str
    saved: str
    now: str
    placeable: bool = False

    def __str__(self) -> str:
        return f"{self.key} was {self.saved or 'not constant'}, is {self.now or 'not constant'}"


def parse(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=checkpoint` and `KEY=config`, as the command line has them. Raises UsageError for anything else."""
    found: dict[str, str] = {}
    for text in texts:
        key, _, side = text.rpartition("=")
        if found.setdefault(key, side) != side:
            raise UsageError(f"{key!r} is to be taken from both sides", hint="name one of them")
    check(found)
    return found


def check(override: Mapping[str, str]) -> None:
    for key, side in override.items():
        if not key or side not in SIDES:
            raise UsageError(
                f"override of {key!r} is {side!r}, expected 'checkpoint' or 'config'",
                hint="for example {'learning_rate': 'config'}; a key may be a pattern: learning_rate*",
            )


def side(override: Mapping[str, str], key: str) -> str:
    """Which side counts for `key`, by its whole name, its last part, or a pattern; empty where nobody said."""
    if key in override:
        return override[key]
    parts = (key, key.rpartition(".")[2])
    return next((chosen for said, chosen in override.items() if any(fnmatch.fnmatchcase(p, said) for p in parts)), "")


def in_tensors(source: Readable, live: Tensors) -> list[Difference]:
    """Of an optimizer's payload and the live optimizer. Only those tensors are read."""
    held, wanted = source.tensors, live.infos()
    found = []
    for name in sorted(held.keys() | wanted.keys()):
        if not _fits(name, _TENSORS):
            continue
        saved = source.read(name) if name in held else None
        now = live.read(name) if name in wanted else None
        alike = saved is not None and now is not None and saved.info == now.info
        if not alike or bytes(saved.data) != bytes(now.data):  # type: ignore[union-attr]  # alike: both are there
            found.append(Difference(name, *_both(saved, now), placeable=alike))
    return found


def in_config(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Of what an optimizer is built from, in the configuration as the vote has it and as it is now."""
    return [
        Difference(key, repr(saved[key]), repr(now[key]))
        for key in sorted(saved.keys() & now.keys())
        if saved[key] != now[key] and _fits(key.rpartition(".")[2], (*_RATES, *_OTHERS))
    ]


def decide(
    tensors: Sequence[Difference],
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    override: Mapping[str, str],
) -> dict[str, str]:
    """Which side counts for each difference, by key.

    Args:
        tensors: What `in_tensors` gave.
        saved, now: The configuration's keys, in the vote and of this job.

    Raises:
        LayoutMismatch: Nobody said which, of one at least; or the checkpoint is to count where only the trainer can
            build it. All differences are listed, with what to type.
    """
    open_ones = [one for one in tensors if not _moved_by_training(one, saved, now)]
    kinds = {_kind(one.key) for one in open_ones}
    # A tensor decides for the keys that it comes from: nobody is asked twice about one learning rate.
    listed = [*open_ones, *(one for one in in_config(saved, now) if _kind(one.key.rpartition(".")[2]) not in kinds)]
    chosen = {one.key: side(override, one.key) for one in (*tensors, *listed)}
    undecided = [one for one in listed if not chosen[one.key]]
    if undecided:
        raise LayoutMismatch(
            "the checkpoint and this configuration differ: " + "; ".join(map(str, undecided)) + "; nothing was loaded",
            hint=f"say which counts: override={_suggested(undecided)} (or 'checkpoint'), or set it as it was; "
            "as flags: " + " ".join(f"--override {one.key}=config" for one in undecided),
            differences=[[one.key, one.saved, one.now] for one in undecided],
        )
    check_placeable(listed, chosen)
    return {key: chosen[key] for key in chosen if chosen[key]}


def check_placeable(differences: Iterable[Difference], chosen: Mapping[str, str]) -> None:
    """Raises LayoutMismatch where the checkpoint is to count for what only the trainer can build."""
    if refused := [one for one in differences if chosen[one.key] == "checkpoint" and not one.placeable]:
        raise LayoutMismatch(
            f"the checkpoint's is asked for, and only the trainer can build it: {'; '.join(map(str, refused))}",
            hint="set it in the configuration as it was; then there is no difference",
        )


def told(differences: Iterable[Difference], chosen: Mapping[str, str]) -> list[str]:
    """A line for each difference that was decided."""
    names = {"checkpoint": "the checkpoint's", "config": "this configuration's"}
    return [f"{one}: {names[chosen[one.key]]} counts" for one in differences if one.key in chosen]


def _moved_by_training(one: Difference, saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """The configuration says the same rate as before, so that the tensor was moved by the trainer, step by step."""
    if not one.placeable:
        return False
    patterns = _RATES if _kind(one.key) == "rate" else (one.key,)
    keys = [key for key in saved.keys() & now.keys() if _fits(key.rpartition(".")[2], patterns)]
    return bool(keys) and all(saved[key] == now[key] for key in keys)


def _kind(name: str) -> str:
    return "rate" if _fits(name, (*_RATES, "learning_rate*")) else name


def _fits(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _suggested(differences: Iterable[Difference]) -> dict[str, str]:
    return {one.key: "config" for one in differences}


def _both(saved: HostTensor | None, now: HostTensor | None) -> tuple[str, str]:
    """Both in as few digits as tell them apart."""
    short, full = ([_said(value, digits) for value in (saved, now)] for digits in (6, 9))
    return (short[0], short[1]) if short[0] != short[1] else (full[0], full[1])


def _said(value: HostTensor | None, digits: int) -> str:
    if value is None:
        return ""
    if value.dtype == "BF16":
        return f"{value.dtype}{list(value.shape)} {bytes(value.data[:8]).hex()}"
    flat = to_array(value).reshape(-1)
    shown = ", ".join(f"{number:.{digits}g}" for number in flat[:_SHOWN].tolist())
    more = ", ..." if flat.size > _SHOWN else ""
    return shown if value.shape in ((), (1,)) else f"{flat.size} values ({shown}{more})"
