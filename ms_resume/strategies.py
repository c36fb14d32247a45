"""A strategy says how the ranks of a job share the nets; `strategy_templates/` has one file per topology.

A template says its numbers twice, in its file name and inside, and the two must agree: people choose by the
name, and the job runs what is inside.

    python -m ms_resume.strategies check NAME --workers N     exit 0, 2 (none, or not sound), 31 (other size)
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ms_resume.errors import LayoutMismatch, MsResumeError, UsageError

_PLACES = (Path(__file__).parent / "strategy_templates", Path(__file__).parent.parent / "strategy_templates")
"""In an installed wheel; in a checkout or an editable install."""

_TAG = re.compile(r"_(w|dp|tp|pp|cp|ep)(\d+)(?=_|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Parallel:
    """How one net is cut, in MindRLHF's `parallel_config` keys; `model_parallel` is the tensor split."""

    data_parallel: int
    model_parallel: int
    pipeline_stage: int
    context_parallel: int = 1
    expert_parallel: int = 1
    micro_batch_num: int = 1
    use_seq_parallel: bool = False
    vocab_emb_dp: bool = False

    @property
    def num_ranks(self) -> int:
        return self.data_parallel * self.model_parallel * self.pipeline_stage * self.context_parallel

    def __str__(self) -> str:
        tags = (("dp", self.data_parallel), ("tp", self.model_parallel), ("pp", self.pipeline_stage))
        return " x ".join(f"{tag}{number}" for tag, number in (*tags, ("cp", self.context_parallel)))


@dataclass(frozen=True, slots=True)
class Strategy:
    """The cut of each net of a job. None means not said here: the trainer's own configuration stands."""

    name: str
    world_size: int
    actor: Parallel
    ref: Parallel | None = None
    generate: Parallel | None = None
    enable_parallel_optimizer: bool = False
    """Weights and moments are cut over `data_parallel` too, so payloads have other shapes."""

    def as_json(self) -> dict[str, Any]:
        """What stands in every vote of the job as `parallel`."""
        return asdict(self)

    def parallel_configs(self) -> dict[str, dict[str, Any]]:
        """Section of MindRLHF's configuration (`actor_config`...) to its `parallel_config`."""
        return {f"{role}_config": asdict(cut) for role, cut in self._cuts().items()}

    def _cuts(self) -> dict[str, Parallel]:
        cuts = {"actor": self.actor, "ref": self.ref, "generate": self.generate}
        return {role: cut for role, cut in cuts.items() if cut is not None}


def names() -> list[str]:
    """The shipped templates, sorted."""
    return sorted({path.stem for place in _PLACES for path in place.glob("*.yaml")})


def load(name_or_path: str | Path) -> Strategy:
    """Reads a shipped template by its name, or any file by its path (a `/` in it, or `.yaml` at its end).

    Raises:
        UsageError: There is none, it does not parse, a key is unknown, or its numbers contradict each other
            or its name.
    """
    path = _find(str(name_or_path))
    data = _mapping(_read(path), path, "the file")
    _reject_unknown(data, {field.name for field in fields(Strategy)} - {"name"}, path)
    cuts = {role: _parallel(data[role], f"{path}: {role}") for role in ("actor", "ref", "generate") if role in data}
    if "actor" not in cuts:
        raise UsageError(f"{path} has no section 'actor', expected one", hint=_EXAMPLE)
    strategy = Strategy(
        name=path.stem,
        world_size=_typed(data.get("world_size"), int, f"{path}: world_size"),
        enable_parallel_optimizer=_typed(
            data.get("enable_parallel_optimizer", False), bool, f"{path}: enable_parallel_optimizer"
        ),
        **cuts,
    )
    _sound(strategy, path)
    return strategy


_EXAMPLE = f"compare with a shipped template: {', '.join(names()) or 'none found'}"


def check(strategy: Strategy, world_size: int) -> None:
    """Raises LayoutMismatch unless the strategy is for a job of `world_size` ranks."""
    if strategy.world_size != world_size:
        raise LayoutMismatch(
            f"strategy {strategy.name} is for {strategy.world_size} ranks ({strategy.actor}), "
            f"this job has {world_size}",
            hint=f"start with WORKERS={strategy.world_size}, or choose another: {', '.join(names())}",
            found=world_size,
            expected=strategy.world_size,
        )


