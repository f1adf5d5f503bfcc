"""Finding the most similar items: exact search over unit vectors held in RAM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memalign.errors import EmbeddingError

if TYPE_CHECKING:
    from memalign.embedders import Vectors


_BLOCK = 1 << 18
"""Numbers in one product of matrix and vector: from some 400,000 on, BLAS wakes threads, which on busy cores costs 4 ms and gains nothing,
since memory is the limit."""


class ItemIndex:
    """The vectors of the items that memory holds; each item once, however many experts spoke of it.

    Grows by doubling, so that adding an item copies nothing but its own row (amortised). Not safe for concurrent use.
    """

    def __init__(self) -> None:
        self._vectors: Vectors | None = None
        self._ids: list[str] = []
        self._place: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._place

    def vector(self, item_id: str) -> Vectors:
        """The vector of an item that the index holds; shape (dimension,)."""
        assert self._vectors is not None
        found: Vectors = self._vectors[self._place[item_id]]
        return found

    def add(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Add items with their vectors (little-endian float32); those it has stay as they are."""
        fresh = {item_id: data for item_id, data in entries if item_id not in self._place}
        if not fresh:
            return
        rows = np.frombuffer(b"".join(fresh.values()), dtype="<f4").reshape(len(fresh), -1)
        total = len(self._ids) + len(fresh)
        if self._vectors is None:
            self._vectors = np.empty((max(total, 64), rows.shape[1]), dtype=np.float32)
        if rows.shape[1] != self._vectors.shape[1]:
            raise EmbeddingError(f"memory holds vectors of {self._vectors.shape[1]} dimensions, new ones have {rows.shape[1]}")
        if total > len(self._vectors):
            grown = np.empty((max(total, 2 * len(self._vectors)), rows.shape[1]), dtype=np.float32)
            grown[: len(self._ids)] = self._vectors[: len(self._ids)]
            self._vectors = grown
        self._vectors[len(self._ids) : total] = rows
        for item_id in fresh:
            self._place[item_id] = len(self._ids)
            self._ids.append(item_id)

    def remove(self, item_ids: Iterable[str]) -> None:
        """Forget items; the last row moves into each gap."""
        for item_id in item_ids:
            place = self._place.pop(item_id, None)
            if place is None:
                continue
            assert self._vectors is not None
            last = self._ids.pop()
            if last != item_id:
                self._ids[place] = last
                self._place[last] = place
                self._vectors[place] = self._vectors[len(self._ids)]
            self._vectors[len(self._ids)] = 0.0

    def nearest(self, query: Vectors, k: int, *, floor: float = -1.0, exclude: str | None = None) -> list[tuple[str, float]]:
        """The k most similar items with their cosine similarity, best first; those below the floor and one excluded item left out."""
        if k <= 0 or self._vectors is None or not self._ids:
            return []
        if query.shape != (self._vectors.shape[1],):
            raise EmbeddingError(f"memory holds vectors of {self._vectors.shape[1]} dimensions, the query has {query.shape[-1]}")
        similarity = _products(self._vectors[: len(self._ids)], query)
        wanted = min(k + (exclude is not None), len(self._ids))
        best = np.argpartition(-similarity, wanted - 1)[:wanted]
        ranked = sorted(((float(similarity[place]), self._ids[place]) for place in best), key=lambda pair: (-pair[0], pair[1]))
        return [(item_id, score) for score, item_id in ranked if item_id != exclude and score >= floor][:k]


def _products(vectors: Vectors, query: Vectors) -> Vectors:
    rows = max(1, _BLOCK // vectors.shape[1])
    found = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), rows):
        np.dot(vectors[start : start + rows], query, out=found[start : start + rows])
    return found
