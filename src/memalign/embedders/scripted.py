"""An embedder for tests: words hashed into buckets, no weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memalign.embedders import Vectors

WORD = re.compile(r"\w+")


class HashEmbedder:
    """Deterministic bags of words: texts that share words are near each other, on every machine alike.

    ``texts`` holds every text embedded, in order, so that a test can tell what was not embedded twice.
    """

    def __init__(self, dimension: int = 64) -> None:
        if dimension < 1:
            raise ValueError("dimension must be at least 1")
        self.dimension = dimension
        self.texts: list[str] = []

    @property
    def id(self) -> str:
        """The dimension is all that changes the vectors."""
        return f"scripted/hash-{self.dimension}"

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text; a text without words gets the first axis."""
        self.texts.extend(texts)
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in WORD.findall(text.casefold()):
                number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
                vector[(number >> 1) % self.dimension] += 1.0 if number & 1 else -1.0
            if not vector.any():
                vector[0] = 1.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    async def aclose(self) -> None:
        """Nothing to give back."""
