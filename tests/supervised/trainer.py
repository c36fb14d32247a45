"""The example's `main.py`, with one fault at the next rollout when SUPERVISED_FAULT names a file that asks for it.

The file is one JSON object: {"attempt": 3, "rank": 1, "do": "kill"}; attempt 0 is each one, and `at` a position.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ms_resume import locate, settings
from ms_resume.pulse import Pulse
from ms_resume.records import Position

EXAMPLE = Path(__file__).parents[2] / "examples/grpo_arithmetic"
FAULT = "SUPERVISED_FAULT"
BALLOON_BYTES = 16 << 20


def asked_for(rank: int, position: Position) -> dict[str, Any] | None:
    try:
        fault: dict[str, Any] = json.loads(Path(os.environ[FAULT]).read_text())
    except (KeyError, OSError, ValueError):
        return None
    at = fault.get("at") in (None, position.to_json())
    return fault if fault["rank"] == rank and fault["attempt"] in (0, attempt()) and at else None


def attempt() -> int:
    return int(Path(settings.from_environment().watch_dir or "000000-x").name.partition("-")[0])


def do(fault: dict[str, Any]) -> None:
    what = fault["do"]
    if what == "damage":
        flip(Path(fault["save"]))
    Path(f"{os.environ[FAULT]}.struck").write_text(repr(time.monotonic()))
    if what in ("kill", "damage"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "vanish":
        os._exit(0)
    elif what == "raise":
        raise RuntimeError("something that the tests raise")
    elif what == "typo":
        raise AttributeError("'Decoder' object has no attribute 'fowrard'")
    elif what == "balloon":
        group, limit = Path(fault["group"]), fault["limit"]
        used = next(file for file in ("memory.usage_in_bytes", "memory.current") if (group / file).exists())
        (group / limit).write_text(str(int((group / used).read_text()) + 32 * BALLOON_BYTES))
        grown = []
        while True:
            grown.append(b"x" * BALLOON_BYTES)


def flip(save: Path) -> None:
    """One bit of the newest whole checkpoint's policy."""
    newest = locate.latest(save).checkpoint
    assert newest is not None
    path = next(save.glob(f"train/rank_0/*-{newest.position}.safetensors"))
    with contextlib.suppress(OSError):
        path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


beat = Pulse.beat


def beat_and_break(self: Pulse, phase: str, position: Position | None = None) -> None:
    beat(self, phase, position)
    if phase == "rollout" and position is not None and (fault := asked_for(self.rank, position)):
        do(fault)


if __name__ == "__main__":
    Pulse.beat = beat_and_break  # type: ignore[method-assign]
    sys.argv[0] = str(EXAMPLE / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
