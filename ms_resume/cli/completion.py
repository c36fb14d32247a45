"""Completion of the command line in bash and zsh: a script for the shell, made from the parser by shtab.

shtab is an extra: who completes nothing needs none of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ms_resume.errors import UsageError

SHELLS = ("bash", "zsh")
_FILES = ("file", "other", "against", "name_map", "write_map")
_DIRECTORIES = ("save", "ref_dir")
"""Arguments that a shell completes with paths, by `dest`."""


class Print(argparse.Action):
    """`--print-completion SHELL`: prints the script and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            raise UsageError(
                f"{option} needs shtab, which is not installed",
                hint="pip install shtab, then this again; the script itself needs it no more",
            ) from None
        for action in _actions(parser):
            if action.dest in (*_FILES, *_DIRECTORIES):
                kind = shtab.FILE if action.dest in _FILES else shtab.DIRECTORY
                action.complete = kind  # type: ignore[attr-defined]  # how shtab is told
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of the commands, too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
