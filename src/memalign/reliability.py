"""Reliability: whether a judge is right as often as it says it is. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memalign.agreement import Interval, short
from memalign.errors import ConfigurationError
from memalign.scale import Scale

BINS = 10
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Bin:
    """Verdicts of about the same confidence."""

    low: float
    high: float
    """Confidences from ``low`` (included) to ``high`` (excluded, but for 1)."""
    n: int
    confidence: float
    """Their mean."""
    right: Interval
    """Share of them that agrees with the experts, with Wilson's 95 % interval."""


@dataclass(frozen=True, slots=True)
class Covered:
    """What remains when verdicts below a confidence are left to the experts."""

    threshold: float
    """The least confidence that is kept: what to give as ``abstain_below``."""
    coverage: float
    """Share of the items that keep their verdict."""
    n: int
    agreement: Interval
    """Accuracy on them, with Wilson's 95 % interval."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Confidences and what came of them, on ``n`` items that experts judged."""

    n: int
    accuracy: float
    balanced_accuracy: float | None
    """Mean recall over the labels that the experts gave; None with one label only."""
    brier: float
    """Half the mean squared distance of the probabilities from the truth (Brier, 1950): with two labels the usual (p - y)²; 0 is perfect, and
    even odds on two labels give .25."""
    log_loss: float
    """Mean negative logarithm of the probability of the experts' label."""
    ece: float
    """Expected calibration error: mean gap between confidence and share right, over bins weighted by size. With few items it is above 0 by chance."""
    bins: tuple[Bin, ...]
    """The bins that hold verdicts, of ten equal ones."""
    curve: tuple[Covered, ...]
    """Coverage and agreement for every threshold that changes them, the highest threshold first (risk-coverage curve: El-Yaniv and Wiener, 2010);
    what the judge leaves to the experts at any confidence is never covered."""
    mae: float | None = None
    """Scores: mean absolute error of the values."""
    mae_expected: float | None = None
    """Scores: mean absolute error of the means under the probabilities."""

    def coverage_at(self, agreement: float) -> Covered | None:
        """The largest coverage whose agreement is at least the wanted; None when no threshold reaches it.

        The threshold is chosen on the items it is measured on, so expect a little less on new ones; the interval says how little is known.
        """
        if not 0 < agreement <= 1:
            raise ConfigurationError(f"a wanted agreement lies between 0 and 1, not {agreement}")
        return max((point for point in self.curve if point.agreement.value >= agreement), key=lambda point: point.coverage, default=None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def line(self) -> str:
        """The figures on one line."""
        parts = [f"accuracy {short(self.accuracy)}"]
        if self.balanced_accuracy is not None:
            parts.append(f"balanced accuracy {short(self.balanced_accuracy)}")
        if self.mae is not None:
            parts.append(
                f"mean absolute error {short(self.mae)}" + (f" (of the mean {short(self.mae_expected)})" if self.mae_expected is not None else "")
            )
        parts += [
            f"Brier {short(self.brier, digits=3)}",
            f"calibration error {short(self.ece, digits=3)}",
            f"log loss {short(self.log_loss, digits=3)}",
        ]
        return ", ".join(parts) + f"; n = {self.n}"


def reliability(
    scale: Scale, labels: Sequence[Any], values: Sequence[Any], probabilities: Sequence[Sequence[float]], *, undecided: Sequence[bool] = ()
) -> Reliability:
    """Of the experts' values, the judge's values, and the probabilities of each label (in the scale's order) behind them; at least one item.

    The confidence of a verdict is the probability of its value. ``undecided``: where the value is a best guess, and the judge abstains anyway.
    """
    if not labels or not len(labels) == len(values) == len(probabilities):
        raise ConfigurationError("reliability needs at least one item, and as many values and probabilities as labels")
    wanted = [scale.values.index(label) for label in labels]
    given = [scale.values.index(value) for value in values]
    right = [one == other for one, other in zip(wanted, given, strict=True)]
    confidences = [row[place] for row, place in zip(probabilities, given, strict=True)]
    brier = [0.5 * sum((share - (place == truth)) ** 2 for place, share in enumerate(row)) for row, truth in zip(probabilities, wanted, strict=True)]
    loss = [-math.log(max(row[truth], 1e-6)) for row, truth in zip(probabilities, wanted, strict=True)]
    bins = binned(confidences, right)
    sure = [place for place in range(len(labels)) if not (undecided and undecided[place])]
    return Reliability(
        n=len(labels),
        accuracy=_mean(right),
        balanced_accuracy=_balanced(wanted, right),
        brier=_mean(brier),
        log_loss=_mean(loss),
        ece=sum(part.n * abs(part.confidence - part.right.value) for part in bins) / len(labels),
        bins=bins,
        curve=coverage_curve([confidences[place] for place in sure], [right[place] for place in sure], of=len(labels)),
        **_errors(scale, wanted, given, probabilities),
    )


def binned(confidences: Sequence[float], right: Sequence[bool], *, bins: int = BINS) -> tuple[Bin, ...]:
    """Verdicts by confidence in equal bins from 0 to 1, those without a verdict left out."""
    members: dict[int, list[int]] = {}
    for place, confidence in enumerate(confidences):
        members.setdefault(min(int(confidence * bins + 1e-9), bins - 1), []).append(place)
    return tuple(
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            n=len(places),
            confidence=_mean([confidences[place] for place in places]),
            right=wilson(sum(right[place] for place in places), len(places)),
        )
        for number, places in sorted(members.items())
    )


def coverage_curve(confidences: Sequence[float], right: Sequence[bool], *, of: int | None = None) -> tuple[Covered, ...]:
    """Coverage and agreement when only verdicts of at least a confidence are kept, for each confidence that occurs, the highest first.

    ``of``: how many items there are, those without a verdict included.
    """
    ranked = sorted(zip(confidences, right, strict=True), reverse=True)
    points = []
    hits = 0
    for kept, (confidence, hit) in enumerate(ranked, start=1):
        hits += hit
        if kept == len(ranked) or ranked[kept][0] < confidence:
            points.append(Covered(confidence, kept / (of or len(ranked)), kept, wilson(hits, kept)))
    return tuple(points)


def wilson(hits: int, n: int) -> Interval:
    """A share with its 95 % interval (Wilson, 1927)."""
    share, square = hits / n, _Z * _Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _errors(scale: Scale, wanted: Sequence[int], given: Sequence[int], probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    if scale.kind != "score":
        return {}
    scores = [float(value) for value in scale.values]
    means = [sum(share * score for share, score in zip(row, scores, strict=True)) for row in probabilities]
    return {
        "mae": _mean([abs(scores[truth] - scores[place]) for truth, place in zip(wanted, given, strict=True)]),
        "mae_expected": _mean([abs(scores[truth] - mean) for truth, mean in zip(wanted, means, strict=True)]),
    }


def _balanced(wanted: Sequence[int], right: Sequence[bool]) -> float | None:
    by_label: dict[int, list[bool]] = {}
    for label, hit in zip(wanted, right, strict=True):
        by_label.setdefault(label, []).append(hit)
    return _mean([_mean(hits) for hits in by_label.values()]) if len(by_label) > 1 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
