"""What a run is started from without being resumed: weights, and optimizer state where it is asked for, of any kind.

    a save directory of ours or of MindRLHF      the newest position of which these roles are whole
    MindFormers 1.0 and 2, MindSpeed, MindRLHF 0.4.0, TTP    the newest whole one
    <save>/commits/E_S, <save>/latest, iteration_N           that one
    rank_R directories with policy files in them, `<save>/train` for one
    one .ckpt or .safetensors file               the same rank's file, where it is one of a rank's
    a Hugging Face directory                     all its shards as one

Rank 0 finds, by reading headers; each rank opens its own file. Nothing is placed here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ms_resume import layouts, locate, verify
from ms_resume.errors import Damaged, LayoutMismatch, NothingToResume, Torn, UsageError
from ms_resume.layouts import Holding, SaveDirectory, foreign, mindformers2, mindrlhf, mindrlhf_0_4, ours, ranked
from ms_resume.layouts.ranked import MODEL, Ranked
from ms_resume.load import huggingface, optimizers
from ms_resume.load.source import Readable, Source
from ms_resume.load.views import Shards
from ms_resume.ondisk import names, reading, votes
from ms_resume.records import Checkpoint, Position, Rejection, TensorInfo

HUGGING_FACE, ONE_FILE, RANK_FILES = "Hugging Face", "one file", "files of ranks"
DATA_PARALLEL = "data_parallel"
NOT_TAKEN = (layouts.huggingface.NAME, layouts.numbered.NAME, layouts.iterations.NAME)
"""Torch's own files are pickle, and of several models none is the one that is meant."""

