"""Products that stay on the thread of the caller.

From some size on BLAS wakes threads of its own, and each of them then spins for a tenth of a second, on a core that a model could use.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memalign.embedders import Vectors

MOST_NUMBERS = 1 << 18
"""Multiplications in one product: beyond them OpenBLAS uses threads for two matrices, and from some 460,000 on for a matrix and a vector."""


def along(rows: Vectors, query: Vectors) -> Vectors:
    """The product of each row with a vector, or with each column of a matrix; shape (len(rows), ...)."""
    step = max(1, MOST_NUMBERS // max(1, query.size))
    if len(rows) <= step:
        return rows @ query
    return np.concatenate([rows[start : start + step] @ query for start in range(0, len(rows), step)])


def among(rows: Vectors) -> Vectors:
    """The products of all rows with each other, shape (len(rows), len(rows))."""
    side = max(1, isqrt(MOST_NUMBERS // max(1, rows.shape[1])))
    return np.concatenate([along(rows, rows[start : start + side].T) for start in range(0, len(rows), side)], axis=1)
