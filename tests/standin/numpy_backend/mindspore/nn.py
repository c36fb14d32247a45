"""Cells: they know the parameters that they and the cells in them were given."""

from __future__ import annotations

from collections.abc import Iterator

from mindspore._values import Parameter, ParameterTuple


class Cell:
    def __init__(self, auto_prefix: bool = True) -> None:
        """Without names made from attributes, which the stand-ins do not use."""

    def get_parameters(self) -> Iterator[Parameter]:
        seen: set[int] = set()
        for parameter in self._all():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def init_parameters_data(self) -> None:
        """Every parameter here has its data from the start."""

    def _all(self) -> Iterator[Parameter]:
        for value in vars(self).values():
            if isinstance(value, Parameter):
                yield value
            elif isinstance(value, ParameterTuple):
                yield from value
            elif isinstance(value, Cell):
                yield from value._all()
