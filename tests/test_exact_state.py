"""Components that need no MindSpore: draws, fields, the metrics log; what they refuse, and what the banner says."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import tiny_run
from test_components import through_disk

import ms_resume
from ms_resume.errors import DiskError, LayoutMismatch, NamesMismatch
from ms_resume.ondisk import events
from ms_resume.resume import unsaved
from ms_resume.state import Arrays


def test_a_draw_is_a_function_of_its_question() -> None:
    """In any order, in another process, whatever was drawn before."""
    draws = ms_resume.Draws(seed=3, rank=1)
    first = draws.generator(5, "sampling", 2).integers(1 << 62, size=4).tolist()
    draws.generator(6, "sampling", 2).normal(size=100)

    assert ms_resume.Draws(3, 1).generator(5, "sampling", 2).integers(1 << 62, size=4).tolist() == first
    others = [ms_resume.Draws(4, 1).generator(5, "sampling", 2), ms_resume.Draws(3, 2).generator(5, "sampling", 2)]
    others += [draws.generator(5, "sampling", 3), draws.generator(5, "order", 2), draws.generator(52, "sampling")]
    assert all(other.integers(1 << 62, size=4).tolist() != first for other in others)


def test_draws_are_pinned() -> None:
    """What a checkpoint means must not change with this code: Philox's first words for one question."""
    words = ms_resume.Draws(0).generator(0, "x").bit_generator.random_raw(2)

    assert words.tolist() == [7090723727672482670, 3626979916744914049]


def test_another_seed_is_refused() -> None:
    """The next step would be another one."""
    with pytest.raises(LayoutMismatch, match="seed was 3, is 4"):
        ms_resume.Draws(4).restore(through_disk(ms_resume.Draws(3)))


class Normaliser:
    """Running moments as a trainer might hold them."""

    def __init__(self) -> None:
        self.mean, self.count, self.m2 = np.float64(0), 0, np.zeros(3)
        self.window = [1, 2.5]

    def add(self, value: float) -> None:
        self.count += 1
        self.mean = self.mean + (value - self.mean) / self.count
        self.m2 += value


def test_fields_keeps_arrays_in_place_and_kinds_of_numbers() -> None:
    """What adds to the array goes on adding to it; a NumPy number stays one."""
    held = Normaliser()
    held.add(0.1)
    fields = ms_resume.Fields("normaliser", held, "mean", "count", "m2", "window")
    state = through_disk(fields)
    array = held.m2
    held.add(7.0)
    fields.restore(state)

    assert held.m2 is array
    assert (held.count, held.m2.tolist(), held.window) == (1, [0.1] * 3, [1, 2.5])
    assert isinstance(held.mean, np.float64)
    assert held.mean == 0.1


def test_fields_of_another_trainer_are_refused_before_any_is_changed() -> None:
    """Both lists are in the message."""
    state = through_disk(ms_resume.Fields("c", SimpleNamespace(a=1, b=2), "a", "b"))
    owner = SimpleNamespace(a=5, c=6)
    with pytest.raises(NamesMismatch, match="has a, b; this trainer asks for a, c"):
        ms_resume.Fields("c", owner, "a", "c").restore(state)

    assert owner.a == 5


def lines_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def board_of(directory: Path) -> dict[int, float]:
    """What TensorBoard shows of the one file: the values by step, those of before a restart forgotten from its step."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    [path] = directory.iterdir()
    content, at, shown = path.read_bytes(), 0, {}
    assert events.whole(content) == len(content)
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += length + 16
        if event.HasField("session_log") and event.session_log.status == 1:
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            assert event.step not in shown, "a step is drawn twice"
            shown[event.step] = (value.tag, value.simple_value)
    return shown


def log(directory: Path) -> ms_resume.MetricsLog:
    return ms_resume.MetricsLog(directory / "steps.jsonl", board=directory / "board", drawn=["loss"], prefix="grpo/")


def test_the_log_goes_on_without_a_gap_or_a_repeat(tmp_path: Path) -> None:
    """Killed at step 9 in the middle of a line and a record, resumed from a save at step 5; and once more at 7."""
    first = log(tmp_path)
    states = {}
    for step in range(9):
        states[step] = first.state()
        first.write({"step": step, "loss": 0.5 * step, "note": "x"})
    with open(tmp_path / "steps.jsonl", "ab") as lines, open(next((tmp_path / "board").iterdir()), "ab") as board:
        lines.write(b'{"step": 9, "lo')
        board.write(events.scalars(9, {"grpo/loss": 1.0}, 0.0)[:-3])
    for at, end in ((5, 8), (7, 12)):
        second = log(tmp_path)
        second.restore(json.loads(json.dumps(states[at])))
        for step in range(at, end):
            states[step] = second.state()
            second.write({"step": step, "loss": 0.5 * step})

        assert lines_of(tmp_path / "steps.jsonl") == list(range(end))
        assert board_of(tmp_path / "board") == {step: ("grpo/loss", 0.5 * step) for step in range(end)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "steps.jsonl"]


def test_a_clock_that_jumped_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's other writer names its file by the clock: set back, the new file would stand before the old one."""
    first = log(tmp_path)
    first.write({"step": 0, "loss": 1.0})
    state = first.state()
    monkeypatch.setattr("time.time", lambda: 1.0)
    second = log(tmp_path)
    second.restore(state)
    second.write({"step": 1, "loss": 2.0})

    assert board_of(tmp_path / "board") == {0: ("grpo/loss", 1.0), 1: ("grpo/loss", 2.0)}


