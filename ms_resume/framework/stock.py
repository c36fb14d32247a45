"""MindSpore's own saving and loading, as a foreign trainer calls it: listened to, and done in place of it.

`mindspore.save_checkpoint` and `load_checkpoint` are replaced in the module, because that is where trainers look them
up; a call that nobody here waits for goes to the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

from ms_resume.errors import MsResumeError, UsageError
from ms_resume.framework.nets import Net, array_of
from ms_resume.state import HostTensor, from_array

Takes = Callable[[Any, str], bool]
"""Hears of a save of a cell to a path; true where it has done it."""

Gives = Callable[[str], "Mapping[str, HostTensor] | None"]
"""What is loaded from a path; None for those of others."""


def listen(takes: Takes, gives: Gives) -> None:
    """From now on saves and loads ask these first. Once in a process: a second call changes nothing.

    Raises:
        UsageError: Somebody else has replaced them.
    """
    import mindspore

    for name in ("save_checkpoint", "load_checkpoint"):
        held = getattr(mindspore, name)
        if getattr(held, "ms_resume", False):
            return
        if not held.__module__.startswith("mindspore"):
            raise UsageError(
                f"mindspore.{name} was replaced by {held.__module__} before the adapter came",
                hint="import the adapter first, or leave the other one out",
            )
    save, load = mindspore.save_checkpoint, mindspore.load_checkpoint

    @wraps(save)
    def save_checkpoint(save_obj: Any, ckpt_file_name: str, *given: Any, **named: Any) -> Any:
        return None if takes(save_obj, str(ckpt_file_name)) else save(save_obj, ckpt_file_name, *given, **named)

    @wraps(load)
    def load_checkpoint(ckpt_file_name: Any, *given: Any, **named: Any) -> Any:
        values = gives(ckpt_file_name) if isinstance(ckpt_file_name, str) else None
        return load(ckpt_file_name, *given, **named) if values is None else parameters(values)

    for name, replaced in (("save_checkpoint", save_checkpoint), ("load_checkpoint", load_checkpoint)):
        vars(replaced)["ms_resume"] = True  # how a second call knows it
        setattr(mindspore, name, replaced)


def parameters(values: Mapping[str, HostTensor]) -> dict[str, Any]:
    """Copies of tensors as `load_checkpoint` gives them."""
    from mindspore import Parameter, Tensor

    return {name: Parameter(Tensor(array_of(value).copy()), name=name) for name, value in values.items()}


def tensors(values: Mapping[str, Any]) -> dict[str, HostTensor]:
    """What `load_checkpoint` gave, as tensors: views where the device allows."""
    return {name: from_array(value.asnumpy()) for name, value in values.items()}


def fill(cell: Any, values: Mapping[str, Any]) -> None:
    """Gives a cell's parameters, all of them, what `load_checkpoint` gave. The caller has compared names and shapes.

    In place, because `load_param_into_net` detaches what was compiled; but one whose memory is not allocated yet only
    MindSpore's own loading knows how to slice and place.

    Raises:
        MsResumeError: A parameter does not hold what was placed.
    """
    import mindspore

    net, wanted = Net(cell), tensors(values)
    if any(getattr(parameter, "has_init", False) for parameter in cell.get_parameters()):
        mindspore.load_param_into_net(cell, dict(values))
    else:
        for name in net.infos():
            net.place(name, wanted[name])
    for name in net.infos():
        if bytes(net.read(name).data) != bytes(wanted[name].data):
            raise MsResumeError(
                f"{name}: does not hold what was loaded into it",
                hint="two nets may share its memory; else this is a bug",
                tensor=name,
            )


def rest(cell: Any, known: Iterable[Any], but: tuple[str, ...] = ()) -> Net:
    """The parameters of `cell` that none of `known` has, without those whose names begin like one of `but`."""
    elsewhere = {id(parameter) for other in known for parameter in other.get_parameters()}
    left = [p for p in cell.get_parameters() if id(p) not in elsewhere and not p.name.startswith(but)]
    return Net(SimpleNamespace(get_parameters=lambda: left))


def rank() -> int:
    from mindspore.communication import get_rank

    return int(get_rank())
