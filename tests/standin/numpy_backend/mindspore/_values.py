"""Tensors and parameters: a NumPy array with MindSpore's names around it."""

from __future__ import annotations

from typing import Any

import numpy as np

_NAMES = {
    "float32": "Float32", "float16": "Float16", "float64": "Float64", "int32": "Int32", "int64": "Int64",
    "uint8": "UInt8", "bool": "Bool",
}  # fmt: skip  # one table


class Tensor:
    device = "CPU"

    def __init__(self, value: Any) -> None:
        self._array = np.array(value._array if isinstance(value, Tensor) else value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> str:
        return _NAMES[self._array.dtype.name]

    @property
    def size(self) -> int:
        return self._array.size

    def asnumpy(self) -> np.ndarray:
        return self._array

    def data_ptr(self) -> int:
        return self._array.__array_interface__["data"][0]

    def copy_(self, other: Tensor) -> Tensor:
        self._array[...] = other.asnumpy()
        return self

    def __int__(self) -> int:
        return int(self._array)

    def __float__(self) -> float:
        return float(self._array)


class Parameter(Tensor):
    has_init = False

    def __init__(self, default_input: Any, name: str = "Parameter", requires_grad: bool = True) -> None:
        super().__init__(default_input)
        self.name, self.requires_grad = name, requires_grad

    def set_data(self, data: Tensor) -> Parameter:
        self._array = np.array(data.asnumpy())
        return self


class ParameterTuple(tuple):
    __slots__ = ()
