"""What may be deleted, as a table; and that nothing else is."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import savers
import stock_trees
from runs import tiny_run

import ms_resume
from ms_resume import locate, retention, write
from ms_resume.layouts import survey
from ms_resume.ondisk import attempts, names
from ms_resume.records import Checkpoint, Position, Vote, Writer
from ms_resume.retention import Keep, Standing, removable, wanted

P = Position.parse


def positions(have: str) -> list[Standing]:
    """`5` live, `5w` weights alone, `5!` torn, `5~` abandoned, `5?` damaged; of attempt 1, or 2 with a `b` behind."""
    states = {"": "live", "w": "weights", "!": "torn", "~": "abandoned", "?": "damaged"}
    standing = []
    for entry in have.split():
        match = re.fullmatch(r"(\d+)([w!~?]?)(b?)", entry)
        assert match
        standing.append(Standing(Position(0, int(match[1])), states[match[2]], match[3] or "a"))
    return standing


@pytest.mark.parametrize(
    ("have", "keep_last", "kept", "gone"),
    [
        ("", 2, "", []),
        ("100", 2, "", []),
        ("100 200 300", 2, "", [100]),
        ("300 100 200", 2, "", [100]),
        ("100 200 300", 5, "", []),
        ("100 200 300", 1, "", [100]),  # one damaged newest must not be the end
        ("100 200 300", 0, "", []),
        ("100 200 300", -1, "", []),
        ("100 200! 250!", 2, "", []),  # two torn newer ones do not evict the only good one
        ("100 200 250! 300!", 2, "", []),
        ("50! 100 200", 2, "", [50]),
        ("100 150! 200", 2, "", [150]),  # its own attempt has gone past it
        ("100 150!b 200", 2, "", []),  # another attempt's: it may be brought back
        ("50!b 100 200", 2, "", [50]),
        ("50~ 100 200", 2, "", [50]),
        ("50~b 100~b 100 200 300~b", 2, "", [50]),  # not beyond the oldest that stays
        ("50? 100 200", 2, "", [50]),
        ("100 200? 300", 2, "", []),  # a damaged one does not count, nor is it garbage
        ("100 200 300 400", 2, "100", [200]),
        ("100 200 300 400", 2, "100 200", []),
        ("50! 100", 2, "", []),  # below two complete ones nothing goes
        ("200! 100~ 50~", 2, "", []),
        ("100 200 300w 400w", 2, "", []),  # they evict nothing that a resume can take
        ("100w 200w 300w", 2, "", [100]),
        ("100w 200w 300w", 2, "100", []),
        ("100 200w 300 400w 500w", 2, "", [200]),
        ("50w 100 200", 2, "", [50]),
    ],
)  # fmt: skip  # one row per case
def test_removable(have: str, keep_last: int, kept: str, gone: list[int]) -> None:
    """Each row: what is on disk, the policy, what is protected, and exactly what may go."""
    protected = [Position(0, int(step)) for step in kept.split()]
    removed = removable(positions(have), keep_last=keep_last, protected=protected)

    assert [p.step for p in removed] == gone


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(2), []),
        (Keep(2, every=20), [2, 4, 6]),
        (Keep(2, every=1000), []),
        (Keep(2, best="max:reward"), [4]),  # of equal ones the newest
        (Keep(2, best="min:reward"), [1]),
        (Keep(2, best="max:loss"), [6]),  # a NaN is not the best, nor what is no number to a computer
        (Keep(2, best="min:loss"), [6]),
        (Keep(2, best="max:unheard_of"), []),
        (Keep(2, best="max:name"), []),
        (Keep(2, every=30, best="max:reward"), [3, 4, 6]),
    ],
)  # fmt: skip  # one row per case
def test_wanted(keep: Keep, kept: list[int]) -> None:
    """Of what is complete; the torn one would be the best."""
    rewards = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.9, 5: 2.0, 6: 0.3}
    loss = {5: -1.0, 6: 0.2, 1: math.nan, 2: 10**400}
    standing = [
        Standing(Position(0, n), "torn" if n == 5 else "live", "a", 10 * n, {"reward": r, "name": "x"} | extra)
        for n, r in rewards.items()
        for extra in [{"loss": loss[n]} if n in loss else {}]
    ]

    assert sorted(p.step for p in wanted(standing, keep)) == kept


def test_the_best_and_every_tenth_stay(tmp_path: Path) -> None:
    """By what the votes say: across restarts, too."""
    for number, reward in enumerate((0.5, 0.9, 0.1, 0.2, 0.3, 0.4), start=1):
        who = savers.writer(
            tmp_path, savers.open_attempt(tmp_path, f"0_{number - 1}" if number > 1 else "", by=_last(tmp_path))
        )
        write.save(who, savers.snapshot(f"0_{number}"), {**savers.ABOUT, "metrics": {"reward": reward}}, None)
        retention.sweep(who, survey.take(tmp_path), Keep(2, every=4, best="max:reward"))

    assert complete(tmp_path) == ["0_6", "0_5", "0_4", "0_2"]


def _last(save: Path) -> str | None:
    records = attempts.read_all(save) if save.exists() else []
    return records[-1].attempt if records else None


def complete(save: Path) -> list[str]:
    return [str(v.position) for v in locate.every(save) if isinstance(v, Checkpoint)]


def tidy(*writers: Writer, keep_last: int = 2) -> None:
    retention.sweep(writers[0], survey.take(writers[0].save), Keep(keep_last))
    for who in writers:
        retention.remove_payloads(who)


def saved(save: Path, steps: Iterable[int], who: Writer | None = None) -> Writer:
    who = who or savers.writer(save, savers.open_attempt(save))
    for step in steps:
        savers.save(who, f"0_{step}")
    return who


def payloads(save: Path) -> set[str]:
    return {path.name for path in save.rglob("*.safetensors")}


def test_a_run_keeps_the_newest(tmp_path: Path) -> None:
    """The others are gone on all ranks when the run ends, but for the reference that all name."""
    tiny_run(tmp_path, save_every=2, settings=ms_resume.Settings(keep_last=3, heartbeat_s=0)).ok()

    assert complete(tmp_path) == ["1_0", "0_8", "0_6"]
    assert {path.name for path in names.rank_dir(tmp_path, "ref", 1).glob("ref*")} == {"ref_rank_1-0_2.safetensors"}
    for role, rank in (("policy", 0), ("optimizer", 1), ("state", 0)):
        left = names.rank_dir(tmp_path, role, rank).glob("*.safetensors")
        assert {path.stem.rpartition("-")[2] for path in left} == {"0_6", "0_8", "1_0"}


def test_a_reference_stays_while_a_vote_names_it(tmp_path: Path) -> None:
    """Written once at 0_1, named by all; it goes with the last of them."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    previous: Vote | None = None
    for step in range(1, 6):
        previous = savers.save(who, f"0_{step}", previous, ref=1.0 if step < 4 else 2.0)
        tidy(who)
    reference = names.payload(tmp_path, "ref", 0, P("0_1"))
    assert complete(tmp_path) == ["0_5", "0_4"]
    assert not reference.exists()

    assert {path.name for path in reference.parent.glob("ref*")} == {"ref_rank_0-0_4.safetensors"}


