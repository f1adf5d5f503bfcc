"""Texts likened by their words beside their meaning, so that a phrase counts that an embedding hardly notices. Pure functions of texts.

Words are counted in a fixed number of buckets with signs (feature hashing: Weinberger and others, 2009), rare ones weigh more (tf-idf).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from memalign.memory.retrieval.tokens import terms

if TYPE_CHECKING:
    from memalign.embedders import Vectors

BUCKETS = 1024
"""With 65,536 the vote was no better (demo's feedback split), and each judgement would read more memory."""


class Wording:
    """How rare words are in some texts, and by it the joint vector of a text: half its meaning, half its words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._counts = np.stack([_counted(text) for text in texts])
        seen = (self._counts != 0).sum(axis=0)
        self._rarity = (np.log((1 + len(texts)) / (1 + seen)) + 1).astype(np.float32)

    def joined_all(self, vectors: Vectors) -> Vectors:
        """The joint vectors of the texts themselves, from their embeddings, shape (texts, dimension + 1024), of unit length."""
        return self._joined(vectors, self._counts)

    def joined(self, vector: Vectors, text: str) -> Vectors:
        """The joint vector of another text, shape (dimension + 1024,)."""
        return np.asarray(self._joined(vector[None, :], _counted(text)[None, :])[0])

    def _joined(self, vectors: Vectors, counts: Vectors) -> Vectors:
        words = counts * self._rarity
        words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-9)
        both = np.hstack([vectors, words])
        return np.asarray(both / np.linalg.norm(both, axis=1, keepdims=True))


def _counted(text: str) -> Vectors:
    """1 + log of how often each word occurs, with its sign in its bucket, shape (1024,)."""
    found, often = np.unique(terms(text), return_counts=True)
    sign = 1.0 - 2.0 * (found >> 31)
    return np.asarray(np.bincount(found % BUCKETS, weights=sign * (1 + np.log(often)), minlength=BUCKETS), dtype=np.float32)
