"""Attempt records, and which checkpoints are live: the line of the newest attempt."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ms_resume.errors import Damaged
from ms_resume.ondisk import attempts, names, seal
from ms_resume.records import Attempt, DeadStock, Origin, Position


def name(number: str) -> str:
    return f"{int(number):06d}-{int(number):016x}"


def record(text: str) -> Attempt:
    """`3<2@0_5`: attempt 3 went on from attempt 2 at 0_5; `<stock@`: from stock; `<2@0_5!`: in another directory."""
    number, _, came_from = text.partition("<")
    if not came_from:
        return Attempt(name(number), None, 2)
    by, _, at = came_from.rstrip("!").partition("@")
    elsewhere = "/elsewhere" if came_from.endswith("!") else None
    origin = Origin(Position.parse(at), None if by == "stock" else name(by), elsewhere)
    return Attempt(name(number), origin, 2)


@pytest.mark.parametrize(
    ("records", "live", "dead"),
    [
        ("", "", "1@0_5"),
        ("1", "1@0_5 1@9_0", "2@0_5"),
        ("1 2<1@0_5", "1@0_4 1@0_5 2@0_6 2@0_1", "1@0_6 1@1_0"),
        ("1 2<1@0_5 3<2@0_9", "1@0_5 2@0_9 3@1_0", "1@0_6 2@1_0"),
        ("1 2<1@0_5 3<1@0_9", "1@0_9 3@1_0", "2@0_6 2@0_1 1@1_0"),  # 0_9 of attempt 1 was brought back
        ("1 2<1@0_9 3<2@0_5", "1@0_5 2@0_5", "1@0_9 2@0_9"),  # a bound holds for all that came before it
        ("1 2", "2@0_5", "1@0_5"),  # a fresh start abandons everything
        ("1 2<stock@0_5", "2@0_6", "1@0_5 1@0_4"),
        ("1 2<1@0_5!", "2@0_6", "1@0_5"),  # that was another directory's attempt 1
        (
            "2<1@0_5",
            "1@0_5 2@0_6",
            "1@0_6",
        ),  # the record of attempt 1 is lost: what went on from it vouches for it
        ("1<2@0_5 2<1@0_5", "1@0_5 2@0_9", ""),  # records that name each other end the search
    ],
)
def test_live_line(records: str, live: str, dead: str) -> None:
    """Each row: the records on disk, `attempt@position` pairs that are live, and pairs that are not."""
    line = attempts.line_of([record(text) for text in records.split()])

    def holds(pair: str) -> bool:
        number, _, at = pair.partition("@")
        return line.holds(name(number), Position.parse(at))

    assert [pair for pair in live.split() if not holds(pair)] == []
    assert [pair for pair in dead.split() if holds(pair)] == []


def dead_stock(save: Path, *paths: Path) -> attempts.Line:
    files = tuple((p.relative_to(save).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    passed = Attempt(name("2"), None, 2, dead_stock=(DeadStock(Position(0, 10), files),))
    return attempts.line_of([record("1"), passed])


def test_stock_stays_dead_until_every_rank_saved_it_again(tmp_path: Path) -> None:
    """A stock job that died while it saved the position again leaves two generations: that is no checkpoint."""
    ranks = [tmp_path / "rank_0", tmp_path / "rank_1"]
    for path in ranks:
        path.write_bytes(b"old")
    line = dead_stock(tmp_path, *ranks)
    verdicts = [line.dead_stock_at(tmp_path, Position(0, 10))]
    for path in ranks:
        path.write_bytes(b"newer")
        verdicts.append(line.dead_stock_at(tmp_path, Position(0, 10)))

    assert verdicts == [True, True, False]
    assert not line.dead_stock_at(tmp_path, Position(0, 11))


def test_stock_of_the_same_size_is_told_apart_by_its_time(tmp_path: Path) -> None:
    """Saving again gives the same size; the time in nanoseconds moves."""
    path = tmp_path / "rank_0"
    path.write_bytes(b"old")
    line = dead_stock(tmp_path, path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    assert not line.dead_stock_at(tmp_path, Position(0, 10))


def test_a_record_survives_its_trip_to_disk(tmp_path: Path) -> None:
    """Everything in it, and keys of a later version are ignored."""
    attempt = Attempt(
        attempt=name("12"),
        origin=Origin(Position(1, 2), name("11"), "/other"),
        world_size=4,
        host="h",
        boot_id="b",
        pid=3,
        pid_start=4,
        pid_namespace="pid:[1]",
        created_at="2024-01-01T00:00:00+00:00",
        label="mine",
        dead_stock=(DeadStock(Position(0, 1), (("train/rank_0/x", 5, 6),)),),
    )
    document = {**json.loads(attempts.encode(attempt)), "of_a_later_version": 1}
    names.attempts(tmp_path).mkdir(parents=True)
    names.attempt_record(tmp_path, 12).write_bytes(seal.encode(document))

    assert attempts.read_all(tmp_path) == [attempt]
    assert document["from"] == {"epoch": 1, "step": 2, "attempt": name("11"), "save": "/other"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"attempt": 3, "from": null, "world_size": 1}',
        json.dumps({"attempt": name("8")}),
    ],
)
def test_a_broken_record_stops_everything(tmp_path: Path, content: str) -> None:
    """Without it nobody can say what is live: going on could resurrect what was left behind."""
    names.attempts(tmp_path).mkdir(parents=True)
    names.attempt_record(tmp_path, 7).write_text(content)
    with pytest.raises(Damaged, match=r"000007\.json.*which checkpoints are live") as caught:
        attempts.read_all(tmp_path)

    assert "backup" in caught.value.hint


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ('"step": 5', '"step": 7'),  # what was left behind would be live again
        ('"epoch": 0', '"epoch": 4'),
        ('"world_size": 2', '"world_size": 3'),
        ('"from"', '"frpm"'),
        ('"pid": 0', '"pid": 1'),
    ],
)
def test_a_changed_value_is_seen(tmp_path: Path, there: str, instead: str) -> None:
    """It would be a record like any other."""
    text = attempts.encode(record("7<6@0_5")).decode()
    names.attempts(tmp_path).mkdir(parents=True)
    names.attempt_record(tmp_path, 7).write_text(text.replace(there, instead, 1))
    assert there in text

    with pytest.raises(Damaged, match=r"000007\.json: not an attempt record \(its bytes have digest"):
        attempts.read_all(tmp_path)


def test_a_record_from_before_there_were_digests(tmp_path: Path) -> None:
    """Is one as it stands."""
    document = json.loads(attempts.encode(record("7<6@0_5")))
    names.attempts(tmp_path).mkdir(parents=True)
    names.attempt_record(tmp_path, 7).write_text(json.dumps({k: v for k, v in document.items() if k != "digest"}))

    assert attempts.read_all(tmp_path) == [record("7<6@0_5")]


def test_a_record_under_another_number_is_broken(tmp_path: Path) -> None:
    """A copied record would own the directory."""
    names.attempts(tmp_path).mkdir(parents=True)
    names.attempt_record(tmp_path, 7).write_bytes(attempts.encode(Attempt(name("6"), None, 1)))
    with pytest.raises(Damaged, match="it says it is attempt"):
        attempts.read_all(tmp_path)


def test_only_whole_names_are_records(tmp_path: Path) -> None:
    """Temp files, heartbeats, and what people leave are none."""
    names.attempts(tmp_path).mkdir(parents=True)
    for other in (".000009.json.000009-0.part", "000008.heartbeat", "000007.json.bak", "7.json", "x.json"):
        (names.attempts(tmp_path) / other).touch()

    assert attempts.newest_ordinal(tmp_path) == 0
    assert attempts.newest_ordinal(tmp_path / "missing") == 0
