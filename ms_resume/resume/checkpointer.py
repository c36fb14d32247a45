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
from ms_resume.ownership import Heartbeat
from ms_resume.records import Position, Writer
from ms_resume.resume import agree, banner, disks, fingerprint, session
from ms_resume.resume.saver import Saver
from ms_resume.resume.schedule import LEAVE, Schedule, Wishes
from ms_resume.resume.session import Job, Loaded, Request
from ms_resume.settings import Settings, from_environment
from ms_resume.state import Component


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
        group: The ranks; MindSpore's default group when left out.
        say: Where the banner goes, on rank 0, and each rank's warnings; standard error when left out.
    """

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
        self._wishes = Wishes(self._job.save, self._job.group.rank, schedule or Schedule())
        self._pulse = pulse.of(self._job.settings.watch_dir, ranks.rank, self._job.settings.label)
        self._left = False
        self.position = Position(0, 0)

    def start(
        self,
        *,
        resume: bool,
        position: Position | None = None,
        source: str | Path | None = None,
        ref_dir: str | Path | None = None,
        allow_fresh_start: bool = False,
        take_over: bool = False,
        allow_missing: Sequence[str] = (),
    ) -> Position:
        """Restores everything from the newest whole checkpoint, or begins a fresh run, and takes the directory over.

        Called by all ranks, once, before anything draws random numbers or reads data.

        Args:
            resume: Go on from the newest whole checkpoint; without one, start fresh only if nothing was ever whole.
            position: Go on from exactly this one, which must be whole; newer ones are left behind, abandoned.
            source: The save directory to resume from, when it is not the one that is written to. It may be read-only.
            ref_dir: Where a stock job keeps its reference, if not in `<source>/ref`.
            allow_fresh_start: Begin anew in a directory that holds checkpoints; they stay, abandoned.
            take_over: Start although another job seems to own the directory; that one stops at its next save.
            allow_missing: Components that may start anew when the checkpoint has nothing for them.

        Returns:
            The position to go on from: run (epoch, step) next.

        Raises:
            MsResumeError: The same on all ranks; each kind says what it leaves. Nothing saved is changed.
        """
        if self._writer is not None:
            raise UsageError("the Checkpointer was started already", hint="make a new one for another start")
        self._pulse.beat("start")
        if position is None and resume and self._job.settings.resume_at:
            position = Position.parse(self._job.settings.resume_at)
        from_dir = Path(source).resolve() if source else self._job.save
        request = Request(
            resume=resume,
            source=from_dir,
            position=position,
            ref_dir=Path(ref_dir) if ref_dir else None,
            allow_fresh_start=allow_fresh_start,
            take_over=take_over,
            allow_missing=frozenset(allow_missing),
        )
        if self._job.settings.storage == "local":
            self._job = replace(self._job, disk=disks.find(self._job.group, self._job.save))
        after = session.prepare(self._job, request)
        loaded = session.load_newest(self._job, request)
        saver, _ = agree.together(self._job.group, lambda: Saver(self._job, self._say))
        self._writer, self._heartbeat = session.open_attempt(self._job, loaded, after)
        saver.ready(self._writer, session.previous_vote(self._job, loaded))
        self._saver = saver
        self._take(loaded, request, self._writer, saver)
        self._pulse.beat("started", self.position)
        return self.position

    def steps(self, epochs: int, *, save_every: int, behind: bool = False) -> Iterator[tuple[int, int]]:
        """The (epoch, step) pairs that are left, saving before each step that `save_every` divides, and at the end.

        Args:
            behind: Saves run behind the step's rollout; the trainer calls `fence` before it writes parameters.
        """
        first = self.position
        for epoch in range(first.epoch, epochs):
            for step in range(first.step if epoch == first.epoch else 0, self._job.steps_per_epoch):
                if step % save_every == 0:
                    (self.begin if behind else self.save)(epoch, step)
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
            MsResumeError: Of the save before this one; see `save`.
        """
        saver, position = self._started(), Position(epoch, step)
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
        begun = saver.begin(position, metrics or {})
        if begun:
            self._wishes.granted()
        return begun

    def wish(self) -> float:
        """1.0 when this rank wants a save before its time, else 0.0: for a sum over all ranks that the trainer makes in
        each step anyway. Rank 0 wants one when the schedule's seconds have passed, or somebody made `<save>/save_now`;
        any rank after a signal that `save_on` was given."""
        return self._wishes.now()

    def save_on(self, *signals: signal.Signals) -> None:
        """Lets these signals ask for a save at the next step; called in the main thread."""
        self._wishes.listen(*signals)

    def leave_on(self, *signals: signal.Signals) -> None:
        """Lets these signals ask for a save at the next step, and for the end after it; called in the main thread."""
        self._wishes.listen(*signals, leave=True)

    def leaves(self, wishes: float) -> bool:
        """Whether a rank was asked to leave, alike on all ranks: then the trainer saves, leaves its loop in good order,
        and exits with 50.

        Args:
            wishes: The sum of all ranks' `wish`.
        """
        self._left = self._left or wishes >= LEAVE
        return wishes >= LEAVE

    def phase(self, name: str, epoch: int, step: int) -> None:
        """Tells a supervisor what this rank begins to do; by how long each phase takes it knows a hang."""
        self._pulse.beat(name, Position(epoch, step))

    def due(self, epoch: int, step: int, *, wishes: float = 0.0) -> str:
        """Why the schedule wants (epoch, step) saved, alike on all ranks; empty when it does not.

        Args:
            wishes: The sum of all ranks' `wish`.
        """
        self.phase("step", epoch, step)
        return self._wishes.schedule.reason(epoch, step, wishes=wishes)

    def fence(self) -> None:
        """Returns when what is being saved is copied: parameters may change again. At once when nothing is.

        Raises:
            UsageError: They have changed already; what was being saved does not count.
            MsResumeError: The save failed; see `save`.
        """
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
        finally:
            self._stop_heartbeat()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            self._pulse.ended(done=not self._left, left=self._left)
        else:
            self._pulse.ended(error=error)
            if self._saver is not None:
                self._saver.close()
            self._stop_heartbeat()  # the other ranks may be gone: waiting for them would hide the error

    def _take(self, loaded: Loaded, request: Request, writer: Writer, saver: Saver) -> None:
        self.position = loaded.position
        self._origin = loaded.position if loaded.choice.position else None
        if loaded.choice.save == self._job.save:
            self._standing = loaded.position
        self._tell(banner.text(_story(self._job, request, writer, loaded)))
        saver.meet()
        saver.tidy()  # a disk that is full at the start gets room here: a save comes before its retention

    def _started(self) -> Saver:
        if self._saver is None:
            raise UsageError("the Checkpointer was not started", hint="call start() before save()")
        return self._saver

    def _stop_heartbeat(self) -> None:
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


def _story(job: Job, request: Request, writer: Writer, loaded: Loaded) -> banner.Story:
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
        warnings=(*chosen.warnings, *loaded.warnings) if not chosen.position else loaded.warnings,
        fresh_allowed=request.allow_fresh_start,
        seconds=loaded.seconds,
        bytes=loaded.bytes,
    )
