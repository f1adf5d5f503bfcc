"""Choosing the few cases that stand before every judgement, in a stable order, so that a prefix cache serves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memalign.embedders import Vectors


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item that could be an exemplar."""

    item_id: str
    label: str
    explained: bool
    """Whether an expert gave a reason."""
    missed: bool
    """Whether the judge's own verdict was another one."""
    vector: Vectors


def choose(candidates: Sequence[Candidate], n: int) -> list[str]:
    """At most n item ids in the order of the candidates: labels in turn, for each label the candidate farthest from those chosen.

    Explained cases come before unexplained ones, cases that the judge missed before others. The spread is the farthest-first traversal of
    Gonzalez (1985) on cosine distance, so the first n of a larger memory cover it rather than crowd.
    """
    if n <= 0 or not candidates:
        return []
    matrix = np.stack([candidate.vector for candidate in candidates])
    farness = np.full(len(candidates), 2.0, dtype=np.float32)
    merit = np.array([2.0 * candidate.explained + 1.0 * candidate.missed for candidate in candidates], dtype=np.float32)
    labels = list(dict.fromkeys(sorted(candidate.label for candidate in candidates)))
    chosen: list[int] = []
    for turn in range(len(labels) * n):
        if len(chosen) == min(n, len(candidates)):
            break
        places = [p for p, candidate in enumerate(candidates) if candidate.label == labels[turn % len(labels)] and p not in chosen]
        if not places:
            continue
        best = max(places, key=lambda p: (merit[p], farness[p], -p))
        chosen.append(best)
        farness = np.minimum(farness, 1.0 - matrix @ matrix[best])
    return [candidates[place].item_id for place in sorted(chosen)]
