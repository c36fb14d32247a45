"""The one object a trainer holds: it starts a run where it stopped, and saves it as it goes.

with ms_resume.Checkpointer(save_dir, policy=policy, optimizer=optimizer, ref=reference,
                            components=[randomness, cursor, loss_scale], steps_per_epoch=n) as checkpointer:
    checkpointer.start(resume=args.resume_training)
    for epoch, step in checkpointer.steps(epochs, save_every=interval):
        train_one_step()
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ms_resume import commit, retention, write
from ms_resume.errors import Damaged, DiskError, UsageError
from ms_resume.framework import group as groups
from ms_resume.framework import nets, version
from ms_resume.framework.group import Group
from ms_resume.layouts import survey
from ms_resume.ownership import Heartbeat
from ms_resume.records import Position, Vote, Writer
from ms_resume.resume import agree, banner, fingerprint, restore, session
from ms_resume.resume.session import Job, Loaded, Request
from ms_resume.settings import Settings, from_environment
from ms_resume.state import Component, HostTensor, pack, scalar


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
        group: The ranks; MindSpore's default group when left out.
        say: Where banner and warnings go, on rank 0; standard error when left out.
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
        group: Group | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if group is None:
            version.require()
        roles = {"policy": policy, "optimizer": optimizer} | ({} if ref is None else {"ref": ref})
        live = {role: nets.wrap(cell) for role, cell in roles.items()}
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
            group=group or groups.current(),
        )
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._writer: Writer | None = None
        self._heartbeat: Heartbeat | None = None
        self._origin: Position | None = None
        self._standing = Position(0, 0)
        self._named: Vote | None = None
        self._latest: Vote | None = None
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
        after = session.prepare(self._job, request)
        loaded = session.load_newest(self._job, request)
        self._writer, self._heartbeat = session.open_attempt(self._job, loaded, after)
        self._take(loaded, request)
        return self.position

    def steps(self, epochs: int, *, save_every: int) -> Iterator[tuple[int, int]]:
        """The (epoch, step) pairs that are left, saving before each step that `save_every` divides, and at the end."""
        first = self.position
        for epoch in range(first.epoch, epochs):
            for step in range(first.step if epoch == first.epoch else 0, self._job.steps_per_epoch):
                if step % save_every == 0:
                    self.save(epoch, step)
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
        writer, position = self._started(), Position(epoch, step)
        if position in (Position(0, 0), self._standing):
            return None
        if epoch < 0 or not 0 <= step < self._job.steps_per_epoch:
            raise UsageError(
                f"save at {position}, but an epoch has {self._job.steps_per_epoch} steps",
                hint="the end of epoch E is (E + 1, 0)",
            )
        if self._origin is not None and position < self._origin:
            raise UsageError(
                f"save at {position}, but the run went on from {self._origin}", hint="save later positions"
            )
        saved = write.save(
            writer, self._snapshot(position), {**self._job.about, "metrics": dict(metrics or {})}, self._previous()
        )
        for warning in saved.warnings:
            self._tell(f"ms_resume: warning: {warning}")
        self._latest = saved.vote
        self._try_to_tidy()
        return saved

    def close(self) -> None:
        """Ends a run that went well: all ranks wait for each other's last vote, so that retention sees it."""
        try:
            if self._writer is not None:  # on every rank alike, whether or not its own saves worked
                agree.together(self._job.group, lambda: None)
                agree.together(self._job.group, self._try_to_tidy)
                self._try_to_tidy()
        finally:
            self._stop_heartbeat()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stop_heartbeat()  # the other ranks may be gone: waiting for them would hide the error

    def _take(self, loaded: Loaded, request: Request) -> None:
        writer = self._started()
        self.position = loaded.position
        self._origin = loaded.position if loaded.choice.position else None
        if loaded.choice.save == self._job.save:
            self._standing = loaded.position
        self._named = session.previous_vote(self._job, loaded)
        self._tell(banner.text(_story(self._job, request, writer, loaded)))
        self._try_to_tidy()  # a disk that is full at the start gets room here: a save comes before its retention

    def _snapshot(self, position: Position) -> write.Snapshot:
        roles: dict[str, dict[str, HostTensor]] = {role: t.read() for role, t in self._job.roles.items()}
        global_step = self._global_step(position, roles["optimizer"])
        roles["policy"] |= {"epoch_num": scalar(position.epoch), "step_num": scalar(position.step)}
        tensors, values = pack(self._job.components)
        roles["state"] = {**tensors, restore.GLOBAL_STEP: scalar(global_step)}
        return write.Snapshot(position, global_step, roles, values, self._job.settings.save_format)

    def _global_step(self, position: Position, optimizer: Mapping[str, HostTensor]) -> int:
        counted = optimizer.get("global_step")
        if counted is not None and counted.dtype.startswith("I"):
            return int.from_bytes(counted.data, "little", signed=True)
        return position.epoch * self._job.steps_per_epoch + position.step

    def _previous(self) -> Vote | None:
        """This rank's newest vote whose checkpoint is complete: a reference may be named again only from there."""
        if self._latest is not None and commit.complete(self._job.save, self._latest):
            self._named = self._latest
        return self._named

    def _try_to_tidy(self) -> None:
        """Whatever was saved counts all the same, and the next save tidies again."""
        try:
            self._tidy()
        except (DiskError, Damaged, OSError) as error:
            said = str(error) if isinstance(error, OSError) else error.message
            self._tell(f"ms_resume: warning: retention: {said}")

    def _tidy(self) -> None:
        """Moves `latest`, and lets retention do its part. What it cannot do now it does after the next save."""
        writer = self._started()
        newest = self._previous()
        if newest is not None:
            commit.point_latest(writer, newest.position)
        if writer.rank == 0:
            retention.sweep(writer, survey.take(writer.save), self._job.settings.keep_last)
        retention.remove_payloads(writer)

    def _started(self) -> Writer:
        if self._writer is None:
            raise UsageError("the Checkpointer was not started", hint="call start() before save()")
        return self._writer

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

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
