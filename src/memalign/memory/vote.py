"""The vote of the cases: what the experts' verdicts on similar items say about an item. Pure functions.

Kernel ridge regression on similarity of meaning and of words (Saunders, Gammerman and Vovk, 1998): each case votes with its verdict, near ones
count more, and many alike count little more than one of them. A verdict is a point: on an ordinal scale a number, so that 4 and 5 are close, else one
column a label. On the pairwise scale nothing votes: the vectors of two pairs do not tell which of their outputs are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.memory.retrieval.products import along
from memalign.memory.wording import Wording
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Points = npt.NDArray[np.float64]

RIDGE = 0.3
"""How much the verdicts are smoothed, as a share of a case's similarity to itself."""

LEVEL = 1.0
"""Ordinal scales: what all cases have in common, so that far from every case the vote is their mean and not the middle of the scale."""

MOST_CASES = 1000
"""Newest items that vote: beyond, solving for their weights would cost more than they tell."""

STRONGEST = 3
"""How many of the cases that carried a vote are named."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The cases of one revision, ready to vote."""

    place: dict[str, int]
    """Item id -> its row."""
    wording: Wording
    """Joins meaning and words of a text."""
    vectors: Vectors
    """Meaning and words of the cases, shape (cases, joint dimension)."""
    weights: Points
    """How much similarity to each case adds to a vote, shape (cases, columns)."""
    left_out: Points
    """The vote on each case by the others but its twins, shape (cases, columns)."""
    points: Points
    """The verdicts, shape (cases, columns)."""
    level: float
    """Added to every similarity."""

    def count(self, item_id: str, query: Vectors, text: str, *, own: bool) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """The vote on an item, and the items whose cases carried it, the strongest first; without its own case, unless ``own``.

        ``query``: the embedding of its ``text``.
        """
        parts = self.weights * (along(self.vectors, self.wording.joined(query, text)) + self.level)[:, None]
        total = parts.sum(axis=0)
        if not own and item_id in self.place:
            total = self.left_out[self.place[item_id]]
            parts[self.place[item_id]] = 0.0
        column = int(np.argmax(total))
        sign = np.sign(total[column])
        side = np.where(self.points[:, column] * sign > 0, parts[:, column] * sign, 0.0)  # of the cases with the verdict that won
        strongest = [int(row) for row in np.argsort(-side)[:STRONGEST] if side[row] > 0]
        ids = list(self.place)
        return tuple(map(float, total)), tuple(ids[row] for row in strongest)


def positions(scale: Scale) -> Points:
    """Where the labels of an ordinal scale lie between -1 and 1, shape (labels,)."""
    return np.linspace(-1.0, 1.0, len(scale.labels))


def point(scale: Scale, verdicts: Sequence[tuple[float, Any]]) -> Points:
    """The weighted mean of some experts' verdicts on one item as a point, shape (columns,); on the boolean scale yes is (.5, -.5)."""
    weights, places = [weight for weight, _ in verdicts], [scale.values.index(value) for _, value in verdicts]
    if scale.ordinal:
        return np.asarray([np.average(positions(scale)[places], weights=weights)])
    return np.asarray(np.average(np.eye(len(scale.labels))[places], axis=0, weights=weights) - 1.0 / len(scale.labels))


def support(scale: Scale, vote: Sequence[float]) -> Points:
    """How far a vote speaks for each label, shape (labels,), in units that a fitted weight scales; near labels of an ordinal scale share it."""
    if not vote:
        return np.zeros(len(scale.labels))
    return -np.square(positions(scale) - vote[0]) if scale.ordinal else np.asarray(vote, dtype=np.float64)


def votes_on(scale: Scale) -> bool:
    """Whether cases can vote on this scale."""
    return scale.kind != "pairwise" and bool(scale.labels)


def cast(points: Mapping[str, Points], vector: Callable[[str], Vectors], text: Callable[[str], str], *, level: float = 0.0) -> Ballot:
    """Weigh the cases: item id -> the verdict on it as a point, its embedding and its text."""
    wording = Wording([text(item_id) for item_id in points])
    vectors = wording.joined_all(np.stack([vector(item_id) for item_id in points]))
    wanted = np.stack(list(points.values()))
    inverse = np.linalg.inv(vectors @ vectors.T + level + RIDGE * np.eye(len(vectors)))
    found = inverse @ wanted
    left_out = np.empty_like(wanted)
    for row in range(len(wanted)):
        fold = twins(vectors, wanted, row)  # the exact prediction without a fold, in closed form
        left_out[row] = wanted[row] - np.linalg.solve(inverse[np.ix_(fold, fold)], found[fold])[0]
    place = {item_id: row for row, item_id in enumerate(points)}
    return Ballot(place=place, wording=wording, vectors=vectors, weights=found, left_out=left_out, points=wanted, level=level)


def held(
    scale: Scale, verdicts: Mapping[str, Sequence[tuple[float, Any]]], vector: Callable[[str], Vectors], text: Callable[[str], str]
) -> Ballot | None:
    """The ballot of item id -> (expert's weight, value), oldest first; None when nothing can vote."""
    newest = [item_id for item_id, said in verdicts.items() if any(weight > 0 for weight, _ in said)][-MOST_CASES:]
    if not newest or not votes_on(scale):
        return None
    return cast({item_id: point(scale, verdicts[item_id]) for item_id in newest}, vector, text, level=LEVEL if scale.ordinal else 0.0)


def twins(vectors: Vectors, points: Points, row: int) -> list[int]:
    """What is left out with a case: the case, the one of its own verdict and the two of another one that are most like it.

    Leaving out the case alone would ask how well memory judges a twin of what it knows, and tip the balance of the rest against its verdict;
    with a buffer around it, it stands for an item that is new (buffered leave-one-out: Le Rest and others, 2014).
    """
    near = [int(other) for other in np.argsort(-(vectors @ vectors[row])) if other != row]
    alike = points @ points[row] > 0 if points.shape[1] > 1 else np.abs(points - points[row])[:, 0] < _SAME
    same = [other for other in near if alike[other]]
    different = [other for other in near if not alike[other]]
    return [row, *same[:1], *different[:2]]


_SAME = 0.3
"""Numbers nearer than this are one verdict: on a scale from 1 to 5, only equal ones."""
