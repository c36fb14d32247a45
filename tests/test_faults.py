"""A share of the fault campaign, drawn anew each day; the whole of it is `make faults`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from faults import peer_traces, shim

HERE = Path(__file__).parent
SHARE = 5
DRAWN = "standing,dying,node_local,failing,interleaving,two_writers,power_model,images,full_disk,mutants"
"""Parts of which a share says something, and which need no MindSpore."""

CALLS = {
    "the first save into a stock directory": (79, 151, 223),
    "a save after stock and ours in turn": (76, 147, 218),
    "the first save of all": (101, 176, 251),
    "a save, with retention": (76, 142, 208),
    "a save with a new reference": (92, 174, 256),
    "a save as .ckpt": (76, 140, 205),
    "a torn position saved again": (83, 160, 237),
    "an abandoned position saved again": (70, 136, 202),
    "a start": (36, 56, 76),
    "going back": (28, 42, 56),
    "restore": (27, 41, 55),
    "repair": (27, 54, 81),
    "prune": (31, 53, 75),
    "its own attempt saves again": (7, 7, 7),
    "its own attempt saves again after a loss": (70, 84, 98),
    "a start where files lie aside": (44, 61, 78),
    "restore where files lie aside": (20, 26, 32),
    "a stock position saved again": (88, None, None),
    "a start where an older .ckpt lies aside": (16, None, None),
    "a save where replies are lost": (76, None, None),
    "a save without hard links": (72, None, None),
    "rank 0 saves before the others": (None, 56, 56),
    "rank 1 saves before the others": (None, 56, None),
    "rank 1 saves after the others": (None, 59, None),
    "a save that replicas share": (None, 161, None),
    "pruned on the word of a rank that died": (None, 116, 171),
    "rank 2 saves before the others": (None, None, 56),
    "rank 2 saves after the others": (None, None, 59),
    "a save past the page cache": (83, None, None),
    "the first save of all, on disks of nodes": (None, None, 271),
    "a save, with retention, on disks of nodes": (None, None, 167),
    "a start, on disks of nodes": (None, None, 68),
    "going back, on disks of nodes": (None, None, 70),
}
"""Of every scenario the calls that change the directory, for 1, 2 and 3 ranks: whoever adds one sees it here."""


def campaign(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faults", *arguments]
    return subprocess.run(
        command, cwd=HERE, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the shim cannot be built"
)


@needs_compiler
def test_a_share_of_the_campaign() -> None:
    """Nothing fails; what cannot run here says so, and the seed to draw it again is printed."""
    seed = os.environ.get("FAULTS_SEED", str(date.today().toordinal()))
    print(f"again: cd tests && python -m faults --share {SHARE} --seed {seed} --only {DRAWN}")
    run = campaign("--share", str(SHARE), "--seed", seed, "--only", DRAWN, "--json")
    print(run.stderr)

    assert run.returncode == 0
    tallies: list[dict[str, Any]] = json.loads(run.stdout)
    assert [tally["failures"] for tally in tallies] == [[]] * len(DRAWN.split(","))
    assert all(tally["cases"] or tally["skipped"] for tally in tallies)


@needs_compiler
def test_the_number_of_points() -> None:
    """Pinned: a call that is added, or lost, is a decision."""
    counted: dict[str, int] = json.loads(campaign("--calls").stdout)

    assert counted == {
        f"{name}, {n + 1} rank{'s' if n else ''}": calls
        for name, of_ranks in CALLS.items()
        for n, calls in enumerate(of_ranks)
        if calls is not None
    }


@needs_compiler
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_shim_sees_every_call(tmp_path: Path) -> None:
    """A whole save under strace: below the directory the same calls, kind by kind."""
    script = HERE / "faults" / "traced.py"
    trace = tmp_path / "trace"
    control = tmp_path / "control"
    command = [*peer_traces.command(trace, str(shim.build())), sys.executable, str(script), str(tmp_path), str(control)]
    run = subprocess.run(
        command, cwd=HERE, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    seen = {kind: count for kind, count in json.loads(run.stdout).items() if count}
    with open(trace) as lines:
        assert seen == dict(peer_traces.kinds(lines, tmp_path / "case"))
    assert sum(seen.values()) > 50


def test_without_a_compiler_nothing_is_passed() -> None:
    """The reason is said, and no part counts."""
    run = campaign("--only", "dying", PATH="/nowhere")

    assert run.returncode == 0
    assert "skipped, nothing was checked: no C compiler" in run.stdout
    assert "failures" not in run.stdout


@needs_compiler
def test_a_failure_is_told_and_ends_in_1(tmp_path: Path) -> None:
    """A package whose votes are not durable: the campaign says where, and what is lost."""
    broken = tmp_path / "ms_resume"
    shutil.copytree(Path(__file__).parents[1] / "ms_resume", broken)
    door = broken / "ondisk/atomic.py"
    text = door.read_text()
    assert "        os.fsync(fd)\n    except OSError" in text
    door.write_text(text.replace("        os.fsync(fd)\n    except OSError", "        pass\n    except OSError"))
    run = campaign(
        "--only", "power_model", "--share", "100", "--impatient", "--scenario", "a save, with", PYTHONPATH=str(tmp_path)
    )

    assert run.returncode == 1
    assert "a save, with retention, 1 rank: after call" in run.stdout
    assert "not on disk is lost" in run.stdout
