"""One start of a run, step by step: choose, confirm, load, take the directory over.

Every step is done by all ranks together, so that one rank's error stops all of them within one exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ms_resume import commit, layouts, load, locate, ownership, progress, removal, retention
from ms_resume.errors import (
    Damaged,
    DirectoryInUse,
    DirectoryNotEmpty,
    DiskError,
    LayoutMismatch,
    MsResumeError,
    NothingToResume,
    UsageError,
)
from ms_resume.framework import nets
from ms_resume.framework.group import Group
from ms_resume.layouts import survey
from ms_resume.load import doubt, overrides, warm
from ms_resume.load.names.match import NONE, Gaps, fitted
from ms_resume.load.source import NameMap, Readable, Source
from ms_resume.load.views import Part
from ms_resume.ondisk import atomic, attempts, names
from ms_resume.ownership import Heartbeat
from ms_resume.progress import Progress
from ms_resume.records import Attempt, Origin, Position, Rejection, Vote, Writer
from ms_resume.resume import agree, choice, decisions, disks, resplit, restore
from ms_resume.resume.choice import Choice, Mine
from ms_resume.resume.disks import Disk
from ms_resume.settings import Settings
from ms_resume.state import Component, Tensors, pack


@dataclass(frozen=True, slots=True)
class Job:
    """What one rank brings along: its live state, and what it says of itself in every vote."""

    save: Path
    roles: Mapping[str, Tensors]
    components: Mapping[str, Component]
    steps_per_epoch: int
    about: Mapping[str, Any]
    settings: Settings
    group: Group
    disk: Disk


FRESH, INSTEAD = "a warm start", "in the place of the checkpoint's"


@dataclass(frozen=True, slots=True)
class Request:
    """How this start was asked for."""

    resume: bool
    source: Path
    position: Position | None = None
    global_step: int | None = None
    ref_dir: Path | None = None
    allow_fresh_start: bool = False
    take_over: bool = False
    allow_missing: frozenset[str] = frozenset()
    override: Mapping[str, str] = field(default_factory=dict)
    allow_world_size: str = ""
    name_map: NameMap | None = None
    gaps: Gaps = NONE
    weights: str = ""
    """What weights from elsewhere are for: `FRESH`, a start without a checkpoint, or `INSTEAD` of a checkpoint's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a start restored; `choice.position` is None for a fresh start."""

    choice: Choice
    position: Position
    mine: Mine | None = None
    restored: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    is_own: bool = True
    """Whether these files are this rank's own, and not those of a replica that it took the place of."""

    weights: str = ""
    """The iteration model that the weights were taken from instead."""

    stands: bool = True
    """Whether the checkpoint lies where a save of `position` would."""


def prepare(job: Job, request: Request) -> int:
    """Everything that must hold before a byte is read: ranks started alike, roles apart, directory writable and free.

    Returns:
        The ordinal of the newest attempt now; `open_attempt` refuses where another job opened one since.
    """
    _, told = agree.together(job.group, lambda: _asked(job, request), lambda asked: asked)
    for what in told[0]:
        agree.same_everywhere(what, [asked[what] for asked in told])
    agree.together(job.group, lambda: pack(job.components))  # what cannot be saved is found now, not hours later
    agree.together(job.group, lambda: nets.check_separate(job.roles["policy"], job.roles.get("ref")))
    agree.together(job.group, lambda: _check_writable(job.save))
    check = attempts.newest_ordinal if request.take_over else ownership.check_free
    after: int = max(_on_each_disk(job, lambda: check(job.save)))
    _on_each_disk(job, lambda: removal.put_back(job.save))
    _on_each_disk(job, lambda: _check_unused(job, request))
    return after


def _on_each_disk(job: Job, action: Callable[[], Any]) -> list[Any]:
    return agree.on_each_disk(job.group, job.disk.leads, action)


