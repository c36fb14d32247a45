"""The adapter for MindRLHF with MindSpore itself: its cells, files, and loading, on the stand-in for the trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from standin_jobs import HERE, Job
from test_mindrlhf import ours
from test_standin import first, job, made, trained

REST = {
    "rl_config__prompts": 10,
    "rl_config__num_rollouts": 3,
    "rl_config__epochs": 2,
    "rl_config__save_ckpt_interval": 1,
}


def real(run: Job, branch: str = "master") -> Job:
    return replace(run, folders=(HERE,), branch=branch)


@pytest.mark.parametrize("branch", ["master", "dev"])
def test_a_killed_run_equals_one_that_was_not(branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: weights, moments, scale, prompts, draws, numbers of metrics."""
    monkeypatch.setenv("MS_RESUME_HEARTBEAT_S", "0")
    whole = first(real(ours(made(tmp_path / "whole")), branch).run(**REST))
    run = real(ours(made(tmp_path / "killed")), branch)
    run.run(stop=(1, 1), **REST)
    resumed = first(run.run(resume=True, **REST))

    assert whole.error is None
    assert resumed.positions == [(1, 1), (1, 2)]
    assert resumed.rows == whole.rows[-2:]
    assert resumed.end() == whole.end()
    assert resumed.metrics == whole.metrics[-2:]


@pytest.mark.parametrize("formats", ["safetensors", "ckpt"])
def test_stock_and_ours_alternate(formats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on from the other's newest position, with its weights: MindSpore's own files, and ours."""
    monkeypatch.setenv("MS_RESUME_HEARTBEAT_S", "0")
    load = "ckpt" if formats == "ckpt" else "hf_safetensors"
    changes = {"rl_config__save_ckpt_format": formats, "rl_config__load_ckpt_format": load}
    seen: dict[tuple[int, int], dict[str, str]] = {}
    starts = []
    for turn, stop in enumerate([(0, 3), (0, 5), (1, 3), (1, 5)]):
        ran = first(
            real((ours if turn % 2 else job)(tmp_path)).run(resume=turn > 0, stop=stop, rl_config__epochs=2, **changes)
        )
        assert ran.positions, ran.outcome
        starts.append(ran.positions[0])
        if turn:
            assert trained(ran.start) == trained(seen[ran.positions[0]])
        seen.update(ran.seen)

    assert starts == [(0, 0), (0, 2), (0, 4), (1, 2)]
