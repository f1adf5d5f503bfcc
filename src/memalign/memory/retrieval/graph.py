"""Approximate search in large memories: a navigable small-world graph (HNSW; Malkov and Yashunin, 2018) by usearch, an optional part."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.errors import MissingExtra
from memalign.memory.retrieval.exact import Exact, ranked
from memalign.memory.retrieval.products import along

if TYPE_CHECKING:
    from memalign.embedders import Vectors
    from memalign.memory.retrieval.exact import Slots

NEIGHBOURS, EFFORT_TO_ADD, EFFORT_TO_SEARCH = 16, 64, 96
_STEP = 512
"""Rows added between two looks at whether to stop: some tenths of a second."""

_FEW = 20_000
"""So few usable slots are compared one by one: the graph would lead through too many others."""


def available() -> bool:
    """Whether the optional part is installed."""
    return importlib.util.find_spec("usearch") is not None


class Graph:
    """The vectors of slots 0 to n in float16, linked to their neighbours. It is not changed once it is in use: what came later is held elsewhere."""

    def __init__(self, index: Any, size: int, kept: npt.NDArray[np.uint8] | None = None) -> None:
        """``kept``: what has to live as long, since the index reads it in place."""
        self._index = index
        self._kept = kept
        self.size = size
        self.dimension = int(index.ndim)

    @classmethod
    def stored(cls, data: npt.NDArray[np.uint8], size: int) -> Graph:
        """One that lies in a file and is read in place. Raises ValueError for what is none."""
        index = _new(1)
        index.view(data.data)  # takes dimension and kind from the data
        return cls(index, size, data)

    def data(self) -> npt.NDArray[np.uint8]:
        """As it can be stored."""
        return np.frombuffer(self._index.save(), dtype=np.uint8) if self._kept is None else self._kept

    def vectors(self, slots: Slots) -> Vectors:
        """The vectors of slots it holds, to float16, shape (len(slots), dimension)."""
        if not len(slots):
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.asarray(self._index.get(slots.astype(np.uint64)), dtype=np.float32).reshape(len(slots), self.dimension)

    def nearest(self, query: Vectors, wanted: int, usable: npt.NDArray[np.bool_]) -> tuple[Slots, Vectors]:
        """At most ``wanted`` usable slots with their cosine similarity, best first; the best are found in all but about one of a hundred."""
        mask = usable[: self.size]
        free = int(np.count_nonzero(mask))
        if free <= min(_FEW, self.size // 2):
            slots = np.flatnonzero(mask)
            return ranked(slots, along(self.vectors(slots), query), wanted)
        ask = wanted * self.size // free + 16
        while True:
            found = self._index.search(query.astype(np.float16), min(ask, self.size), threads=1)
            slots = found.keys.astype(np.int64)
            fit = mask[slots]
            if int(np.count_nonzero(fit)) >= wanted or ask >= self.size:
                return ranked(slots[fit], 1.0 - found.distances[fit].astype(np.float32), wanted)
            ask *= 4


def grown(before: Graph | None, exact: Exact, live: Callable[[], npt.NDArray[np.bool_]], until: int, stop: Callable[[], bool]) -> Graph | None:
    """A graph of the live slots before ``until``: a copy of an earlier one, less what has died since, and what lies in RAM. None when stopped.

    Deterministic: one thread adds, slot by slot. Raises MissingExtra.
    """
    index = _new(exact.dimension)
    first = 0
    if before is not None:
        index.load(before.data().data)
        first = before.size
        gone = np.flatnonzero(~live()[:first])
        for slot in gone.tolist():
            if stop():
                return None
            if index.contains(slot):
                index.remove(slot)
    for start in range(first, until, _STEP):
        if stop():
            return None
        slots = np.arange(start, min(start + _STEP, until))
        slots = slots[live()[slots]]
        if len(slots):
            index.add(slots.astype(np.uint64), exact.vectors(slots).astype(np.float16), threads=1)
    return Graph(index, until)


def _new(dimension: int) -> Any:
    if "usearch" not in sys.modules and importlib.util.find_spec("onnxruntime") is not None:
        importlib.import_module("onnxruntime")  # a local embedder needs it later: loaded after usearch, it ends the process (1.32, usearch 2.26)
    try:
        from usearch.index import Index
    except ImportError as error:
        raise MissingExtra("usearch", "scale") from error
    # Vectors are of unit length, as for the exact search: the inner product is the cosine, and links a sixth faster.
    return Index(ndim=dimension, metric="ip", dtype="f16", connectivity=NEIGHBOURS, expansion_add=EFFORT_TO_ADD, expansion_search=EFFORT_TO_SEARCH)
