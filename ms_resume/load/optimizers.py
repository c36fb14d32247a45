"""Which optimizer a state belongs to, by names alone: MindSpore prefixes a weight's name with that of its state.

    AdamWeightDecay    adam_m.<weight>, adam_v.<weight>, global_step, learning_rate where it is constant

Tried on 2.10.0 for every optimizer of `mindspore.nn`, `mindspore.experimental.optim`, and `mindspore.mint.optim`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import NamesMismatch

_NAMES = {
    "adam_m adam_v": "nn.AdamWeightDecay",
    "moment1 moment2": "nn.Adam",
    "moment1 moment2 vhat": "nn.Adam with amsgrad",
    "lamb_m lamb_v": "nn.Lamb",
    "moments": "nn.Momentum",
    "accum stat": "nn.SGD",
    "accum": "nn.Adagrad",
    "accum accum_update": "nn.Adadelta",
    "linear moments": "nn.FTRL",
    "mean_square moment": "nn.RMSProp",
    "mean_grad mean_square moment": "nn.RMSProp, centered",
    "exp_avg exp_avg_sq": "mint.optim.AdamW",
    "exp_avg exp_avg_sq max_exp_avg_sq": "experimental.optim.AdamW",
    "exp_avg exp_avg_sq exp_avg_sq_col exp_avg_sq_row": "nn.AdaFactor",
    "momentum_buf": "mint.optim.SGD",
    "prev step_size": "nn.Rprop",
    "ax_ eta mu": "nn.ASGD",
}
_OTHER_PREFIXES = frozenset(("accu_grads", "moments1", "moments2"))
_PREFIXES = _OTHER_PREFIXES.union(*(prefixes.split() for prefixes in _NAMES))

_BESIDE = re.compile(
    r"epoch_num|step_num|global_step|loss_scale|global_batch_size|consumed_samples|learning_rate(_group_\d+)?"
    r"|beta[12]_power|momentum|state_step|step_t|afactor_step|fake_lr|fake_param|scale_sense|scale_value|counter"
    r"|current_iterator_step|last_overflow_iterator_step",
    re.ASCII,
)
_RATE = re.compile(r"learning_rate(_group_\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class State:
    """What the names of an optimizer's tensors show. `moments` has each moment's (prefix, weight)."""

    moments: Mapping[str, tuple[str, str]]
    rates: tuple[str, ...]

    @property
    def prefixes(self) -> frozenset[str]:
        return frozenset(prefix for prefix, _ in self.moments.values())

    @property
    def updated(self) -> frozenset[str]:
        return frozenset(weight for _, weight in self.moments.values())

    def __str__(self) -> str:
        if not self.moments:
            return "no moments"
        kind = _NAMES.get(" ".join(sorted(self.prefixes)), "an optimizer not known by name")
        listed = ", ".join(sorted(self.prefixes))
        return f"{kind} ({listed} of {len(self.updated)} weights, such as {min(self.moments)})"


def state(names: Iterable[str], weights: Collection[str]) -> State:
    """Looks for the names that are one of `weights` behind a prefix."""
    names = set(names)
    moments = {name: found for name in names if name not in weights and (found := _split(name, weights))}
    return State(moments, tuple(sorted(filter(_RATE.fullmatch, names))))


def is_state(name: str, names: Collection[str]) -> bool:
    """Whether a name in a file that holds weights and optimizer is the optimizer's, or the trainer's own number."""
    found = _split(name, names)
    return (found is not None and found[0] in _PREFIXES) or _BESIDE.fullmatch(name) is not None


def check_same(path: Path, saved: State, now: State, kept: Collection[str] = ()) -> None:
    """Refuses the state of an optimizer of another kind, or with other groups; both are named.

    Args:
        kept: Rates that are not taken from the file.

    Raises:
        NamesMismatch: They differ. Where names alone do not show what has changed, the name report of the load does.
    """
    if saved.moments and now.moments and saved.prefixes != now.prefixes:
        raise _refused(path, "the optimizer is another one", str(saved), str(now))
    before, after = ([rate for rate in one.rates if rate not in kept] for one in (saved, now))
    if before and after and before != after:
        raise _refused(path, "the optimizer's groups are others", f"{', '.join(before)}", f"{', '.join(after)}")
    gone, new = sorted(saved.updated - now.updated), sorted(now.updated - saved.updated)
    if saved.prefixes == now.prefixes and saved.updated and bool(gone) != bool(new):
        what = f"no longer {gone[0]}" if gone else f"now {new[0]} as well"
        raise _refused(
            path,
            f"the optimizer updates other weights, {what}",
            f"moments of {len(saved.updated)} weights",
            f"moments of {len(now.updated)}",
        )


def _refused(path: Path, what: str, saved: str, now: str) -> NamesMismatch:
    return NamesMismatch(
        f"{path}: {what}: the file holds {saved}; this job has {now}; nothing was loaded",
        hint="build the optimizer as the run that saved it did, or start from the weights alone (warm_start)",
        path=str(path),
        saved=saved,
        now=now,
    )


def _split(name: str, weights: Collection[str]) -> tuple[str, str] | None:
    """The name as a prefix and one of `weights`: behind a prefix that is known, or else the longest. Most optimizers
    put a dot between them, some a line."""
    prefix, _, rest = name.partition(".")
    if prefix in _PREFIXES and rest in weights:  # most are: looking at every dot of every name takes its time
        return prefix, rest
    ends = (match.span() for match in re.finditer(r"[._]", name))
    found = [(name[:begin], name[end:]) for begin, end in ends if begin and name[end:] in weights]
    return next((pair for pair in found if pair[0] in _PREFIXES), found[0] if found else None)
