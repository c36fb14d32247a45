"""Jobs of the stand-in for MindRLHF: each run has freshly imported modules, as a new process has; ranks are threads.

NumPy stands for MindSpore, so that a run takes milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from runs import ThreadGroup, run_ranks

HERE = Path(__file__).parent / "standin"
NUMPY = HERE / "numpy_backend"
STANDINS = frozenset(("mindrlhf", "mindformers", "main_master", "main_dev"))

At = tuple[int, int]


class Killed(BaseException):
    """Nothing that a trainer catches."""


@contextlib.contextmanager
def modules(branch: str = "master", folders: tuple[Path, ...] = (HERE, NUMPY)) -> Iterator[None]:
    """The stand-ins can be imported, and are imported anew; afterwards everything is as before."""
    path, environ = list(sys.path), dict(os.environ)
    fresh = STANDINS | ({"mindspore"} if NUMPY in folders else frozenset())
    before = _take_out(fresh)
    sys.path[:0] = [str(folder) for folder in folders]
    os.environ["STANDIN_BRANCH"] = branch
    try:
        yield
    finally:
        _take_out(fresh)
        sys.modules.update(before)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environ)


def _take_out(fresh: frozenset[str]) -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in fresh]
    return {name: sys.modules.pop(name) for name in names}


@dataclass
class Ran:
    """What one rank did: `rows` has (epoch, step) and the prompts of each step that it ran."""

    trainer: Any = None
    rows: list[tuple[At, tuple[int, ...]]] = field(default_factory=list)
    error: BaseException | None = None
    start: dict[str, str] = field(default_factory=dict)
    """State by name when training began."""

    seen: dict[At, dict[str, str]] = field(default_factory=dict)
    """State by name before each step."""

    @property
    def positions(self) -> list[At]:
        return [at for at, _ in self.rows]

    @property
    def outcome(self) -> str:
        """Where it began, or the error that ended it."""
        if self.error is not None and not isinstance(self.error, Killed):
            return f"{type(self.error).__name__}: {self.error}"
        return f"from {self.positions[0][0]}_{self.positions[0][1]}" if self.rows else "ran nothing"

    @property
    def metrics(self) -> list[tuple[int, float]]:
        """The number of each step as metrics have it, and what it drew."""
        return list(self.trainer.tensor_writer)

    def end(self) -> dict[str, str]:
        return state_of(self.trainer)


def state_of(trainer: Any) -> dict[str, str]:
    """A digest of each parameter that training changes, and of the reference."""
    cells = {"": trainer.train.grpo_with_grad, "ref ": trainer.ref.ref_model}
    held = {f"{k}{p.name}": p for k, cell in cells.items() for p in cell.get_parameters()}
    return {name: hashlib.sha256(p.asnumpy().tobytes()).hexdigest()[:12] for name, p in held.items()}


Adapter = Callable[[list[str]], contextlib.AbstractContextManager[list[str]]]


@contextlib.contextmanager
def as_they_are(words: list[str]) -> Iterator[list[str]]:
    """No adapter."""
    yield words


@dataclass
class Job:
    """One job in `root`: its configuration, and the runs of it.

    Args:
        adapter: In place while a run lasts, from before its modules are imported; it is given further words of the
            command line, and gives those that are left for `main`.
        changes: Configuration by `section.key`.
    """

    root: Path
    branch: str = "master"
    world_size: int = 1
    adapter: Adapter = as_they_are
    changes: dict[str, Any] = field(default_factory=dict)
    folders: tuple[Path, ...] = (HERE, NUMPY)

    @property
    def save(self) -> Path:
        return self.root / "save"

    def stock(self) -> Job:
        """The same job without the adapter."""
        return replace(self, adapter=as_they_are)

    def run(
        self,
        *,
        resume: bool = False,
        stop: At | None = None,
        before: Callable[[], object] | None = None,
        source: Callable[[int], Path] | None = None,
        save: Callable[[int], Path] | None = None,
        words: tuple[str, ...] = (),
        **changes: Any,
    ) -> list[Ran]:
        """Starts all ranks; each trains to its end, or is killed before the step `stop`.

        Args:
            before: Called when the modules are imported, before the trainer is made: to break something.
            source: The directory to resume from by rank, `save` when left out.
            save: The directory to save in by rank.
            words: Further words of the command line.
            changes: Configuration of this run alone, with `__` for the dot.
        """
        config = {**self.changes, **{name.replace("__", "."): value for name, value in changes.items()}}
        with modules(self.branch, self.folders), self.adapter(list(words)) as left:
            main = importlib.import_module(f"main_{self.branch}")
            communication = importlib.import_module("mindspore.communication")
            if before:
                before()

            def rank_main(rank: int) -> Ran:
                saves = (save or (lambda rank: self.save))(rank)
                loads = source(rank) if source else saves
                ran = Ran()
                try:
                    told = self._words(config, resume=resume, save=saves, source=loads)
                    ran.trainer = main.build([*told, *left])
                    _watch(ran, stop)
                    ran.trainer.run_grpo_train()
                except (Exception, Killed, SystemExit) as error:  # noqa: BLE001  # the test looks at it
                    ran.error = error
                return ran

            def in_group(group: ThreadGroup) -> Ran:
                communication.join(group)
                ran = rank_main(group.rank)
                if ran.error is not None:
                    group.leave()
                return ran

            return [rank_main(0)] if self.world_size == 1 else run_ranks(self.world_size, in_group).ok()

    def _words(self, config: dict[str, Any], *, resume: bool, save: Path, source: Path) -> list[str]:
        paths = {"actor_config.load": source / "train", "ref_config.load": source / "ref", "actor_config.save": save}
        if not resume:
            paths = {"actor_config.save": save}
        if self.branch == "dev":
            given = {**config, **paths, "rl_config.resume_training": resume}
            return [f"{name}={value}" for name, value in given.items()]
        file = self.root / "config.yaml"
        sections: dict[str, dict[str, Any]] = {}
        for name, value in config.items():
            sections.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = value
        text = yaml.safe_dump(sections)
        own = file.with_name(f"config-{threading.get_ident()}.yaml")
        own.write_text(text)
        own.replace(file)  # another rank may be reading it
        words = ["--config", str(file), "--save_checkpoint_dir", str(save)]
        if resume:
            words += ["--actor_checkpoint_path", str(source / "train"), "--ref_checkpoint_path", str(source / "ref")]
        return [*words, *(["--resume_training"] if resume else [])]


def _watch(ran: Ran, stop: At | None) -> None:
    trainer = ran.trainer
    make = trainer.experience_maker.make_experience

    def make_experience(*given: Any, **named: Any) -> Any:
        at = (trainer.n_epoch, trainer.i_step)
        ran.seen[at] = state_of(trainer)
        if not ran.rows:
            ran.start = ran.seen[at]
        if at == stop:
            raise Killed
        result = make(*given, **named)
        ran.rows.append((at, tuple(trainer.experience_maker.prompts)))
        return result

    trainer.experience_maker.make_experience = make_experience
