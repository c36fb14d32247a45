"""The one object a trainer holds: it starts a run where it stopped, and saves it as it goes.

with ms_resume.Checkpointer(save_dir, policy=policy, optimizer=optimizer, ref=reference,
                            components=[randomness, cursor, loss_scale], steps_per_epoch=n) as checkpointer:
    checkpointer.start(resume=args.resume_training)
    for epoch, step in checkpointer.steps(epochs, save_every=interval):
        train_one_step()
"""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ms_resume import pulse, write
from ms_resume.errors import UsageError
from ms_resume.framework import group as groups
from ms_resume.framework import nets, version
from ms_resume.framework.group import Group
from ms_resume.load import doubt
from ms_resume.load.names.match import NONE, Gaps
from ms_resume.load.source import NameMap
from ms_resume.ownership import Heartbeat
from ms_resume.records import Position, Writer
from ms_resume.resume import agree, banner, disks, fingerprint, session, unsaved, warm_start, ways
from ms_resume.resume.iteration import Model
from ms_resume.resume.leaving import Leaving
from ms_resume.resume.rollouts import Rollouts
from ms_resume.resume.saver import Saver
from ms_resume.resume.schedule import LEAVE, Schedule, Wishes
from ms_resume.resume.session import Job, Loaded, Request
from ms_resume.resume.start_mode import StartMode
from ms_resume.resume.warm_start import Plan, Warmed
from ms_resume.settings import Settings, from_environment
from ms_resume.state import Component

_open: weakref.WeakValueDictionary[tuple[Path, int], Checkpointer] = weakref.WeakValueDictionary()
"""Those of this process that were started and not ended, by save directory and rank."""


