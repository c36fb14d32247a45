"""Saves of one rank, one at a time, each in a thread of its own, while training goes on.

`begin` starts to copy and returns; until `fence` returns nothing may write the tensors; `wait` returns when the save
survives a power cut. An error in the thread is raised by whichever of them is called next.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ms_resume import commit, progress, retention, write
from ms_resume.errors import Damaged, DiskError, MsResumeError, UsageError
from ms_resume.framework import nets
from ms_resume.layouts import survey
from ms_resume.records import Position, Vote, Writer
from ms_resume.resume import agree, disks, restore, unsaved
from ms_resume.resume.session import Job
from ms_resume.state import HostTensor, pack, scalar
from ms_resume.write import replicas
from ms_resume.write.staging import STAGED, Read, Staging

POSITION = ("epoch_num", "step_num")
"""0-d tensors of the policy file."""

_SHOWN_AFTER_S = 2.0


_savers: weakref.WeakSet[Saver] = weakref.WeakSet()


def _wait_for_all() -> None:
    for saver in list(_savers):
        saver.close()


# A process that ends waits for its threads, but first it closes all pools, without which a save cannot go on. Whoever
# registers here later is called earlier. Without it (it is not public) a trainer has to call `close`, as it should.
getattr(threading, "_register_atexit", lambda call: None)(_wait_for_all)


class Saver:
    """From the start of a run to its end; every rank has one.

    Args:
        say: Where warnings go, those of other ranks than 0 with their number.
        took: Is told, in the thread of a save, how many seconds it took.

    Raises:
        UsageError: There is no memory for the staging buffer.
    """

    def __init__(
        self, job: Job, say: Callable[[str], None], took: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._job, self._say, self._took = job, say, took
        self._infos = {role: tensors.infos() for role, tensors in job.roles.items()}
        self._staged = STAGED if job.settings.save_optimizer else STAGED[:1]
        self._staging = self._new_staging() if job.settings.staging else None
        self._replicas = self._sharing() if job.settings.share_replicas_s > 0 else replicas.Replicas()
        self._writer: Writer | None = None
        self._named: Vote | None = None
        self._latest: Vote | None = None
        self._elsewhere: frozenset[Position] = frozenset()
        self._flight: _Flight | None = None
        self._tidying: _Flight | None = None
        self._saves = 0

    def ready(self, writer: Writer, named: Vote | None) -> None:
        """The start is done, and somebody may write.

        Args:
            named: This rank's newest vote in a complete checkpoint: its reference may be named again.
        """
        self._writer, self._named = writer, named

    @property
    def committed(self) -> Position | None:
        """The newest complete checkpoint of this run that this rank knows of."""
        return self._named.position if self._named else None

    def begin(self, position: Position, metrics: Mapping[str, Any], *, last: bool = False) -> bool:
        """Takes the state as that of `position`. Returns before it is copied; False when it was skipped.

        A save that is still under way is waited for, or, where the setting says so, this one is skipped by all ranks.

        Args:
            last: No other one will follow: it is never skipped. Alike on all ranks.
        """
        if not last and self._job.settings.when_busy == "skip" and self._busy_anywhere():
            if self._job.group.rank == 0:  # what all ranks do alike
                self._tell(f"{position} is not saved: the save before it is still under way")
            return False
        self.meet()
        self.wait()
        self.rest()
        self._saves += 1
        for doubt in unsaved.inexact_draws(self._job.roles["policy"]) if self._saves == 1 else ():
            self._tell(f"warning: {doubt}")
        snapshot, about = self._snapshot(position), {**self._job.about, "metrics": dict(metrics)}
        _savers.add(self)
        save = partial(self._save, snapshot, about)
        self._flight = _Flight(snapshot, save, self._try_to_tidy, self._tell, self._job.settings.save_timeout_s)
        return True

    def meet(self) -> None:
        """Where each node has a disk of its own the ranks tell each other what they have: nobody else can say which of
        their positions are complete. First of all in a save, so that no rank's error keeps another one waiting."""
        if self._job.disk.is_shared:
            return
        _, told = agree.together(self._job.group, self._offers, lambda offers: [disks.to_json(o) for o in offers])
        common = disks.common([disks.from_json(entry) for entry in offers] for offers in told)
        self._elsewhere = frozenset(offers[0].position for offers in common)

    def fence(self) -> None:
        """Returns when the tensors may change again.

        Raises:
            UsageError: They have changed already. What was being saved does not count.
            MsResumeError: The save failed; see `Checkpointer.save`.
        """
        flight = self._flight
        if flight is None or flight.passed:
            return
        if not flight.taken():
            self.wait()
            return
        flight.passed = True
        if changed := self._changed(flight.snapshot):
            self._take_back(flight)
            raise UsageError(
                f"{changed} was changed while it was being saved, so {flight.snapshot.position} was not saved",
                hint="call fence() before anything writes parameters: optimizer updates, loads, weight syncs",
            )

    def wait(self) -> write.Saved | None:
        """Returns what the save that is under way did, when it is on the disk; None without one. Retention goes on."""
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        self._tidying = flight
        if self._job.group.rank == 0:
            flight.show()
        return flight.result()

    def rest(self) -> None:
        """Returns when retention has done what it could after the last save."""
        flight, self._tidying = self._tidying, None
        if flight is not None:
            flight.rest()

    def close(self) -> None:
        """Waits for the save that is under way, for an end that has an error of its own to report."""
        try:
            self.wait()
            self.rest()
        except MsResumeError as error:
            self._tell(f"the last save failed: {error.message}")

    def end(self) -> None:
        """The run is over: waits for the save that is under way, and gives the host copy back."""
        self.close()
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.close()

    def tidy(self) -> None:
        """What is left for retention to do, when nothing is under way."""
        self.rest()
        self._try_to_tidy()

    def _tell(self, text: str) -> None:
        rank = self._job.group.rank
        self._say(f"ms_resume: rank {rank}: {text}" if rank else f"ms_resume: {text}")

    def _try_to_tidy(self, keep_last: int | None = None) -> None:
        """Whatever was saved counts all the same, and the next save tidies again."""
        try:
            self._tidy(keep_last)
        except (DiskError, Damaged, OSError) as error:
            said = str(error) if isinstance(error, OSError) else error.message
            self._tell(f"warning: retention: {said}")

    def _save(self, snapshot: write.Snapshot, about: Mapping[str, Any]) -> write.Saved:
        fewest = partial(self._try_to_tidy, retention.NEVER_FEWER_THAN)
        make_room = fewest if self._job.settings.early_retention else None
        previous = self._previous() if "ref" in snapshot.roles else None  # looked up for its reference alone
        began = time.monotonic()
        saved = write.save(self._started(), snapshot, about, previous, make_room)
        self._took(time.monotonic() - began)
        for warning in saved.warnings:
            self._tell(f"warning: {warning}")
        self._latest = saved.vote
        return saved

    def _started(self) -> Writer:
        if self._writer is None:
            raise UsageError("the Checkpointer was not started", hint="call start() before save()")
        return self._writer

    def _offers(self) -> list[disks.Offer]:
        try:
            surveyed = survey.take(self._job.save, steps_per_epoch=self._job.steps_per_epoch)
            return disks.offers(surveyed, self._job.group.rank)
        except (MsResumeError, OSError):
            return []  # what cannot be read counts for nothing now; the save itself says what is wrong

    def _busy_anywhere(self) -> bool:
        busy = self._flight is not None and self._flight.is_alive()
        return any(agree.together(self._job.group, lambda: busy, lambda found: found)[1])

    def _new_staging(self) -> Staging:
        infos = {role: dict(self._infos[role]) for role in self._staged}
        infos["policy"] |= {name: scalar(0).info for name in POSITION}
        return Staging(infos, nets.shared(self._job.roles["policy"], self._job.roles["optimizer"]))

    def _sharing(self) -> replicas.Replicas:
        """Only of a staged file it is known what it holds before it is written."""
        settings, group = self._job.settings, self._job.group
        if not settings.staging or settings.save_format != "safetensors" or not self._job.disk.is_shared:
            raise UsageError(
                "MS_RESUME_SHARE_REPLICAS_S needs a staging buffer, safetensors files, and one disk for all ranks",
                hint="unset it, or MS_RESUME_STAGING, MS_RESUME_SAVE_FORMAT, MS_RESUME_STORAGE",
            )
        dealt = replicas.deal(self._job.about["parallel"], group.rank, group.world_size)
        return replicas.Replicas(dealt, settings.share_replicas_s)

    def _snapshot(self, position: Position) -> write.Snapshot:
        reads = self._reads()
        numbers = dict(zip(POSITION, (scalar(position.epoch), scalar(position.step)), strict=True))
        reads["policy"] |= {name: partial(_itself, value) for name, value in numbers.items()}
        global_step = self._global_step(position)
        staged = self._staging.take({role: reads.pop(role) for role in self._staged}) if self._staging else None
        tensors, values = pack(self._job.components)
        state = {**tensors, restore.GLOBAL_STEP: scalar(global_step)}
        return write.Snapshot(
            position,
            global_step,
            held={role: {name: read() for name, read in of_role.items()} for role, of_role in reads.items()}
            | {"state": {name: _copied(tensor) for name, tensor in state.items()}},
            values=values,
            file_format=self._job.settings.save_format,
            staged=dict.fromkeys(self._staged, staged) if staged else {},
            replicas=self._replicas,
            read_back=bool(self._job.settings.verify_after_save)
            and self._saves % self._job.settings.verify_after_save == 0,
        )

    def _reads(self) -> dict[str, dict[str, Read]]:
        roles = {role: tensors for role, tensors in self._job.roles.items() if role in (*self._staged, "ref")}
        return {role: {name: partial(t.read, name) for name in self._infos[role]} for role, t in roles.items()}

    def _global_step(self, position: Position) -> int:
        counted = self._infos["optimizer"].get("global_step")
        if counted is not None and counted.dtype.startswith("I"):
            return int.from_bytes(self._job.roles["optimizer"].read("global_step").data, "little", signed=True)
        return position.epoch * self._job.steps_per_epoch + position.step

    def _changed(self, snapshot: write.Snapshot) -> str:
        """The first of some tensors whose copy is not what it is now, and should be."""
        every = self._job.settings.fence_check
        for role, staged in snapshot.staged.items() if every else ():
            tensors = self._job.roles[role]
            for name in sorted(self._infos[role])[self._saves % every :: every]:
                if not staged.holds(role, name, tensors.read(name)):
                    return f"{role} {name!r}"
        return ""

    def _take_back(self, flight: _Flight) -> None:
        """The save may be over, and its vote cast: that must not count."""
        self._flight = None
        try:
            flight.result()
        except MsResumeError:
            return  # it does not count
        flight.rest()
        commit.retract(self._started(), flight.snapshot.position, ())
        self._latest = None

    def _previous(self) -> Vote | None:
        """This rank's newest vote whose checkpoint is complete: a reference may be named again only from there."""
        if self._latest is not None and self._is_complete(self._latest):
            self._named = self._latest
        return self._named

    def _is_complete(self, vote: Vote) -> bool:
        if self._job.disk.is_shared:
            return commit.complete(self._job.save, vote)
        return vote.position in self._elsewhere

    def _tidy(self, keep_last: int | None = None) -> None:
        """Moves `latest`, and lets retention do its part. What it cannot do now it does after the next save.

        Args:
            keep_last: Instead of the setting.
        """
        writer = self._started()
        newest = self._previous()
        if newest is not None:
            commit.point_latest(writer, newest.position)
        if writer.leads:
            settings = self._job.settings
            last = settings.keep_last if keep_last is None else keep_last
            keep = retention.Keep(last, settings.keep_every, settings.keep_best)
            retention.sweep(writer, replace(survey.take(writer.save), elsewhere=self._elsewhere), keep)
        retention.remove_payloads(writer)


