"""What the adapter changes in each of MindRLHF's modules, made when the module was imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

from ms_resume.adapters.mindrlhf import functions, known
from ms_resume.adapters.mindrlhf import run as runs
from ms_resume.adapters.mindrlhf.known import need
from ms_resume.adapters.mindrlhf.run import Leave, Options, Run
from ms_resume.errors import ExitCode
from ms_resume.framework import stock

_MOMENTS = {"exp_avg": "moments1", "exp_avg_sq": "moments2"}


def changes(options: Options) -> dict[str, Callable[[ModuleType], None]]:
    """By the name of the module."""
    made: dict[str, Callable[[ModuleType], None]] = {
        known.UTILS: _utils,
        known.LOCATOR: _locator,
        known.TRAIN: _train,
        known.REF: _ref,
        known.TRAINER: lambda module: _trainer(module, options),
        known.MAKER: _maker,
    }
    return {name: _checked(change) for name, change in made.items()}


def _checked(change: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def checked(module: ModuleType) -> None:
        known.check(module)
        change(module)
        known.remember(module)

    return checked


def _utils(module: ModuleType) -> None:
    stock.listen(_takes, _gives)
    for name in known.PARAMETERS[known.UTILS]:
        setattr(module, name, getattr(functions, name))


def _locator(module: ModuleType) -> None:
    vars(module)["get_resume_checkpoint_by_meta"] = functions.locator(module.get_resume_checkpoint_by_meta)


def _train(module: ModuleType) -> None:
    worker = module.TrainWorker

    def moments(self: Any) -> None:
        """MindRLHF offloads moments by names that two of its optimizers do not have (B26)."""
        optimizer = need(self, "grpo_with_grad.optimizer")
        for name, other in _MOMENTS.items():
            if not hasattr(optimizer, name) and hasattr(optimizer, other):
                vars(optimizer)[name] = getattr(optimizer, other)

    _after(worker, "__init__", moments)
    _around(worker, "reload_ckpt", _reload("sft_ckpt_path_train", "train"))


def _ref(module: ModuleType) -> None:
    _around(module.RefWorker, "reload_ckpt", _reload("ref_ckpt_path", "ref"))


def _reload(attribute: str, folder: str) -> Callable[..., Any]:
    """A worker's own load, of what was read for it already: for as long as it lasts it looks at the run's shelf."""

    def reload_ckpt(original: Callable[..., Any], self: Any, *given: Any, **named: Any) -> Any:
        run = runs.current()
        if run is None or run.position is None:
            return original(self, *given, **named)
        before = need(self, attribute)
        with run.shelf() as shelf, _output_path_kept():
            setattr(self, attribute, str(shelf / folder))  # whose sibling `optimizer` is on the shelf, too (B7)
            try:
                return original(self, *given, **named)
            finally:
                setattr(self, attribute, before)

    return reload_ckpt


def _trainer(module: ModuleType, options: Options) -> None:
    trainer = module.GRPOTrainer

    def construct(original: Callable[..., Any], self: Any, *given: Any, **named: Any) -> None:
        run = Run(self, options)
        runs.enter(run)
        with _ended_on_error(run):
            if options.save_strategy_dir:
                _put_strategy_dir(self, options.save_strategy_dir, given, named)
            original(self, *given, **named)
            if run.position is not None:  # the dev branch has set it back by now (B13)
                self.n_epoch = self.start_epoch = run.position.epoch
                self.i_step = self.start_step = run.position.step

    def load(original: Callable[..., Any], self: Any) -> None:
        run = _run_of(self)
        run.begin(lambda: _probe(module.GRPOExperienceMaker, self))
        original(self)
        run.check_filled()

    def rename(original: Callable[..., Any], self: Any) -> None:
        """In a checkpoint there is nothing to convert (B22)."""
        source = self.args if hasattr(self, "args") else self.grpo_config.rl_config
        if not need(source, "resume_training"):
            original(self)

    def train(original: Callable[..., Any], self: Any) -> None:
        run = _run_of(self)
        with _ended_on_error(run):
            run.apply()
            with contextlib.suppress(Leave):
                original(self)
            run.finish()
        runs.enter(None)
        if run.left:
            sys.exit(int(ExitCode.LEFT_ON_REQUEST))

    _around(trainer, "__init__", construct)
    _around(trainer, "_load_checkpoint", load)
    _around(trainer, "rename_safetensors_weights", rename)
    _around(trainer, "run_grpo_train", train)


def _maker(module: ModuleType) -> None:
    def open_data(original: Callable[..., Any], self: Any) -> None:
        """Stock code reads on from where this epoch began; a pass over the data began elsewhere (B16)."""
        run = runs.current()
        if run is None or run.position is None:
            original(self)
            return
        self.i_step = 0
        original(self)
        done = run.position.epoch * self.step_num + run.position.step
        batches = done * need(self, "grpo_config.rl_config.num_rollouts")
        for _ in range(batches % self.prompt_dataloader.get_dataset_size()):
            self._get_batch(1)
        self.i_step = run.position.step

    def make_experience(original: Callable[..., Any], self: Any, *given: Any, **named: Any) -> Any:
        """Stock code's first act in a step, which has no place of its own to leave at."""
        run = runs.current()
        if run is not None:
            run.step_begins()
        return original(self, *given, **named)

    _around(module.GRPOExperienceMaker, "_init_grpo_experience_dataset", open_data)
    _around(module.GRPOExperienceMaker, "make_experience", make_experience)