def test_a_fresh_run_begins_its_log_anew(tmp_path: Path) -> None:
    """What an earlier run left in the directory is another run's."""
    for steps in (5, 2):
        fresh = log(tmp_path)
        for step in range(steps):
            fresh.write({"step": step, "loss": math.nan})

    assert lines_of(tmp_path / "steps.jsonl") == [0, 1]
    assert list(board_of(tmp_path / "board")) == [0, 1]


def test_a_log_that_was_cut_is_said(tmp_path: Path) -> None:
    """Somebody emptied it: the run goes on, and the banner says what is not there."""
    first = log(tmp_path)
    for step in range(4):
        first.write({"step": step, "loss": 0.0})
    state = first.state()
    os.truncate(tmp_path / "steps.jsonl", 0)
    second = log(tmp_path)
    second.restore(state)

    assert second.notes() == [
        f"{tmp_path}/steps.jsonl ends at step -1, the run goes on at 4: what lies between is not there"
    ]


def test_a_start_that_is_refused_leaves_the_log_alone(tmp_path: Path) -> None:
    """Another job was faster, and lives: its lines are cut by nobody but itself."""
    living = log(tmp_path)
    for step in range(3):
        living.write({"step": step, "loss": 0.0})
    log(tmp_path).restore({"version": 1, "next": 1})

    assert lines_of(tmp_path / "steps.jsonl") == [0, 1, 2]


def test_a_step_is_written_once(tmp_path: Path) -> None:
    """A trainer that counts wrongly hears of it."""
    held = log(tmp_path)
    held.write({"step": 3, "loss": 0.0})
    with pytest.raises(ValueError, match="metrics of step 3 after those of step 3"):
        held.write({"step": 3, "loss": 0.0})


def test_what_a_board_cannot_show_is_left_out(tmp_path: Path) -> None:
    """Booleans, text, and what 32 bits do not hold; not the line."""
    held = ms_resume.MetricsLog(tmp_path / "l", board=tmp_path / "board")
    held.write({"step": 0, "a": True, "b": "x", "c": 1e300, "d": 2})

    assert board_of(tmp_path / "board") == {0: ("d", 2.0)}


def test_ranks_that_do_not_write_have_the_same_state(tmp_path: Path) -> None:
    """So that any of them can go on as another one."""
    writer, silent = log(tmp_path), ms_resume.MetricsLog(None)
    for held in (writer, silent):
        held.write({"step": 0, "loss": 0.0})

    assert writer.state() == silent.state() == {"version": 1, "next": 1}
    silent.restore(writer.state())


def test_a_log_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="file"):
        ms_resume.MetricsLog(tmp_path / "file" / "steps.jsonl").write({"step": 0})


def test_what_no_component_saves_is_in_the_banner(tmp_path: Path) -> None:
    """A run that hands over no random state starts it anew at each resume, and hears so."""
    roles: dict[str, Any] = {"optimizer": Arrays()}

    assert unsaved.components(roles, {}) == ["what Python, NumPy, and MindSpore draw (Randomness)"]
    assert unsaved.components(roles, {"randomness": ms_resume.Randomness()}) == []
    tiny_run(tmp_path / "save", stop=(0, 6)).ok()
    [first, _] = tiny_run(tmp_path / "save", resume=True).ok()
    assert "no component saves it" not in first.said[0]
