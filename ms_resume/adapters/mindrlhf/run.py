"""One run of MindRLHF's trainer: which of its calls belong to one position, and what it lost between them.

Stock code saves policy, optimizer and reference one after the other, each under a name it asked for, and notes each in
a `meta.json`. Here the three are copied as they come; with the last note they are one checkpoint, which is written, and
voted for, behind the next step. A resume goes the other way: all three are read and checked before the first is loaded,
then handed out when stock code asks for them, so that the order of its loads, offloads, and reshardings stays its own.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from ms_resume import layouts, locate
from ms_resume.adapters.mindrlhf import known, shelf
from ms_resume.adapters.mindrlhf.held import Counters, Data, Held, Later, LossScale
from ms_resume.adapters.mindrlhf.known import need
from ms_resume.errors import DiskError, NothingToResume, UsageError
from ms_resume.framework import group as groups
from ms_resume.framework import nets, stock, version
from ms_resume.layouts import survey
from ms_resume.ondisk import atomic, names
from ms_resume.records import Position
from ms_resume.resume import agree
from ms_resume.resume.checkpointer import Checkpointer
from ms_resume.resume.components.randomness import Randomness
from ms_resume.resume.leaving import Leaving
from ms_resume.settings import from_environment
from ms_resume.state import HostTensor, scalar

ROLES = ("policy", "optimizer", "ref")
_ROLE_OF = {names.PREFIXES[role]: role for role in ROLES}


@dataclass(frozen=True)
class Options:
    """What the command line of the adapter says, and MindRLHF's has no word for."""

    allow_fresh_start: bool = False
    take_over: bool = False
    save_strategy_dir: str | None = None


@dataclass(frozen=True)
class Order:
    """What MindRLHF was asked to do: from its configuration."""

    save: Path
    resume: bool
    source: Path | None
    ref: Path
    steps_per_epoch: int
    batches: int
    num_rollouts: int
    save_format: str
    keep_last: int

    @property
    def ref_dir(self) -> Path | None:
        """Where the reference is, if not where stock code has it."""
        return self.ref if self.source and self.ref != (self.source / names.DIRECTORIES["ref"]).resolve() else None


class Leave(BaseException):
    """Ends MindRLHF's loop before a step; nothing of it catches this."""


