"""Starts a run and keeps it going: watches its ranks, says why they died, starts it again from the newest checkpoint.

    $ ms-resume run --save out --ranks 2 --on-restart=--resume_training -- launch/run_grpo.sh
    ...
    attempt  class   first   exit  reached  checkpoint  says
    1        killed  rank 1  -9    0_11     0_10        somebody or something killed the rank
    2        done    -       -     2_0      2_0         the run reached its end
    done: the run reached its end

WORDS are a command, after `--`, or one file CONFIG.yaml with the keys of docs/supervisor.md; options win over it. The
exit code is 0 when the run reached its end, 50 when it saved and left because this process got SIGTERM, 60 when it gave
up, else the trainer's own. Killed and started again, with the same words, it takes the running attempt over.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_resume.cli import tables

if TYPE_CHECKING:
    from ms_resume.supervisor.run import Summary

_SUFFIXES = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORDS", help="CONFIG.yaml, or -- and a command")
    parser.add_argument("--save", metavar="SAVE", help="the save directory of the run")
    parser.add_argument("--log-dir", metavar="D", help="history, logs, attempts; default: SAVE.logs")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks on this node: the run is done when all are")
    parser.add_argument("--on-restart", action="append", metavar="WORD", help="added to the command of later starts")
    parser.add_argument("--port", type=int, action="append", metavar="P", help="must be free before a start")
    parser.add_argument("--strategy-dir", metavar="D", help="of MindSpore: files of another topology are an error")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of the run; all must see the log directory")
    parser.add_argument("--node", type=int, metavar="K", help="which of them this is, from 0")
    parser.add_argument("--same", action="append", metavar="PATH", help="code that must be equal on all nodes")
    parser.add_argument("--rules", metavar="FILE", help="a site's own rules, asked before ours")
    parser.add_argument("--job-id", metavar="ID", help="in every line of the log; default: the name of SAVE")
    parser.add_argument(
        "--dry-run", metavar="HISTORY", help="show what would be decided after each attempt of a history.jsonl"
    )


def run(args: argparse.Namespace) -> int:
    from ms_resume.supervisor import files  # here: other commands need neither it nor YAML
    from ms_resume.supervisor import plan as plans
    from ms_resume.supervisor import run as runs

    values = _values(args, plans.read)
    if args.dry_run:
        nothing = {name: values.get(name) or ["-"] for name in ("command", "save")}
        decided = runs.replay(Path(args.dry_run), plans.make(values | nothing))
        rows = [{"attempt": end.ordinal, "class": end.kind, **files.action_json(action)} for end, action in decided]
        _replay(rows, args.json)
        return 0
    echo = sys.stderr if args.json else sys.stdout
    summary = runs.supervise(plans.make(values), echo)
    if args.json:
        print(json.dumps(summary.to_json()))
    else:
        _show(summary)
    return summary.action.exit_code


def _values(args: argparse.Namespace, read: Any) -> dict[str, Any]:
    """What the file says, and the options above it."""
    words = args.words
    is_file = len(words) == 1 and words[0].endswith(_SUFFIXES)
    values: dict[str, Any] = read(Path(words[0])) if is_file else {"command": words}
    given = {
        "save": args.save,
        "log_dir": args.log_dir,
        "ranks": args.ranks,
        "on_restart": args.on_restart,
        "ports": args.port,
        "strategy_dir": args.strategy_dir,
        "nodes": args.nodes,
        "node": args.node,
        "same": args.same,
        "rules": args.rules,
        "job_id": args.job_id,
    }
    return values | {name: value for name, value in given.items() if value is not None}


def _replay(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"decisions": rows}))
        return
    told = [[str(row["attempt"]), row["class"], row["what"], f"{row['delay_s']:.0f}", row["reason"]] for row in rows]
    tables.show(("attempt", "class", "decision", "after s", "why"), told)


def _show(summary: Summary) -> None:
    columns = ("attempt", "class", "first", "exit", "reached", "checkpoint", "says")
    rows = []
    for end in summary.ends:
        first = "-" if end.get("rank") is None else f"rank {end['rank']}"
        code = "-" if end.get("exit_code") is None else str(end["exit_code"])
        places = [_place(end.get(name)) for name in ("reached", "checkpoint")]
        rows.append((str(end["ordinal"]), str(end["class"]), first, code, *places, str(end.get("says", ""))))
    if rows:
        tables.show(columns, rows)
    print(f"{summary.action.what}: {summary.action.reason}")
    if summary.action.what == "stop":
        where = f"docs/operations.md has exit code {summary.action.exit_code}; logs: {summary.log_dir}"
        print(f"  -> {where}", file=sys.stderr)


def _place(position: list[int] | None) -> str:
    return "-" if position is None else f"{position[0]}_{position[1]}"