def load_newest(job: Job, request: Request) -> Loaded:
    """Loads the newest whole checkpoint; one that turns out damaged is passed over for the next older one.

    Where a position was asked for it is that one or an error: another one would be a surprise.

    Raises:
        NothingToResume: There is none, but there was, or too many were damaged.
    """
    if not request.resume or (request.weights == FRESH and not _is_there(job, request)):
        return _fresh(job, Choice(request.source, None))
    if request.global_step is not None and request.position is None:
        request = replace(request, position=_at_global_step(job, request, request.global_step))
    excluded: list[Rejection] = []
    while True:
        chosen = _choose(job, request, excluded)
        if chosen.position is None:
            return _fresh(job, chosen)
        try:
            return _load(job, request, chosen)
        except Damaged as error:
            if request.position is not None:
                error.hint = "end this process; then ask for another position, or for none: the newest whole one"
                raise
            ranks = tuple(error.fields.get("ranks", ()))
            excluded.append(Rejection(chosen.position, "damaged", error.message, ranks))
            if len(excluded) > job.settings.max_rollback:
                error.hint = (
                    f"{len(excluded)} checkpoints turned out damaged while they were loaded, which is more than "
                    f"max_rollback: look with `ms-resume verify --all --deep`, or allow more with --max_rollback "
                    f"(MS_RESUME_MAX_ROLLBACK)"
                )
                raise


def _at_global_step(job: Job, request: Request, wanted: int) -> Position:
    def look() -> list[int]:
        return choice.at_global_step(request.source, wanted, request.ref_dir, job.steps_per_epoch).to_json()

    return Position(*agree.from_first(job.group, look))


def _is_there(job: Job, request: Request) -> bool:
    """Whether there is a directory to resume from: a warm start's own is made by its first attempt."""
    _, there = agree.together(job.group, request.source.exists, lambda found: found)
    return any(there)


def _fresh(job: Job, chosen: Choice) -> Loaded:
    """Nothing is loaded; refused on all ranks where a role of one still holds what could not be loaded before."""
    agree.together(job.group, lambda: doubt.refuse(job.roles))
    return Loaded(chosen, Position(0, 0), anew=tuple(job.components))


def open_attempt(job: Job, loaded: Loaded, after: int) -> tuple[Writer, Heartbeat | None]:
    """Takes the save directory over for this start: rank 0 writes the record, every rank its `meta.json`.

    Returns:
        Who writes from now on, and on rank 0 the pulse that says so to other machines.
    """
    agree.together(job.group, lambda: _check_stands(job, loaded))
    beating: list[Heartbeat] = []
    try:
        writer = _take_over(job, loaded, after, beating)
    except BaseException as error:
        for heartbeat in beating:
            heartbeat.stop(remove=not isinstance(error, DirectoryInUse))
        raise
    return writer, next(iter(beating), None)


def _take_over(job: Job, loaded: Loaded, after: int, beating: list[Heartbeat]) -> Writer:
    document = agree.from_first(job.group, lambda: _open_record(job, loaded, after, beating))
    attempt = attempts.decode(document)
    writer = Writer(job.save, attempt, job.group.rank, job.group.world_size, job.disk.leader)
    opened = [attempt] if job.group.rank == 0 else []
    try:
        if not job.disk.is_shared:
            agree.together(job.group, lambda: _open_other_disk(job, loaded, attempt, after, beating, opened))
        _on_each_disk(job, lambda: removal.put_back(job.save))
        agree.together(job.group, lambda: _check_stands(job, loaded))
    except MsResumeError as error:
        if opened and (isinstance(error, DirectoryInUse) or not job.disk.is_shared):
            # or it would leave behind what the other job saved in its place, and differ from the other disks
            atomic.remove(names.attempt_record(job.save, attempt.ordinal))
        raise
    wait_s = choice.visibility_s(job.save, job.settings.visibility_timeout_s)
    agree.together(job.group, lambda: _take_place(writer, loaded, wait_s))
    return writer


def previous_vote(job: Job, loaded: Loaded) -> Vote | None:
    """This rank's vote in the checkpoint it started from, when that lies in the save directory."""
    vote = loaded.mine.vote if loaded.mine is not None and loaded.choice.save == job.save else None
    return vote if vote and vote.rank == job.group.rank else None