def _probe(maker: Any, trainer: Any) -> Any:
    """An experience maker with nothing but its data set: stock code knows how many steps there are too late."""
    probe = object.__new__(maker)
    probe.grpo_config, probe.i_step, probe.step_num = trainer.grpo_config, 0, 0
    probe.infer_dp = need(trainer, "infer").get_infer_dp()
    probe._init_grpo_experience_dataset()
    return probe


def _put_strategy_dir(trainer: Any, directory: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """`--save_strategy_dir` is a key of the configuration, not a flag: it goes there as soon as there is one (B27)."""
    config = named.get("config_from_yaml") or next((c for c in given if hasattr(c, "rl_config")), None)
    if config is not None:
        config.rl_config.save_strategy_dir = directory
        return
    read = trainer._init_grpo_configs

    def init_grpo_configs(*words: Any) -> Any:
        config = read(*words)
        config.rl_config.save_strategy_dir = directory
        return config

    trainer._init_grpo_configs = init_grpo_configs


def _run_of(trainer: Any) -> Run:
    run = runs.current()
    assert run is not None  # its construction has made it
    return run


@contextlib.contextmanager
def _ended_on_error(run: Run) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        run.abandon(error)
        runs.enter(None)
        raise


@contextlib.contextmanager
def _output_path_kept() -> Iterator[None]:
    """Stock code lets MindFormers' output path point to what it loads, and leaves it so (B20)."""
    environ = os.environ
    before = environ.get("LOCAL_DEFAULT_PATH")
    try:
        yield
    finally:
        if before is None:
            environ.pop("LOCAL_DEFAULT_PATH", None)
        else:
            environ["LOCAL_DEFAULT_PATH"] = before


def _around(owner: Any, name: str, change: Callable[..., Any]) -> None:
    """`change` in the place of a method, with the method as its first argument."""
    original = getattr(owner, name)

    @wraps(original)
    def changed(self: Any, *given: Any, **named: Any) -> Any:
        return change(original, self, *given, **named)

    setattr(owner, name, changed)


def _after(owner: Any, name: str, change: Callable[[Any], None]) -> None:
    def then(original: Callable[..., Any], self: Any, *given: Any, **named: Any) -> Any:
        result = original(self, *given, **named)
        change(self)
        return result

    _around(owner, name, then)


def _takes(cell: Any, path: str) -> bool:
    run = runs.current()
    return run is not None and run.takes(cell, path)


def _gives(path: str) -> Any:
    run = runs.current()
    return run.gives(path) if run is not None else None
