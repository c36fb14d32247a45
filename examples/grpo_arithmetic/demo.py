"""The main job: train undisturbed, train again with two SIGKILLs, and compare both runs bit for bit.

    make demo                                   ends in `resumed run equals uninterrupted run: yes`, exit 0
    make demo BREAK=optimizer|rng|data|step     leaves that out of the resume and ends in `no`, exit 1

Run `a` is never disturbed. In run `b` rank 1 is killed in the middle of a save, and after a resume rank 0 in the middle
of a step. Each kill is proven by what it left on disk and by what msrun saw.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # The folder itself would shadow modules named `data` or `config` of others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from grpo_arithmetic import compare, launching
from grpo_arithmetic.launching import TOP, Launch
from ms_resume import locate
from ms_resume.ondisk import names
from ms_resume.records import Located, Position

_BANNER = ("ms_resume", "  attempt", "  passed", "  restored", "  starts anew", "  warning")
BREAKS = ("optimizer", "rng", "data", "step")


@dataclass(frozen=True, slots=True)
class Kill:
    """Rank `rank` gets SIGKILL in phase `phase` at position `at`."""

    rank: int
    phase: str
    at: Position

    @property
    def order(self) -> str:
        return f"rank={self.rank},phase={self.phase},at={self.at}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and where the kills fall. `base` is made once and shared; `earlier` has it and run `a` already."""

    config: Path
    output: Path
    kills: tuple[Kill, ...]
    broken: str = ""
    earlier: Path | None = None

    @property
    def base(self) -> Path:
        return (self.earlier or self.output) / "base"

    @property
    def undisturbed(self) -> Path:
        return (self.earlier or self.output) / "a"


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    kills = (Kill(1, "save", Position.parse(args.kill_save)), Kill(0, "update", Position.parse(args.kill_step)))
    plan = Plan(args.config, args.output, kills, args.broken or "", args.reuse)
    began = time.monotonic()
    shutil.rmtree(plan.output, ignore_errors=True)
    plan.output.mkdir(parents=True)
    if plan.earlier is None:
        _launch(plan, plan.undisturbed, "run a, undisturbed")
    _disturb(plan, plan.output / "b")
    result = compare.runs(plan.undisturbed, plan.output / "b")
    print(compare.table(result))
    _say(f"{len(list(plan.output.glob('*-*.txt')))} launches, {time.monotonic() - began:.0f} s in all")
    verdict = "yes" if result.equal else "no"
    print(
        f"resumed run equals uninterrupted run: {verdict} ({result.tensors} tensors, {result.differ} differ)",
        flush=True,
    )
    return 0 if result.equal else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, kill, resume, and compare with an undisturbed run.")
    parser.add_argument("--config", type=Path, default=TOP / "examples/grpo_arithmetic/config_demo.yaml")
    parser.add_argument("--output", type=Path, default=TOP / "output/demo", help="removed first")
    parser.add_argument("--kill_save", default="0_15", metavar="E_S", help="the save that rank 1 dies in")
    parser.add_argument("--kill_step", default="1_7", metavar="E_S", help="the step that rank 0 dies in")
    parser.add_argument("--reuse", type=Path, metavar="DIR", help="the output of an earlier demo, for its run a")
    parser.add_argument("--break", dest="broken", choices=BREAKS, help="leave this out of each resume")
    return parser.parse_args(arguments)


def _disturb(plan: Plan, save: Path) -> None:
    for number, kill in enumerate(plan.kills):
        title = f"run b, {'resumed' if number else 'from the start'}, rank {kill.rank} to die in {kill.phase} {kill.at}"
        log = _launch(plan, save, title, resume=number > 0, kill=kill)
        _prove(save, kill, log)
    _launch(plan, save, "run b, resumed, to the end", resume=True)


def _launch(plan: Plan, save: Path, title: str, *, resume: bool = False, kill: Kill | None = None) -> Path:
    """Runs the launch script to its end and shows the steps as they come; all that it prints goes to a log.

    Raises:
        SystemExit: It ended well where a kill was due, or badly where none was.
    """
    _say(title)
    began = time.monotonic()
    log = plan.output / f"{save.name}-{sum(1 for _ in plan.output.glob(f'{save.name}-*.txt')) + 1}.txt"
    launch = Launch(save, plan.config, plan.base, log, resume=resume)
    code = launching.run(launch, _harm(plan, kill, resumed=launch.resume), _show)
    _say(f"    ended with {code} after {time.monotonic() - began:.0f} s, log {log.relative_to(plan.output)}")
    if (code == 0) != (kill is None):
        tail = "".join(log.read_text().splitlines(keepends=True)[-20:])
        raise SystemExit(f"demo: expected {'a killed rank' if kill else 'exit 0'}, got {code}\n{tail}")
    return log


def _harm(plan: Plan, kill: Kill | None, *, resumed: bool) -> dict[str, str]:
    order = {"GRPO_KILL": kill.order} if kill else {}
    return order | ({"GRPO_BREAK": plan.broken} if resumed and plan.broken else {})


def _show(line: str) -> None:
    """The banner, and every fifth step; every step where somebody watches."""
    step = re.match(r"epoch \d+ step +(\d+)", line)
    shown = int(step[1]) % (1 if sys.stdout.isatty() else 5) == 0 if step else line.startswith(_BANNER)
    if shown:
        _say(f"    {line.rstrip()}")


def _prove(save: Path, kill: Kill, log: Path) -> None:
    """What the kill left behind. A demo whose kill did not strike where it should is worth nothing."""
    seen = re.search(r"Worker process \d+ exit.*-9\.", log.read_text())
    _say(f"    msrun saw: {seen[0] if seen else 'nothing of a signal'}")
    found = locate.latest(save)
    left = _left_in_save(save, kill) if kill.phase == "save" else _left_in_step(save, kill)
    for line in left:
        _say(f"    {line}")
    _say(f"    newest whole checkpoint: {_position(found)}")
    if not left or found.checkpoint is None or found.checkpoint.position >= kill.at:
        raise SystemExit(f"demo: the kill at {kill.at} left no trace, see {log}")


def _left_in_save(save: Path, kill: Kill) -> list[str]:
    directory = names.rank_dir(save, "optimizer", kill.rank)
    parts = [path for path in directory.iterdir() if names.parse_part(path.name) and f"-{kill.at}." in path.name]
    vote = names.vote(save, kill.at, kill.rank)
    if not parts or vote.exists():
        return []
    return [
        f"rank {kill.rank} was killed while it saved {kill.at}; it left {parts[0].relative_to(save)}",
        f"and no vote: {vote.relative_to(save)} is missing",
    ]


def _left_in_step(save: Path, kill: Kill) -> list[str]:
    """The steps before it are in the log of metrics, it is not, and no save was under way."""
    last = compare.steps(save)[-1]
    reached = Position(last["epoch"], last["step"] + 1).normal(compare.steps_per_epoch(save))
    if reached != kill.at:
        return []
    return [f"rank {kill.rank} was killed in step {kill.at}, after its rollout: the last step on record is before it"]


def _position(found: Located) -> str:
    return str(found.checkpoint.position) if found.checkpoint else "none"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