def _asked(job: Job, request: Request) -> dict[str, Any]:
    """What decides the order of the exchanges below, and what a position means: ranks that differ would mix both up."""
    asked = {"position": request.position, "global step": request.global_step}
    for what, value in asked.items():
        if value is not None and not request.resume:
            raise UsageError(
                f"start at {what} {value} without resume: a fresh start has no position to go on from",
                hint=f"start(resume=True, {what.replace(' ', '_')}=...), or leave it out",
            )
    if None not in asked.values():
        raise UsageError(f"position {request.position} and global step {request.global_step}", hint="give one of them")
    warm.check_word(request.allow_world_size)
    if request.weights == INSTEAD and not request.resume:
        raise UsageError("weights_from without resume: nothing else is loaded", hint="that is warm_start(PATH)")
    overrides.check(request.override)
    return {
        "resume (--resume_training)": request.resume,
        "position": str(request.position) if request.position else None,
        "global step": request.global_step,
        "allow_world_size": request.allow_world_size,
        "allow_fresh_start": request.allow_fresh_start,
        "take_over": request.take_over,
        "allow_missing": sorted(request.allow_missing),
        "override": dict(request.override),
        "the name map": request.name_map is not None,
        "gaps": repr(request.gaps),
        "weights from elsewhere": request.weights,
        "steps_per_epoch": job.steps_per_epoch,
        "the parallel strategy": job.about["parallel"],
        "max_rollback (MS_RESUME_MAX_ROLLBACK)": job.settings.max_rollback,
        "storage (MS_RESUME_STORAGE)": job.settings.storage,
        "staged_load (MS_RESUME_STAGED_LOAD)": job.settings.staged_load,
    }


def _check_writable(save: Path) -> None:
    if save.exists() and not save.is_dir():
        raise DiskError(f"{save}: is a file, expected a directory to save to", hint="give another save directory")
    if not atomic.writable(save):
        raise DiskError(
            f"{save}: not writable, and this run will save there",
            hint="resume from it and save elsewhere: --actor_checkpoint_path OLD/train --save_checkpoint_dir NEW",
        )


def _check_unused(job: Job, request: Request) -> None:
    """A directory with checkpoints is not begun anew by accident."""
    same = request.resume and request.source == job.save
    if same or request.allow_fresh_start or not job.save.exists():
        return
    found, other = survey.take(job.save), layouts.stranger(job.save)
    if other is None and locate.never_whole(found):
        return
    held = other.layout if other else f"checkpoints ({', '.join(str(p) for p in found.positions[:5])})"
    raise DirectoryNotEmpty(
        f"{job.save}: holds {held}, and this start would not go on from them",
        hint="--resume_training goes on; --allow_fresh_start begins anew beside them; or give another directory",
    )


def _choose(job: Job, request: Request, excluded: list[Rejection]) -> Choice:
    def decide() -> dict[str, Any]:
        if request.position is not None:
            at = choice.choose_at(request.source, request.position, request.ref_dir, job.steps_per_epoch)
            return choice.to_json(at)
        try:
            found = choice.choose(request.source, request.ref_dir, job.steps_per_epoch, excluded)
        except NothingToResume:
            if excluded or not request.allow_fresh_start:  # excluded: the nets hold a part of a damaged checkpoint
                raise
            found = Choice(request.source, None)
        return choice.to_json(found)

    if not job.disk.is_shared:
        return _choose_together(job, request, excluded)
    return choice.from_json(agree.from_first(job.group, lambda: _undisturbed(job.save, decide)))


