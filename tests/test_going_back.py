"""Going back on purpose: the run goes on from the position that was asked for, or one error says why it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_trees
import pytest
import savers
import stock_trees
from runs import ThreadGroup, TinyRank, run_ranks, tiny_run
from test_resume import error_of, stock_job, tensors

import ms_resume
from ms_resume import locate, retention
from ms_resume.layouts import survey
from ms_resume.ondisk import attempts, meta, names
from ms_resume.records import Position
from ms_resume.resume import session

P = Position.parse
RUN: dict[str, Any] = {"save_every": 2}
EVERY = ("0_2", "0_4", "0_6", "0_8", "1_0")


def go_back(save: Path, position: str, **run: Any) -> Any:
    """Starts at `position`, and leaves before the first step unless told otherwise."""
    at = P(position)
    start = {"position": at, **run.pop("start", {})}
    return tiny_run(save, resume=True, start=start, **{"stop": (at.epoch, at.step), **RUN, **run})


def standing(save: Path) -> dict[str, str]:
    """Each position and its verdict, newest first."""
    return {str(v.position): getattr(v, "kind", "whole") for v in locate.every(save)}


@pytest.mark.parametrize("at", EVERY)
def test_it_goes_on_from_the_position_asked_for(save: Path, finished: Path, at: str) -> None:
    """Newer ones are abandoned by the record alone; every later save is the one of the run that never went back."""
    left = EVERY[EVERY.index(at) + 1 :]
    payloads = {path: c for path, c in savers.files(save).items() if not path.endswith(".json")}
    ranks = go_back(save, at).ok()

    assert [rank.start for rank in ranks] == [P(at)] * 2
    assert standing(save) == {p: "abandoned" if p in left else "whole" for p in reversed(EVERY)}
    assert {path: c for path, c in savers.files(save).items() if not path.endswith(".json")} == payloads
    for role in ("policy", "optimizer"):
        assert {meta.read(names.rank_dir(save, role, rank)).position for rank in (0, 1)} == {P(at)}

    tiny_run(save, resume=True, **RUN).ok()

    assert set(standing(save).values()) == {"whole"}
    assert [tensors(save, p) for p in left] == [tensors(finished, p) for p in left]


def test_the_banner_names_what_is_left_behind(save: Path) -> None:
    """Nobody wonders afterwards where the newer ones went; a torn one keeps its own reason."""
    names.vote(save, P("0_6"), 1).unlink()
    ranks = go_back(save, "0_4").ok()

    banner = ranks[0].said[0].splitlines()
    assert "RESUMING at 0_4" in banner[1]
    assert banner[3:5] == [f"  passed over {p}: left behind: 0_4 was asked for" for p in ("1_0", "0_8")]
    assert banner[5].startswith("  passed over 0_6: torn: no vote of rank 1")


def test_it_is_not_undone_by_the_next_start(save: Path) -> None:
    """A crash right after going back: the plain resume stays on that line."""
    go_back(save, "0_4").ok()

    assert tiny_run(save, resume=True, stop=(0, 4), **RUN).ok()[0].start == P("0_4")


def test_twice_and_further_back(save: Path) -> None:
    """What the second attempt saved is left behind with the rest."""
    go_back(save, "0_6", stop=(0, 9)).ok()
    go_back(save, "0_2").ok()

    assert [p for p, kind in standing(save).items() if kind == "whole"] == ["0_2"]


def _retire(save: Path, position: str) -> None:
    """What retention leaves before the ranks remove their payloads."""
    writer = savers.writer(save, attempts.read_all(save)[-1])
    retention._retire(writer, survey.take(save), P(position))


REFUSED: list[tuple[str, Callable[[Path], object], int, str, str]] = [
    # asked for  what happened to it                                                      code, said, what to do
    ("0_5", lambda save: None, 10, "no position 0_5, there are 1_0, 0_8, 0_6, 0_4, 0_2", "ms-resume ls"),
    ("0_4", lambda save: go_back(save, "0_2").ok(), 10, "0_4 is abandoned: attempt 000001", "`ms-resume restore /"),
    ("0_4", lambda save: own_trees.vote_path(save, "0_4", 1).unlink(), 20, "0_4 is torn: no vote of rank 1", "ls"),
    ("0_4", lambda save: own_trees.payload_path(save, "0_4", 0, "state").unlink(), 20, "0_4 is torn: state/", "ls"),
    (
        "0_4",
        lambda save: own_trees.flip(own_trees.payload_path(save, "0_4", 1, "optimizer"), 9),
        21,
        "0_4 is dam",
        "ls",
    ),
    ("0_2", lambda save: _retire(save, "0_2"), 20, "0_2 is torn: retention has deleted it", "ls"),
]


@pytest.mark.parametrize(("at", "happened", "code", "said", "to_do"), REFUSED)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_position_that_cannot_be_had(
    save: Path, at: str, happened: Callable[[Path], object], code: int, said: str, to_do: str, fresh: bool
) -> None:
    """The reason, what to do, and nothing changed: neither another position nor a fresh start is what was asked for."""
    happened(save)
    before = savers.files(save)
    error = error_of(go_back(save, at, start={"allow_fresh_start": fresh}))

    assert (int(error.exit_code), said in error.message) == (code, True), error
    assert to_do in error.hint
    assert savers.files(save) == before


def test_in_an_empty_directory(tmp_path: Path) -> None:
    """A plain resume would start fresh there; this one says that there is nothing."""
    error = error_of(go_back(tmp_path, "0_4"))

    assert (int(error.exit_code), "there is none" in error.message) == (10, True), error
    assert savers.files(tmp_path) == {}


def test_no_other_one_is_taken_when_it_turns_out_damaged(save: Path) -> None:
    """A flipped bit in the data: found while loading, on rank 1 alone; a plain resume would fall back to 0_4."""
    own_trees.flip_tensor(own_trees.payload_path(save, "0_6", 1, "optimizer"), "adam_m.w")
    before = savers.files(save)
    error = error_of(go_back(save, "0_6"))

    assert (int(error.exit_code), "tensor 'adam_m.w'" in error.message) == (21, True), error
    assert "ask for another position" in error.hint
    assert savers.files(save) == before


def test_a_position_without_resume(save: Path) -> None:
    """One of the two arguments is a mistake."""
    before = savers.files(save)
    error = error_of(tiny_run(save, start={"position": P("0_4"), "allow_fresh_start": True}))

    assert (int(error.exit_code), "without resume" in error.message) == (2, True), error
    assert savers.files(save) == before


@pytest.mark.parametrize("other", ["0_2", None])
def test_ranks_that_ask_for_different_positions(save: Path, other: str | None) -> None:
    """Rank 0's choice is not forced on a rank that was started with another one."""
    before = savers.files(save)

    def rank_main(group: ThreadGroup) -> None:
        asked = "0_4" if group.rank == 0 else other
        TinyRank(group.rank).saves_in(save, group).start(resume=True, position=P(asked) if asked else None)

    error = error_of(run_ranks(2, rank_main))

    assert (int(error.exit_code), "disagree about position" in error.message) == (20, True), error
    assert savers.files(save) == before


