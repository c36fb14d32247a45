"""MindRLHF with checkpoints that are whole; docs/mindrlhf.md goes through it step by step.

    msrun ... python -m ms_resume.adapters.mindrlhf main.py ...   instead of `msrun ... main.py ...`
    import ms_resume.adapters.mindrlhf.auto                       or this, in the first line of main.py

Nothing of MindRLHF is imported here; each of its modules is changed when its own code imports it.
"""

from __future__ import annotations

from ms_resume.adapters.mindrlhf import hooks
from ms_resume.adapters.mindrlhf.importing import Watch
from ms_resume.adapters.mindrlhf.run import Options

_watching: list[Watch] = []


def install(*, allow_fresh_start: bool = False, take_over: bool = False, save_strategy_dir: str | None = None) -> None:
    """Puts the adapter in place, before MindRLHF is imported. A second call changes nothing.

    Args:
        allow_fresh_start: Begin anew in a directory that holds checkpoints; they stay, abandoned.
        take_over: Start although another job seems to own the directory.
        save_strategy_dir: For `rl_config.save_strategy_dir`.

    Raises:
        UsageError: MindRLHF is imported already.
    """
    if _watching:
        return
    watch = Watch(hooks.changes(Options(allow_fresh_start, take_over, save_strategy_dir)))
    watch.begin()
    _watching.append(watch)


def remove() -> None:
    """Changes no module that is imported from now on; those that were stay changed."""
    while _watching:
        _watching.pop().end()
