"""Which unlabelled items would teach most. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.memory.vote import positions
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Floats = npt.NDArray[np.float64]

NEIGHBOURS = 5
"""Nearest cases whose verdicts are compared."""

MOST_CANDIDATES = 4000
"""Items of the highest value of their own among which the spread is sought."""

MOST_REPRESENTED = 2000
"""Items, drawn at random but the same at every call, for which the candidates may stand."""

MOST_COMPARED = 4_000_000
"""Similarities of items to cases that are held at once."""

ALIKE = 0.7
"""Cosine similarity from which on one item is said to resemble another."""

BASE = 0.2
"""The value of an item about which nothing speaks for asking: it may still stand for others."""


@dataclass(frozen=True, slots=True)
class Near:
    """What memory's nearest cases say of some items; all of shape (items,)."""

    distance: Floats
    """From 0, memory holds its like, to 1, nothing in memory resembles it."""
    contested: Floats
    """From 0, the near cases have one verdict, to 1, near cases are evenly split, or at both ends of the scale."""
    places: npt.NDArray[np.intp]
    """The nearest cases, shape (items, up to ``NEIGHBOURS``)."""


def near(scale: Scale, items: Vectors, cases: Vectors | None, verdicts: Sequence[Sequence[Any]]) -> Near:
    """Distance and contest of items, from unit vectors of shape (items, dimension) and (cases, dimension) and the experts' values on each case."""
    if cases is None or not len(cases):
        return Near(np.ones(len(items)), np.zeros(len(items)), np.zeros((len(items), 0), dtype=np.intp))
    places, closeness = nearest(items, cases, NEIGHBOURS)
    kinds: Sequence[Any] = scale.values or list(dict.fromkeys(scale.label_of(value) for values in verdicts for value in values))
    named = verdicts if scale.values else [[scale.label_of(value) for value in values] for values in verdicts]
    shares = np.array([[values.count(value) / len(values) for value in kinds] for values in named])
    weight = closeness / np.maximum(closeness.sum(axis=1, keepdims=True), 1e-9)
    mixed = np.einsum("in,inl->il", weight, shares[places])
    return Near(1.0 - closeness[:, 0], closeness[:, 0] * spread(scale, mixed), places)


def nearest(items: Vectors, cases: Vectors, count: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """Places and similarities of the cases nearest to each item, shape (items, up to count), the nearest first and of equally near ones the first.

    What is not alike at all counts as 0. Items are compared block by block, so that RAM holds ``MOST_COMPARED`` similarities at once.
    """
    count = min(count, len(cases))
    places, closeness = np.empty((len(items), count), dtype=np.intp), np.empty((len(items), count))
    size = max(1, MOST_COMPARED // len(cases))
    for start in range(0, len(items), size):
        similarity = np.maximum(items[start : start + size] @ cases.T, 0.0)
        top = np.argpartition(similarity, len(cases) - count, axis=1)[:, len(cases) - count :]
        least = np.take_along_axis(similarity, top, axis=1).min(axis=1)
        for row, (found, bound) in enumerate(zip(similarity, least, strict=True), start=start):
            enough = np.flatnonzero(found >= bound)  # more than count where several are as near as the last one
            places[row] = enough[np.argsort(-found[enough], kind="stable")[:count]]
            closeness[row] = found[places[row]]
    return places, closeness


def spread(scale: Scale, shares: Floats) -> Floats:
    """How far the shares of the labels are from agreement, 0 to 1, shape (items,); on an ordinal scale the variance, so that 4 beside 5 is little."""
    total = np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    shares = shares / total
    if scale.ordinal:
        place = positions(scale)
        return np.asarray(shares @ place**2 - (shares @ place) ** 2)
    labels = max(2, shares.shape[1])
    return np.asarray((1.0 - (shares**2).sum(axis=1)) * labels / (labels - 1))


def doubt(scale: Scale, confidence: float) -> float:
    """How unsure a confidence is: 0 for certainty, 1 for even odds on all labels."""
    return min(1.0, max(0.0, (1.0 - confidence) / (1.0 - 1.0 / max(2, len(scale.labels)))))


def value_of_asking(uncertainty: Floats, contested: Floats, distance: Floats) -> Floats:
    """What an expert's verdict on each item would be worth by itself, between ``BASE`` and 1."""
    return BASE + (1.0 - BASE) * (uncertainty + contested + distance) / 3.0


def chosen(vectors: Vectors, value: Floats, distance: Floats, n: int, *, seed: int = 0) -> list[tuple[int, float]]:
    """Places of the n items to label, the best first, with the share of the pool's value that each adds.

    Greedy facility location (Nemhauser, Wolsey and Fisher, 1978): an item stands for the others as far as it resembles them, each counts its own
    value, and what memory's cases stand for already counts as covered. So what is chosen is worth asking, typical, and not the same twice.
    """
    candidates = np.argsort(-value, kind="stable")[:MOST_CANDIDATES]
    represented = np.arange(len(vectors))
    if len(represented) > MOST_REPRESENTED:
        represented = np.sort(np.random.default_rng(seed).choice(represented, MOST_REPRESENTED, replace=False))
    similarity = np.maximum(np.asarray(vectors[candidates] @ vectors[represented].T, dtype=np.float64), 0.0)
    covered = (1.0 - distance[represented]) * (1.0 - value[represented])
    worth = value[represented]
    total = max(float((worth * (1.0 - covered)).sum()), 1e-9)
    free = np.ones(len(candidates), dtype=bool)
    found: list[tuple[int, float]] = []
    for _ in range(min(n, len(candidates))):
        gain = np.maximum(similarity - covered, 0.0) @ worth
        gain = np.where(free, gain, -1.0)
        best = int(np.argmax(gain))
        found.append((int(candidates[best]), float(gain[best]) / total))
        covered = np.maximum(covered, similarity[best])
        free[best] = False
    return found
