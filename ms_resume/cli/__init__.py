"""Looks at save directories. Standard output is data, standard error is talk, the exit code is the verdict.

    0 fine   2 usage   10 nothing to resume   20 torn   21 damaged   30 names do not match
    32 not equal   40 disk   60 gave up   61 directory in use   70 bug

Only repair, restore, recover (all three not with --dry-run), pin, unpin, prune (only with --yes) write, and explain the
name map that --write-map names. run starts a training and keeps it going, and ends with 50 and 60 as well. Nothing
needs MindSpore, and only diff NumPy: a login node will do.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import ms_resume
from ms_resume.cli import (
    completion,
    diff,
    explain,
    locate,
    ls,
    pin,
    prune,
    recover,
    repair,
    restore,
    run,
    show,
    unpin,
    verify,
)
from ms_resume.errors import DiskError, MsResumeError, UsageError

_COMMANDS = {
    "ls": ls,
    "locate": locate,
    "verify": verify,
    "show": show,
    "diff": diff,
    "explain": explain,
    "repair": repair,
    "restore": restore,
    "pin": pin,
    "unpin": unpin,
    "prune": prune,
    "recover": recover,
    "run": run,
}
_INTERRUPTED = 130
_BROKEN_PIPE = 141
"""128 and the signal's number, as a shell reports them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Nothing is raised, whatever happens."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not be text
    try:
        code = _run(words)
        sys.stdout.flush()  # here, where a reader that has left can still be met quietly
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(words: list[str]) -> int:
    own = words[: words.index("--")] if "--" in words else words  # what follows is a command of somebody else
    as_json = "--json" in own  # known even where the rest does not parse
    try:
        args = _parser().parse_args(words)
        return _COMMANDS[args.command].run(args) or 0
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except MsResumeError as error:
        return _report(error, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _report(_unreadable(error), as_json)
    except Exception as error:  # noqa: BLE001  # the edge of the process: a bug gets its own exit code
        traceback.print_exc()
        return _report(_bug(error), as_json)


class _Parser(argparse.ArgumentParser):
    """Says no in the same way as everything else here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"`{self.prog} --help` shows how it is called")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ms-resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"ms-resume {ms_resume.__version__}")
    parser.add_argument(
        "--print-completion",
        action=completion.Print,
        choices=completion.SHELLS,
        help="print a script that completes ms-resume in that shell",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        about = command.__doc__ or ""
        below = commands.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(below)
        below.add_argument("--json", action="store_true", help="print one JSON object; errors too")
    return parser


def _report(error: MsResumeError, as_json: bool) -> int:
    if as_json:
        print(json.dumps(error.to_json()))
    else:
        sys.stdout.flush()
        print(f"ms-resume: {error}", file=sys.stderr)
    return int(error.exit_code)


def _unreadable(error: OSError) -> MsResumeError:
    where = error.filename or "the save directory"
    return DiskError(
        f"{where}: cannot be read: {error.strerror or error}",
        hint="check the path's permissions and the disk behind it",
        path=str(where),
        errno=error.errno,
    )


def _bug(error: Exception) -> MsResumeError:
    return MsResumeError(
        f"a bug in ms-resume {ms_resume.__version__}: {type(error).__name__}: {error}",
        hint="please report it with the lines above and the output of `ls -R SAVE`",
    )
