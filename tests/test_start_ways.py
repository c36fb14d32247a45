"""Every way to start, by flags: its banner to the letter, what it restored, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import own_trees
import pytest
import savers
import stock_trees
from runs import TinyRank, tiny_run
from start_flags import banner, job, trains
from test_going_back import standing
from test_resume import error_of, tensors
from test_warm_start import changed, held

import ms_resume
from ms_resume import repair
from ms_resume.ondisk import names
from ms_resume.records import Position

P = Position.parse
EVERY = ("0_2", "0_4", "0_6", "0_8", "1_0")


def as_of(save: Path, at: str, rank: int = 0) -> dict[str, bytes]:
    """What a rank held at a position."""
    start = {"source": save, "position": P(at)}
    position = P(at)
    ranks = tiny_run(
        save.parent / f"copy{at}", resume=True, stop=(position.epoch, position.step), epochs=9, start=start
    )
    return held(ranks.ok()[rank])


RESTORED = "  restored and verified (MIB in S): policy, optimizer, ref, randomness, scale"


@pytest.mark.parametrize("flag", ["--resume_training", "--auto_resume", "--resume_from auto"])
def test_the_newest(save: Path, flag: str) -> None:
    """Three names of one thing: everything, from the newest whole checkpoint."""
    ranks = job(save, *flag.split()).ok()

    assert banner(ranks, save=save) == [
        "ms_resume: RESUMING at 1_0 from SAVE (ours, layout ms_resume, attempt 000001)",
        "  attempt 000002 writes to SAVE",
        f"  asked for: {flag}",
        RESTORED,
    ]
    assert held(ranks[1]) == as_of(save, "1_0", rank=1)
    assert ranks[1].checkpointer is not None
    assert ranks[1].checkpointer.loaded == {"policy", "optimizer", "ref"}


def test_a_global_step(save: Path) -> None:
    """Newer ones are left behind, said so, and the command that the banner names brings them back."""
    ranks = job(save, "--resume_from", "4").ok()

    assert banner(ranks, save=save) == [
        "ms_resume: RESUMING at 0_4 from SAVE (ours, layout ms_resume, attempt 000001)",
        "  attempt 000002 writes to SAVE",
        "  asked for: --resume_from 4",
        "  passed over 1_0: left behind: 0_4 was asked for",
        "  passed over 0_8: left behind: 0_4 was asked for",
        "  passed over 0_6: left behind: 0_4 was asked for",
        RESTORED,
        "  note: `ms-resume restore SAVE 1_0` brings back what is left behind",
    ]
    assert [me.start for me in ranks] == [P("0_4")] * 2
    assert held(ranks[1]) == as_of(save, "0_4", rank=1)
    assert [p for p, kind in standing(save).items() if kind == "abandoned"] == ["1_0", "0_8", "0_6"]

    repair.restore(save, P("1_0"))

    assert set(standing(save).values()) == {"whole"}


def test_a_global_step_is_the_votes_own(tmp_path: Path) -> None:
    """Where the optimizer counts otherwise than the position does: an update that was skipped."""

    def skipped_two(me: TinyRank) -> None:
        me.optimizer["global_step"][...] = -2

    job(tmp_path, prepare=skipped_two, act=trains(save_every=2)).ok()

    assert job(tmp_path, "--resume_from", "4").ok()[0].start == P("0_6")


@pytest.mark.parametrize(
    ("step", "nearest"),
    [
        (5, "the nearest are 2 (0_2), 4 (0_4), 6 (0_6), 8 (0_8)"),
        (0, "the nearest are 2 (0_2), 4 (0_4)"),
        (99, "the nearest are 8 (0_8), 10 (1_0)"),
    ],
)
def test_a_global_step_that_is_not_there(save: Path, step: int, nearest: str) -> None:
    """The nearest whole ones are named, and nothing is changed."""
    before = savers.files(save)
    error = error_of(job(save, "--resume_from", str(step), "--allow_fresh_start"))

    assert error.message == f"rank 0: {save}: no checkpoint of global step {step}, {nearest}"
    assert error.exit_code == 10
    assert savers.files(save) == before


def test_a_torn_one_is_not_the_nearest(save: Path) -> None:
    """What cannot be had is not offered; asked for by its own step it says why not."""
    names.vote(save, P("0_4"), 1).unlink()

    assert "the nearest are 2 (0_2), 6 (0_6)" in error_of(job(save, "--resume_from", "5")).message
    assert "0_4 is torn: no vote of rank 1" in error_of(job(save, "--resume_from", "4")).message


def test_a_global_step_of_stocks(tmp_path: Path) -> None:
    """Stock code says none: positions are counted, its final form as the end of the epoch before."""
    stock_trees.healthy(tmp_path, (0, 5), (0, 10), (1, 100))
    error = error_of(job(tmp_path, "--resume_from", "50", steps_per_epoch=100))

    assert "the nearest are 5 (0_5), 10 (0_10), 100 (1_100)" in error.message


def test_after_a_step_was_left_behind_it_is_brought_back_first(save: Path) -> None:
    """The error names the command."""
    job(save, "--resume_from", "4").ok()
    error = error_of(job(save, "--resume_from", "8"))

    assert "0_8 is abandoned" in error.message
    assert "ms-resume restore" in error.hint


GIVEN = [
    ("{save}", "1_0", []),
    ("{save}/train", "1_0", []),
    ("{save}/latest", "1_0", []),
    ("{save}/commits/0_4", "0_4", ["1_0", "0_8", "0_6"]),
    ("{save}/train/rank_1/policy_model_rank_1-0_6.safetensors", "0_6", ["1_0", "0_8"]),
    ("{save}/state/rank_0/state_rank_0-0_6.safetensors", "0_6", ["1_0", "0_8"]),
    ("{link}", "1_0", []),
]


@pytest.mark.parametrize(("path", "at", "left"), GIVEN)
def test_a_path(save: Path, tmp_path: Path, path: str, at: str, left: list[str]) -> None:
    """A directory, a position in it, a file of one, a link to any of them."""
    (tmp_path / "link").symlink_to(save)
    given = path.format(save=save, link=tmp_path / "link")
    ranks = job(save, "--resume", "--checkpoint_path", given).ok()

    assert banner(ranks, save=save, tmp=tmp_path)[:3] == [
        f"ms_resume: RESUMING at {at} from SAVE (ours, layout ms_resume, attempt 000001)",
        "  attempt 000002 writes to SAVE",
        "  asked for: --resume --checkpoint_path " + given.replace(str(save), "SAVE").replace(str(tmp_path), "TMP"),
    ]
    assert ranks[1].start == P(at)
    assert [p for p, kind in standing(save).items() if kind == "abandoned"] == left


def test_a_path_elsewhere(save: Path, tmp_path: Path) -> None:
    """What is saved there stays as it is: the run goes on in its own directory."""
    before, new = savers.files(save), tmp_path / "new"
    path = f"{save}/commits/0_4"
    ranks = job(new, "--resume", "--checkpoint_path", path, act=trains(save_every=2)).ok()

    assert ranks[0].start == P("0_4")
    assert savers.files(save) == before
    assert tensors(new, "1_0") == tensors(save, "1_0")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone", "does not exist"),
        ("nowhere", "a link to /no/where, which does not exist"),
        ("model_00100.pt", "a file that is no checkpoint of MindRLHF's or ours"),
        ("hf", "holds a Hugging Face model"),
        ("empty", "holds no checkpoint"),
        ("save/ref/rank_0/ref_rank_0-0_2.safetensors", "a file that is no checkpoint"),
    ],
)
def test_a_path_to_something_else(save: Path, tmp_path: Path, path: str, said: str) -> None:
    """One error: what it is, what was expected, and the flag for weights alone."""
    (tmp_path / "nowhere").symlink_to("/no/where")
    (tmp_path / "model_00100.pt").write_bytes(b"torch")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/model.safetensors").touch()
    before = savers.files(save)
    error = error_of(job(save, "--resume", "--checkpoint_path", str(tmp_path / path)))

    assert (int(error.exit_code), f"{tmp_path / path}: {said}" in error.message) == (2, True), error
    assert "<save>/commits/E_S" in error.message
    assert savers.files(save) == before


def test_weights_alone(save: Path, tmp_path: Path) -> None:
    """A new run: position, optimizer, and random state are the trainer's own."""
    ranks = job(tmp_path / "new", "--pretrained_checkpoint", str(save)).ok()

    assert banner(ranks, save=save, new=tmp_path / "new") == [
        "ms_resume: WARM START from SAVE at 1_0 (ms_resume, attempt 000001)",
        "  attempt 000001 writes to NEW",
        "  asked for: --pretrained_checkpoint SAVE",
        "  weights alone (MIB in S): 2 tensors of the policy",
        "  untouched, as the trainer built it: optimizer, position, random state",
    ]
    assert changed(ranks[0]) == {"policy w", "optimizer w"}
    assert ranks[0].start == P("0_0")
    assert ranks[0].checkpointer is not None
    assert ranks[0].checkpointer.loaded == {"policy"}