_SUFFIXES = (".safetensors", ".ckpt")
_ACCEPTED = (
    "a save directory, <save>/commits/E_S, a directory of MindFormers, MindSpeed or Hugging Face, a .ckpt or "
    ".safetensors file"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights or optimizer state were found. `files` are by rank; a single one is every rank's."""

    path: Path
    kind: str
    files: tuple[Path, ...]
    position: Position | None = None
    attempt: str | None = None
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f" at {self.position}" if self.position else ""
        by = f", attempt {self.attempt}" if self.attempt else ""
        return f"{self.path}{at} ({self.kind}{by})"

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "files": [str(file) for file in self.files],
            "position": self.position.to_json() if self.position else None,
            "attempt": self.attempt,
            "rejected": [rejection.to_json() for rejection in self.rejected],
            "warnings": self.warnings,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Place:
        rejected = (
            Rejection(Position(*entry["position"]), entry["kind"], entry["reason"], tuple(entry["ranks"]))
            for entry in data["rejected"]
        )
        return cls(
            path=Path(data["path"]),
            kind=data["kind"],
            files=tuple(map(Path, data["files"])),
            position=Position(*data["position"]) if data["position"] else None,
            attempt=data["attempt"],
            rejected=tuple(rejected),
            warnings=tuple(data["warnings"]),
        )


def check_word(allowed: str) -> None:
    """Raises UsageError where `allow_world_size` is none that there is."""
    if allowed not in ("", DATA_PARALLEL):
        raise UsageError(f"allow_world_size is {allowed!r}", hint=f"the one choice is {DATA_PARALLEL!r}")


def find(path: Path, role: str, *, world_size: int, position: Position | None = None, is_local: bool = False) -> Place:
    """What to open for `role` ("policy" or "optimizer"): of a directory the newest whole position, or `position`.

    Args:
        world_size: Of this job. A job of one rank takes a file that it is given as it stands.
        is_local: `path` is on a node's own disk: what other ranks have is not here, and counts as whole.

    Raises:
        UsageError: It holds nothing that is read, or two kinds.
        NothingToResume, Torn, Damaged: Nothing whole, or not what was asked for; with the reasons.
    """
    try:
        real = path.resolve(strict=True)  # a person gave it: it may be a link, as `latest` is
    except (OSError, RuntimeError):
        raise UsageError(f"{path}: does not exist, expected weights to start from", hint="check the path") from None
    if not real.is_dir():
        return _file(path.absolute(), real, world_size, position)
    if huggingface.is_here(real):
        return _hugging_face(real, position, layouts.find(real, is_local=is_local))
    directory, position = _named(real, role, position)
    holding = layouts.find(directory, is_local=is_local)
    if not holding.positions:
        holding = _of_ranks(directory, role)
    if not holding.positions:
        raise _nothing(directory, role)
    if holding.NAME in NOT_TAKEN:
        raise UsageError(
            f"{directory}: holds {holding.NAME} checkpoints, of which no weights are taken",
            hint="give a directory in it that holds a Hugging Face model, such as checkpoint-N or iter_N",
        )
    return _newest(_Wanted(holding, role), position)


def open_place(place: Place, role: str, *, rank: int, world_size: int, allow_world_size: str = "") -> Readable:
    """This rank's part of it.

    Args:
        allow_world_size: `data_parallel` where the ranks that saved were replicas: then any of them has all weights.

    Raises:
        LayoutMismatch: It was saved by another number of ranks.
        Torn, Damaged: A file is not there, or is not what it says.
    """
    if place.kind == HUGGING_FACE:
        (path,) = place.files
        return huggingface.open_dir(path) if path.is_dir() else huggingface.open_index(path)
    if place.kind == mindformers2.NAME:
        return _of_iteration(place.files[0], role, rank, world_size)
    owner = _owner(place, rank, world_size, allow_world_size)
    expected = None
    if place.attempt is not None:
        assert place.position is not None  # a vote has one
        expected = votes.read(names.vote(place.path, place.position, owner)).file(role)
    if place.files[owner] == Path():
        raise Torn(f"{place}: nothing of rank {owner} on this node's disk", hint="copy it there, or give another place")
    return Source(place.files[owner], expected)


def paths(place: Place, *, rank: int, world_size: int, allow_world_size: str = "") -> list[Path]:
    """What this rank opens first: a network file system may show it later than to rank 0. Raises as `open_place`."""
    if place.kind in (HUGGING_FACE, mindformers2.NAME):
        return [*place.files]
    owner = _owner(place, rank, world_size, allow_world_size)
    voted = [names.vote(place.path, place.position, owner)] if place.attempt and place.position else []
    return [place.files[owner], *voted]


def weights_in(held: Mapping[str, TensorInfo], wanted: Collection[str]) -> set[str]:
    """The names in a file that are weights: not an optimizer's state, and not the trainer's own numbers. What the net
    has is a weight, whatever its name."""
    return {name for name in held if name in wanted or not optimizers.is_state(name, held)}


def _named(path: Path, role: str, position: Position | None) -> tuple[Path, Position | None]:
    """The directory to look in, and the position that the path itself names."""
    directory, own = path, None
    if path.parent.name == names.commits(Path()).name and (own := names.parse_vote_dir(path.name)):
        directory = path.parent.parent
    elif (own := mindformers2.parse_iteration(path.name)) or _is_part_of_ours(path, role):
        directory = path.parent
    if own and position not in (None, own):
        raise UsageError(f"{path} and position {position} are asked for", hint="give one of them")
    return directory, own or position


def _hugging_face(directory: Path, position: Position | None, beside: Holding) -> Place:
    if beside.positions:
        raise UsageError(
            f"{directory}: holds {beside.NAME} checkpoints and a Hugging Face model",
            hint="give one of them: the model's own file, or <save>/commits/E_S",
        )
    if position is not None:
        raise UsageError(f"{directory}: a model, which has no position", hint="leave the position out")
    return Place(directory, HUGGING_FACE, (directory,))


def _is_part_of_ours(path: Path, role: str) -> bool:
    """`<save>/train`, MindRLHF's --actor_checkpoint_path, where the votes beside it decide."""
    return path.name == names.DIRECTORIES[role] and names.commits(path.parent).is_dir()


def _file(path: Path, real: Path, world_size: int, position: Position | None) -> Place:
    """`real` is what `path` leads to: in Hugging Face's cache a file that only its link names."""
    huggingface.refuse_pickle(path)
    if position is not None:
        raise UsageError(f"{path}: a file, of which no position can be chosen", hint="leave the position out")
    if path.name.endswith(".index.json"):
        return Place(path, HUGGING_FACE, (path,))
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"{path}: is not a file of weights; expected {_ACCEPTED}", hint="check the path")
    return Place(path, ONE_FILE, _siblings(real) if world_size > 1 else (real,))


