"""What DeepSpeed saves of one step, inside a checkpoint of a trainer: `global_stepN/`, a part for each rank.

    [zero_pp_rank_D_]mp_rank_MM_model_states.pt          one for each M; with ZeRO 3 one for each rank
    [bf16_|fp16_]zero_pp_rank_D_mp_rank_MM_optim_states.pt        with ZeRO, one for each rank
    layer_*.pt                                           experts and pipeline stages
    ../latest                                            names this directory: DeepSpeed loads what it names

Rank D * (number of M) + M. How many ranks there are the highest number says, in these names or in what the trainer
saved beside them.
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/engine.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms_resume.errors import Damaged
from ms_resume.layouts.survey import MOST_LISTED
from ms_resume.ondisk import names, reading
from ms_resume.records import in_ranges

MODEL, OPTIMIZER = "zero_model", "zero_optimizer"
LATEST = "latest"
_RANK = rf"zero_pp_rank_(?P<data>{names.NUMBER})_"
_STATES = re.compile(rf"(?:{_RANK})?mp_rank_(?P<model>\d\d)_model_states\.pt", re.ASCII)
_OPTIM = re.compile(rf"(?:bf16_|fp16_)?{_RANK}mp_rank_(?P<model>\d\d)_optim_states\.pt", re.ASCII)
_LAYER = re.compile(r"layer_[\w-]{1,64}_states\.pt", re.ASCII)


@dataclass(frozen=True)
class Step:
    """The files of one `global_stepN`, by role and rank, and what is not there."""

    files: Mapping[tuple[str, int], Path]
    world_size: int
    torn: str = ""
    ranks: tuple[int, ...] = ()


def name(step: int) -> str:
    return f"global_step{step}"


def find(directory: Path, world_size: int) -> Step:
    """The files of `global_stepN`.

    Args:
        world_size: At least so many ranks there were.

    Raises:
        Damaged: `directory` is a symbolic link.
    """
    states: dict[tuple[int | None, int], Path] = {}
    optim: dict[tuple[int, int], Path] = {}
    files: dict[tuple[str, int], Path] = {}
    for entry in sorted(reading.listed(directory)):
        if (match := _STATES.fullmatch(entry)) is not None:
            states[None if match["data"] is None else int(match["data"]), int(match["model"])] = directory / entry
        elif (match := _OPTIM.fullmatch(entry)) is not None:
            optim[int(match["data"]), int(match["model"])] = directory / entry
        elif _LAYER.fullmatch(entry):
            files[entry.removesuffix(".pt"), 0] = directory / entry
    if not states:
        return Step({}, world_size, f"{directory.name}: no model states in it", tuple(range(world_size))[:MOST_LISTED])
    models = 1 + max(model for _, model in (*states, *optim))
    of_ranks = [(data, model) for data, model in (*states, *optim) if data is not None]
    last = max((data * models + model for data, model in of_ranks), default=-1)
    world_size = max(world_size, min(last + 1, names.MOST_RANKS), models)
    zero3 = any(data is not None for data, _ in states)
    missing: dict[str, list[int]] = {}
    for rank in range(world_size):
        data, model = divmod(rank, models)
        mine = states.get((data if zero3 else None, model))
        if mine is None:
            missing.setdefault("model states", []).append(rank)
        elif zero3 or data == 0:
            files[MODEL, rank] = mine
        if (data, model) in optim:
            files[OPTIMIZER, rank] = optim[data, model]
        elif optim or zero3:
            missing.setdefault("optimizer states", []).append(rank)
    said = "; ".join(f"no {what} of rank {in_ranges(ranks)}" for what, ranks in missing.items())
    lacking = sorted({rank for ranks in missing.values() for rank in ranks})
    return Step(files, world_size, f"{directory.name}: {said}" if said else "", tuple(lacking[:MOST_LISTED]))


def warnings(checkpoint: Path, step: int) -> Iterable[str]:
    """What DeepSpeed would load instead, because of the `latest` beside the directory."""
    try:
        said = reading.content(checkpoint / LATEST, 256).decode(errors="replace").strip()
    except (OSError, Damaged):
        said = ""
    if said != name(step):
        what = f"says {reading.brief(said)}" if said else "cannot be read"
        path = f"{checkpoint.name}/{LATEST}"
        yield f"{path}: {what}, DeepSpeed would not load {name(step)}; write its name into it"
