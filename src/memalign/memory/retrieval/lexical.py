"""BM25 over the words of items, in RAM: grows and shrinks item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.memory.retrieval.columns import Column
from memalign.memory.retrieval.tokens import terms

if TYPE_CHECKING:
    from memalign.embedders import Vectors
    from memalign.memory.retrieval.exact import Slots

K1, B = 1.2, 0.75
"""Robertson and Zaragoza (2009), their usual values."""

MOST_POSTINGS = 300_000
"""Postings that a query reads, its rarest terms first (some 5 ms): the common ones cost most and tell least."""

_MOST_OFTEN = 255


@dataclass(frozen=True, slots=True)
class _Segment:
    """Postings of some items, by term: immutable."""

    terms: npt.NDArray[np.uint32]
    """Different and ascending."""
    starts: npt.NDArray[np.int64]
    """Where the postings of each term begin; one more than there are terms."""
    slots: npt.NDArray[np.int32]
    counts: npt.NDArray[np.uint8]
    """How often the term stands in the item, at most 255."""

    def postings(self, term: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        place = int(np.searchsorted(self.terms, term))
        if place == len(self.terms) or self.terms[place] != term:
            return self.slots[:0], self.counts[:0]
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.slots[part], self.counts[part]


class Lexical:
    """Slots by their words. New items form segments, which are merged when a later one has grown to their size: adding one of n costs log n.

    Removed items stay in the postings until their segment is merged, but are never found. Not safe for concurrent use.
    """

    def __init__(self) -> None:
        self._segments: list[_Segment] = []
        self._lengths = Column(np.int32)  # words of each slot; 0: no item there
        self._total = 0

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Take in the texts of consecutive slots, from one on."""
        if not texts:
            return
        found = [np.unique(terms(text), return_counts=True) for text in texts]
        lengths = np.fromiter((int(counts.sum()) for _, counts in found), dtype=np.int32)
        self._lengths.extend(np.zeros(first - len(self._lengths), dtype=np.int32))
        self._lengths.extend(lengths)
        self._total += int(lengths.sum())
        slots = np.repeat(np.arange(first, first + len(texts), dtype=np.int32), [len(each) for each, _ in found])
        counts = np.minimum(np.concatenate([counts for _, counts in found]), _MOST_OFTEN).astype(np.uint8)
        self._segments.append(_sorted(np.concatenate([each for each, _ in found]), slots, counts))
        while len(self._segments) > 1 and len(self._segments[-1].slots) * 2 > len(self._segments[-2].slots):
            self._segments[-2:] = [self._merged(self._segments[-2:])]

    def remove(self, slots: Slots) -> None:
        """Never find the items of slots again."""
        lengths = self._lengths.values
        inside = slots[slots < len(lengths)]
        self._total -= int(lengths[inside].sum())
        lengths[inside] = 0

    def nearest(self, text: str, wanted: int, usable: npt.NDArray[np.bool_]) -> tuple[Slots, Vectors]:
        """At most ``wanted`` usable slots that share words with a text, with their BM25 scores, best first."""
        lengths = self._lengths.values
        items = int(np.count_nonzero(lengths))
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        if items == 0 or wanted <= 0:
            return nothing
        found = [self._postings(int(term)) for term in np.unique(terms(text))]
        rarest = sorted((pair for pair in found if len(pair[0])), key=lambda pair: len(pair[0]))
        scores = np.zeros(len(lengths), dtype=np.float32)
        mean = self._total / items
        read = 0
        for slots, counts in rarest:
            if read and read + len(slots) > MOST_POSTINGS:
                break
            read += len(slots)
            idf = np.log1p((items - len(slots) + 0.5) / (len(slots) + 0.5)) if len(slots) <= items else 0.0
            often = counts.astype(np.float32)
            scores[slots] += idf * often * (K1 + 1) / (often + K1 * (1 - B + B * lengths[slots] / mean))
        scores[lengths == 0] = 0.0
        scores *= usable[: len(scores)]
        pool = min(wanted, int(np.count_nonzero(scores)))
        if pool == 0:
            return nothing
        best = np.argpartition(-scores, pool - 1)[:pool]
        order = np.lexsort((best, -scores[best]))
        return best[order].astype(np.int64), scores[best[order]]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it as it can be stored."""
        self._segments = [self._merged(self._segments)] if self._segments else []
        one = self._segments[0] if self._segments else _sorted(np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.uint8))
        return {"terms": one.terms, "starts": one.starts, "postings": one.slots, "counts": one.counts, "lengths": self._lengths.values}

    @classmethod
    def of_arrays(cls, stored: dict[str, npt.NDArray[Any]]) -> Lexical:
        """What ``arrays`` gave."""
        made = cls()
        made._lengths = Column.of(stored["lengths"])
        made._total = int(stored["lengths"].sum())
        made._segments = [_Segment(stored["terms"], stored["starts"], stored["postings"], stored["counts"])]
        return made

    def _postings(self, term: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        parts = [segment.postings(term) for segment in self._segments]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([slots for slots, _ in parts]), np.concatenate([counts for _, counts in parts])

    def _merged(self, segments: Sequence[_Segment]) -> _Segment:
        every = np.concatenate([np.repeat(segment.terms, np.diff(segment.starts)) for segment in segments])
        slots = np.concatenate([segment.slots for segment in segments])
        counts = np.concatenate([segment.counts for segment in segments])
        alive = self._lengths.values[slots] > 0
        return _sorted(every[alive], slots[alive], counts[alive])


def _sorted(every: npt.NDArray[np.uint32], slots: npt.NDArray[np.int32], counts: npt.NDArray[np.uint8]) -> _Segment:
    order = np.lexsort((slots, every))
    different, starts = np.unique(every[order], return_index=True)
    return _Segment(different, np.append(starts, len(every)).astype(np.int64), slots[order], counts[order])