def _siblings(path: Path) -> tuple[Path, ...]:
    """The files that all ranks have under the same name, where `path` is one of them; else it is everybody's."""
    rank = names.parse_rank_dir(path.parent.name)
    if rank is None:
        return (path,)
    dirs = ranked.rank_dirs(path.parent.parent)
    files = tuple(dirs[r] / path.name.replace(f"_rank_{rank}", f"_rank_{r}") for r in dirs)
    lacking = [other for other in files if not other.exists()]
    if lacking or list(dirs) != list(range(len(dirs))):
        what = f"{lacking[0]}: missing" if lacking else f"{path.parent.parent}: has the ranks {list(dirs)}"
        raise Torn(
            f"{what}, expected each rank's file beside {path}",
            hint="give the directory, a file that is not one of a rank's, or complete the copy",
            path=str(path),
        )
    return files


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A `layouts.Holding` that is whole where one role is: what else is wrong with a position does not matter."""

    holding: Holding
    role: str

    @property
    def NAME(self) -> str:
        return self.holding.NAME

    @property
    def save(self) -> Path:
        return self.holding.save

    @property
    def positions(self) -> list[Position]:
        return self.holding.positions

    def files(self, position: Position) -> Mapping[tuple[str, int], Path]:
        return self.holding.files(position)

    def judge(self, position: Position) -> Checkpoint | Rejection:
        found = self._judged(position)
        if isinstance(found, Rejection):
            return found
        files = tuple(file for file in found.files if file.role == self._role_in(found.layout))
        if len(files) < len({file.rank for file in found.files}):
            return Rejection(position, "weights only", f"saved without {self.role}", (), found.attempt)
        return replace(found, found=files)

    def _judged(self, position: Position) -> Checkpoint | Rejection:
        holding = self.holding
        if isinstance(holding, SaveDirectory) and not ours.claims(holding.surveyed, position):
            return mindrlhf.judge(holding.surveyed, position, roles=("policy", self.role))
        if isinstance(holding, mindformers2.Iterations):
            return replace(holding, roles=tuple({MODEL, self._role_in(holding.NAME)})).judge(position)
        if isinstance(holding, Ranked) and holding.NAME == mindrlhf_0_4.NAME and self.role == "policy":
            return Ranked.judge(holding, position)
        return holding.judge(position)

    def _role_in(self, layout: str) -> str:
        """Most foreign files hold weights and optimizer in one."""
        if layout in layouts.RESUMED:
            return self.role
        return "optimizer" if layout == mindformers2.NAME and self.role == "optimizer" else MODEL


def _newest(wanted: _Wanted, position: Position | None) -> Place:
    if position is None:
        located = locate.newest(wanted, check=_checked)
        if located.checkpoint is None:
            rows = [f"\n  {r.position}  {r.kind}: {r.reason}" for r in located.rejected]
            raise NothingToResume(
                f"{wanted.save}: holds {wanted.NAME} checkpoints, none with a whole {wanted.role}{''.join(rows)}",
                hint="look with `ms-resume ls`, or give another directory",
                rejected=[rejection.to_json() for rejection in located.rejected],
            )
        return _place(located.checkpoint, located.rejected)
    if position not in wanted.positions:
        listed = ", ".join(map(str, wanted.positions[:8])) + (", ..." if len(wanted.positions) > 8 else "")
        raise NothingToResume(
            f"{wanted.save}: no position {position}, there are {listed}",
            hint="give one of those, or none: the newest whole one is taken",
        )
    judged = wanted.judge(position)
    refused = judged if isinstance(judged, Rejection) else _checked(judged)
    if refused:
        raise locate.refusal(wanted.save, refused)
    assert isinstance(judged, Checkpoint)
    return _place(judged, ())


def _checked(checkpoint: Checkpoint) -> Rejection | None:
    return verify.rejection(checkpoint, verify.check(checkpoint))


def _place(checkpoint: Checkpoint, rejected: tuple[Rejection, ...]) -> Place:
    by_rank = {file.rank: file.path for file in checkpoint.files}
    files = tuple(by_rank.get(rank, Path()) for rank in range(checkpoint.world_size))  # local: others' are not here
    if checkpoint.layout == mindformers2.NAME:
        files = (checkpoint.files[0].path.parent,)
    return Place(
        path=checkpoint.save,
        kind=checkpoint.layout,
        files=files,
        position=checkpoint.position,
        attempt=checkpoint.attempt,
        rejected=rejected,
        warnings=checkpoint.warnings,
    )


def _of_ranks(directory: Path, role: str) -> Ranked:
    """`rank_R` directories with MindRLHF's files of one role, wherever they were copied to."""
    dirs = ranked.rank_dirs(directory, given=True)
    found: dict[Position, dict[tuple[str, int], Path]] = {}
    for rank, path in dirs.items():
        for name in sorted(reading.listed(path)):
            parsed = names.parse_payload(name)
            if parsed and parsed.rank == rank and parsed.prefix == names.PREFIXES[role]:
                found.setdefault(parsed.position, {})[MODEL, rank] = path / name
    return Ranked(RANK_FILES, directory, found, tuple(dirs), _check_position if role == "policy" else _anything)


