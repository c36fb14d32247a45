"""Rollouts in flight: nothing is generated twice; what is torn, damaged, or another policy's is dropped."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Outcome, Rounds, ThreadGroup, TinyRank, run_ranks

import ms_resume
from ms_resume.ondisk import atomic, journal, names
from ms_resume.records import Position
from ms_resume.state import from_array


class Died(Exception):
    """A rank that was killed: nothing of it runs any more."""


def trained(
    save: Path,
    *,
    world_size: int = 1,
    steps: int = 10,
    save_every: int = 4,
    resume: bool = True,
    die: tuple[int, int] | None = None,
    config: Mapping[str, Any] | None = None,
    nudge: float = 0.0,
) -> Outcome[TinyRank]:
    """A run whose steps generate two parts each, and update the policy from what they generated.

    Args:
        die: Before this part of this step, on rank 0.
        nudge: Added to the policy at the start: it is then another one.
    """

    def rank_main(group: ThreadGroup) -> TinyRank:
        me = TinyRank(group.rank)
        draws = ms_resume.Draws(seed=1, rank=group.rank)
        components = [*me.components(), draws]
        with me.saves_in(save, group, components=components, steps_per_epoch=steps, config=config) as checkpointer:
            checkpointer.start(resume=resume)
            me.policy["w"] += np.float32(nudge)
            rollouts = checkpointer.rollouts()
            me.scale.rollouts = rollouts  # type: ignore[attr-defined]
            for _, step in checkpointer.steps(1, save_every=save_every):
                for part in (0, 1):
                    if group.rank == 0 and (step, part) == die:
                        settle(checkpointer)
                        raise Died
                    prompts = np.full(3, step + part)
                    make = partial(generated, me, draws, step, part)
                    made = rollouts.take(step, make, part=part, inputs={"p": prompts})
                    group.exchange(b"")
                    me.policy["w"] += made["tokens"] * np.float32(made["reward"])
                me.optimizer["global_step"] += 1
        return me

    return run_ranks(world_size, rank_main)


def settle(checkpointer: ms_resume.Checkpointer) -> None:
    """What goes on behind the trainer is done: where a kill strikes is then the same each time."""
    saver = checkpointer._saver
    assert saver is not None
    saver.rest()
    checkpointer.rollouts()._drop()
    checkpointer.rollouts().flush()


def generated(me: TinyRank, draws: ms_resume.Draws, step: int, part: int) -> dict[str, Any]:
    noise = draws.generator(step, "sampling", part).normal(size=(3, 4)).astype(np.float32)
    return {"tokens": noise + me.policy["w"], "reward": 0.125, "texts": ["a", "b"]}


def counts(outcome: Outcome[TinyRank]) -> list[tuple[int, int]]:
    """(generated, given back) by rank."""
    return [(me.scale.rollouts.generated, me.scale.rollouts.given_back) for me in outcome.ok()]  # type: ignore[attr-defined]


def weights(outcome: Outcome[TinyRank]) -> list[bytes]:
    return [me.policy["w"].tobytes() for me in outcome.ok()]


def logs(save: Path, rank: int = 0) -> list[Path]:
    return sorted(names.rollouts_dir(save, rank).iterdir())


def test_a_killed_run_generates_nothing_twice(tmp_path: Path) -> None:
    """Saved at 4, killed in step 7 between its parts: steps 4, 5, 6 and one part of 7 are given back, bit for bit."""
    undisturbed = trained(tmp_path / "a", resume=False)
    trained(tmp_path / "b", resume=False, die=(7, 1))
    resumed = trained(tmp_path / "b")

    assert counts(undisturbed) == [(20, 0)]
    assert counts(resumed) == [(5, 7)]  # 12 of step 4 to 9
    assert weights(resumed) == weights(undisturbed)


def test_twice_in_a_row(tmp_path: Path) -> None:
    """The second kill comes before another checkpoint: what both attempts generated is given back."""
    trained(tmp_path / "b", resume=False, die=(6, 0))
    trained(tmp_path / "b", die=(7, 1))
    resumed = trained(tmp_path / "b")

    assert counts(resumed) == [(5, 7)]
    assert weights(resumed) == weights(trained(tmp_path / "a", resume=False))


def test_what_a_checkpoint_made_needless_goes(tmp_path: Path) -> None:
    """Logs of before the newest complete checkpoint; at a run's end there is none."""
    trained(tmp_path / "b", resume=False, die=(9, 0))

    assert [names.parse_rollouts(path.name, 0) for path in logs(tmp_path / "b")] == [Position(0, 8)]
    trained(tmp_path / "b")
    assert logs(tmp_path / "b") == []


@pytest.mark.parametrize(("harm", "given_back"), [("cut", 2), ("flipped", 3)])
def test_ranks_generate_alike_or_not_at_all(tmp_path: Path, harm: str, given_back: int) -> None:
    """Rank 1 lost a part of its log, or finds a record damaged when it reads it: where one has to generate, all do.
    Else a generation that is a collective would wait for ever."""
    trained(tmp_path / "b", world_size=2, resume=False, die=(6, 0))
    log = logs(tmp_path / "b", 1)[-1]
    third = journal.entries(log)[0][2].offset
    if harm == "cut":
        os.truncate(log, third + 7)  # of steps 4 and 5 the first is left, and a torn tail
    else:
        content = bytearray(log.read_bytes())
        content[third - 1] ^= 1
        log.write_bytes(content)
    resumed = trained(tmp_path / "b", world_size=2)

    assert counts(resumed) == [(12 - given_back, given_back)] * 2
    assert weights(resumed) == weights(trained(tmp_path / "a", world_size=2, resume=False))


