"""A job of threads that is started by flags, as a person starts it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import Outcome, ThreadGroup, TinyRank, run_ranks

import ms_resume

Act = Callable[[ms_resume.Checkpointer, TinyRank], Any]


def mode_of(*flags: str, **read: Any) -> ms_resume.StartMode:
    parser = argparse.ArgumentParser()
    ms_resume.StartMode.add_arguments(parser)
    return ms_resume.StartMode.read(parser.parse_args(flags), **read)


def job(
    save: Path,
    *flags: str,
    act: Act = lambda checkpointer, me: None,
    prepare: Callable[[TinyRank], object] = lambda me: None,
    world_size: int = 2,
    steps_per_epoch: int = 10,
    components: Callable[[TinyRank], list[Any]] = lambda me: [],
    start: dict[str, Any] | None = None,
    configured: dict[str, Any] | None = None,
    **checkpointer: Any,
) -> Outcome[TinyRank]:
    """Starts as the flags say, then does `act`."""
    mode = mode_of(*flags)

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        prepare(me)
        given = {
            "components": [*me.components(), *components(me)],
            "steps_per_epoch": steps_per_epoch,
            "settings": mode.settings(**{"heartbeat_s": 0, "keep_last": 0, **(configured or {})}),
            **checkpointer,
        }
        with me.saves_in(save, group, **given) as saver:
            me.start = saver.start_as(mode, **(start or {}))
            act(saver, me)
        return me

    return run_ranks(world_size, rank_main)


def trains(epochs: int = 1, **steps: Any) -> Act:
    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        for position in checkpointer.steps(epochs, **steps):
            me.train_one_step()
            me.positions.append(position)

    return act


def banner(ranks: list[TinyRank], **places: Path) -> list[str]:
    """What rank 0 said at the start, without what changes from run to run: places by name, attempts, times."""
    text = ranks[0].said[0]
    for name, place in sorted(places.items(), key=lambda one: -len(str(one[1]))):
        text = text.replace(str(place), name.upper())
    text = re.sub(r"(\d{6})-[0-9a-f]{16}", r"\1", text)
    return re.sub(r"\d+\.\d MiB in \d+\.\d\d s", "MIB in S", text).splitlines()[1:-1]
