"""Making one ranking of several."""

from __future__ import annotations

from collections.abc import Sequence

DAMPING = 60
"""Of Cormack, Clarke and Buettcher (2009): how little the very first places count for more than the next."""


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """All that stand in some ranking, best first, by the sum of their reciprocal ranks; of equals, in the order of the first ranking."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, one in enumerate(ranking, start=1):
            scores[one] = scores.get(one, 0.0) + 1.0 / (DAMPING + rank)
    return sorted(scores, key=lambda one: -scores[one])