def test_no_flag(tmp_path: Path) -> None:
    """From the start, with the trainer's own weights; not beside checkpoints."""
    ranks = job(tmp_path).ok()

    assert banner(ranks, save=tmp_path) == [
        "ms_resume: FRESH START: nothing here was ever a whole checkpoint",
        "  attempt 000001 writes to SAVE",
    ]
    assert changed(ranks[0]) == set()
    assert ranks[0].checkpointer is not None
    assert ranks[0].checkpointer.loaded == frozenset()


@pytest.mark.parametrize("flags", [[], ["--resume_from", "none"], ["--pretrained_checkpoint", "{save}"]])
def test_a_new_run_beside_checkpoints(save: Path, flags: list[str]) -> None:
    """Refused, unless it was allowed: then they are abandoned."""
    flags = [flag.format(save=save) for flag in flags]
    error = error_of(job(save, *flags))
    job(save, *flags, "--allow_fresh_start").ok()

    assert error.exit_code == 62
    assert set(standing(save).values()) == {"abandoned"}


# -- when it saves


@pytest.mark.parametrize(
    ("interval", "saved"),
    [
        ([], ["3_0"]),  # 5000 by default: at the end alone
        (["--checkpoint_interval", "4"], ["0_4", "1_3", "2_2", "3_0"]),
        (["--checkpoint_interval", "5"], ["1_0", "2_0", "3_0"]),
    ],
)
def test_the_interval_is_in_global_steps(tmp_path: Path, interval: list[str], saved: list[str]) -> None:
    """Step 0 is not saved, the last one always; where an epoch ends does not matter."""
    job(tmp_path, *interval, act=trains(epochs=3), steps_per_epoch=5).ok()

    assert list(reversed(standing(tmp_path))) == saved


