"""Exact search over unit vectors in RAM, at two bytes a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.errors import EmbeddingError
from memalign.memory.retrieval.products import MOST_NUMBERS, along

if TYPE_CHECKING:
    from memalign.embedders import Vectors

    Slots = npt.NDArray[np.int64]

BLOCK_NUMBERS = MOST_NUMBERS
"""Numbers in one block: it takes part in a product as a whole."""

_COARSE, _FINE, _SCALE = range(3)
_STEPS = 127.0
_FINER = 254.0
_AT_ONCE = 512
"""Rows that are split into planes at once: what is in between stays in the processor's cache, which makes it several times as fast."""
_MORE = 32
"""So many candidates beyond those wanted get their exact similarity: the coarse one is off by less than 0.01."""


class Exact:
    """Rows of int8 with a scale (coarse), and their remainder in int8 (fine): coarse products find candidates, both planes rank them.

    The coarse pass reads a quarter of what float32 would, at the speed of BLAS; with the remainder a similarity is right to 1e-4, and to 1e-5
    in nearly all. Blocks never move, so that adding a row copies nothing else. Not safe for concurrent use.
    """

    def __init__(self, dimension: int, first: int = 0) -> None:
        """``first``: the slot of the first row; earlier ones are held elsewhere."""
        self.dimension = dimension
        self.first = first
        self._rows = max(1, BLOCK_NUMBERS // dimension)
        self._blocks: list[tuple[npt.NDArray[Any], ...]] = []
        self._size = 0

    def __len__(self) -> int:
        """The number of rows."""
        return self._size

    def grow(self, rows: int) -> None:
        """Make room for rows at the end; they are zeros until they are put."""
        self._size += rows
        while len(self._blocks) * self._rows < self._size:
            shape = (self._rows, self.dimension)
            self._blocks.append((np.zeros(shape, np.int8), np.zeros(shape, np.int8), np.zeros(self._rows, np.float32)))

    def put(self, slots: Slots, rows: Vectors) -> None:
        """Write the vectors of different slots, shape (n, dimension). Raises EmbeddingError for another dimension or for what is not finite."""
        if rows.shape[1] != self.dimension:
            raise EmbeddingError(f"memory holds vectors of {self.dimension} dimensions, new ones have {rows.shape[1]}")
        if not bool(np.isfinite(rows).all()):
            raise EmbeddingError("a stored vector holds NaN or infinity; name another embedder, with which memory is embedded anew")
        order = np.argsort(slots)
        places = slots[order] - self.first
        planes = [plane[order] for plane in _planes(rows)]
        numbers, starts = np.unique(places // self._rows, return_index=True)
        for number, start, end in zip(numbers.tolist(), starts.tolist(), [*starts[1:].tolist(), len(places)], strict=True):
            at = places[start:end] - number * self._rows
            for plane, values in zip(self._blocks[number], planes, strict=True):
                plane[at] = values[start:end]

    def clear(self, slots: Slots) -> None:
        """Overwrite rows with zeros."""
        for slot in slots.tolist():
            block, at = divmod(slot - self.first, self._rows)
            for plane in self._blocks[block]:
                plane[at] = 0

    def vectors(self, slots: Slots) -> Vectors:
        """The vectors of slots, shape (len(slots), dimension)."""
        if not len(slots):
            return np.empty((0, self.dimension), dtype=np.float32)
        found = self._at(slots, _FINE).astype(np.float32)
        found /= np.float32(_FINER)
        found += self._at(slots, _COARSE)
        found *= self._at(slots, _SCALE)[:, None]
        return found

    def nearest(self, query: Vectors, wanted: int, usable: npt.NDArray[np.bool_]) -> tuple[Slots, Vectors]:
        """At most ``wanted`` usable slots with their cosine similarity, best first; ``usable`` has one entry a slot, from slot 0 on."""
        scores = self._coarse(query)
        mask = usable[self.first :]
        if not mask.all():
            scores[~mask] = -np.inf
        pool = min(wanted + _MORE, len(scores))
        best = np.argpartition(-scores, pool - 1)[:pool] if pool > 0 else np.empty(0, np.int64)
        best = np.sort(best[scores[best] > -np.inf])
        if not len(best):
            return best, np.empty(0, np.float32)
        slots = best + self.first
        remainder = along(self._at(slots, _FINE).astype(np.float32), query) / np.float32(_FINER)
        return ranked(slots, scores[best] + remainder * self._at(slots, _SCALE), wanted)

    def rest(self, first: int) -> Exact:
        """The rows from a slot on, which is the first of a block; they are shared, not copied."""
        tail = Exact(self.dimension, first)
        tail._blocks = self._blocks[(first - self.first) // self._rows :]
        tail._size = self._size - (first - self.first)
        return tail

    def whole_blocks(self) -> int:
        """The slot after the last full block."""
        return self.first + self._size // self._rows * self._rows

    def planes(self) -> dict[str, npt.NDArray[Any]]:
        """All rows as they can be stored."""
        names = ("coarse", "fine", "scale")
        empty = (np.zeros((0, self.dimension), np.int8), np.zeros((0, self.dimension), np.int8), np.zeros(0, np.float32))
        parts: list[Any] = [np.concatenate(blocks)[: self._size] for blocks in zip(*self._blocks, strict=True)] if self._blocks else list(empty)
        return dict(zip(names, parts, strict=True))

    @classmethod
    def of_planes(cls, coarse: npt.NDArray[np.int8], fine: npt.NDArray[np.int8], scale: Vectors) -> Exact:
        """Rows as ``planes`` gave them, copied."""
        made = cls(coarse.shape[1])
        made.grow(len(coarse))
        for number, block in enumerate(made._blocks):
            given: tuple[npt.NDArray[Any], ...] = (coarse, fine, scale)
            for plane, stored in zip(block, given, strict=True):
                part = stored[number * made._rows : (number + 1) * made._rows]
                plane[: len(part)] = part
        return made

    def _at(self, slots: Slots, plane: int) -> npt.NDArray[Any]:
        """What a plane holds of some slots, at least one."""
        numbers, rows = np.divmod(slots - self.first, self._rows)
        return np.array([self._blocks[number][plane][row] for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)])

    def _coarse(self, query: Vectors) -> Vectors:
        found = np.empty(self._size, dtype=np.float32)
        rows = np.empty((self._rows, self.dimension), dtype=np.float32)
        for number, (coarse, _, scale) in enumerate(self._blocks):
            start = number * self._rows
            count = min(self._rows, self._size - start)
            np.copyto(rows[:count], coarse[:count])
            part = found[start : start + count]
            np.dot(rows[:count], query, out=part)
            part *= scale[:count]
        return found


def ranked(slots: Slots, scores: Vectors, wanted: int) -> tuple[Slots, Vectors]:
    """The best of some slots, best first; of equals the older first."""
    order = np.lexsort((slots, -scores))[:wanted]
    return slots[order], np.clip(scores[order], -1.0, 1.0).astype(np.float32)


def _planes(rows: Vectors) -> tuple[npt.NDArray[Any], ...]:
    """Coarse, fine and scale of rows."""
    coarse, fine = np.empty(rows.shape, np.int8), np.empty(rows.shape, np.int8)
    scale = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        coarse[part], fine[part], scale[part] = _split(rows[part])
    return coarse, fine, scale


def _split(rows: Vectors) -> tuple[npt.NDArray[Any], ...]:
    scale = np.abs(rows).max(axis=1) / np.float32(_STEPS)
    steps = rows / np.where(scale > 0, scale, 1)[:, None]
    coarse = np.rint(steps)
    return coarse.astype(np.int8), np.rint((steps - coarse) * np.float32(_FINER)).astype(np.int8), scale.astype(np.float32)
