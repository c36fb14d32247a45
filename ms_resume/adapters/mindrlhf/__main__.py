"""Runs MindRLHF's entry point with the adapter in place.

    python -m ms_resume.adapters.mindrlhf [--take_over] [--allow_fresh_start] main.py [its own words]

`--save_strategy_dir DIR` among main.py's words, which its parser does not know, becomes `rl_config.save_strategy_dir`.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from ms_resume import pulse
from ms_resume.adapters import mindrlhf
from ms_resume.errors import MsResumeError, UsageError

_OWN = {"--take_over": "take_over", "--allow_fresh_start": "allow_fresh_start"}
_STRATEGY = "--save_strategy_dir"


def main(words: Sequence[str]) -> None:
    """Raises UsageError where there is no program to run."""
    own, program, rest = _split(words)
    rest, strategy = strategy_dir(rest)
    mindrlhf.install(**{_OWN[word]: True for word in own}, save_strategy_dir=strategy)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else hydra, on the dev branch, makes every exit code 1
    sys.argv = [program, *rest]
    sys.path[0] = str(Path(program).resolve().parent)  # as `python main.py` has it
    runpy.run_path(program, run_name="__main__")


def strategy_dir(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without `--save_strategy_dir`, and what it said."""
    left: list[str] = []
    said = None
    todo = list(words)
    while todo:
        word = todo.pop(0)
        if word.startswith(f"{_STRATEGY}="):
            said = word.partition("=")[2]
        elif word == _STRATEGY:
            if not todo:
                raise UsageError(f"{_STRATEGY} is the last word", hint=f"{_STRATEGY} DIR")
            said = todo.pop(0)
        else:
            left.append(word)
    return left, said


def _split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    own = list(words[: next((n for n, word in enumerate(words) if word not in _OWN), len(words))])
    left = list(words[len(own) :])
    if not left or left[0].startswith("-") or not Path(left[0]).is_file():
        found = f"{left[0]!r} is no program" if left else "no program is named"
        raise UsageError(
            f"{found}, expected MindRLHF's main.py after {', '.join(_OWN)}",
            hint="python -m ms_resume.adapters.mindrlhf main.py --config ...",
        )
    return own, left[0], left[1:]


def _run(words: list[str]) -> int:
    """The exit code; where somebody supervises, the error is told there, too."""
    try:
        main(words)
    except MsResumeError as error:
        pulse.told(error)
        print(f"ms_resume: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(pulse.run(_run, sys.argv[1:]))
