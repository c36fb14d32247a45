"""A rank without MindSpore: it trains nothing, saves for real where it is rank 0, and breaks as it is told.

    python toy_rank.py SAVE STEPS [--resume_training]

`<SAVE>.faults` holds one JSON object a line: {"attempt": 1, "rank": 1, "at": 3, "do": "kill"}; attempt 0 is each one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import ms_resume
from ms_resume import pulse, settings
from ms_resume.errors import ExitCode
from ms_resume.framework.group import Solo
from ms_resume.state import Arrays

SAVE_EVERY = 5
STEP_S = float(os.environ.get("TOY_STEP_S", "0.05"))
START_S = 0.1
"""A rank that builds nets takes longer."""


def main(words: list[str]) -> int:
    save, steps, resume = Path(words[0]), int(words[1]), "--resume_training" in words
    rank = int(os.environ.get("RANK_ID", "0"))
    fault(save, rank, -1)
    weights = Arrays(w=np.zeros(4, np.float32))
    time.sleep(START_S)
    if rank:
        return follow(save, rank)
    with ms_resume.Checkpointer(
        save,
        policy=weights,
        optimizer=Arrays({**weights, "m": np.ones(4, np.float32)}),
        steps_per_epoch=steps,
        group=Solo(),
        settings=settings.from_environment(keep_last=0),
    ) as checkpointer:
        checkpointer.leave_on(signal.SIGTERM)
        first = checkpointer.start(resume=resume)
        wishes = checkpointer.wishes
        for step in range(first.step if first.epoch == 0 else steps, steps):
            if checkpointer.due(0, step, wishes=wishes) or step % SAVE_EVERY == 0:
                checkpointer.save(0, step)
            if checkpointer.leaves(wishes):
                return int(ExitCode.LEFT_ON_REQUEST)
            fault(save, rank, step)
            time.sleep(STEP_S)
            weights["w"] += 1
            wishes = checkpointer.wish()
        if first.epoch == 0:
            checkpointer.save(1, 0)
    (save / "result").write_text(repr(weights["w"].tolist()))
    return 0


def follow(save: Path, rank: int) -> int:
    """The other ranks keep step with nobody, end when rank 0 has ended well, and wait for ever when it has not."""
    mine = pulse.of(settings.from_environment().watch_dir, rank)
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    here = Path(settings.from_environment().watch_dir)
    on_node_0 = here.parents[2] / "node_0" / "attempts" / here.name
    last_words = (on_node_0 if on_node_0.is_dir() else here) / "rank_0.outcome"
    outcome: dict[str, bool] = {}
    step = 0
    while not outcome.get("done") and not outcome.get("left"):
        mine.beat("step")
        fault(save, rank, step)
        time.sleep(STEP_S)
        step += 1
        outcome = json.loads(last_words.read_text()) if last_words.exists() else {}
    mine.ended(done=outcome["done"], left=outcome["left"])
    return 0 if outcome["done"] else int(ExitCode.LEFT_ON_REQUEST)


def fault(save: Path, rank: int, step: int) -> None:
    """Does what the file asks this rank to do at this step of this attempt; -1 is before anything."""
    file = save.with_name(f"{save.name}.faults")
    ordinal = int(Path(settings.from_environment().watch_dir or "000000-x").name.partition("-")[0])
    for line in file.read_text().splitlines() if file.exists() else ():
        wanted = json.loads(line)
        if wanted["rank"] == rank and wanted["at"] == step and wanted.get("attempt", 0) in (0, ordinal):
            (save.parent / f"fault-{ordinal}-{rank}").write_text(repr(time.monotonic()))
            do(wanted["do"], save)


def do(what: str, save: Path) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "vanish":
        os._exit(0)
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what == "asked":
        os.kill(os.getpid(), signal.SIGTERM)
        a_call_that_never_returns()
    elif what == "hang":
        a_call_that_never_returns()
    elif what == "balloon":
        print(len(b"x" * (1 << 30)))
    elif what == "flip":
        newest = max((save / "train/rank_0").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        newest.chmod(0o644)
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "disk":
        raise OSError(28, "No space left on device")
    elif what == "typo":
        raise AttributeError("'Decoder' object has no attribute 'fowrard'")
    elif what == "memory":
        raise MemoryError("cannot allocate 12 GiB")
    else:
        atexit.register(time.sleep, 5)  # as MindSpore's processes, which take seconds to end
        raise RuntimeError(what)


def a_call_that_never_returns() -> None:
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(pulse.run(main, sys.argv[1:]))
