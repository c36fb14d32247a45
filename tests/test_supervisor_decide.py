"""What happens after an attempt: each row is a history and what must follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ms_resume.errors import UsageError
from ms_resume.records import Position
from ms_resume.supervisor import files, run
from ms_resume.supervisor.decide import backoff_s, decide, progress
from ms_resume.supervisor.evidence import Ended, Policy
from ms_resume.supervisor.plan import make

POLICY = Policy(attempts=3, backoff_s=10, longest_s=60, jitter=0.25)
THEN = {"killed": "restart", "hang": "restart", "code": "once", "usage": "stop", "done": "done", "preempted": "leave"}


def history(text: str) -> list[Ended]:
    """`killed 0_7 0_5` is an attempt that was killed at 0_7 and left 0_5; `<0_3` an older one, `@0_3` was told to go
    there, `=2` its exit code, `!x` what it died of. What it found is what the one before it left."""
    ends: list[Ended] = []
    for ordinal, entry in enumerate(text.split(", "), start=1):
        kind, reached, checkpoint, *more = entry.split()
        said = {word[0]: word[1:] for word in more}
        ends.append(
            Ended(
                ordinal=ordinal,
                kind=kind,
                then=THEN.get(kind, "restart"),
                detail=said.get("!", ""),
                exit_code=int(said["="]) if "=" in said else None,
                reached=_position(reached),
                before=ends[-1].checkpoint if ends else None,
                checkpoint=_position(checkpoint),
                older=_position(said.get("<", "-")),
                back=_position(said.get("@", "-")),
            )
        )
    return ends


def _position(text: str) -> Position | None:
    return None if text == "-" else Position.parse(text)


ROWS = [
    # history                                                                     what, after s, code, back to
    ("done 1_0 1_0", ("done", 0, 0, "-")),
    ("preempted 0_7 0_7", ("leave", 0, 50, "-")),
    ("killed 0_7 0_5", ("restart", 0, 0, "-")),
    ("killed 0_7 0_5, killed 1_2 1_0", ("restart", 0, 0, "-")),
    ("killed 0_0 -", ("restart", 0, 0, "-")),  # no progress, but the first retry waits for nothing
    ("killed 0_0 -, killed 0_0 -", ("restart", 10, 0, "-")),
    ("killed 0_0 -, killed 0_0 -, killed 0_0 -", ("stop", 0, 60, "-")),  # nothing to go back to
    ("killed 0_7 0_5, killed 0_6 0_5, killed 0_7 0_5", ("restart", 10, 0, "-")),
    ("killed 0_7 0_5, killed 0_6 0_5, killed 0_7 0_5, killed 0_5 0_5 <0_2", ("back", 20, 0, "0_2")),
    ("killed 0_7 0_5, killed 0_6 0_5, killed 0_8 0_5, killed 0_5 0_5 <0_2", ("restart", 0, 0, "-")),  # 0_8 is progress
    ("killed 0_7 0_5, hang 0_6 0_5, hang 0_7 0_5, hang 0_7 0_5 <0_2, hang - 0_5 @0_2", ("restart", 40, 0, "0_2")),
    ("killed 0_7 0_5, hang 0_6 0_5, hang 0_7 0_5, hang 0_7 0_5 <0_2, hang 0_6 0_5 @0_2", ("restart", 40, 0, "-")),
    ("killed 0_7 0_5, hang 0_6 0_5, hang 0_7 0_5, hang 0_7 0_5 <0_2, hang 0_7 0_2 @0_2", ("restart", 40, 0, "-")),
    (
        "killed 0_7 0_5, hang 0_6 0_5, hang 0_7 0_5, hang 0_7 0_5 <0_2, hang 0_7 0_2 @0_2, hang 0_6 0_2, "
        "hang 0_6 0_2 <0_1",
        ("stop", 0, 60, "-"),
    ),
    (
        "killed 0_7 0_5, hang 0_6 0_5, hang 0_7 0_5, hang 0_7 0_5 <0_2, hang 0_9 0_2 @0_2, hang 0_6 0_2",
        ("restart", 0, 0, "-"),  # going back helped: 0_9 is further than ever
    ),
    ("usage 0_0 - =2", ("stop", 0, 2, "-")),
    ("killed 0_7 0_5, usage 0_5 0_5 =31", ("stop", 0, 31, "-")),
    ("usage 0_0 - =1", ("stop", 0, 60, "-")),  # not a code of ours
    ("code 0_7 0_5 !KeyError", ("restart", 0, 0, "-")),
    ("code 0_7 0_5 !KeyError, code 0_7 0_5 !KeyError", ("stop", 0, 60, "-")),
    ("code 0_7 0_5 !KeyError, code 0_7 0_5 !TypeError", ("restart", 0, 0, "-")),
    ("code 0_7 0_5 !KeyError, code 0_6 0_5 !KeyError", ("restart", 0, 0, "-")),
    ("code 0_7 0_5 !KeyError, killed 0_6 0_5, code 0_7 0_5 !KeyError", ("restart", 10, 0, "-")),
]


@pytest.mark.parametrize(("past", "follows"), ROWS)
def test_decide(past: str, follows: tuple[str, float, int, str]):
    """By the class of the last end, and by whether it came further than those before it."""
    action = decide(history(past), POLICY, chance=0.5)

    back = str(action.back) if action.back else "-"
    assert (action.what, action.delay_s, action.exit_code, back) == follows, action.reason
    assert action.reason


@pytest.mark.parametrize(
    ("past", "moved"),
    [
        ("killed 0_0 -", [False]),
        ("killed 0_1 -", [True]),
        ("killed 0_7 0_5, killed 0_7 0_5, killed 0_8 0_5, killed 0_7 0_7", [True, False, True, True]),
        ("killed - 0_5, killed - 0_5", [True, False]),  # no pulse at all: by checkpoints
        ("killed 0_9 0_5, hang 0_4 0_2 @0_2, hang 0_9 0_5, hang 1_0 0_5", [True, False, False, True]),
    ],
)
def test_progress(past: str, moved: list[bool]):
    """Further than ever, or a checkpoint newer than ever; what was abandoned and made anew is neither."""
    assert progress(history(past)) == moved


@pytest.mark.parametrize(
    ("fruitless", "chance", "seconds"),
    [(0, 0.5, 0), (1, 0.5, 0), (2, 0.5, 10), (3, 0.5, 20), (4, 0.5, 40), (5, 0.5, 60), (5000, 0.5, 60),
     (2, 0.0, 7.5), (2, 1.0, 12.5), (9, 1.0, 75)],
)  # fmt: skip
def test_backoff(fruitless: int, chance: float, seconds: float):
    """Nothing at first, then doubled up to a minute, a quarter more or less by chance."""
    assert backoff_s(fruitless, POLICY, chance) == seconds


def _write(path: Path, past: str) -> None:
    with path.open("w") as file:
        for end in history(past):
            places = {n: getattr(end, n) for n in ("reached", "before", "checkpoint", "older", "back")}
            plain = {n: place.to_json() if place else None for n, place in places.items()}
            event = {"event": "end", "ordinal": end.ordinal, "class": end.kind, "then": end.then, "detail": end.detail}
            file.write(json.dumps({**event, "exit_code": end.exit_code, **plain}) + "\n")


def test_replay(tmp_path: Path):
    """A history file gives the decisions that were, or with another policy would be, taken."""
    path = tmp_path / files.HISTORY
    _write(path, "killed 0_7 0_5, killed 0_6 0_5, usage 0_5 0_5 =2, killed 0_0 -")
    plan = make({"command": ["x"], "save": tmp_path})

    assert [action.what for _, action in run.replay(path, plan)] == ["restart", "restart", "stop", "restart"]


def test_a_history_cut_short(tmp_path: Path):
    """The last line of a crash is passed over, what follows it is whole again."""
    path = tmp_path / files.HISTORY
    _write(path, "killed 0_7 0_5, killed 0_6 0_5")
    path.write_bytes(path.read_bytes()[:-20])

    past = files.History(path)
    past.append("decision", ordinal=1, what="restart")

    assert (len(past.events), past.cut) == (2, 1)
    assert [event["event"] for event in files.read_history(path)[0]] == ["end", "decision"]


@pytest.mark.parametrize("content", [b"no history\n", b'{"a": 1}\n', b"\xff\xfe\n"])
def test_what_is_no_history(tmp_path: Path, content: bytes):
    (tmp_path / "h").write_bytes(content)

    with pytest.raises(UsageError, match="not a history"):
        list(run.replay(tmp_path / "h", make({"command": ["x"], "save": tmp_path})))