def _find(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    for place in _PLACES:
        if (path := place / f"{name}.yaml").is_file():
            return path
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    known = ", ".join(names()) or f"none: no templates in {_PLACES[0]} or {_PLACES[1]}"
    raise UsageError(
        f"no strategy template is named {name!r}; there are: {known}",
        hint=f"did you mean {near[0]}?" if near else "name one of these, or give the path of a YAML file",
    )


def _read(path: Path) -> Any:
    import yaml  # here, because `ms-resume ls` starts without it

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="give a template's name or a readable file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}", hint=_EXAMPLE) from error


def _parallel(data: Any, where: str) -> Parallel:
    data = _mapping(data, where, "the section")
    known = {field.name: field for field in fields(Parallel)}
    _reject_unknown(data, set(known), where)
    if missing := {"data_parallel", "model_parallel", "pipeline_stage"} - set(data):
        raise UsageError(f"{where} lacks {', '.join(sorted(missing))}", hint=_EXAMPLE)
    kinds = {name: bool if field.default is False else int for name, field in known.items()}
    return Parallel(**{key: _typed(value, kinds[key], f"{where}.{key}") for key, value in data.items()})


def _sound(strategy: Strategy, path: Path) -> None:
    for role, cut in strategy._cuts().items():
        if cut.num_ranks != strategy.world_size:
            raise UsageError(
                f"{path}: {role} is {cut} = {cut.num_ranks} ranks, world_size is {strategy.world_size}",
                hint="correct one of the factors",
            )
        if cut.micro_batch_num < cut.pipeline_stage:
            raise UsageError(
                f"{path}: {role} has micro_batch_num {cut.micro_batch_num} for {cut.pipeline_stage} stages",
                hint=f"MindFormers wants at least as many micro batches as stages: {cut.pipeline_stage}",
            )
        if (ranks_per_stage := cut.num_ranks // cut.pipeline_stage) % cut.expert_parallel:
            raise UsageError(
                f"{path}: {role} has expert_parallel {cut.expert_parallel}, {ranks_per_stage} ranks a stage",
                hint=f"use a divisor of {ranks_per_stage}",
            )
    _agree_with_name(strategy, path)


def _agree_with_name(strategy: Strategy, path: Path) -> None:
    inside = {
        "w": strategy.world_size,
        "dp": strategy.actor.data_parallel,
        "tp": strategy.actor.model_parallel,
        "pp": strategy.actor.pipeline_stage,
        "cp": strategy.actor.context_parallel,
        "ep": strategy.actor.expert_parallel,
    }
    for tag, number in _TAG.findall(path.stem):
        if int(number) != inside[tag]:
            raise UsageError(
                f"{path}: the name says {tag}{number}, inside it is {tag}{inside[tag]}",
                hint="rename the file, or correct the number inside",
            )


def _mapping(data: Any, where: str | Path, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: {what} is {type(data).__name__}, expected keys with values", hint=_EXAMPLE)
    return data


def _reject_unknown(data: Mapping[str, Any], known: set[str], where: str | Path) -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{where} has the unknown key {key!r}; known: {', '.join(sorted(known))}",
                hint=f"did you mean {near[0]}?" if near else "remove it",
            )


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind or (isinstance(value, int) and kind is int and value < 1):
        wanted = "true or false" if kind is bool else "a whole number from 1"
        raise UsageError(f"{where} is {value!r}, expected {wanted}", hint="correct it in the file")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """For the launch script: prints one line, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ms_resume.strategies")
    command = parser.add_subparsers(dest="command", required=True).add_parser("check")
    command.add_argument("name")
    command.add_argument("--workers", type=int, required=True, metavar="N")
    arguments = parser.parse_args(argv)
    try:
        strategy = load(arguments.name)
        check(strategy, arguments.workers)
    except MsResumeError as error:
        print(f"strategy: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(f"strategy {strategy.name}: {strategy.world_size} ranks, {strategy.actor}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
