"""Fitting how the model's probabilities and the vote of the cases decide, on the experts' labels. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from memalign.memory.revisions import Decision
from memalign.memory.vote import positions, support
from memalign.scale import Scale

Floats = npt.NDArray[np.float64]

Parts = Literal["whole", "model", "trust"]
"""What is fitted: the model's weight, the vote's and offsets; the first and the last; or only how far the model's probabilities are trusted."""

OFFSET_PRECISION = 0.1
"""Of the Gaussian prior on offsets; the weights, on features of unit spread, have 1."""

LEAST_SPREAD = 0.25
"""Of log-odds and of votes: less says nothing and is not blown up."""

FEWEST_OF_A_LABEL = 4
"""A label that experts gave less often weighs as if they had given it so often."""

_NO_OFFSET = 1e-6
"""What is nearer to 0 is rounding, which differs from processor to processor: with offsets, what was fitted decides instead of the model."""


@dataclass(frozen=True, slots=True)
class Case:
    """An item that experts judged."""

    label: tuple[float, ...]
    """Share of the experts, by weight, that gave each label."""
    model: tuple[float, ...] | None
    """The logarithm of the model's probability of each label; None when it did not judge the item."""
    vote: tuple[float, ...]
    """The vote of the other cases, without its twins."""


def fitted(scale: Scale, cases: Sequence[Case], parts: Parts, *, mirrored: bool = False) -> Decision | None:
    """The weights under which model and vote agree best with the experts; None when all labels are equal.

    Multinomial logistic regression with Gaussian priors (MAP, Newton's method). One weight of the model serves all labels, as in temperature
    scaling (Guo and others, 2017), and one of the vote; offsets are free for each label, on ordinal scales a tilt and a bend along the scale,
    since five numbers for five scores would follow chance. Labels weigh the same, however often experts gave them; on ordinal scales records do.
    A weight below 0 is set to 0. ``mirrored``: a and b are interchangeable, as when both orders are judged.
    """
    if mirrored:
        cases = [*cases, *(_swapped(case) for case in cases)]
    labels = np.array([case.label for case in cases])
    if (labels.sum(axis=0) > 0).sum() < 2:
        return None
    model = np.array([np.full(len(scale.labels), np.nan) if case.model is None else case.model for case in cases])
    votes = np.array([support(scale, case.vote) for case in cases])
    weight = np.ones(len(cases)) if scale.ordinal else labels @ _balance(labels)
    weight = weight / 2 if mirrored else weight
    used = {"whole": [model, votes], "model": [model], "trust": [model]}[parts]
    basis = _basis(scale) if parts != "trust" else np.zeros((len(scale.labels), 0))
    centred = parts != "trust"
    slopes, offsets = _regression(used, basis, labels, weight, centred=centred)
    if (slopes < 0).any():
        kept = [np.zeros_like(feature) if slope < 0 else feature for feature, slope in zip(used, slopes, strict=True)]
        slopes, offsets = _regression(kept, basis, labels, weight, centred=centred)
    slopes = np.maximum(slopes, 0.0)
    offsets = offsets - offsets.mean()
    offsets[np.abs(offsets) < _NO_OFFSET] = 0.0
    return Decision(
        model_weight=float(slopes[0]),
        vote_weight=float(slopes[1]) if len(slopes) > 1 else 0.0,
        offsets=tuple(map(float, offsets)) if parts != "trust" else (),
    )


def weights(scale: Scale, labels: Floats) -> Floats:
    """What each record counts when labels shall weigh the same, shape (records,), with a mean of about 1; on ordinal scales all the same."""
    return np.ones(len(labels)) if scale.ordinal else np.asarray(labels @ _balance(labels))


def _balance(labels: Floats) -> Floats:
    counts = labels.sum(axis=0)
    return np.where(counts > 0, len(labels) / ((counts > 0).sum() * np.maximum(counts, FEWEST_OF_A_LABEL)), 0.0)


def _basis(scale: Scale) -> Floats:
    """Directions in which offsets may go, shape (labels, directions)."""
    if not scale.ordinal:
        return np.eye(len(scale.labels))
    place = positions(scale)
    return np.column_stack([place, place**2 - np.mean(place**2)])


def _regression(features: Sequence[Floats], basis: Floats, labels: Floats, weight: Floats, *, centred: bool) -> tuple[Floats, Floats]:
    """Slopes of the features, each of shape (cases, labels), and the labels' offsets, in the features' own units."""
    prepared, centres, spreads = [], [], []
    for raw in features:
        centre = np.nanmean(raw, axis=0) if not np.isnan(raw).all() else np.zeros(raw.shape[1])
        centre = centre if centred else np.zeros_like(centre)
        moved = raw - centre
        contrast = moved - moved.mean(axis=1, keepdims=True)
        spread = max(2.0 * float(np.sqrt(np.nanmean(contrast**2))) if not np.isnan(raw).all() else 0.0, LEAST_SPREAD)
        prepared.append(np.where(np.isnan(moved), 0.0, moved) / spread)
        centres.append(centre)
        spreads.append(spread)
    directions = [np.broadcast_to(column, labels.shape) for column in basis.T]
    design = np.stack([*prepared, *directions], axis=2)  # (cases, labels, parameters)
    prior = np.diag([1.0] * len(features) + [OFFSET_PRECISION] * basis.shape[1])
    found = _newton(design, labels, weight, prior)
    slopes = found[: len(features)] / np.array(spreads)
    offsets = basis @ found[len(features) :] - sum(max(slope, 0.0) * centre for slope, centre in zip(slopes, centres, strict=True))
    return slopes, np.asarray(offsets)


def _newton(design: Floats, labels: Floats, weight: Floats, prior: Floats) -> Floats:
    found = np.zeros(design.shape[2])
    best = _loss(design, labels, weight, prior, found)
    for _ in range(50):
        predicted = softmax(design @ found)
        gradient = np.einsum("i,icp,ic->p", weight, design, predicted - labels) + prior @ found
        mean = np.einsum("icp,ic->ip", design, predicted)
        curvature = np.einsum("i,icp,ic,icq->pq", weight, design, predicted, design, optimize=True) - np.einsum("i,ip,iq->pq", weight, mean, mean)
        step = np.linalg.solve(curvature + prior, gradient)
        while (loss := _loss(design, labels, weight, prior, found - step)) > best + 1e-9 and np.abs(step).max() > 1e-9:
            step = step / 2
        found, best = found - step, min(loss, best)
        if np.abs(step).max() < 1e-9:
            break
    return found


def _loss(design: Floats, labels: Floats, weight: Floats, prior: Floats, found: Floats) -> float:
    likely = np.log(np.maximum(softmax(design @ found), 1e-300))
    return float(-(weight[:, None] * labels * likely).sum() + 0.5 * found @ prior @ found)


def softmax(evidence: Floats) -> Floats:
    """Probabilities along the last axis."""
    odds = np.exp(evidence - evidence.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def _swapped(case: Case) -> Case:
    """The case with a and b in each other's place; a pairwise scale has them as its first two labels, and nothing votes there."""

    def turned(row: tuple[float, ...]) -> tuple[float, ...]:
        return (row[1], row[0], *row[2:])

    return replace(case, label=turned(case.label), model=None if case.model is None else turned(case.model))