class Run:
    """From the trainer's construction to the end of its training; one in a process (in a thread, for tests)."""

    def __init__(self, trainer: Any, options: Options) -> None:
        self._trainer, self._options = trainer, options
        self.order: Order | None = None
        self.position: Position | None = None
        """Where the run went on from; None for a fresh start."""

        self._held: dict[str, Held] = {}
        self._later: list[Later] = []
        self._checkpointer: Checkpointer | None = None
        self._asked: dict[str, tuple[str, Position]] = {}
        self._shelf: Path | None = None
        self._filled: set[str] = set()
        self._taken: dict[str, Position] = {}
        self._noted: set[str] = set()
        self._begun: Position | None = None
        self._leaving = Leaving()
        if threading.current_thread() is threading.main_thread():
            self._leaving.listen()

    @property
    def left(self) -> bool:
        """Whether it ends before its end, because a rank was asked to leave."""
        return self._checkpointer is not None and self._checkpointer.left

    # -- the start

    def begin(self, probe: Any) -> None:
        """Takes the save directory over, and for a resume reads and checks all that is to be loaded.

        Args:
            probe: Makes an experience maker's data set, to know how many steps an epoch has.

        Raises:
            MsResumeError: On all ranks; no net was changed.
        """
        version.require()
        group = groups.current()
        order, _ = agree.together(group, partial(_order, self._trainer, probe, self._options.allow_fresh_start))
        self.order = order
        agree.together(group, partial(known.check_unchanged, sys.modules))
        agree.together(group, partial(_check_own, order.save, group.rank))
        self._hold()
        agree.together(group, lambda: nets.check_separate(nets.Net(self._held["policy"].cell), self._net("ref")))
        # The copies here are the host copy of a save: a staging buffer would be a second one.
        settings = from_environment(keep_last=order.keep_last, save_format=order.save_format, staging=False)
        if order.resume and settings.storage != "local":
            agree.from_first(group, partial(_check_was_whole, order))
        config = plain(self._trainer.grpo_config)
        self._checkpointer = Checkpointer(
            order.save,
            policy=self._held["policy"],
            optimizer=self._held["optimizer"],
            ref=self._held["ref"],
            components=[*self._components(), Data(order.batches, order.num_rollouts)],
            steps_per_epoch=order.steps_per_epoch,
            config=config,
            parallel=_parallel(config),
            settings=settings,
            leaving=self._leaving,
            group=group,
        )
        self._checkpointer.alone = True
        position = self._checkpointer.start(
            resume=order.resume,
            source=order.source,
            ref_dir=order.ref_dir,
            allow_fresh_start=self._options.allow_fresh_start,
            take_over=self._options.take_over,
        )
        if order.resume and position == Position(0, 0):  # on disks of their own nobody knows before
            raise _nothing(order)
        self.position = position if order.resume else None
        agree.together(group, partial(_check_ref, order, self.position, group.rank))

    def check_filled(self) -> None:
        """Raises UsageError where stock code has not loaded everything that was read for it."""
        if self.position is not None and (left := set(ROLES) - self._filled):
            raise UsageError(
                f"MindRLHF resumed without loading {', '.join(sorted(left))}: this version is not known",
                hint="end this process: weights and moments would not belong together",
            )

    def apply(self) -> None:
        """Puts back what is beside the tensors, random sources last: from here on nothing draws but training."""
        for component in self._later:
            component.apply()

    # -- what stock code asks for

    @contextlib.contextmanager
    def shelf(self) -> Iterator[Path]:
        """Where stock code loads from meanwhile: it has what that looks for, and `gives` the values."""
        with shelf.laid_out(ROLES, stock.rank(), str(self.position)) as self._shelf:
            try:
                yield self._shelf
            finally:
                self._shelf = None

    def file_to_load(self, checkpoint_dir: str) -> str | None:
        """The name of this rank's file in a directory on the shelf; None for any other directory."""
        role = self._on_shelf(checkpoint_dir)
        if role is None or self._shelf is None or self.position is None:
            return None
        return names.payload(self._shelf, role, stock.rank(), self.position).name

    def gives(self, path: str) -> Mapping[str, HostTensor] | None:
        """What `mindspore.load_checkpoint` is to give for a file on the shelf."""
        role = self._on_shelf(path)
        if role is None or self.position is None:
            return None
        self._filled.add(role)
        numbers = {"epoch_num": scalar(self.position.epoch), "step_num": scalar(self.position.step)}
        return self._held[role].all() | (numbers if role == "policy" else {})

    def place_of(self, ckpt_path: str, prefix: str, epoch: int, step: int) -> Position | None:
        """The position that stock code means by (epoch, step), where it asks for a name in this run's directory."""
        if self.order is None or prefix not in _ROLE_OF or not self._owns(ckpt_path):
            return None
        return Position(epoch, step).normal(self.order.steps_per_epoch)

    def expect(self, path: str, prefix: str, position: Position) -> None:
        """A name was given out: what is saved there belongs to `position`."""
        self._asked[_key(path)] = (_ROLE_OF[prefix], position)

    def takes(self, cell: Any, path: str) -> bool:
        """Copies a net that stock code saves under a name that it was given here."""
        asked = self._asked.pop(_key(path), None)
        if asked is None:
            self._check_elsewhere(path)
            return False
        role, position = asked
        if cell is not self._held[role].cell:
            raise UsageError(
                f"{path}: MindRLHF saves another net there than the {role} that it trains",
                hint="this version is not known: start without the adapter",
            )
        if open_ := {other for other in self._taken.values() if other != position}:
            raise UsageError(
                f"MindRLHF began to save {position} before all of {min(open_)} was saved: only "
                f"{', '.join(self._taken)} of it",
                hint="this version is not known: start without the adapter",
            )
        assert self._checkpointer is not None  # there are names only after the start
        self._checkpointer.wait()  # it may still write from the copies
        self._held[role].take()
        self._taken[role] = position
        return True

    def note(self, meta_json: str) -> bool:
        """Stock code has done with one role. After the last one the checkpoint is written behind training."""
        role = self._role_of(meta_json)
        if role is None:
            return False
        if role not in self._taken:
            raise UsageError(
                f"{meta_json}: MindRLHF notes a {role} that it did not save with mindspore.save_checkpoint",
                hint="this version is not known: start without the adapter",
            )
        self._noted.add(role)
        if self._noted >= set(ROLES):
            position = self._taken["policy"]
            self._taken, self._noted, self._begun = {}, set(), position
            assert self._checkpointer is not None  # something was taken
            self._checkpointer.begin(position.epoch, position.step)
        return True

    # -- between two steps

    def step_begins(self) -> None:
        """Where stock code has just saved, or would have: nothing of this step is drawn or read yet.

        Raises:
            Leave: A rank was asked to; all ranks have saved this position, and leave here.
        """
        assert self._checkpointer is not None  # it trains
        trainer = self._trainer
        at = Position(need(trainer, "n_epoch"), need(trainer, "i_step"))
        wishes = self._checkpointer.gather_wishes()
        leaves = self._checkpointer.leaves(wishes)
        if wishes > 0 and at != self._begun:
            start = {"start_epoch": need(trainer, "start_epoch"), "start_step": need(trainer, "start_step")}
            trainer.train.save_checkpoints(epochs=at.epoch, steps=at.step, **start)
            trainer.ref.save_checkpoints(epochs=at.epoch, steps=at.step, **start)
        if leaves:
            raise Leave
        self._checkpointer.phase("step", at.epoch, at.step)

    # -- the end

    def finish(self) -> None:
        """After training: stock code saves no reference at the end, so that is asked for here."""
        if self._taken:
            position = self._taken["policy"]
            self._trainer.ref.save_checkpoints(epochs=position.epoch, steps=position.step)
        if self._taken:
            raise UsageError(
                f"MindRLHF ended with only {', '.join(self._taken)} of {min(self._taken.values())} saved, and noted "
                f"{', '.join(sorted(self._noted)) or 'none'}",
                hint="this version is not known: what was saved before stands",
            )
        if self._checkpointer is not None:
            self._checkpointer.__exit__(None, None, None)  # which also tells a supervisor that the run is done

    def abandon(self, error: BaseException) -> None:
        """Training ended with an error: what is being written may end, nobody is waited for."""
        if self._checkpointer is not None:
            self._checkpointer.__exit__(type(error), error, None)
        self._leaving.close()

    # -- inside

    def _hold(self) -> None:
        trainer = self._trainer
        policy = Held(need(trainer, "train.grpo_model_train.grpo_model_train.policy_model"))
        optimizer = Held(need(trainer, "train.grpo_with_grad.optimizer"), policy)
        self._held = {"policy": policy, "optimizer": optimizer, "ref": Held(need(trainer, "ref.ref_model"))}

    def _components(self) -> list[Later]:
        update = need(self._trainer, "train.grpo_with_grad")
        scale = LossScale(update, *(held.cell for held in self._held.values()))
        self._later = [Later(Counters(self._trainer)), Later(scale), Later(Randomness())]
        return self._later

    def _net(self, role: str) -> nets.Net:
        return nets.Net(self._held[role].cell)

    def _owns(self, path: str) -> bool:
        return self.order is not None and Path(path).resolve().is_relative_to(self.order.save)

    def _role_of(self, path: str) -> str | None:
        """The role in whose rank directory a file of this run lies."""
        rank_dir = Path(path).parent.resolve()
        if self.order is None:
            return None
        return next((role for role in ROLES if names.rank_dir(self.order.save, role, stock.rank()) == rank_dir), None)

    def _on_shelf(self, path: str) -> str | None:
        return shelf.role_of(self._shelf, path) if self._shelf is not None else None

    def _check_elsewhere(self, path: str) -> None:
        if self._role_of(path) is not None:
            raise UsageError(
                f"{path}: MindRLHF saves there without having asked for that name",
                hint="this version is not known: start without the adapter",
            )


