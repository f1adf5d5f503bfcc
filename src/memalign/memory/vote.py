"""The vote of the cases: what the experts' verdicts on similar items say about an item. Pure functions.

Kernel ridge regression on cosine similarity (Saunders, Gammerman and Vovk, 1998): each case votes with its label, near ones count more, and
many alike count little more than one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from memalign.embedders import Vectors

RIDGE = 0.3
"""How much the labels are smoothed, as a share of a case's similarity to itself."""

MOST_CASES = 1000
"""Newest items that vote: beyond, solving for their weights would cost more than they tell."""


STRONGEST = 3
"""How many of the cases that carried a vote are named."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The cases of one revision, ready to vote."""

    place: dict[str, int]
    """Item id -> its row."""
    vectors: Vectors
    """Shape (cases, dimension)."""
    weights: Vectors
    """How much similarity to each case adds to a vote, shape (cases,)."""
    left_out: Vectors
    """The vote on each case by the others but its twins, shape (cases,)."""
    labels: Vectors
    """From -1.0 (no) to 1.0 (yes), shape (cases,)."""

    def count(self, item_id: str, query: Vectors, *, own: bool) -> tuple[float, tuple[str, ...]]:
        """The vote on an item, and the items whose cases carried it, the strongest first; without its own case, unless ``own``."""
        parts = self.weights * (self.vectors @ query)
        total = float(parts.sum())
        if not own and item_id in self.place:
            total, parts = float(self.left_out[self.place[item_id]]), parts.copy()
            parts[self.place[item_id]] = 0.0
        side = np.where(self.labels * total > 0, parts * np.sign(total), 0.0)  # of the cases with the verdict that won
        strongest = [int(row) for row in np.argsort(-side)[:STRONGEST] if side[row] > 0]
        ids = list(self.place)
        return total, tuple(ids[row] for row in strongest)


def cast(labels: Mapping[str, float], vector: Callable[[str], Vectors]) -> Ballot:
    """Weigh the cases: item id -> label, from -1.0 (no) to 1.0 (yes)."""
    vectors = np.stack([vector(item_id) for item_id in labels])
    wanted = np.fromiter(labels.values(), dtype=np.float64)
    inverse = np.linalg.inv(vectors @ vectors.T + RIDGE * np.eye(len(vectors)))
    found = inverse @ wanted
    left_out = np.empty(len(wanted))
    for row in range(len(wanted)):
        fold = twins(vectors, wanted, row)  # the exact prediction without a fold, in closed form
        left_out[row] = wanted[row] - np.linalg.solve(inverse[np.ix_(fold, fold)], found[fold])[0]
    return Ballot(
        place={item_id: row for row, item_id in enumerate(labels)},
        vectors=vectors,
        weights=found.astype(np.float32),
        left_out=left_out.astype(np.float32),
        labels=wanted.astype(np.float32),
    )


def twins(vectors: Vectors, labels: npt.NDArray[np.float64], row: int) -> list[int]:
    """What is left out with a case: the case, the one of its own verdict and the two of the opposite one that are most like it.

    Leaving out the case alone would ask how well memory judges a twin of what it knows, and tip the balance of the rest against its verdict;
    with a buffer around it, it stands for an item that is new (buffered leave-one-out: Le Rest and others, 2014).
    """
    near = [int(other) for other in np.argsort(-(vectors @ vectors[row])) if other != row]
    same = [other for other in near if labels[other] * labels[row] > 0]
    opposite = [other for other in near if labels[other] * labels[row] <= 0]
    return [row, *same[:1], *opposite[:2]]


def pairs(yes: Sequence[bool] | npt.NDArray[np.bool_]) -> list[list[int]]:
    """Folds for leaving out: one case of each verdict, as far as they go, so that leaving out does not tip the balance of the rest."""
    ayes = [place for place, value in enumerate(yes) if value]
    noes = [place for place, value in enumerate(yes) if not value]
    both = min(len(ayes), len(noes))
    return [[aye, no] for aye, no in zip(ayes, noes, strict=False)] + [[place] for place in ayes[both:] + noes[both:]]
