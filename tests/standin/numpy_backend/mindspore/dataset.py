"""A shuffled data set: its order is that of the seed at the moment in which its iterator was made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class config:  # MindSpore's module of that name
    seed = 0

    @classmethod
    def set_seed(cls, seed: int) -> None:
        cls.seed = seed


class NumpySlicesDataset:
    def __init__(self, data: np.ndarray, shuffle: bool = True) -> None:
        self._data, self._rows = np.asarray(data), 1

    def batch(self, batch_size: int, drop_remainder: bool = False) -> NumpySlicesDataset:
        batched = NumpySlicesDataset(self._data)
        batched._rows = batch_size
        return batched

    def get_dataset_size(self) -> int:
        return len(self._data) // self._rows

    def create_tuple_iterator(self, output_numpy: bool = False) -> Iterator[list[np.ndarray]]:
        order = np.random.RandomState(config.seed).permutation(len(self._data))
        for batch in range(self.get_dataset_size()):
            yield [self._data[order[batch * self._rows : (batch + 1) * self._rows]]]