def test_a_torn_tail_is_cut_and_said(tmp_path: Path) -> None:
    """The last record was being written."""
    trained(tmp_path / "b", resume=False, die=(6, 0))
    [log] = logs(tmp_path / "b")
    os.truncate(log, log.stat().st_size - 1)
    resumed = trained(tmp_path / "b")

    assert counts(resumed) == [(9, 3)]
    assert any("bytes behind its last whole rollout are left out" in line for line in resumed.ok()[0].said)


@pytest.mark.parametrize("where", ["data", "header", "magic", "lengths"])
def test_a_flipped_bit_is_never_given_back(tmp_path: Path, where: str) -> None:
    """In the data of a record only that one is generated anew; where a record begins, those behind it too."""
    trained(tmp_path / "b", resume=False, die=(6, 0))
    [log] = logs(tmp_path / "b")
    second = journal.entries(log)[0][1]
    at = {"data": journal.entries(log)[0][2].offset - 1, "header": second.offset + 50, "magic": second.offset,
          "lengths": second.offset + 12}[where]  # fmt: skip
    content = bytearray(log.read_bytes())
    content[at] ^= 4
    log.write_bytes(content)
    resumed = trained(tmp_path / "b")

    [(_, given_back)] = counts(resumed)
    assert given_back == {"data": 3, "header": 3 if given_back == 3 else 1}.get(where, 1)
    assert weights(resumed) == weights(trained(tmp_path / "a", resume=False))


@pytest.mark.parametrize(
    ("more", "said"), [({"nudge": 1.0}, "another policy"), ({"config": {"rl_config": {"seed": 2}}}, "another config")]
)
def test_rollouts_of_another_policy_or_configuration_are_dropped_with_a_line(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    """They would train something that this policy never said."""
    trained(tmp_path / "b", resume=False, die=(6, 0), config={"rl_config": {"seed": 1}})
    resumed = trained(tmp_path / "b", **{"config": {"rl_config": {"seed": 1}}, **more})

    assert counts(resumed) == [(12, 0)]
    assert any(f"rollout of step 4, part 0 is generated anew: {said}" in line for line in resumed.ok()[0].said)


def test_a_disk_that_fails_ends_the_keeping_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a cache. One line says so."""

    def full(path: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "append", full)
    run = trained(tmp_path / "a", resume=False)

    assert counts(run) == [(20, 0)]
    assert sum("rollouts are not kept from here on" in line for line in run.ok()[0].said) == 1


def test_generation_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`take` returns while the record is still being written."""
    gate, real, written = threading.Event(), atomic.append, list[bool]()
    monkeypatch.setattr(atomic, "append", lambda *a, **k: (written.append(gate.wait(20)), real(*a, **k))[1])
    rollouts = keeping(tmp_path / "save")
    for step in range(5):
        rollouts.take(step, lambda: {"tokens": np.zeros(1000)})
    assert written == []
    gate.set()
    rollouts.flush()

    assert written == [True] * 5
    assert len(journal.entries(logs(tmp_path / "save")[0])[0]) == 5


def keeping(save: Path) -> Any:
    """The rollouts of a run that has begun."""
    checkpointer = TinyRank(0).saves_in(save, ThreadGroup(0, Rounds(1, 10)))
    checkpointer.start(resume=False)
    return checkpointer.rollouts()


@pytest.mark.parametrize("claim", ["header", "data"])
def test_a_log_does_not_allocate_what_it_claims(tmp_path: Path, claim: str) -> None:
    """A record of 2^60 bytes in a file of a hundred is a torn tail."""
    path = tmp_path / "log"
    record = journal.encode({"step": 1}, {"a": from_array(np.arange(4))})
    text = json.dumps({"tensors": [["a", "U8", [1 << 60]]]}).encode()
    lengths = {"header": (1 << 60, 0), "data": (len(text), 1 << 60)}[claim]
    path.write_bytes(record + b"ms_roll1" + struct.pack("<QQ", *lengths) + bytes(16) + text + b"x" * 90)
    found, end = journal.entries(path)

    assert (len(found), end) == (1, len(record))
    assert journal.read(found[0])["a"].data.tobytes() == np.arange(4).tobytes()


def test_nothing_is_read_through_a_link(tmp_path: Path) -> None:
    """A log that is one is left out, with a line."""
    trained(tmp_path / "b", resume=False, die=(6, 0))
    [log] = logs(tmp_path / "b")
    log.rename(tmp_path / "elsewhere")
    log.symlink_to(tmp_path / "elsewhere")
    resumed = trained(tmp_path / "b")

    assert counts(resumed) == [(12, 0)]
    assert any("a symbolic link" in line for line in resumed.ok()[0].said)