_here = threading.local()


def current() -> Run | None:
    """The run in whose trainer this thread is at work."""
    run: Run | None = getattr(_here, "run", None)
    return run


def enter(run: Run | None) -> None:
    _here.run = run


def plain(config: Any) -> Any:
    """MindRLHF's configuration (dataclasses on master, OmegaConf on dev) as JSON holds it: it goes into every vote."""
    if is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in fields(config)}
    if hasattr(config, "items"):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, Enum):
        return config.name
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    if hasattr(config, "__iter__"):
        return [plain(value) for value in config]
    return f"<{type(config).__name__}>"  # its text may hold an address, which differs from run to run


def _order(trainer: Any, probe: Any, fresh_allowed: bool) -> Order:
    config = trainer.grpo_config
    own = need(trainer, "args") if hasattr(trainer, "args") else need(config, "rl_config")
    resume = bool(need(own, "resume_training"))
    data = probe()
    steps = int(need(data, "step_num"))
    if steps < 1:
        raise UsageError(
            "the data set has less than one step an epoch", hint="check rl_config.num_rollouts and the data"
        )
    if resume and fresh_allowed:
        raise UsageError(
            "--allow_fresh_start and a resume: MindRLHF starts fresh from a model, and is given none with a resume",
            hint="leave one of the two out",
        )
    train = Path(str(need(config, "actor_config.load"))).resolve()
    if resume and train.name != names.DIRECTORIES["policy"]:
        raise UsageError(
            f"{train}: a resume reads <save>/train, and the optimizer beside it; this is another directory",
            hint="give the train directory of the run, under its own name, as --actor_checkpoint_path",
        )
    rl_config = need(config, "rl_config")
    return Order(
        save=Path(str(need(config, "actor_config.save"))).resolve(),
        resume=resume,
        source=train.parent if resume else None,
        ref=Path(str(need(config, "ref_config.load"))).resolve(),
        steps_per_epoch=steps,
        batches=int(need(data, "prompt_dataloader").get_dataset_size()),
        num_rollouts=int(need(rl_config, "num_rollouts")),
        save_format=_format(trainer, rl_config),
        keep_last=int(need(rl_config, "save_max_ckpt_num")),
    )