def test_a_reference_of_a_deleted_position_is_kept_for_others(tmp_path: Path) -> None:
    """0_1 is gone, what 0_3 and 0_4 rely on is not."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    previous: Vote | None = None
    for step in range(1, 5):
        previous = savers.save(who, f"0_{step}", previous)
        tidy(who)

    assert complete(tmp_path) == ["0_4", "0_3"]
    assert names.payload(tmp_path, "ref", 0, P("0_1")).exists()
    assert not names.payload(tmp_path, "policy", 0, P("0_1")).exists()


def test_what_is_never_deleted(tmp_path: Path) -> None:
    """A pinned position, and one that a train meta.json names."""
    who = saved(tmp_path, (1, 2))
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "0_1").touch()
    saved(tmp_path, (3, 4, 5), who)
    path = names.rank_dir(tmp_path, "policy", 0) / names.META
    path.write_text('{"last_epoch": 0, "last_step": 3, "last_ckpt_file": "policy_model_rank_0-0_3.safetensors"}')
    tidy(who)

    assert complete(tmp_path) == ["0_5", "0_4", "0_3", "0_1"]


def test_the_start_of_the_running_attempt_stays_until_two_are_newer(tmp_path: Path) -> None:
    """It is what the next resume falls back on."""
    first = saved(tmp_path, (1, 2, 3))
    second = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_1", by=first.attempt.attempt))
    stood = []
    for step in (4, 5, 6):
        savers.save(second, f"0_{step}")
        tidy(second)
        stood.append("0_1" in complete(tmp_path))

    assert stood == [True, False, False]


def test_stock_files_and_unknown_ones_stay(tmp_path: Path) -> None:
    """Older than everything, torn, or temporary: what no vote and no header proves ours is not touched."""
    stock_trees.healthy(tmp_path, (0, 1), (0, 2), ranks=[0])
    directory = names.rank_dir(tmp_path, "policy", 0)
    for other in ("policy_model_rank_0-0_3.tmp", ".tmpABC", "notes.safetensors", ".a.part"):
        (directory / other).write_bytes(b"mine")
    before = savers.files(tmp_path)
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_2"))
    saved(tmp_path, (4, 5, 6, 7), who)
    tidy(who)
    retention.sweep_temp_files(who)
    after = savers.files(tmp_path)

    assert complete(tmp_path)[:2] == ["0_7", "0_6"]
    assert [path for path, content in before.items() if after.get(path) != content and "meta" not in path] == []


def test_a_stock_file_at_a_deleted_position_stays(tmp_path: Path) -> None:
    """A stock job saved over ours: what lies there is not what the vote named."""
    who = saved(tmp_path, (1, 2, 3))
    for role in stock_trees.DIRECTORIES:
        path = stock_trees.payload_path(tmp_path, role, 0, (0, 1))
        path.unlink()
        stock_trees.add(tmp_path, role, [0], (0, 1))
    tidy(who)

    assert {name for name in payloads(tmp_path) if name.endswith("-0_1.safetensors")} == {
        stock_trees.payload_path(tmp_path, role, 0, (0, 1)).name for role in stock_trees.DIRECTORIES
    }


def test_each_rank_deletes_its_own(tmp_path: Path) -> None:
    """Rank 0 takes the position out; until rank 1 has its turn, rank 1's payloads lie there, and count for nothing."""
    attempt = savers.open_attempt(tmp_path, world_size=2)
    ranks = [savers.writer(tmp_path, attempt, rank) for rank in (0, 1)]
    for step in (1, 2, 3):
        savers.save_all(f"0_{step}", *ranks)
    tidy(ranks[0])
    between = (complete(tmp_path), "policy_model_rank_1-0_1.safetensors" in payloads(tmp_path))
    tidy(*ranks)
    tidy(*ranks)

    assert between == (["0_3", "0_2"], True)
    assert not any("-0_1." in name for name in payloads(tmp_path))
    assert sorted(os.listdir(tmp_path / "commits")) == ["0_2", "0_3", "attempts"]