def _choose_together(job: Job, request: Request, excluded: list[Rejection]) -> Choice:
    """Nobody sees all votes: every rank says what it has, and finds the same answer."""
    rank, steps = job.group.rank, job.steps_per_epoch
    _on_each_disk(job, lambda: removal.put_back(job.save))
    _, told = agree.together(
        job.group, lambda: choice.held(request.source, rank, request.ref_dir, steps), choice.held_to_json
    )
    held = [choice.held_from_json(entry) for entry in told]
    found, _ = agree.together(job.group, lambda: choice.choose_common(request.source, held, request.position, excluded))
    if found is None and not request.allow_fresh_start:
        if excluded or request.position is not None or not _never_whole(job, request):
            raise choice.nothing_common(request.source, held, excluded)
        found = choice.fresh_common(request.source, held)
    chosen = found or Choice(request.source, None)
    templates, _ = agree.together(
        job.group, lambda: choice.stock_files(chosen, rank, request.ref_dir, steps), lambda found: None
    )
    return replace(chosen, templates=templates, world_size=chosen.world_size or job.group.world_size)


def _never_whole(job: Job, request: Request) -> bool:
    """Whether the first save of all was cut short, and nothing was saved since."""
    rank, steps = job.group.rank, job.steps_per_epoch
    _, told = agree.together(
        job.group, lambda: choice.begun(request.source, rank, request.ref_dir, steps), disks.begun_to_json
    )
    return disks.never_whole(disks.begun_from_json(entry) for entry in told)


