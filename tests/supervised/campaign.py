"""Ten disturbances of one run, one after the other: each launch takes ten seconds and more."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from grpo_arithmetic import compare
from supervised import job as jobs
from supervised.job import STARTS_S, Job, Row

EPOCHS = 9
"""Of seven steps each: room for all disturbances."""

TO_STEP = 3
"""Steps between a start and the next fault: a checkpoint has been made by then."""

IN_A_RANK = {
    "SIGKILL": ("kill", 1),
    "SIGSTOP": ("stop", 0),
    "`os._exit(0)`": ("vanish", 1),
    "exception": ("raise", 0),
    "newest checkpoint damaged, then SIGKILL": ("damage", 0),
}


def run(top: Path, say: Callable[[str], None]) -> tuple[list[Row], dict[str, bool]]:
    """All rows, and what must hold at the end.

    Args:
        top: An empty directory.
    """
    jobs.undisturbed(top, EPOCHS)
    say("undisturbed run done")
    with jobs.memory_group() as group, jobs.small_disk(top / "b") as small:
        job = Job(top, EPOCHS, group=group, hangs=True)
        try:
            rows = _rows(job, small, say)
            held = {
                "equal": compare.runs(top / "a", job.save).equal,
                "nothing left running": job.residue() == [],
            }
        finally:
            job.end()
    return rows, held


def _rows(job: Job, small: bool, say: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        say(str(row))

    supervisor = job.supervise()
    ordinal = 1
    for fault, (do, rank) in IN_A_RANK.items():
        job.steps_done(ordinal, TO_STEP)
        add(job.recovered(fault, ordinal, job.asks(do, rank, ordinal)))
        if do == "damage":
            directory = job.directory(ordinal + 1)
            assert directory is not None
            assert re.search(r"passed over .*: damaged", (directory / "worker_0.log").read_text())
        ordinal += 1
    if job.group is None:
        add(Row("memory, control group", "skipped: no control group can be made here", ""))
    else:
        job.steps_done(ordinal, TO_STEP)
        group, limit = job.group
        struck = job.asks("balloon", 1, ordinal, group=str(group), limit=limit)
        job.wait_for(lambda: job.said_at(f"attempt {ordinal} failed"))
        (group / limit).write_text("-1" if limit == "memory.limit_in_bytes" else "max")
        add(job.recovered("memory, control group", ordinal, struck))
        ordinal += 1
    if not small:
        add(Row("disk full", "skipped: nothing can be mounted here", ""))
    else:
        add(_disk_full(job, ordinal))
        ordinal += 1
    job.steps_done(ordinal, TO_STEP)
    struck = time.monotonic()
    os.kill(job.events("start")[-1]["pid"], signal.SIGKILL)
    add(job.recovered("msrun killed", ordinal, struck))
    ordinal += 1
    add(_stays(job, ordinal, supervisor.wait))
    ordinal += 2
    supervisor = job.supervise("--resume_training")
    job.steps_done(ordinal, TO_STEP)
    supervisor.kill()
    supervisor.wait()
    struck = time.monotonic()
    supervisor = job.supervise("--resume_training")
    taken = job.wait_for(lambda: job.said_at(f"taking attempt {ordinal} over"))
    assert supervisor.wait(STARTS_S * 3) == 0, job.console[-5000:]
    last = job.events("end")[-1]
    assert (last["ordinal"], last["class"]) == (ordinal, "done"), last
    add(Row("supervisor killed", "-", "taken over", noticed_s=taken - struck, lost_steps=0))
    return rows


def _disk_full(job: Job, ordinal: int) -> Row:
    """From the moment at which the first rank gave up; room is made as soon as that was noticed."""
    job.steps_done(ordinal, TO_STEP)
    ballast = jobs.fill(job.save.parent)
    job.wait_for(lambda: job.said_at(f"attempt {ordinal} failed"))
    ballast.unlink()
    directory = job.directory(ordinal)
    assert directory is not None
    words = [jobs.files.document(path) or {} for path in directory.glob("rank_*.outcome")]
    struck = min(said["at_ns"] for said in words if said.get("error")) / 1e9
    return job.recovered("disk full", ordinal, struck)


def _stays(job: Job, ordinal: int, ends: Callable[[float], int]) -> Row:
    """A code error in each attempt at the same position: the second one stops the run, with 60."""
    job.steps_done(ordinal, TO_STEP)
    epoch, step = job.pulse(ordinal)["position"]
    position = [epoch, step + 2] if step + 2 < jobs.STEPS_PER_EPOCH else [epoch + 1, 1]
    struck = job.asks("typo", 0, 0, at=position)
    noticed = job.wait_for(lambda: job.said_at(f"attempt {ordinal} failed"))
    assert ends(STARTS_S) == 60, job.console[-5000:]
    job.fault.unlink()
    assert [end["class"] for end in job.events("end")[-2:]] == ["code_error"] * 2
    return Row("code error that stays", "code_error", "stopped at the second, exit 60", noticed_s=noticed - struck)
