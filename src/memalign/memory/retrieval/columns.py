"""A column of numbers that grows: no Python object a row."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt


class Column:
    """A one-dimensional array that grows by doubling."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data: npt.NDArray[Any] = np.empty(0, dtype=dtype)
        self._size = 0

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Self:
        """A column that starts with some values, copied."""
        column = cls(values.dtype)
        column.extend(values)
        return column

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """All values, as a view: what is written to it is kept."""
        return self._data[: self._size]

    def extend(self, values: npt.ArrayLike) -> None:
        """Add values at the end."""
        fresh = np.asarray(values, dtype=self._data.dtype)
        total = self._size + len(fresh)
        if total > len(self._data):
            grown = np.empty(max(total, 2 * len(self._data), 64), dtype=self._data.dtype)
            grown[: self._size] = self.values
            self._data = grown
        self._data[self._size : total] = fresh
        self._size = total