def _format(trainer: Any, rl_config: Any) -> str:
    """On dev there is no such key: always safetensors."""
    on_master = hasattr(trainer, "args")
    return str(need(rl_config, "save_ckpt_format")) if on_master else "safetensors"


def _parallel(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("actor_config", {}).get("parallel_config") or {}
    known = {"dp": "data_parallel", "tp": "model_parallel", "pp": "pipeline_stage"}
    return {short: given[long] for short, long in known.items() if given.get(long) is not None}


def _check_was_whole(order: Order) -> None:
    """Raises NothingToResume where a start would begin anew: MindRLHF cannot. A directory that is not there, or that
    holds another layout, the start itself refuses."""
    source = order.source
    if source and source.exists() and not layouts.stranger(source) and locate.never_whole(survey.take(source)):
        raise _nothing(order)


def _nothing(order: Order) -> NothingToResume:
    return NothingToResume(
        f"{order.source}: nothing was ever whole here, and MindRLHF starts fresh from a model",
        hint="give the model's directories instead of train and ref, and leave --resume_training out",
    )


def _check_ref(order: Order, position: Position | None, rank: int) -> None:
    """Raises UsageError where the reference that was asked for is not the one that was read."""
    if position is None or order.source is None or order.ref_dir is None:
        return
    if names.vote(order.source, position, rank).exists():
        raise UsageError(
            f"{order.ref}: is to be the reference, but checkpoint {position} of {order.source} has one of its own",
            hint=f"give {order.source / names.DIRECTORIES['ref']} as --ref_checkpoint_path (ref_config.load)",
        )


def _check_own(save: Path, rank: int) -> None:
    """Raises DiskError where this rank could not save hours later."""
    payloads = (names.rank_dir(save, role, rank) for role in names.DIRECTORIES)
    for directory in (*payloads, names.commits(save), names.attempts(save)):
        there = next(step for step in (directory, *directory.parents) if step.exists())
        if not atomic.writable(there):
            raise DiskError(
                f"{there}: not writable for this user (it belongs to uid {there.stat().st_uid}), and rank {rank} will "
                "save there",
                hint="give the directory to this user, or save elsewhere: --save_checkpoint_dir NEW",
                path=str(there),
            )


def _key(path: str | Path) -> str:
    """One spelling for a file, through whatever link it was named."""
    file = Path(path)
    return str(file.parent.resolve() / file.name)