def test_the_votes_that_stay_are_synced_before_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the old ones are gone only if the new ones are there."""
    from ms_resume.ondisk import atomic

    who = saved(tmp_path, (1, 2, 3))
    real_sync, real_aside = atomic.sync_dir, atomic.put_aside
    seen: list[str] = []

    def sync_dir(path: Path) -> None:
        seen.append(path.name)
        real_sync(path)

    def put_aside(path: Path, aside: Path) -> bool:
        seen.append(f"aside {path.name}")
        return real_aside(path, aside)

    monkeypatch.setattr(atomic, "sync_dir", sync_dir)
    monkeypatch.setattr(atomic, "put_aside", put_aside)
    retention.sweep(who, survey.take(tmp_path), Keep(2))

    assert seen == ["0_3", "0_2", "aside 0_1", "commits"]


def test_a_position_saved_again_after_it_was_deleted(tmp_path: Path) -> None:
    """A kill left the old directory there: the new checkpoint counts, and retention can delete it in its turn."""
    first = saved(tmp_path, (1, 2, 3))
    retention.sweep(first, survey.take(tmp_path), Keep(2))  # killed before the payloads of 0_1 were unlinked
    second = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    saved(tmp_path, (1,), second)
    alone = complete(tmp_path)
    saved(tmp_path, (2, 3, 4), second)
    for _ in range(2):
        tidy(second)

    assert alone == ["0_1"]
    assert complete(tmp_path) == ["0_4", "0_3"]
    assert not any("-0_1." in name for name in payloads(tmp_path))
    assert not any(name.startswith("0_1") for name in os.listdir(tmp_path / "commits"))


def test_torn_positions_of_the_past_are_swept(tmp_path: Path) -> None:
    """With a vote missing, and with none at all: their payloads are gigabytes."""
    attempt = savers.open_attempt(tmp_path, world_size=2)
    ranks = [savers.writer(tmp_path, attempt, rank) for rank in (0, 1)]
    savers.save_all("0_1", *ranks)
    savers.save(ranks[0], "0_2")
    savers.save(ranks[1], "0_3")
    names.vote(tmp_path, P("0_3"), 1).unlink()
    savers.save_all("0_4", *ranks)
    for _ in range(3):
        tidy(*ranks)

    assert {name.rpartition("-")[2] for name in payloads(tmp_path)} == {"0_1.safetensors", "0_4.safetensors"}
    assert sorted(os.listdir(tmp_path / "commits")) == ["0_1", "0_4", "attempts"]


def test_ckpt_payloads_need_their_vote_to_be_deleted(tmp_path: Path) -> None:
    """They carry no mark: size and the deleted vote prove them, and without it they stay."""
    who = savers.writer(tmp_path, savers.open_attempt(tmp_path))
    for step in (1, 2, 3, 4):
        savers.save(who, f"0_{step}", file_format="ckpt")
    names.vote(tmp_path, P("0_1"), 0).unlink()
    tidy(who)
    left = {path.name.rpartition("-")[2] for path in tmp_path.rglob("*.ckpt")}

    assert left == {"0_1.ckpt", "0_3.ckpt", "0_4.ckpt"}


def test_temp_files_of_older_attempts_only(tmp_path: Path) -> None:
    """This rank's, payloads and votes alike; a running attempt's and another rank's stay."""
    who = saved(tmp_path, (1,))
    second = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_1", by=who.attempt.attempt))
    third = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_1", by=who.attempt.attempt))
    final = names.payload(tmp_path, "policy", 0, P("0_9"))
    parts = [names.part(final, w.attempt.attempt) for w in (who, second, third)]
    parts += [names.part(names.vote(tmp_path, P("0_1"), rank), who.attempt.attempt) for rank in (0, 1)]
    for part in parts:
        part.touch()

    assert retention.sweep_temp_files(third) == 3
    assert [part.exists() for part in parts] == [False, False, True, False, True]


def test_nothing_is_deleted_from_a_directory_without_payloads(tmp_path: Path) -> None:
    """Somebody moved the role directories away: the votes are torn now, and stay."""
    who = saved(tmp_path, (1, 2, 3))
    for role in names.DIRECTORIES.values():
        shutil.move(tmp_path / role, tmp_path / f"{role}.away")
    tidy(who)

    assert sorted(os.listdir(tmp_path / "commits")) == ["0_1", "0_2", "0_3", "attempts"]