class _Flight:
    """One save in its thread, and the retention after it."""

    def __init__(
        self,
        snapshot: write.Snapshot,
        save: Callable[[], write.Saved],
        tidy: Callable[[], None],
        tell: Callable[[str], None],
        timeout_s: float,
    ) -> None:
        self.snapshot = snapshot
        self.passed = False
        self._saved: write.Saved | None = None
        self._error: BaseException | None = None
        self._tell, self._timeout_s = tell, timeout_s
        self._over = threading.Event()
        self._late: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[save, tidy], name=f"ms_resume save {snapshot.position}")
        self._thread.start()

    def is_alive(self) -> bool:
        return not self._over.is_set()

    def taken(self) -> bool:
        """Waits until the tensors are not needed any more; False when the save failed before."""
        self._await(self.snapshot.taken)
        copied = [staged.settle() for staged in self.snapshot.staged.values()]
        return all(copied) and self._error is None

    def show(self) -> None:
        """Draws a bar for as long as it takes, if it takes long."""
        self._over.wait(_SHOWN_AFTER_S)
        if not self.is_alive():
            return
        snapshot, told = self.snapshot, 0
        with progress.shown(f"saving {snapshot.position}", write.size_of(snapshot)) as tell:
            while tell and self.is_alive():
                self._over.wait(0.2)
                done = sum(snapshot.written)
                tell(done - told)
                told = done

    def result(self) -> write.Saved:
        self._await(self._over)
        if self._error is not None:
            raise self._error
        assert self._saved is not None  # it ran to its end
        return self._saved

    def _await(self, event: threading.Event) -> None:
        if not event.wait(self._timeout_s):
            late = f"the save of {self.snapshot.position} is waited for since {self._timeout_s:g} s"
            self._tell(f"warning: {late}")
            event.wait()

    def rest(self) -> None:
        """Waits for retention, too. Raises what ended it: that this process must not write any more."""
        self._thread.join()
        if self._late is not None:
            raise self._late

    def _run(self, save: Callable[[], write.Saved], tidy: Callable[[], None]) -> None:
        self._save(save)
        if self._error is None:
            try:
                tidy()
            except BaseException as error:  # noqa: BLE001  # raised again in the trainer's thread
                self._late = error

    def _save(self, save: Callable[[], write.Saved]) -> None:
        try:
            self._saved = save()
        except BaseException as error:  # noqa: BLE001  # raised again in the trainer's thread
            self._error = error
        finally:
            for staged in self.snapshot.staged.values():  # the next save has the buffer
                staged.release()
            self.snapshot.taken.set()
            self._over.set()


def _itself(value: HostTensor) -> HostTensor:
    return value


def _copied(tensor: HostTensor) -> HostTensor:
    return HostTensor(tensor.dtype, tensor.shape, memoryview(bytes(tensor.data)))
