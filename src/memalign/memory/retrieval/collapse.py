"""Leaving out near-duplicates: a case that says what a better one says already costs tokens and teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from memalign.memory.retrieval.candidates import Candidate
from memalign.memory.retrieval.products import among

if TYPE_CHECKING:
    from memalign.embedders import Vectors


def collapsed(candidates: Sequence[Candidate], vectors: Vectors, alike: float) -> list[Candidate]:
    """The candidates in their order, without those that are at least so similar to an earlier one with the same verdicts.

    ``vectors``: of the candidates, shape (len(candidates), dimension). A near-duplicate with another verdict stays: where experts draw the line is
    what the pair teaches.
    """
    gone: set[int] = set()
    for earlier, later in np.argwhere(np.triu(among(vectors) >= alike, 1)).tolist():
        if earlier not in gone and candidates[earlier].labels == candidates[later].labels:
            gone.add(later)
    return [candidate for place, candidate in enumerate(candidates) if place not in gone]
