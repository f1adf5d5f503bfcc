"""Products that stay on the thread of the caller.

From some size on BLAS wakes threads of its own, and each of them then spins for a tenth of a second, on a core that a model could use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memalign.embedders import Vectors

MOST_NUMBERS = 1 << 18
"""Of a matrix in one product with a vector: from some 460,000 on OpenBLAS uses threads, in a product of two matrices sooner."""


def along(rows: Vectors, query: Vectors) -> Vectors:
    """The product of each row with a vector, shape (len(rows),)."""
    step = max(1, MOST_NUMBERS // max(1, rows.shape[1]))
    if len(rows) <= step:
        return rows @ query
    return np.concatenate([rows[start : start + step] @ query for start in range(0, len(rows), step)])


def among(rows: Vectors) -> Vectors:
    """The products of all rows with each other, shape (len(rows), len(rows))."""
    return np.stack([along(rows, row) for row in rows])
