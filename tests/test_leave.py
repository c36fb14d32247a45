"""The leaving campaign at its smallest: a twentieth of it, drawn anew by the date; and that it can say no."""

from __future__ import annotations

import importlib.util
import os
import random
import time
from pathlib import Path

import pytest
from exact import campaign, settings
from exact.campaign import Wanted
from exact.launches import Server
from leave import chain, standing
from runs import tiny_run

SIGNALS = 9
"""And one more to a worker of msrun, in `test_supervisor_msrun.py`."""
SEED = int(os.environ.get("LEAVE_SEED", time.strftime("%Y%m%d")))


@pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed")
def test_a_twentieth_of_the_campaign(trainers: tuple[Server, Path], tmp_path: Path) -> None:
    """Nine signals in one setting: each leaves a whole checkpoint of the next step, no step is done twice, and the run
    ends bit for bit as the one that nobody asked."""
    print(f"LEAVE_SEED={SEED}")
    drawn = tuple(random.Random(SEED).sample(settings.pairwise(), 1))
    starts, here = trainers
    results = tmp_path / "results.jsonl"
    done = campaign.singles(Wanted(SIGNALS, SEED, drawn, here, results, "signals"), chain.run, starts)

    assert [(one.equal, one.generated_again) for one in done] == [(True, 0)] * len(done), "\n".join(map(str, done))
    assert sum(one.struck.total() for one in done) >= SIGNALS
    said = campaign.summary(campaign.read(results), "signals")
    assert said.startswith(f"single: {SIGNALS} of {SIGNALS} signals bit-identical")


def test_what_stands_is_looked_at(tmp_path: Path) -> None:
    """Another position, a flipped bit, and nothing at all are noticed."""
    tiny_run(tmp_path, stop=(0, 7)).ok()
    standing.check(tmp_path, (0, 5), "here")

    with pytest.raises(SystemExit, match=r"here: it left 0_5 in .*, expected 0_6"):
        standing.check(tmp_path, (0, 6), "here")
    file = tmp_path / "train/rank_1/policy_model_rank_1-0_5.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="not whole"):
        standing.check(tmp_path, (0, 5), "here")
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit, match="it left nothing"):
        standing.check(tmp_path / "new", (0, 5), "here")
