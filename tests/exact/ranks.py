"""Kills of workers of msrun: the example, two ranks, killed from outside as `random_kills.py` does, chained."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from exact.campaign import versions
from exact.launches import TOP

EXAMPLE = TOP / "examples" / "grpo_arithmetic"
CONFIG = EXAMPLE / "config_test.yaml"
_SAID = re.compile(r"run with (\d+) kills equals uninterrupted run: (yes|no) \((\d+) tensors, (\d+) differ\)")
_GENERATED = re.compile(r"rollouts: (\d+) generated, (\d+) given back")


def chain(kills: int, seed: int, directory: Path, *, reuse: Path | None = None) -> dict[str, Any]:
    """One chain of so many kills; the line for `exact.jsonl`.

    Args:
        reuse: An earlier chain's directory: its undisturbed run and base model serve again.

    Raises:
        SystemExit: It did not go as planned.
    """
    began = time.monotonic()
    config = long_enough(directory)
    command = [sys.executable, str(EXAMPLE / "random_kills.py"), "--config", str(config), "--output", str(directory)]
    command += [
        "--kills",
        str(kills),
        "--seed",
        str(seed),
        "--most_steps",
        "5",
        *(["--reuse", str(reuse)] if reuse else []),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    said = _SAID.search(run.stdout)
    if said is None:
        raise SystemExit(f"random_kills ended with {run.returncode}:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
    generated = [tuple(map(int, found)) for found in _GENERATED.findall(run.stdout)]
    return {
        "kind": "msrun",
        "setting": "jit/AdamWeightDecay/safetensors/schedule",
        "ranks": 2,
        "seed": seed,
        "kills": int(said[1]),
        "equal": said[2] == "yes",
        "tensors": int(said[3]),
        "differ": int(said[4]),
        "given_back": sum(back for _, back in generated),
        "seconds": round(time.monotonic() - began, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **versions(),
    }


def long_enough(directory: Path) -> Path:
    """The smallest configuration with room for a chain: 84 steps, of which a launch that is killed does five or six."""
    text = CONFIG.read_text()
    assert "epochs: 4\n" in text
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.with_suffix(".yaml")
    path.write_text(text.replace("epochs: 4\n", "epochs: 12\n"))
    return path
