"""A start from weights alone, step by step: find, open, settle, and, after all that, place. A new run.

Every step is done by all ranks together. Until `place` nothing is changed; position, components, and random state are
never touched, the optimizer only where its state is asked for: then moments and counters come from one place, and the
weights, which the same file holds too, from the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ms_resume import load
from ms_resume.errors import NamesMismatch, UsageError
from ms_resume.layouts.mindrlhf import POSITION_TENSORS
from ms_resume.load import optimizers, overrides, warm
from ms_resume.load.names.match import NONE, Gaps, fitted, some
from ms_resume.load.source import NameMap, Readable
from ms_resume.load.views import Only, Part
from ms_resume.load.warm import Place
from ms_resume.records import Position
from ms_resume.resume import agree, choice, session
from ms_resume.resume.session import Job
from ms_resume.state import Tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start takes from where; `Checkpointer.warm_start` says what each means."""

    weights: Path
    position: Position | None = None
    optimizer: Path | None = None
    ref: bool = False
    name_map: NameMap | None = None
    gaps: Gaps = NONE
    allow_world_size: str = ""
    override: Mapping[str, str] | None = None

    def asked(self) -> dict[str, Any]:
        """What all ranks must be asked alike. Paths may differ: each node may have a disk of its own."""
        warm.check_word(self.allow_world_size)
        return {
            "the position of the weights": str(self.position),
            "where the optimizer's state comes from": self.optimizer is not None,
            "whether the reference is loaded, too": self.ref,
            "the name map": self.name_map is not None,
            "the gaps that are allowed": [self.allow_world_size, repr(self.gaps)],
        }


@dataclass(frozen=True, slots=True)
class Ready:
    """What is opened and fits. Nothing of it is placed."""

    weights: Place
    optimizer: Place | None
    sources: Mapping[str, Readable]
    live: Mapping[str, Tensors]
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Warmed:
    """What was placed: where it came from, the lines of the banner, and into which roles."""

    place: str
    lines: tuple[str, ...]
    roles: tuple[str, ...]


def ready(job: Job, plan: Plan) -> Ready:
    """Finds, opens, and settles everything that `plan` names.

    Raises:
        NamesMismatch, LayoutMismatch: It does not fit.
        UsageError, NothingToResume, Torn, Damaged: It cannot be had.
    """
    _, told = agree.together(job.group, plan.asked, lambda asked: asked)
    for what in told[0]:
        agree.same_everywhere(what, [asked[what] for asked in told])
    weights = _find(job, plan.weights, "policy", plan.position)
    optimizer = _find(job, plan.optimizer, "optimizer", None) if plan.optimizer else None
    opened, _ = agree.together(job.group, lambda: _open(job, plan, weights, optimizer))
    settled, _ = agree.together(job.group, lambda: _settled(opened, plan.gaps))
    return settled


def place(job: Job, ready: Ready, *, is_new: bool) -> Warmed:
    """Places what is ready, each value checked as it is read.

    Args:
        is_new: A new run, not one whose weights are put in the place of a checkpoint's.

    Raises:
        Damaged: A file is not what it was a moment ago, or a digest does not hold: the nets hold a part of it, and this
            process must not train.
    """
    began = time.monotonic()
    session.place(job, f"loading weights of {ready.weights.path.name}", ready.sources, ready.live)
    return Warmed(str(ready.weights), tuple(_lines(ready, is_new, time.monotonic() - began)), tuple(ready.live))


def _settled(opened: Ready, gaps: Gaps) -> Ready:
    """What there is to place: of the weights without the gaps, and in the net's dtypes; an optimizer's state has none.

    Raises:
        NamesMismatch: It does not fit.
    """
    weights = {role: tensors for role, tensors in opened.live.items() if role != "optimizer"}
    state = {role: tensors for role, tensors in opened.live.items() if role == "optimizer"}
    reports = load.settle(opened.sources, weights, gaps) | load.settle(opened.sources, state)
    return replace(
        opened,
        sources={role: fitted(opened.sources[role], report) for role, report in reports.items()},
        live={role: Only(opened.live[role], report.matched) for role, report in reports.items()},
        said=(*opened.said, *dict.fromkeys(line for report in reports.values() for line in report.let_through())),
    )