def test_from_another_directory(save: Path, tmp_path: Path) -> None:
    """The old directory is as it was: nothing there is abandoned."""
    before, new = savers.files(save), tmp_path / "new"
    ranks = go_back(new, "0_4", start={"source": save}, stop=None).ok()

    assert ranks[0].start == P("0_4")
    assert savers.files(save) == before
    assert set(standing(save).values()) == {"whole"}
    assert standing(new) == dict.fromkeys(reversed(EVERY[1:]), "whole")


def _no_more(checkpointer: ms_resume.Checkpointer, seen: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("asked", "start", "whole"), [("0_5", "0_5", ["0_5"]), ("1_0", "1_0", ["1_100", "0_10", "0_5"])]
)
def test_a_stock_position(tmp_path: Path, asked: str, start: str, whole: list[str]) -> None:
    """Stock's files cannot be abandoned by name: the record lists them; its final form goes by what it means."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10), (1, 100))
    ranks = stock_job(tmp_path, _no_more, position=P(asked))
    again = stock_job(tmp_path, _no_more)

    assert [seen["start"] for seen in (*ranks, *again)] == [P(start)] * 4
    assert [p for p, kind in standing(tmp_path).items() if kind == "whole"] == whole


def test_the_name_goes_before_the_meaning(tmp_path: Path) -> None:
    """A run of one epoch ended, a longer one saved the same position under its own name."""
    stock_trees.healthy(tmp_path, (1, 0), (1, 100))
    located = [locate.at(tmp_path, P(asked), steps_per_epoch=100) for asked in ("1_0", "1_100")]

    assert [str(found.checkpoint.position) for found in located if found.checkpoint] == ["1_0", "1_100"]


def test_past_ours_to_stocks(tmp_path: Path) -> None:
    """Both kinds side by side: ours of a later position is left behind, too."""
    stock_trees.f1(tmp_path)
    stock_job(tmp_path, lambda checkpointer, seen: checkpointer.save(0, 12))
    ranks = stock_job(tmp_path, _no_more, position=P("0_5"))

    assert ranks[0]["start"] == P("0_5")
    assert standing(tmp_path) == {"0_12": "abandoned", "0_10": "abandoned", "0_5": "whole"}


def test_latest_points_to_where_it_went_back(save: Path) -> None:
    """Before the first save, too: what it pointed to is abandoned."""
    go_back(save, "0_4").ok()

    assert os.readlink(save / "latest") == "commits/0_4"


@pytest.mark.parametrize("after", ["load_newest", "_open_record"])
@pytest.mark.parametrize("what", ["payload", "vote", "reference"])
def test_what_is_pruned_while_it_is_loaded(
    save: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    after: str,
) -> None:
    """By a job that is not dead yet. Going on would leave nothing to the start after a second death, and a record
    would leave behind what that job has saved since."""
    goes = {
        "payload": names.payload(save, "policy", 1, P("1_0")),
        "vote": names.vote(save, P("1_0"), 1),
        "reference": next((save / "ref/rank_1").glob("*.safetensors")),
    }[what]
    real = getattr(session, after)

    def then_pruned(*args: Any) -> Any:
        done = real(*args)
        goes.unlink(missing_ok=True)
        return done

    monkeypatch.setattr(session, after, then_pruned)
    error = error_of(tiny_run(save, resume=True, **RUN))

    assert (int(error.exit_code), "taken away while it was loaded" in error.message) == (61, True), error
    assert len(attempts.read_all(save)) == 1