def _check_position(path: Path, held: Mapping[str, TensorInfo]) -> None:
    named, inside = names.parse_payload(path.name), mindrlhf.position_inside(mindrlhf.read(path))
    if named is None or inside != named.position:
        raise Damaged(f"{path}: the position inside is {inside}")


def _anything(path: Path, held: Mapping[str, TensorInfo]) -> None:
    pass


def _nothing(directory: Path, role: str) -> UsageError:
    seen = foreign.recognise(directory)
    held = f"holds {seen.layout} ({seen.evidence})" if seen else "holds no checkpoint"
    return UsageError(
        f"{directory}: {held}, and no {role} to start from; expected {_ACCEPTED}",
        hint="check the path",
        path=str(directory),
    )


def _owner(place: Place, rank: int, world_size: int, allow_world_size: str) -> int:
    """The rank whose file this one takes."""
    saved = len(place.files)
    if saved == world_size:
        return rank
    if saved == 1 or world_size == 1:
        return 0  # names and shapes decide whether it holds all of it
    if allow_world_size == DATA_PARALLEL:
        return rank % saved
    raise LayoutMismatch(
        f"{place}: saved by {saved} ranks, this job has {world_size}",
        hint=f"start it with {saved} workers; or, if those ranks were data-parallel replicas, with "
        f"allow_world_size={DATA_PARALLEL!r}",
        found=saved,
        expected=world_size,
    )


def _of_iteration(directory: Path, role: str, rank: int, world_size: int) -> Readable:
    """Of a MindFormers 2 iteration what this rank has; of one that no tensor was cut in, everything.

    Its files are not those of ranks: what replicas have in common lies in one of them.
    """
    wanted = MODEL if role == "policy" else "optimizer"
    stored = {
        name: mine
        for name, pieces in mindformers2.stored(directory).items()
        if (mine := [piece for piece in pieces if piece.role == wanted])
    }
    ranks = [holder for pieces in stored.values() for piece in pieces for holder in piece.ranks]
    saved = max(ranks, default=-1) + 1
    sources: dict[str, Source] = {}
    held: dict[str, Readable] = {}
    for name, pieces in stored.items():
        mine = [piece for piece in pieces if rank in piece.ranks] if saved == world_size else pieces
        if len({piece.key for piece in mine}) > 1:
            raise LayoutMismatch(
                f"{directory}: {name!r} is in {len(pieces)} pieces of {saved} ranks, this job has {world_size}",
                hint=f"start it with {saved} workers, or merge it with MindFormers' own tools first",
                found=saved,
                expected=world_size,
            )
        if mine:
            file = mine[0].file
            sources[file] = sources[file] if file in sources else Source(directory / file)
            held[name] = sources[file]
            if name not in held[name].tensors:
                raise Damaged(f"{directory}: metadata.json says that {name!r} is in {file}, it is not")
    return Shards(directory, held)
