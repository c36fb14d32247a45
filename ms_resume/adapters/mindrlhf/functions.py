"""The functions that MindRLHF imports, under their names and with their parameters: what they promise, done.

Inside a run they work for it. Called from elsewhere (a script, another trainer) they do what stock code does where that
is harmless, and what it should do where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ms_resume.adapters.mindrlhf import run as runs
from ms_resume.errors import NamesMismatch
from ms_resume.framework import nets, stock
from ms_resume.load.names.match import match
from ms_resume.ondisk import atomic, meta
from ms_resume.records import Position
from ms_resume.state import infos

_NO_ATTEMPT = "000000-0000000000000000"
"""In the name of a temp file that belongs to no run."""


def get_checkpoint_name(
    ckpt_path: str, prefix: str = "network", epoch_num: int = 0, step_num: int = 0, formats: str = "ckpt"
) -> str:
    """The path of this rank's file. In a run the end of an epoch is (epoch + 1, 0), also at the very end (B11)."""
    position, run = Position(epoch_num, step_num), runs.current()
    place = run.place_of(ckpt_path, prefix, epoch_num, step_num) if run else None
    directory = Path(ckpt_path).absolute() / f"rank_{stock.rank()}"
    path = str(directory / f"{prefix}_rank_{stock.rank()}-{place or position}.{formats}")
    if run and place:
        run.expect(path, prefix, place)
    else:
        atomic.make_dirs(directory)
    return path


def ensure_total_ckpt_is_less_than_limit(ckpt_path: str, limit: int = 5, formats: str = "ckpt") -> None:
    """Nothing: retention goes by whole checkpoints, after a save, and never takes the last ones (B3, B24).

    Elsewhere than in a run nothing proves what may be deleted, so nothing is.
    """


def record_last_ckpt_to_json(epoch: int, step: int, ckpt_file: str, meta_json: str) -> None:
    """Notes that one role is done. In a run `meta.json` is written with the vote; else now, whole and durable."""
    run = runs.current()
    if run is None or not run.note(meta_json):
        atomic.replace(Path(meta_json), meta.encode(Position(epoch, step), ckpt_file), _NO_ATTEMPT)


def load_param_to_net(net: Any, param_dict: dict[str, Any]) -> None:
    """Gives a net all its parameters, in place.

    Raises:
        NamesMismatch: Names, shapes, or dtypes do not fit (B15). Nothing was loaded.
    """
    report = match(infos(stock.tensors(param_dict)), nets.Net(net).infos())
    if not report.clean:
        raise NamesMismatch(
            f"the checkpoint does not fit {type(net).__name__}; nothing was loaded into it\n  {report}",
            hint="build the net as the run that saved it did, or give the directory of a run with this model",
            report=report.to_json(),
        )
    stock.fill(net, param_dict)


def locator(original: Callable[..., Any]) -> Callable[..., Any]:
    """MindFormers' `get_resume_checkpoint_by_meta`: in a run's directories ours, for MindFormers' own jobs its own."""

    def get_resume_checkpoint_by_meta(
        checkpoint_dir: str,
        ckpt_format: str = "ckpt",
        use_checkpoint_health_monitor: bool = False,
        health_ckpts_record_dir: str = "./output",
    ) -> Any:
        """The name of this rank's file of the checkpoint that all ranks and roles resume from, whatever its format."""
        run = runs.current()
        file = run.file_to_load(checkpoint_dir) if run else None
        return file or original(checkpoint_dir, ckpt_format, use_checkpoint_health_monitor, health_ckpts_record_dir)

    return get_resume_checkpoint_by_meta