def test_the_interval_of_a_trainer_that_asks(tmp_path: Path) -> None:
    """`due` knows it as well; a resume in the middle of an interval keeps its place."""

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        first = checkpointer.position
        me.positions = [(e, s) for e in range(3) for s in range(5) if (e, s) >= (first.epoch, first.step)]
        me.positions = [position for position in me.positions if checkpointer.due(*position)]
        checkpointer.save(0, 3)

    flags = ["--checkpoint_interval", "4"]
    first = job(tmp_path, *flags, act=act, steps_per_epoch=5).ok()
    again = job(tmp_path, *flags, "--auto_resume", act=act, steps_per_epoch=5).ok()

    assert again[0].start == P("0_3")
    assert first[0].positions == again[0].positions == [(0, 4), (1, 3), (2, 2)]


def test_a_start_without_flags_saves_when_the_trainer_says(tmp_path: Path) -> None:
    """The default interval comes with the flags."""
    rank = tiny_run(tmp_path, world_size=1, epochs=0).ok()[0]

    assert rank.checkpointer is not None
    assert rank.checkpointer.due(500, 0) == ""


def test_a_schedule_of_the_trainers_own(tmp_path: Path) -> None:
    """It stands where the flag was not given; the default is for a trainer that has none."""
    due: dict[bool, list[str]] = {}

    def act(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        due[own] = [checkpointer.due(*position) for position in ((0, 3), (1666, 2))]

    for own in (True, False):
        more = {"schedule": ms_resume.Schedule(every_steps=100)} if own else {}
        job(tmp_path / str(own), act=act, world_size=1, steps_per_epoch=3, **more).ok()

    assert due == {True: ["", ""], False: ["", "every 5000 global steps"]}


@pytest.mark.parametrize(("keep", "left"), [("-1", [*EVERY]), ("2", ["0_8", "1_0"]), ("3", ["0_6", "0_8", "1_0"])])
def test_how_many_are_kept(tmp_path: Path, keep: str, left: list[str]) -> None:
    """Across a restart, too: what the run before left counts."""
    flags = ["--keep_last_n_checkpoints", keep, "--checkpoint_interval", "2"]

    def half(checkpointer: ms_resume.Checkpointer, me: TinyRank) -> None:
        for step in range(2, 7, 2):
            checkpointer.save(0, step)

    job(tmp_path, *flags, act=half).ok()
    job(tmp_path, *flags, "--auto_resume", act=trains()).ok()

    assert list(reversed(standing(tmp_path))) == left


# -- falling back


def test_the_next_older_one(save: Path) -> None:
    """Each that turned out damaged while it was loaded, with its tensor."""
    for position in ("1_0", "0_8"):
        own_trees.flip_tensor(own_trees.payload_path(save, position, 1, "optimizer"), "adam_m.w")
    ranks = job(save, "--auto_resume", "--max_rollback", "2").ok()
    said = banner(ranks, save=save)

    assert said[0].startswith("ms_resume: RESUMING at 0_6 from SAVE")
    assert [line.partition(": its bytes")[0] for line in said[3:5]] == [
        f"  passed over {p}: damaged: rank 1: SAVE/optimizer/rank_1/optimizer_rank_1-{p}.safetensors: tensor 'adam_m.w'"
        for p in ("1_0", "0_8")
    ]
    assert held(ranks[0]) == as_of(save, "0_6")


@pytest.mark.parametrize("fresh", [[], ["--allow_fresh_start"]])
def test_no_further_than_that(save: Path, fresh: list[str]) -> None:
    """Then it stops, and names the flag; a fresh start is none of the older ones."""
    for position in ("1_0", "0_8"):
        own_trees.flip_tensor(own_trees.payload_path(save, position, 1, "optimizer"), "adam_m.w")
    before = savers.files(save)
    error = error_of(job(save, "--auto_resume", "--max_rollback", "1", *fresh))

    assert error.exit_code == 21
    assert "--max_rollback" in error.hint
    assert savers.files(save) == before


def test_nothing_whole_is_left(save: Path) -> None:
    """A table of all, and the flag that begins anew, which does."""
    for position in EVERY:
        own_trees.payload_path(save, position, 1, "state").unlink()
    error = error_of(job(save, "--auto_resume"))
    ranks = job(save, "--auto_resume", "--allow_fresh_start").ok()

    assert error.exit_code == 10
    assert [f"{p}  torn: state/rank_1" in error.message for p in EVERY] == [True] * 5
    assert "--allow_fresh_start" in error.hint
    assert banner(ranks, save=save)[0] == "ms_resume: FRESH START: a fresh start was allowed"


# -- a finished run


def test_nothing_left(save: Path) -> None:
    """It says so, trains nothing, saves nothing, and ends well."""
    before = {path: c for path, c in savers.files(save).items() if "attempts" not in path}
    ranks = job(save, "--resume_training", act=trains()).ok()

    assert ranks[0].said[-1] == "ms_resume: nothing left: the run of 1 epochs ended at 1_0"
    assert ranks[0].positions == []
    assert {path: c for path, c in savers.files(save).items() if "attempts" not in path} == before


def test_with_more_epochs_it_goes_on(save: Path, tmp_path: Path) -> None:
    """At the right place: what comes equals the run that had them from the beginning."""
    tiny_run(tmp_path / "long", epochs=2, save_every=2).ok()
    ranks = job(save, "--resume_training", act=trains(epochs=2, save_every=2)).ok()

    assert ranks[0].positions[0] == (1, 0)
    assert tensors(save, "2_0") == tensors(tmp_path / "long", "2_0")


# -- started again by a supervisor


@pytest.mark.parametrize("flags", [["--resume_from", "4"], ["--resume", "--checkpoint_path", "{save}/commits/0_4"]])
def test_going_back_is_done_once(save: Path, flags: list[str]) -> None:
    """The same command with --restarted goes on from what came after; a person who types it again goes back again."""
    flags = [flag.format(save=save) for flag in flags]
    job(save, *flags, act=trains(save_every=3)).ok()

    assert job(save, *flags, "--restarted").ok()[0].start == P("1_0")
    assert job(save, *flags).ok()[0].start == P("0_4")


@pytest.mark.parametrize("flags", [["--resume_from", "4"], ["--resume", "--checkpoint_path", "{save}/commits/0_4"]])
def test_what_it_went_back_to_is_gone_since(save: Path, flags: list[str]) -> None:
    """Retention takes it when newer ones are there: the same command goes on all the same."""
    flags = [flag.format(save=save) for flag in flags]
    job(save, *flags, act=trains(save_every=2), configured={"keep_last": 2}).ok()

    assert "0_4" not in standing(save)
    assert job(save, *flags, "--restarted").ok()[0].start == P("1_0")


def test_a_first_start_that_did_not_get_there(save: Path) -> None:
    """Nothing was gone back to yet: that is done now."""
    assert job(save, "--resume_from", "4", "--restarted").ok()[0].start == P("0_4")


def test_from_elsewhere_is_done_once(save: Path, tmp_path: Path) -> None:
    """A new directory, which has its own checkpoints by then."""
    flags = ["--resume", "--checkpoint_path", str(save)]
    job(tmp_path / "new", *flags, act=trains(epochs=2, save_every=5)).ok()
    error = error_of(job(tmp_path / "new", *flags))
    ranks = job(tmp_path / "new", *flags, "--restarted").ok()

    assert error.exit_code == 62
    assert ranks[0].start == P("2_0")
    assert f"from {tmp_path / 'new'}" in ranks[0].said[0]


def test_from_elsewhere_where_a_run_has_gone_on_from_itself(save: Path, tmp_path: Path) -> None:
    """That is not what is asked for now."""
    new = tmp_path / "new"
    for flags in ([], ["--auto_resume"]):
        job(new, *flags, act=trains(save_every=5)).ok()
    ranks = job(new, "--resume", "--checkpoint_path", str(save), "--allow_fresh_start", "--restarted").ok()

    assert f"RESUMING at 1_0 from {save} " in ranks[0].said[0]


def test_a_new_run_from_weights_is_begun_once(save: Path, tmp_path: Path) -> None:
    """Where it has saved nothing yet the weights are loaded again, else it goes on."""
    flags = ["--pretrained_checkpoint", str(save), "--restarted"]
    first = job(tmp_path / "new", *flags).ok()
    second = job(tmp_path / "new", *flags, act=trains(save_every=5)).ok()
    third = job(tmp_path / "new", *flags).ok()

    assert [ranks[0].said[0].split()[2] for ranks in (first, second)] == ["WARM", "WARM"]
    assert third[0].start == P("1_0")


def test_what_a_supervisor_goes_back_to(save: Path) -> None:
    """Its own word comes after that of the command."""
    configured = {"resume_at": "0_2"}

    assert job(save, "--resume_from", "6", configured=configured).ok()[0].start == P("0_2")