def _undisturbed(save: Path, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Looks again while a worker of an older attempt that is not dead yet takes away what is looked at."""
    while True:
        try:
            found = look()
        except MsResumeError:
            if removal.put_back(save):
                continue
            raise
        if not removal.put_back(save):
            return found


def _load(job: Job, request: Request, chosen: Choice) -> Loaded:
    began = time.monotonic()
    is_other = resplit.check(chosen, job.group.world_size, request.allow_world_size, is_shared=job.disk.is_shared)
    mine = choice.confirm(job.group, chosen, job.settings.visibility_timeout_s)
    if is_other:
        agree.from_first(job.group, lambda: resplit.check_replicas(chosen))
    sources, _ = agree.together(job.group, lambda: _open(job, mine, request.name_map))
    decided, _ = agree.together(
        job.group, lambda: decisions.decide(sources, job.roles, job.about, mine.vote, request.override)
    )
    settled, _ = agree.together(
        job.group,
        lambda: restore.settle(
            decided.live, job.components, decided.sources, mine.vote, request.allow_missing, request.gaps
        ),
    )
    cast = {role: fitted(decided.sources[role], report) for role, report in settled.reports.items() if report.casts}
    if is_other:
        settled = resplit.without_own(settled)
    assert chosen.position is not None  # checked by the caller
    position = chosen.position if mine.vote else chosen.position.normal(job.steps_per_epoch)
    if is_other:
        agree.together(job.group, lambda: resplit.check_place(position, mine.vote, job.steps_per_epoch, settled))
    else:
        agree.together(job.group, lambda: restore.check_parallel(job.about, mine.vote))
        agree.together(job.group, lambda: restore.check_steps(position, job.steps_per_epoch, mine.vote))
    place(job, f"loading {position}", {**decided.sources, **cast}, decided.live, lambda: settled.apply(position))
    at = position
    if is_other:
        at, _ = agree.together(job.group, lambda: resplit.place_of(job, chosen, position, mine.vote, settled))
    warnings = (
        *(resplit.told(chosen, job.group.world_size, at, settled) if is_other else ()),
        *chosen.warnings,
        *decided.said,
        *dict.fromkeys(line for report in settled.reports.values() for line in report.let_through()),
        *restore.unclaimed(mine.files, job.roles, settled),
        *restore.differences(job.about, mine.vote),
    )
    return Loaded(
        chosen,
        at,
        mine,
        restored=(*job.roles, *settled.states),
        anew=settled.anew,
        warnings=warnings,
        bytes=sum(source.bytes for source in sources.values()),
        seconds=time.monotonic() - began,
        is_own=job.group.rank < chosen.world_size,
        stands=at == position,
    )


def place(
    job: Job,
    what: str,
    sources: Mapping[str, Readable],
    live: Mapping[str, Tensors],
    then: Callable[[], None] = lambda: None,
) -> None:
    """Places what is settled, on all ranks, with a bar on rank 0; `then` belongs to it. The nets are in doubt until all
    ranks are done, also where only another one fails."""
    ready = sources
    with _shown(job, what, sources, live) as tell:
        if job.settings.staged_load:
            ready, _ = agree.together(job.group, lambda: load.stage(sources, live, tell))
            tell = None
        with doubt.until_whole({role: job.roles[role] for role in live}):
            agree.together(job.group, lambda: load.place(ready, live, tell))
            agree.together(job.group, lambda: nets.compile_anew(job.roles.values()))
            agree.together(job.group, then)


def _shown(
    job: Job, what: str, sources: Mapping[str, Readable], live: Mapping[str, Tensors]
) -> AbstractContextManager[Progress | None]:
    return progress.shown(what, load.size_of(sources, live)) if job.group.rank == 0 else nullcontext()


def _open(job: Job, mine: Mine, name_map: NameMap | None) -> dict[str, Readable]:
    roles = [*job.roles, *(["state"] if "state" in mine.files else [])]
    if lacking := [role for role in roles if role not in mine.files]:
        raise LayoutMismatch(
            f"the checkpoint has no {' and no '.join(lacking)}, this job has",
            hint="build the job as the one that saved it, or start from its weights alone",
        )
    sources = {role: Source(mine.files[role], mine.vote.file(role) if mine.vote else None) for role in roles}
    if name_map is None:
        return dict(sources)
    parts = {role: Part(sources[role], load.wanted(sources[role], role)) for role in job.roles}
    return {**sources, **{role: name_map.apply(part, role) for role, part in parts.items()}}


def _origin(job: Job, loaded: Loaded) -> Origin | None:
    chosen = loaded.choice
    if chosen.position is None:
        return None
    same = chosen.save == job.save
    return Origin(chosen.position, chosen.attempt, None if same else str(chosen.save))


def _open_other_disk(
    job: Job, loaded: Loaded, attempt: Attempt, after: int, beating: list[Heartbeat], opened: list[Attempt]
) -> None:
    """The same record on a node's own disk, by its first rank; rank 0's is there already."""
    if job.disk.leads and job.group.rank != 0:
        _open_record(job, loaded, after, beating, attempt.attempt)
        opened.append(attempt)


def _open_record(job: Job, loaded: Loaded, after: int, beating: list[Heartbeat], attempt: str = "") -> dict[str, Any]:
    atomic.make_dirs(job.save)
    if job.settings.heartbeat_s > 0:
        beating.append(Heartbeat(job.save, after + 1, job.settings.heartbeat_s))
    surveyed = survey.take(job.save, steps_per_epoch=job.steps_per_epoch)
    origin, world_size = _origin(job, loaded), job.group.world_size
    named = {"label": job.settings.label, "attempt": attempt, "weights": loaded.weights}
    opened = ownership.open_attempt(surveyed, origin, world_size, after=after, **named)
    return attempts.document(opened)


def _check_stands(job: Job, loaded: Loaded) -> None:
    """A job that is not dead yet may have pruned what was loaded: then a second death would leave nothing."""
    if loaded.mine is None or loaded.choice.save != job.save:
        return
    vote, position = loaded.mine.vote, loaded.choice.position
    paths = [*loaded.mine.files.values(), *([names.vote(job.save, vote.position, vote.rank)] if vote else [])]
    named = vote.files if vote else ()
    if not all(path.exists() for path in paths) or not all(commit.in_place(job.save, file) for file in named):
        raise DirectoryInUse(
            f"{job.save}: checkpoint {position} was taken away while it was loaded",
            hint="end what is left of the job before this one, then start again",
        )


def _take_place(writer: Writer, loaded: Loaded, wait_s: float) -> None:
    record = names.attempt_record(writer.save, writer.attempt.ordinal)
    choice.wait_for(record, record.stat, wait_s)  # on a disk of its own this node would save into nowhere
    if loaded.mine is not None and loaded.is_own:
        commit.record_meta(writer, loaded.mine.files)
    retention.sweep_temp_files(writer)
    removal.sweep(writer)