class Checkpointer:
    """Saves and resumes one rank of a run. Every rank makes one, with the same arguments, after `init()`.

    Args:
        save: The save directory, shared by all ranks.
        policy, optimizer, ref: MindSpore cells, or anything with the methods of `ms_resume.state.Tensors`. The
            optimizer's tensors include the weights that it updates, as MindSpore has it.
        components: Everything else that the next step depends on; each name once.
        steps_per_epoch: For positions and for stock code's final checkpoint.
        config: The run's configuration as a nested mapping; docs/format.md lists which keys are compared.
        parallel: The parallel strategy; another one is refused.
        schedule: When `due` says that it is time to save.
        leaving: What has listened since the process began; see `leave_on`.
        group: The ranks; MindSpore's default group when left out.
        say: Where the banner goes, on rank 0, and each rank's warnings; standard error when left out.
    """

    alone = False
    """Whether no other one of this process may save in the same directory: adapters set it."""

    def __init__(
        self,
        save: str | Path,
        *,
        policy: Any,
        optimizer: Any,
        ref: Any = None,
        components: Sequence[Component] = (),
        steps_per_epoch: int,
        config: Mapping[str, Any] | None = None,
        model_config: Mapping[str, Any] | None = None,
        parallel: Mapping[str, Any] | None = None,
        settings: Settings | None = None,
        schedule: Schedule | None = None,
        leaving: Leaving | None = None,
        group: Group | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if group is None:
            version.require()
        roles = {"policy": policy, "optimizer": optimizer} | ({} if ref is None else {"ref": ref})
        live = {role: nets.wrap(cell) for role, cell in roles.items()}
        ranks = group or groups.current()
        self._job = Job(
            save=Path(save).resolve(),
            roles=live,
            components=_by_name(components),
            steps_per_epoch=steps_per_epoch,
            about={
                "steps_per_epoch": steps_per_epoch,
                "layout": fingerprint.layout({role: tensors.infos() for role, tensors in live.items()}),
                "parallel": dict(parallel or {}),
                "config": fingerprint.config(config or {}),
                "model_config": dict(model_config or {}),
                "tool": version.tool(),
            },
            settings=settings or from_environment(),
            group=ranks,
            disk=disks.shared(ranks),
        )
        self._to = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._writer: Writer | None = None
        self._heartbeat: Heartbeat | None = None
        self._origin: Position | None = None
        self._standing = Position(0, 0)
        self._saver: Saver | None = None
        self._rollouts: Rollouts | None = None
        self._leaving = leaving or Leaving()
        self._pulse = pulse.of(self._job.settings.watch_dir, ranks.rank, self._job.settings.label)
        self._mode: StartMode | None = None
        self._model: Model | None = None
        self._leaving.belongs_to(self._job.save, ranks.rank, self._job.settings, self._pulse.exits)
        self._wishes = Wishes(self._job.save, ranks.rank, schedule or Schedule(), leaving=self._leaving)
        self._asked = False
        self.left = False
        """Whether the run ends before its end, because it was asked to: exit with 50."""
        self.wishes = 0.0
        """The sum of all ranks' `wish` at the end of `start`: for the first step's `due` and `leaves`."""
        self.position = Position(0, 0)
        self.loaded: frozenset[str] = frozenset()
        """The roles that the start has given their values: of policy and ref the others get the base model's now."""

    def start(
        self,
        *,
        resume: bool,
        position: Position | None = None,
        global_step: int | None = None,
        source: str | Path | None = None,
        ref_dir: str | Path | None = None,
        allow_fresh_start: bool = False,
        take_over: bool = False,
        allow_missing: Sequence[str] = (),
        allow_world_size: str = "",
        override: Mapping[str, str] | None = None,
        weights_from: str | Path | None = None,
        name_map: NameMap | None = None,
        gaps: Gaps = NONE,
    ) -> Position:
        """Restores everything from the newest whole checkpoint, or begins a fresh run, and takes the directory over.

        Called by all ranks, once, before anything draws random numbers or reads data.

        Args:
            resume: Go on from the newest whole checkpoint; without one, start fresh only if nothing was ever whole.
            position: Go on from exactly this one, which must be whole; newer ones are left behind, abandoned.
            global_step: The same, by the global step that the votes say.
            source: The save directory to resume from, when it is not the one that is written to. It may be read-only.
            ref_dir: Where a stock job keeps its reference, if not in `<source>/ref`.
            allow_fresh_start: Begin anew in a directory that holds checkpoints; they stay, abandoned.
            take_over: Start although another job seems to own the directory; that one stops at its next save.
            allow_missing: Components that may start anew when the checkpoint has nothing for them.
            allow_world_size: `data_parallel` where another number of ranks saved, which were replicas. Weights and
                moments are theirs, components go on with what they had in common, random state starts anew.
            override: What counts, `checkpoint` or `config`, where both say something of the optimizer and not the
                same, by key: `{"learning_rate": "config"}`. A key without a difference is no error: after the next
                save there is none.
            weights_from: Policy weights to put in the place of the checkpoint's, as `warm_start` finds them; all else
                is the checkpoint's. Looked at before anything is changed.
            name_map: Gives what is in the files the names of this job's nets: for the weights of `weights_from` where
                there are any, else for policy, optimizer, and reference of the checkpoint. As in `warm_start`.
            gaps: What may differ between those files and the nets (docs/loading.md). The banner says what did: such a
                run does not go on bit for bit.

        Returns:
            The position to go on from: run (epoch, step) next.

        Raises:
            MsResumeError: The same on all ranks; each kind says what it leaves. Nothing saved is changed.
        """
        from_dir = Path(source).resolve() if source else self._job.save
        request = Request(
            resume=resume,
            source=from_dir,
            position=position,
            global_step=global_step,
            ref_dir=Path(ref_dir) if ref_dir else None,
            allow_fresh_start=allow_fresh_start,
            take_over=take_over,
            allow_missing=frozenset(allow_missing),
            allow_world_size=allow_world_size,
            override=dict(override or {}),
            name_map=name_map if weights_from is None else None,
            gaps=gaps if weights_from is None else NONE,
            weights="" if weights_from is None else session.INSTEAD,
        )
        plan = Plan(Path(weights_from), name_map=name_map, gaps=gaps) if weights_from is not None else None
        return self._begin(request, plan)

    def warm_start(
        self,
        weights: str | Path,
        *,
        position: Position | None = None,
        optimizer_from: str | Path | None = None,
        ref: bool = False,
        name_map: NameMap | None = None,
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        widen: bool = False,
        narrow: Mapping[str, str] | None = None,
        allow_world_size: str = "",
        override: Mapping[str, str] | None = None,
        resume: bool = False,
        allow_fresh_start: bool = False,
        take_over: bool = False,
    ) -> Position:
        """Begins a new run from weights that lie somewhere, instead of `start`. Called as that is.

        Optimizer, position, and random state are as the trainer built them. docs/warm_start.md says what is read.

        Args:
            weights: A save directory of ours or of MindRLHF (its newest position with a whole policy),
                `<save>/commits/E_S`, a directory of MindFormers, MindSpeed or Hugging Face, a `.ckpt` or
                `.safetensors` file.
            position: Of a directory exactly this one.
            optimizer_from: Where moments and step counters come from; the weights in that file are not taken, nor is
                what the configuration says anew, such as a constant learning rate.
            ref: Whether the reference gets the same weights.
            name_map: Gives what is in the file the names of the policy, and of the reference: anything with
                `apply(source, role)`. Not applied to the optimizer's state.
            allow_missing: Tensors of the nets, by name or pattern, that keep their values when the file has none.
            allow_unexpected: Tensors in the file, by name or pattern, that no net wants.
            widen: Whether a narrower dtype in the file is taken where no value is lost: BF16 for F32.
            narrow: By name or pattern, the dtype to round to: `{"*": "BF16"}`.
            allow_world_size: `data_parallel` where another number of ranks saved, which were replicas.
            override: As in `start`, for `optimizer_from`; there the configuration's counts where nothing is said.
            resume: Go on from the newest whole checkpoint of the save directory where there is one; then no weights
                are loaded. What a job needs that is started again by itself.
            allow_fresh_start, take_over: As in `start`.

        Returns:
            (0, 0), or the position that was resumed.

        Raises:
            MsResumeError: The same on all ranks. After `Damaged` the nets may hold a part of the weights.
        """
        plan = Plan(
            Path(weights),
            position=position,
            optimizer=Path(optimizer_from) if optimizer_from is not None else None,
            ref=ref,
            name_map=name_map,
            gaps=Gaps(tuple(allow_missing), tuple(allow_unexpected), widen, dict(narrow or {})),
            allow_world_size=allow_world_size,
            override=dict(override or {}),
        )
        request = Request(
            resume=resume,
            source=self._job.save,
            allow_fresh_start=allow_fresh_start,
            take_over=take_over,
            override=dict(override or {}),
            weights=session.FRESH,
        )
        return self._begin(request, plan)

    def start_as(
        self,
        mode: StartMode,
        *,
        source: str | Path | None = None,
        ref_dir: str | Path | None = None,
        ref: bool = False,
        allow_missing: Sequence[str] = (),
    ) -> Position:
        """Starts as the flags say that were given, instead of `start` and `warm_start`. Called as those are.

        What the trainer's base model is to be loaded into afterwards is what is not in `loaded`.

        Args:
            source, ref_dir, allow_missing: As in `start`; `mode.checkpoint` goes before `source`.
            ref: As in `warm_start`.

        Raises:
            MsResumeError: As `start` and `warm_start` do.
        """
        self._mode = mode
        at, ref_at = (Path(path) if path else None for path in (source, ref_dir))
        way = ways.find(self._job, mode, at, ref_at)
        self._model = way.model
        shared: dict[str, Any] = {
            "allow_fresh_start": mode.allow_fresh_start,
            "take_over": mode.take_over,
            "allow_world_size": mode.allow_world_size,
            "override": mode.override,
            "name_map": way.name_map,
        }
        if way.weights and way.is_new:
            ref = ref and mode.pretrained is not None
            return self.warm_start(way.weights, ref=ref, resume=mode.restarted, **shared)
        return self.start(
            resume=mode.resume,
            position=way.position,
            global_step=way.global_step,
            source=way.source,
            ref_dir=ref_dir,
            allow_missing=allow_missing,
            weights_from=way.weights,
            **shared,
        )

    def _begin(self, request: Request, plan: Plan | None) -> Position:
        if self._writer is not None:
            raise UsageError("the Checkpointer was started already", hint="make a new one for another start")
        agree.together(self._job.group, self._check_alone)
        self._pulse.beat("start")
        if request.resume and request.position is None and self._job.settings.resume_at:
            request = replace(request, position=Position.parse(self._job.settings.resume_at), global_step=None)
        if self._job.settings.storage == "local":
            self._job = replace(self._job, disk=disks.find(self._job.group, self._job.save))
        about_file, _ = agree.together(self._job.group, self._leaving.check_file)
        after = session.prepare(self._job, request)
        ready = warm_start.ready(self._job, plan) if plan and request.weights == session.INSTEAD else None
        loaded = session.load_newest(self._job, request)
        is_new = loaded.choice.position is None
        if plan and is_new and ready is None:
            ready = warm_start.ready(self._job, plan)
        if ready and ways.is_taken(self._job, self._model, loaded):
            ready = None
        placed = warm_start.place(self._job, ready, is_new=is_new) if ready else None
        if self._model and placed:
            loaded = replace(loaded, weights=self._model.name)
        saver, _ = agree.together(self._job.group, lambda: Saver(self._job, self._say, self._leaving.saved_in))
        self._writer, self._heartbeat = session.open_attempt(self._job, loaded, after)
        saver.ready(self._writer, session.previous_vote(self._job, loaded))
        self._saver = saver
        self._take(loaded, request, self._writer, saver, placed)
        if about_file:
            self._say(f"ms_resume: {about_file}")
        self.wishes = self.gather_wishes()
        self._pulse.beat("started", self.position)
        _open[self._key] = self
        return self.position

    def steps(
        self, epochs: int, *, save_every: int = 0, behind: bool = False, wishes: Callable[[], float] | None = None
    ) -> Iterator[tuple[int, int]]:
        """The (epoch, step) pairs that are left, saving before each step that `save_every` divides, and at the end.

        Ends before a step, saved, when a rank was asked to leave (`leave_on`, `left`).

        Args:
            save_every: Steps of an epoch. When left out, `schedule` and `--checkpoint_interval` (`start_as`) say when.
            behind: Saves run behind the step's rollout; the trainer calls `fence` before it writes parameters.
            wishes: The sum of all ranks' `wish`, of the last step. Without it one is made here, where signals are
                listened to.

        Raises:
            UsageError: Nothing says when to save.
        """
        if not save_every and self._mode is None and self._wishes.schedule == Schedule():
            raise UsageError(
                "steps() with nothing that says when to save: a death would cost the whole run",
                hint="steps(epochs, save_every=N), Checkpointer(schedule=Schedule(...)), or start_as with its flags",
            )
        summed = wishes or (self.gather_wishes if self._leaving.listening else lambda: 0.0)
        first = self.position
        if first.epoch >= epochs:
            self._tell(f"ms_resume: nothing left: the run of {epochs} epochs ended at {first}")
        for epoch in range(first.epoch, epochs):
            for step in range(first.step if epoch == first.epoch else 0, self._job.steps_per_epoch):
                wanted = summed()
                leaves = self.leaves(wanted)
                due = step % save_every == 0 if save_every else self._reason(epoch, step, wanted)
                if wanted > 0 or due:
                    (self.begin if behind else self.save)(epoch, step)
                if leaves:
                    return
                self.phase("step", epoch, step)
                yield epoch, step
        if first.epoch < epochs:
            self.save(epochs, 0)

    def save(self, epoch: int, step: int, metrics: Mapping[str, Any] | None = None) -> write.Saved | None:
        """Saves the state as that of position (epoch, step); None when that position stands already.

        Called by all ranks alike; none waits for another. Returns when this rank's part survives a power cut.

        Raises:
            DiskError: The position does not count, older checkpoints are as they were, and training may go on.
            Superseded: A newer attempt owns the directory; this process must not save again.
        """
        if not self.begin(epoch, step, metrics):
            return None
        self.fence()
        return self.wait()

    def begin(self, epoch: int, step: int, metrics: Mapping[str, Any] | None = None) -> bool:
        """Begins to save the state as that of position (epoch, step), and returns; False when there is nothing to do.

        Until `fence` has returned nothing may write a parameter, an optimizer state, or the reference. A trainer that
        cannot promise that calls `fence` at once. One save at a time: another one waits for it, or is skipped
        (`Settings.when_busy`).

        Raises:
            Damaged: A load into these nets has failed, and none succeeded since.
            MsResumeError: Of the save before this one; see `save`.
        """
        saver, position = self._started(), Position(epoch, step)
        doubt.refuse(self._job.roles)
        if position in (Position(0, 0), self._standing):
            return False
        if epoch < 0 or not 0 <= step < self._job.steps_per_epoch:
            raise UsageError(
                f"save at {position}, but an epoch has {self._job.steps_per_epoch} steps",
                hint="the end of epoch E is (E + 1, 0)",
            )
        if self._origin is not None and position < self._origin:
            raise UsageError(
                f"save at {position}, but the run went on from {self._origin}", hint="save later positions"
            )
        self._pulse.beat("save", position)
        begun = saver.begin(position, metrics or {}, last=self._asked)
        if begun:
            self._wishes.granted()
            if self._rollouts is not None:
                self._rollouts.begin(position)
        return begun

    def rollouts(self) -> Rollouts:
        """Where finished rollouts of the steps since the last checkpoint are kept; see `Rollouts.take`.

        Called by all ranks alike, after `start`.
        """
        if self._rollouts is None:
            saver, writer, job = self._started(), self._writer, self._job
            assert writer is not None  # started
            self._rollouts = Rollouts(
                writer,
                job.group,
                job.roles["policy"],
                job.about["config"].get("fingerprint", ""),
                position=self.position,
                committed=lambda: saver.committed,
                tell=lambda text: self._say(f"ms_resume: rank {job.group.rank}: {text}"),
            )
        return self._rollouts

    def wish(self) -> float:
        """1.0 when this rank wants a save before its time, else 0.0: for a sum over all ranks that the trainer makes in
        each step anyway. Rank 0 wants one when the schedule's seconds have passed, or somebody made `<save>/save_now`;
        any rank after a signal that `save_on` was given."""
        return self._wishes.now()

    def gather_wishes(self) -> float:
        """The sum of all ranks' `wish`, by a message of its own: for a step that has no reduction to add it to."""
        _, wishes = agree.together(self._job.group, self.wish, lambda wish: wish)
        return float(sum(wishes))

    def save_on(self, *signals: signal.Signals) -> None:
        """Lets these signals ask for a save at the next step; called in the main thread."""
        self._wishes.listen(*signals)

    def leave_on(self, *signals: signal.Signals) -> None:
        """Lets these signals, SIGTERM and SIGUSR1 where none is given, ask for a save at the next step and for the end
        after it, and so a stop file that is made or touched (`Settings.stop_file`). Called in the main thread, before
        `start`, so that a load is heard, too. docs/operations.md says what a second signal does."""
        self._leaving.listen(*signals)

    def leaves(self, wishes: float) -> bool:
        """Whether a rank was asked to leave, alike on all ranks: then the trainer saves, leaves its loop in good order,
        and exits with 50.

        Args:
            wishes: The sum of all ranks' `wish`.
        """
        asked = self._is_asked(wishes)
        self.left = self.left or asked
        return asked

    def phase(self, name: str, epoch: int, step: int) -> None:
        """Tells a supervisor what this rank begins to do; by how long each phase takes it knows a hang."""
        self._pulse.beat(name, Position(epoch, step))

    def due(self, epoch: int, step: int, *, wishes: float = 0.0) -> str:
        """Why the schedule wants (epoch, step) saved, alike on all ranks; empty when it does not.

        Args:
            wishes: The sum of all ranks' `wish`.
        """
        self.phase("step", epoch, step)
        self._is_asked(wishes)
        return self._reason(epoch, step, wishes)

    def _reason(self, epoch: int, step: int, wishes: float) -> str:
        schedule = self._wishes.schedule
        reason = schedule.reason(epoch, step, wishes=wishes)
        if reason or self._mode is None:
            return reason
        return self._mode.saves_after(epoch * self._job.steps_per_epoch + step, scheduled=schedule != Schedule())

    def fence(self) -> None:
        """Returns when what is being saved is copied: parameters may change again. At once when nothing is.

        Raises:
            UsageError: They have changed already; what was being saved does not count.
            MsResumeError: The save failed; see `save`.
        """
        doubt.refuse(self._job.roles)
        self._started().fence()

    def wait(self) -> write.Saved | None:
        """Returns when the save that `begin` began survives a power cut, with what it did; None when there is none.

        Raises:
            MsResumeError: It failed; see `save`.
        """
        return self._started().wait()

    def close(self) -> None:
        """Ends a run that went well: all ranks wait for each other's last vote, so that retention sees it."""
        try:
            if self._saver is not None:  # on every rank alike, whether or not its own saves worked
                agree.together(self._job.group, self._saver.wait)
                self._saver.meet()
                agree.together(self._job.group, self._saver.tidy)
                self._saver.tidy()
            if self._rollouts is not None:
                self._rollouts.close()
            if self.left:
                self._leaving.left()
            else:
                self._leaving.close()
        finally:
            self._end()
            if self._saver is not None:
                self._saver.end()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            self._pulse.ended(done=not self.left, left=self.left)
        else:
            self._pulse.ended(error=error)
            if self._saver is not None:
                self._saver.end()
            if self._rollouts is not None:
                self._rollouts.flush()
            self._end()  # the other ranks may be gone: waiting for them would hide the error
            self._leaving.close()

    def _take(self, loaded: Loaded, request: Request, writer: Writer, saver: Saver, placed: Warmed | None) -> None:
        self.position = loaded.position
        self._origin = loaded.position if loaded.choice.position else None
        self.loaded = frozenset(self._job.roles if loaded.choice.position else placed.roles if placed else ())
        if loaded.choice.save == self._job.save and loaded.stands:
            self._standing = loaded.position
        story = _story(self._job, request, writer, loaded, placed)
        strategy = ways.strategy(self._job, self._model, loaded, writer)
        asked = self._mode.said if self._mode else ()
        self._tell(banner.text(replace(story, asked=asked, strategy=strategy)))
        saver.meet()
        saver.tidy()  # a disk that is full at the start gets room here: a save comes before its retention

    def _is_asked(self, wishes: float) -> bool:
        if wishes >= LEAVE:
            self._asked = True
            self._leaving.ask("another rank was asked")
        return wishes >= LEAVE

    def _started(self) -> Saver:
        if self._saver is None:
            raise UsageError("the Checkpointer was not started", hint="call start() before save()")
        return self._saver

    @property
    def _key(self) -> tuple[Path, int]:
        return self._job.save, self._job.group.rank

    def _check_alone(self) -> None:
        """The owner of a directory is a process: of two in one the older would find out at its next save. A trainer may
        want that, to start again without an end; where an adapter is one of the two nobody does."""
        other = _open.get(self._key)
        if other is not None and (self.alone or other.alone):
            raise UsageError(
                f"{self._job.save}: another Checkpointer of this process saves there already, as rank {self._key[1]}",
                hint="one is enough: where an adapter or a callback saves, leave the Checkpointer out; else close() it",
            )

    def _end(self) -> None:
        if _open.get(self._key) is self:
            del _open[self._key]
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def _say(self, text: str) -> None:
        self._pulse.log("WARNING" if "warning" in text else "INFO", text)
        self._to(text)

    def _tell(self, text: str) -> None:
        if self._job.group.rank == 0:
            self._say(text)


def _by_name(components: Sequence[Component]) -> dict[str, Component]:
    named = {component.name: component for component in components}
    if len(named) < len(components) or any("." in name for name in named):
        names = [component.name for component in components]
        raise UsageError(f"component names {names} must differ and have no dot", hint="rename them")
    return named


def _story(job: Job, request: Request, writer: Writer, loaded: Loaded, placed: Warmed | None) -> banner.Story:
    chosen = loaded.choice
    return banner.Story(
        save=job.save,
        attempt=writer.attempt.attempt,
        position=loaded.position,
        source=chosen.save if chosen.position else None,
        layout=chosen.layout,
        from_attempt=chosen.attempt,
        rejected=chosen.rejected,
        restored=loaded.restored,
        anew=loaded.anew if chosen.position else (),
        unsaved=unsaved.components(job.roles, job.components),
        notes=unsaved.notes(job.components) if chosen.position else (),
        warnings=(*chosen.warnings, *loaded.warnings) if not chosen.position else loaded.warnings,
        fresh_allowed=request.allow_fresh_start,
        seconds=loaded.seconds,
        bytes=loaded.bytes,
        weights=placed.place if placed else "",
        placed=placed.lines if placed else (),
    )