def _find(job: Job, path: Path, role: str, position: Position | None) -> Place:
    """Rank 0's word; where each node has a disk of its own, what every rank finds there alike."""

    def look() -> dict[str, Any]:
        is_local = not job.disk.is_shared
        found = warm.find(path, role, world_size=job.group.world_size, position=position, is_local=is_local)
        return found.to_json()

    if job.disk.is_shared:
        return Place.from_json(agree.from_first(job.group, look))
    mine, told = agree.together(job.group, look, lambda found: [found[key] for key in ("kind", "position", "attempt")])
    agree.same_everywhere(f"what {path} holds", told)
    return Place.from_json(mine)


def _open(job: Job, plan: Plan, weights: Place, optimizer: Place | None) -> Ready:
    source = _opened(job, plan, weights, "policy")
    said: list[str] = []
    sources: dict[str, Readable] = {}
    live: dict[str, Tensors] = {}
    if plan.ref and "ref" not in job.roles:
        raise UsageError("the reference is to be loaded, and the job has none", hint="leave ref out")
    for role in ("policy", "ref") if plan.ref else ("policy",):
        live[role] = job.roles[role]
        sources[role] = _weights(source, role, live[role], plan, said.append)
    if optimizer is not None:
        state = _opened(job, plan, optimizer, "optimizer")
        sources["optimizer"], live["optimizer"] = _moments(job, state, plan, said.append)
    return Ready(weights, optimizer, sources, live, tuple(dict.fromkeys(said)))


def _opened(job: Job, plan: Plan, place: Place, role: str) -> Readable:
    who: Any = {"rank": job.group.rank, "world_size": job.group.world_size, "allow_world_size": plan.allow_world_size}
    wait_s = choice.visibility_s(place.path, job.settings.visibility_timeout_s)
    for path in warm.paths(place, **who):
        choice.wait_for(path, path.stat, wait_s)
    return warm.open_place(place, role, **who)


def _weights(source: Readable, role: str, live: Tensors, plan: Plan, say: Callable[[str], None]) -> Readable:
    """The weights in a source, under the net's names."""
    weights = warm.weights_in(source.tensors, live.infos().keys())
    if left := source.tensors.keys() - weights - set(POSITION_TENSORS):
        say(f"{len(left)} tensors in the same file are optimizer state and counters, not taken: {some(left)}")
    part: Readable = Part(source, weights)
    if plan.name_map is not None:
        part = plan.name_map.apply(part, role)
    return part


def _moments(job: Job, source: Readable, plan: Plan, say: Callable[[str], None]) -> tuple[Readable, Tensors]:
    """An optimizer's moments and counters: neither the weights beside them, nor what the configuration says anew."""
    weights, live = job.roles["policy"].infos().keys(), job.roles["optimizer"]
    own = live.infos().keys() - weights
    saved, now = optimizers.state(source.tensors, weights), optimizers.state(own, weights)
    if now.moments and not saved.moments:
        raise NamesMismatch(
            f"{source.path}: holds no optimizer state of this job's weights, expected {now}; nothing was loaded",
            hint="give the checkpoint of a run with this model and this optimizer",
            path=str(source.path),
        )
    differences = overrides.in_tensors(source, Only(live, own))
    chosen = {one.key: overrides.side(plan.override or {}, one.key) or "config" for one in differences}
    overrides.check_placeable(differences, chosen)
    for line in overrides.told(differences, chosen):
        say(line)
    kept = {key for key, side in chosen.items() if side == "config"}
    optimizers.check_same(source.path, saved, now, {key for key in kept if overrides.side(plan.override or {}, key)})
    held = (saved.moments.keys() | (source.tensors.keys() & own)) - kept
    return Part(source, held), Only(live, own - kept)


def _lines(ready: Ready, is_new: bool, seconds: float) -> Iterable[str]:
    count = {role: len(source.tensors) for role, source in ready.sources.items()}
    size = sum(source.bytes for source in ready.sources.values())
    what = f"{count['policy']} tensors of the policy" + (f", {count['ref']} of the reference" if "ref" in count else "")
    instead = "" if is_new else f", from {ready.weights}, in the place of the checkpoint's"
    yield f"weights alone ({size / 2**20:.1f} MiB in {seconds:.2f} s): {what}{instead}"
    if ready.optimizer:
        yield f"optimizer state: {count['optimizer']} tensors from {ready.optimizer}; the weights there were not taken"
    if is_new:
        yield f"untouched, as the trainer built it: {'' if ready.optimizer else 'optimizer, '}position, random state"
    yield from ready.said
    for place in filter(None, (ready.weights, ready.optimizer)):
        yield from (f"passed over {place.path} at {r.position}: {r.kind}: {r.reason}" for r in place.rejected)
        yield from (f"warning: {warning}" for warning in place.warnings)
