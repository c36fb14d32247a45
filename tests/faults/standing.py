"""What retention may take, and what it and a start may believe: each scenario runs undisturbed, and ends with what has
to stand.

That is read off the names in the directory, not asked of the package, which in a mutant is wrong. Then the judge looks.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from faults import cases, hints, judge, stock
from faults.cases import Tally
from faults.job import Job
from faults.processes import in_child
from faults.scenarios import (
    BROKEN_META,
    Dies,
    Scenario,
    Stage,
    breaks_meta,
    goes_back,
    in_order,
    prunes,
    repairs,
    restores,
    save_next,
    start_at,
)
from faults.scenarios import run as run_of
from ms_resume import commit, repair
from ms_resume.errors import Damaged, DirectoryNotEmpty, DiskError, MsResumeError, UsageError
from ms_resume.ondisk import atomic, attempts, meta, names, payload, votes
from ms_resume.records import Position
from ms_resume.resume import choice

if TYPE_CHECKING:
    from faults.campaign import Plan


def run(plan: Plan) -> Tally:
    """Every scenario once."""
    tally = Tally("what has to stand", "scenarios")
    for scenario in plan.draw(plan.named(scenarios())):
        tally.add(check(scenario))
    return tally


def check(scenario: Scenario) -> str:
    """What is wrong at its end; empty when nothing is."""
    _, expected = cases.prepared(scenario)
    with cases.fresh(scenario) as case:
        end = in_child(lambda tell: scenario.act(Stage(case / "save", tell, expected)))
        if end.kind != "returned":
            return f"{scenario}: {end.kind}: {end.value}"
        wrong = judge.look(case / "save", scenario.world_size, expected.hear(*end.told))
        return f"{scenario}: {wrong}" if wrong else ""


def scenarios() -> list[Scenario]:
    plain, three = run_of(1, 2, 4), run_of(1, 2, 4, 6)
    lost = in_order(run_of(1, 2), run_of(1, 4, resume=True), run_of(1, resume=True), _loses_record(2))
    older = in_order(run_of(1, 2, 4), run_of(1, position=Position(0, 2), resume=True), _older_in_its_place)
    back = in_order(run_of(2, 2, 4, 6), goes_back(2, "0_2"))
    return [
        Scenario("a save that keeps one, after one that kept three", 1, run_of(1, 2, 4, 6, 8), _keeps_as_asked),
        Scenario("a save after one that failed on a rank", 2, run_of(2, 2, 4), _saves_after_a_rank_failed),
        Scenario("a save after one whose file was cut", 1, plain, _saves_after_a_cut),
        Scenario("a save whose meta.json cannot be written", 1, plain, _saves_without_meta),
        Scenario("a save that prunes where stock has saved", 1, in_order(three, _stock_saves_at_4), _prunes_past_stock),
        Scenario("a save whose vote directory is taken away", 1, plain, _saves_while_its_directory_goes),
        Scenario("a save before the one that the run began with", 1, three, _saves_before_its_beginning),
        Scenario("a start after the loss of a record", 1, lost, _starts),
        Scenario("a start where a payload is another one", 1, in_order(three, _swaps_a_payload), _starts),
        Scenario("a start where an older file has the place of one aside", 1, older, _starts),
        Scenario("a start while the newest votes are taken", 1, three, _starts_while_votes_are_taken),
        Scenario("a start while the only payload is taken", 1, run_of(1, 2), _starts_while_a_payload_is_taken),
        Scenario("a fresh start where the votes lie aside", 1, in_order(run_of(1, 2), _votes_aside), _starts_afresh),
        Scenario("going back, and what is named", 2, run_of(2, 2, 4, 6), _names_it(start_at(2, "0_4"), "0_4")),
        Scenario("restore, and what is named", 2, back, _names_it(restores("0_6"), "0_6")),
        Scenario("repair, and what is kept", 2, in_order(run_of(2, 2, 4), breaks_meta(2)), _repairs_and_keeps),
        Scenario("prune, and what is left", 2, run_of(2, 2, 4, 6, 8), _prunes),
        Scenario("restore of what is not whole", 1, in_order(three, _swaps_a_payload), _restores_nothing),
    ]


def _stand(save: Path, *positions: str) -> None:
    """Of our checkpoints these and no other, and of what was pruned at most a reference that is named still."""
    files = [(path.parts[-3], name) for path in save.glob("*/rank_*/*") if (name := names.parse_payload(path.name))]
    left = {str(name.position) for directory, name in files if directory != names.DIRECTORIES["ref"]}
    emptied = [path.name for path in names.commits(save).glob("*.deleted-*")]
    voted = {path.name for path in names.commits(save).iterdir() if names.parse_vote_dir(path.name)}
    kept = {name.position for _, name in files}
    if voted != set(positions) or left != voted or any(names.parse_deleted_dir(name) not in kept for name in emptied):
        stand = f"{sorted(voted)} have votes, {sorted(left)} payloads, {emptied} are left"
        raise AssertionError(f"{stand}, expected {positions}")


def _keeps_as_asked(stage: Stage) -> None:
    """Of five and a new one three stay; then one was asked for, and two stay."""
    three = Job(stage.save, 1, 7, keep_last=3)
    three.start()
    stage.saves(three, 10, three.train())
    _stand(stage.save, "0_6", "0_8", "0_10")
    one = stage.job = Job(stage.save, 1, 7, keep_last=1)
    one.start()
    stage.saves(one, 12, one.train())
    _stand(stage.save, "0_10", "0_12")


def _saves_after_a_rank_failed(stage: Stage) -> None:
    """The last rank wrote its payloads and no vote: the position is torn, was never kept, and goes whole."""
    me = Job(stage.save, 2, 7)
    me.start()
    first, last = me.ranks
    stage.saves(me, 6, me.train())
    me.train()
    first.save(8)
    with contextlib.suppress(Dies), mock.patch.object(commit, "cast", side_effect=Dies):
        last.save(8)
    digests = me.train()
    stage.will("0_10", digests)
    for rank in me.ranks:
        rank.save(10)
    for rank in (first, first, last, first):  # rank 0 is ahead of the other
        rank.checkpointer._saver.tidy()
    stage.did("0_10", digests)
    _stand(stage.save, "0_6", "0_10")


def _saves_after_a_cut(stage: Stage) -> None:
    """A checkpoint that has lost half of a file is none of those that are kept: the one before it stays."""
    me = stage.job = Job(stage.save, 1, 7)
    me.start()
    older = stage.expected.floor
    stage.saves(me, 6, me.train())
    path = names.payload(stage.save, "optimizer", 0, Position(0, 6))
    os.truncate(path, path.stat().st_size // 2)
    stage.did(*older)
    stage.saves(me, 8, me.train())
    _stand(stage.save, "0_4", "0_6", "0_8")


def _saves_without_meta(stage: Stage) -> None:
    """What stock code would load stays as long as it is named."""
    me = stage.job = Job(stage.save, 1, 7)
    me.start()
    with mock.patch.object(atomic, "replace", _refuses):
        for step in (6, 8, 10):
            stage.saves(me, step, me.train())
    _stand(stage.save, "0_4", "0_8", "0_10")


def _refuses(path: Path, content: bytes, attempt: str) -> None:
    raise DiskError(f"{path}: cannot replace", hint="", path=str(path), errno=errno.EACCES)


def _stock_saves_at_4(stage: Stage) -> None:
    newest = stage.expected.floor
    stock.trains(1, 4, 2)(stage)
    stage.did(*newest)


def _prunes_past_stock(stage: Stage) -> None:
    """A vote of ours goes, and what it named is not what lies there now."""
    save_next(1, 8)(stage)
    if len(left := [*stage.save.glob("*/rank_0/*-0_4.safetensors")]) != 3:
        raise AssertionError(f"of what stock saved is left {left}")


def _saves_while_its_directory_goes(stage: Stage) -> None:
    """A worker that is slow to die prunes, just now, what it thinks is there."""
    real, dead = atomic.publish, attempts.read_all(stage.save)[-1].attempt
    taken: list[Path] = []

    def publish(path: Path, chunks: Iterable[atomic.Chunk], attempt: str) -> None:
        if not taken and names.parse_vote(path.name) is not None:
            taken.append(path)
            path.parent.rename(names.retired(path.parent, dead))
        real(path, chunks, attempt)

    with mock.patch.object(atomic, "publish", publish):
        save_next(1, 6)(stage)


def _starts(stage: Stage) -> None:
    """From the newest that is acknowledged."""
    position, digests = stage.expected.floor
    me = Job(stage.save, 1, 7)
    me.start()
    if (found := str(me.position)) != position:
        raise AssertionError(f"went on from {found}, not from {position}")
    stage.did(position, digests)


def _names_it(act: Callable[[Stage], None], position: str) -> Callable[[Stage], None]:
    """Every `meta.json` and `latest` name it afterwards."""

    def and_look(stage: Stage) -> None:
        act(stage)
        cast = votes.read_all(names.vote_dir(stage.save, Position.parse(position)))[0]
        if wrong := hints.after_a_save(stage.save, position, tuple(cast.values())):
            raise AssertionError(wrong)

    return and_look


def _repairs_and_keeps(stage: Stage) -> None:
    """Every `meta.json` can be read again, and a copy of what was broken lies beside it."""
    repairs(stage)
    for path in stage.save.glob("*/rank_*/meta.json"):
        if meta.read(path.parent).trouble:
            raise AssertionError(f"{path} is not repaired")
    for path in stage.save.glob("train/rank_*"):
        if (path / "meta.json.broken-1").read_bytes() != BROKEN_META["policy"]:
            raise AssertionError("what was broken is not kept")


def _prunes(stage: Stage) -> None:
    """The newest two of four, on every rank, and no file of the others."""
    prunes(stage)
    _stand(stage.save, "0_6", "0_8")


def _saves_before_its_beginning(stage: Stage) -> None:
    """Such a position would be live by its attempt and dead by its place."""
    me = Job(stage.save, 1, 7)
    me.start()
    me.train()
    with _refused(UsageError):
        me.save(4)


def _starts_afresh(stage: Stage) -> None:
    """It looks unused, and is not."""
    with _refused(DirectoryNotEmpty):
        Job(stage.save, 1, 7).start(resume=False)


def _votes_aside(stage: Stage) -> None:
    directory = names.vote_dir(stage.save, Position(0, 2))
    directory.rename(names.retired(directory, attempts.read_all(stage.save)[-1].attempt))


def _restores_nothing(stage: Stage) -> None:
    with _refused(Damaged):
        repair.restore(stage.save, Position(0, 6))


@contextlib.contextmanager
def _refused(kind: type[MsResumeError]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def _starts_while_votes_are_taken(stage: Stage) -> None:
    _starts_while(stage, names.vote_dir(stage.save, Position(0, 6)))


def _starts_while_a_payload_is_taken(stage: Stage) -> None:
    _starts_while(stage, names.payload(stage.save, "policy", 0, Position(0, 2)))


def _starts_while(stage: Stage, path: Path) -> None:
    """A worker that is slow to die takes it just when the start locates."""
    real, dead = choice.choose, attempts.read_all(stage.save)[-1].attempt
    taken: list[Path] = []

    def choose(*arguments: Any) -> choice.Choice:
        if not taken:
            taken.append(path.rename(names.retired(path, dead)))
        return real(*arguments)

    with mock.patch.object(choice, "choose", choose):
        _starts(stage)


def _loses_record(ordinal: int) -> Callable[[Stage], None]:
    """What went on from that attempt still says how far it is live."""
    return lambda stage: names.attempt_record(stage.save, ordinal).unlink()


def _swaps_a_payload(stage: Stage) -> None:
    """One of that name, size, and attempt, whole in itself: only its vote knows that it is another one."""
    path = names.payload(stage.save, "optimizer", 0, Position(0, 6))
    header = payload.read_header(path)
    assert header.mark is not None  # it is ours
    data = bytearray(path.read_bytes()[header.data_start :])
    at = header.tensors["adam_m.w"]
    data[at.begin] ^= 1
    digests = {**header.digests, "adam_m.w": payload.digest_of(bytes(data[at.begin : at.end]))}
    path.write_bytes(payload.header_block(header.tensors, digests, header.mark, {}) + data)
    stage.did("0_4", stage.expected.known["0_4"])


def _older_in_its_place(stage: Stage) -> None:
    """Two workers that are slow to die: one took a payload, the other one published its own there."""
    path = names.payload(stage.save, "policy", 0, Position(0, 4))
    older = path.read_bytes()
    run_of(1, 4, tag=6, resume=True)(stage)
    path.rename(names.retired(path, attempts.read_all(stage.save)[0].attempt))
    path.write_bytes(older)
