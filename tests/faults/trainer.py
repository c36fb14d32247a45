"""Both ranks of the real trainer die in the same save, each at a call of its own; the next launch goes on from there.

An undisturbed run says which bits every position has: a resume is bit-exact, so any attempt must save the same ones. A
second run is killed again and again. After each death the directory is judged by its votes, by `locate`, to the last
byte by `verify`, and by those bits; the launch after it must go on from exactly there. At last it is left alone to its
end and compared with the undisturbed one, tensor by tensor and metric by metric.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import cases, msrun, shim
from faults.cases import Tally
from faults.msrun import RANKS, STEPS_PER_EPOCH, Broken, Death, Launch
from faults.shim import Call, Control, Kind, Mode, Unavailable
from ms_resume import locate, verify
from ms_resume.errors import MsResumeError
from ms_resume.ondisk import names, payload, votes
from ms_resume.records import Position

if TYPE_CHECKING:
    from faults.campaign import Plan

PAIRS, STARTS = 25, 2
"""Launches at full size that die in a save, on both ranks, and in the start, on rank 0."""

LATE = ("retention", names.LATEST)
"""What a rank does after its vote; much of it only where it sees that the other one has voted, too."""

FIRST_CALLS = 9
"""Of a start, on rank 0: the attempt record, from its temp file to the last directory that is synced. Of a save: what a
torn position left is retracted."""

WRITES_IN_A_ROW = 16

Bits = dict[tuple[int, str], tuple[Any, Any]]
"""The digests of all tensors, and the values beside them, by rank and role."""


@dataclass(frozen=True)
class Order:
    """What one launch is for: deaths, in this sequence, in the `nth` save that it makes, or in its start (0)."""

    nth: int
    deaths: tuple[Death, ...]

    def __str__(self) -> str:
        where = f"in save {self.nth} of the launch" if self.nth else "of the start"
        return f"{', then '.join(map(str, self.deaths))} {where}"


@dataclass
class Chain:
    """A run that is started again and again. `floor` is the newest position that all ranks acknowledged, or ""."""

    run: Path
    work: Path
    epochs: int
    known: dict[str, Bits] = field(default_factory=dict)
    floor: str = ""
    stages: Counter[str] = field(default_factory=Counter)

    @property
    def save(self) -> Path:
        return self.run / "save"

    def launch(self) -> Launch:
        self.run.mkdir(exist_ok=True)
        return Launch(self.run, self.work, self.epochs)


def run(plan: Plan) -> Tally:
    """Raises Unavailable where MindSpore or a compiler is missing."""
    if importlib.util.find_spec("mindspore") is None:
        raise Unavailable("MindSpore is not installed")
    shim.build()
    tally = Tally("the real trainer under msrun", "kill points")
    work = cases.room() / "trainer"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _campaign(tally, work, plan)
    except (Broken, MsResumeError, OSError) as error:
        tally.failures.append(f"seed {plan.seed}: {type(error).__name__}: {error}")
    shutil.rmtree(work, ignore_errors=True)
    return tally


def _campaign(tally: Tally, work: Path, plan: Plan) -> None:
    pairs, starts = max(1, round(PAIRS * plan.share)), round(STARTS * plan.share)
    spare = -(-pairs // 6)  # a call that is not reached is no point
    epochs = -(-_most_steps(pairs + spare) // STEPS_PER_EPOCH)
    msrun.make_base_model(work / "base")
    undisturbed = Chain(work / "undisturbed", work, epochs)
    orders = _draw(_train_undisturbed(undisturbed), pairs + spare, starts, random.Random(plan.seed))
    chain = Chain(work / "killed", work, epochs, undisturbed.known)
    for number, order in enumerate(orders, 1):
        if number > pairs + starts and tally.cases >= 2 * pairs:
            break
        reached, wrong = _kill(chain, order)
        tally.cases += reached
        _say(f"{number}: {order}: {reached} reached, the newest whole one is {chain.floor or 'none'}")
        if wrong:
            tally.failures.append(f"seed {plan.seed}, launch {number}, {order}: {wrong}")
            return
    if tally.cases < 2 * pairs:
        tally.failures.append(f"seed {plan.seed}: only {tally.cases} points of {2 * pairs} were reached")
    tally.failures += _train_to_the_end(chain, undisturbed)
    tally.notes = dict(sorted(chain.stages.items()))


def _most_steps(launches: int) -> int:
    """That a run makes progress by, when its launches die in turn in their second and in their first save."""
    return 2 * -(-launches // 2) + launches // 2 + 3


def _train_undisturbed(chain: Chain) -> list[list[Call]]:
    """Learns the bits of every position; gives the calls that each rank makes in a save where the other one is done."""
    recorded: dict[int, list[Call]] = {}
    with chain.launch() as launch:
        while word := launch.hear():
            last = {"save 0_4": 0, "save 0_5": 1}.get(word)
            if last is not None:
                recorded[last] = _recorded(launch, last)
                word = word.replace("save", "saved")
            if word.startswith("saved "):
                at = word.split()[1]
                chain.known[at] = _bits(chain.save, at) if at != "0_0" else {}
            launch.let()
        launch.ends_well()
    _say(f"undisturbed: {', '.join(chain.known)}; calls in a save: {[len(recorded[rank]) for rank in RANKS]}")
    return [recorded[rank] for rank in RANKS]


def _recorded(launch: Launch, last: int) -> list[Call]:
    """The calls of rank `last` in a save that the other one has finished."""
    first, control = 1 - last, launch.controls[last]
    launch.let(first)
    launch.hear_from(first)
    control.arm(Mode.COUNT)
    launch.let(last)
    launch.hear_from(last)
    control.disarm()
    return control.calls()


def _draw(recorded: Sequence[Sequence[Call]], pairs: int, starts: int, chance: random.Random) -> list[Order]:
    """Every stretch of a save gets its deaths on both ranks.

    Launches die in turn in their second save, which is of a new position, and in their first, which mostly is of one
    that the launch before left torn: that begins with other calls, so late ones are left to second saves.
    """
    late, seconds = pairs // 5, -(-pairs // 2)
    early = [_deaths(rank, recorded[rank], pairs - late, chance, lambda stage: stage not in LATE) for rank in RANKS]
    both = [tuple(chance.sample(pair, 2)) for pair in zip(*early, strict=True)]
    second = [*both[: seconds - late], *(_late(recorded, n % 2, LATE[n // 2 % 2], chance) for n in range(late))]
    first = [tuple(_at_once(death, chance) for death in deaths) for deaths in both[seconds - late :]]
    chance.shuffle(second)
    orders = [Order(2 - n % 2, (first if n % 2 else second).pop()) for n in range(pairs)]
    for _ in range(starts):
        orders.insert(chance.randint(1, pairs), Order(0, (Death(0, chance.randint(1, FIRST_CALLS)),)))
    return orders


def _late(recorded: Sequence[Sequence[Call]], rank: int, where: str, chance: random.Random) -> tuple[Death, ...]:
    """After the vote there is something to do where the other rank has voted before."""
    first = _deaths(1 - rank, recorded[1 - rank], 1, chance, lambda stage: stage == names.META)
    return (*first, *_deaths(rank, recorded[rank], 1, chance, lambda stage: stage == where))


def _at_once(death: Death, chance: random.Random) -> Death:
    """Some of the deaths come while what stands in the way of a save is taken out of it."""
    return death if chance.random() < 0.7 else Death(death.rank, chance.randint(1, FIRST_CALLS))


def _deaths(
    rank: int, calls: Sequence[Call], count: int, chance: random.Random, where: Callable[[str], bool]
) -> list[Death]:
    """One from each of `count` stretches of the calls in those stages, in no order. Many writes in a row weigh no more
    than any other call."""
    staged = zip(_stages((call.kind, call.path) for call in calls), calls, strict=True)
    of_stages = [call for stage, call in staged if where(stage)]
    entries = [list(group) for _, group in itertools.groupby(of_stages, key=_entry)]
    drawn = []
    for n in range(count):
        call = chance.choice(entries[int((n + chance.random()) * len(entries) / count)])
        drawn.append(Death(rank, call.number, half=call.kind is Kind.WRITE and chance.random() < 0.7))
    chance.shuffle(drawn)
    return drawn


def _entry(call: Call) -> tuple[int, int]:
    return (call.inode, call.number // WRITES_IN_A_ROW) if call.kind is Kind.WRITE else (0, call.number)


def _kill(chain: Chain, order: Order) -> tuple[int, str]:
    """How many of those deaths came, and what is wrong after them."""
    launch = chain.launch()
    try:
        with launch:
            at, wrong = _lead_up_to(chain, launch, order.nth)
            if wrong:
                return 0, wrong
            hit = launch.strike(order.deaths)
        chain.stages.update(_stage_of_death(launch.controls[death.rank]) if order.nth else "start" for death in hit)
    finally:
        launch.close()
    return len(hit), _judge(chain, at)


def _lead_up_to(chain: Chain, launch: Launch, nth: int) -> tuple[str, str]:
    """Lets the ranks go on until they wait where they are to die. Gives the position that they are about to save, or
    what is wrong."""
    saves = 0
    while word := launch.hear():
        verb, _, at = word.partition(" ")
        saves += verb == "save" and at not in (chain.floor, "0_0")
        if (nth == 0 and verb == "start") or (verb == "save" and saves == nth > 0):
            return at or chain.floor, ""
        if wrong := _heard(chain, word):
            return "", wrong
        launch.let()
    return "", "the run ended before it"


def _heard(chain: Chain, word: str) -> str:
    """What is wrong with what all ranks just said; each of them waits."""
    verb, _, at = word.partition(" ")
    if verb == "started" and at != (chain.floor or "0_0"):
        return f"it goes on from {at}, expected {chain.floor or 'a fresh start'}"
    if verb == "saved" and at != "0_0":
        chain.floor = at
        if _bits(chain.save, at) != chain.known[at]:
            return f"{at} is not as the undisturbed run has it"
    return ""


def _judge(chain: Chain, coming: str) -> str:
    """What is wrong with the directory, where nobody runs any more; the newest whole one becomes the floor."""
    checkpoint = locate.latest(chain.save).checkpoint if chain.save.is_dir() else None
    found, voted, floor = str(checkpoint.position) if checkpoint else "", _newest_voted(chain.save), chain.floor
    if found != voted or found not in (floor, coming):
        return f"locate finds {found or 'nothing'}, the votes say {voted or 'nothing'}, expected {floor} or {coming}"
    if checkpoint is None:
        return ""
    chain.floor = found
    if findings := verify.check(checkpoint, deep=True):
        return f"{found}: {findings[0].path}: {findings[0].reason}"
    return "" if _bits(chain.save, found) == chain.known[found] else f"{found} is not as the undisturbed run has it"


def _newest_voted(save: Path) -> str:
    """With a vote of each rank, all of one attempt: read from the files alone."""
    whole = []
    for directory in save.glob("commits/*_*"):
        cast = [_attempt_of(vote) for vote in directory.glob("rank_*.json")]
        if ".deleted" not in directory.name and len(cast) == len(RANKS) and len(set(cast)) == 1:
            whole.append(directory.name)
    return max(whole, key=lambda name: [int(number) for number in name.split("_")], default="")


def _attempt_of(vote: Path) -> str:
    try:
        return str(json.loads(vote.read_bytes())["attempt"])
    except ValueError:
        return f"{vote} is torn"


def _bits(save: Path, at: str) -> Bits:
    found: Bits = {}
    for rank in RANKS:
        for file in votes.read(names.vote(save, Position.parse(at), rank)).files:
            header = payload.read_header(save / file.path)
            found[rank, file.role] = (dict(header.digests), header.values)
    return found


def _train_to_the_end(chain: Chain, undisturbed: Chain) -> list[str]:
    """The last launch, which nobody kills; and every way in which its end differs."""
    with chain.launch() as launch:
        while word := launch.hear():
            if wrong := _heard(chain, word):
                return [f"the launch to the end: {wrong}"]
            launch.let()
        launch.ends_well()
    sys.path.append(str(msrun.EXAMPLE.parent))
    from grpo_arithmetic import compare

    try:
        result = compare.runs(undisturbed.save, chain.save)
    except SystemExit as error:
        return [f"at the end: {error}"]
    _say(f"to the end: {result.tensors} tensors compared, {result.differ} differ")
    if result.equal:
        return []
    return [f"at the end {len(row.differing)} of {row.what} differ" for row in result.rows if row.differing]


def _stage_of_death(control: Control) -> str:
    before = [(call.kind, call.path) for call in control.calls()]
    return _stages([*before, (control.hit_kind, control.hit_path)])[-1]


def _stages(calls: Iterable[tuple[Kind, str]]) -> list[str]:
    """Which part of a save or a start each call belongs to; the sync of a directory belongs to what came before it."""
    stages: list[str] = []
    for kind, path in calls:
        before = stages[-1] if stages else "retract"
        stages.append(_stage(kind, Path(path), before) or before)
    return stages


def _stage(kind: Kind, path: Path, before: str) -> str:
    part = names.parse_part(path.name)
    named = names.parse_payload(part[0] if part else path.name)
    if kind is Kind.SYNC and part is None:  # of a directory; retention syncs the votes that it relies on
        return "retention" if names.parse_vote_dir(path.name) and before != "vote" else ""
    removed = kind in (Kind.UNLINK, Kind.RMDIR) and part is None
    if "attempts" in path.parts:
        return "attempt record"
    if removed or (kind is Kind.RENAME and part is None):
        return "retract" if before == "retract" else "retention"
    if named is not None:
        return f"{path.parent.parent.name} payload"
    final = part[0] if part else path.name
    if final in (names.META, names.LATEST):
        return final
    return "vote" if "commits" in path.parts else ""


def _say(text: str) -> None:
    print(f"    trainer: {text}", file=sys.stderr, flush=True)
