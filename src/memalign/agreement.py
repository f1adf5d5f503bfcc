"""Agreement: how far a judge and the experts agree, with bootstrap intervals. Pure functions on values of a scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memalign.errors import ConfigurationError
from memalign.pairwise import PositionBias
from memalign.scale import Scale

Floats = npt.NDArray[np.float64]

_BLOCK_CELLS = 4_000_000  # of resampling weights held at once: 32 MB
_MOST_LABELS_SHOWN = 11
MOST_LABELS_CROSSED = 101
"""As the longest scale of scores has. On an open scale there may be as many as verdicts, and a table of their squares."""
_ONE_CLASS = "undefined: the experts gave one value only"
_WHY_UNDEFINED = {
    "balanced_accuracy": _ONE_CLASS,
    "kappa": _ONE_CLASS,
    "ccc": _ONE_CLASS,
    "tpr": "undefined: the experts never said yes",
    "tnr": "undefined: the experts never said no",
    "rank_correlation": "undefined: the experts' or the judge's scores are constant",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """For example ".75 (.53-.90)"."""
        return f"{short(self.value)} ({short(self.low)}{' to ' if self.low < 0 else '-'}{short(self.high)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far judge and experts agree on ``n`` items.

    A metric is None where it is undefined (``notes`` say why) or where it is not one of the scale's.
    """

    n: int
    failures: int
    """Items without a verdict: counted here only, never as agreement or disagreement."""
    confidence: float
    abstained: int = 0
    """Items that the judge left to the experts: counted here only."""
    position_bias: PositionBias | None = None
    """Pairwise in both orders: what the order did to the verdicts, abstentions included."""
    accuracy: Interval | None = None
    balanced_accuracy: Interval | None = None
    """Mean recall over the labels that the experts gave."""
    kappa: Interval | None = None
    """Cohen's kappa; on an ordinal scale with quadratic weights (there equal to Lin's concordance of the positions)."""
    tpr: Interval | None = None
    """Boolean scales: share of the experts' yes that the judge also gave."""
    tnr: Interval | None = None
    """Boolean scales: share of the experts' no that the judge also gave."""
    ccc: Interval | None = None
    """Scores: Lin's concordance correlation coefficient (Biometrics 45, 1989), with population moments."""
    mae: Interval | None = None
    """Scores: mean absolute error, in points of the scale."""
    rank_correlation: Interval | None = None
    """Scores: Spearman's rho, ties by mean rank."""
    confusion: Mapping[str, Mapping[str, int]]
    """Expert's label -> judge's label -> count: every label of a scale of up to 11, else those that occur; of more than 101, only pairs that do."""
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float | None:
        """Share of the verdicts that are no abstentions; None without any."""
        return self.n / (self.n + self.abstained) if self.n + self.abstained else None

    @property
    def metrics(self) -> dict[str, Interval]:
        """The defined metrics by name, the most telling first."""
        return {name: metric for name in METRICS if (metric := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self) | {"coverage": self.coverage, "position_bias": self.position_bias.to_dict() if self.position_bias else None}

    def lines(self) -> list[str]:
        """Give the measurement as short lines of plain text."""
        lines = [f"{name.replace('_', ' ')} {metric}" for name, metric in self.metrics.items()]
        lines[:1] = [f"{lines[0]}, n = {self.n}" if lines else f"n = {self.n}"]
        if self.failures:
            lines.append(f"failures {self.failures} of {self.n + self.failures}, not counted above")
        if self.abstained:
            lines.append(f"abstained {self.abstained} of {self.n + self.abstained}, not counted above (coverage {short(self.coverage or 0.0)})")
        if self.position_bias is not None:
            lines.append(self.position_bias.line())
        return lines + [f"note: {note}" for note in self.notes]


METRICS = ("accuracy", "balanced_accuracy", "kappa", "tpr", "tnr", "ccc", "mae", "rank_correlation")
"""Names of the metrics, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two judges on the same items: what the second one fixed and broke."""

    n: int
    fixed: int
    """Wrong before, right after."""
    broken: int
    """Right before, wrong after."""
    skipped: int
    """Items without a verdict before or after; not part of ``n``."""
    p_value: float
    """Two-sided exact McNemar test: probability of a split at least as uneven if both judges were equally good."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Give the comparison as one short line of plain text."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return [f"fixed {self.fixed}, broken {self.broken}, p {short(self.p_value, digits=3)} (exact McNemar), n = {self.n}{skipped}"]


def measure(
    scale: Scale,
    pairs: Sequence[tuple[Any, Any]],
    *,
    failures: int = 0,
    abstained: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Agreement:
    """Measure pairs of (expert's value, judge's value), with percentile bootstrap intervals (Efron, 1979) over items.

    With ``groups``, one per pair, whole groups are resampled, for items that are not independent. Resamples in which a metric is undefined
    do not count for its interval. Raises BadRecord for a value off the scale, ConfigurationError for impossible settings.
    """
    if resamples < 1 or not 0 < confidence < 1 or failures < 0 or (groups is not None and len(groups) != len(pairs)):
        raise ConfigurationError("measure needs resamples >= 1, 0 < confidence < 1, failures >= 0 and one group for each pair")
    scale, pairs = _listed(scale, pairs)
    positions = {label: position for position, label in enumerate(scale.labels)}
    codes = np.array([[positions[scale.label_of(value)] for value in pair] for pair in pairs], dtype=np.intp).reshape(-1, 2)
    expert, judge = codes[:, 0], codes[:, 1]
    confusion = _confusion(scale, expert, judge)
    if not len(pairs):
        return Agreement(
            n=0, failures=failures, abstained=abstained, confidence=confidence, confusion=confusion, notes=("nothing was measured: no pairs",)
        )

    sample = _Sample(scale, expert, judge)
    point = sample.statistics(np.ones((1, len(pairs))))
    clusters = np.arange(len(pairs)) if groups is None else _numbered(groups)
    draws = [sample.statistics(weights) for weights in _resampled(clusters, resamples, seed)]
    metrics: dict[str, Interval] = {}
    notes = []
    for name, value in point.items():
        if np.isnan(value[0]):
            notes.append(f"{name.replace('_', ' ')} is {_WHY_UNDEFINED[name]}")
            continue
        drawn = np.concatenate([draw[name] for draw in draws])
        defined = drawn[~np.isnan(drawn)]
        tail = (1 - confidence) / 2
        low, high = np.quantile(defined, (tail, 1 - tail)) if len(defined) else (value[0], value[0])
        metrics[name] = Interval(float(value[0]), float(low), float(high))
    independent = len({*clusters.tolist()})
    if independent == 1:
        notes.append("the intervals have no width: there is only one item or group to resample")
    elif metrics["accuracy"].value in (0.0, 1.0):
        bound = ((1 - confidence) / 2) ** (1 / independent)  # Clopper-Pearson with no miss
        side = f"at least {short(bound)}" if metrics["accuracy"].value else f"at most {short(1 - bound)}"
        notes.append(f"the interval of a perfect split has no width; exactly, the accuracy is {side}")
    return Agreement(
        n=len(pairs),
        failures=failures,
        abstained=abstained,
        confidence=confidence,
        position_bias=None,
        confusion=confusion,
        notes=tuple(notes),
        **metrics,
    )


def paired(scale: Scale, expert: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> Paired:
    """Compare two judges' values on the same items by the exact McNemar test (McNemar, 1947, with binomial probabilities).

    None among ``before`` or ``after`` stands for a failure: the item is skipped. Raises BadRecord, ConfigurationError for unequal lengths.
    """
    if not len(expert) == len(before) == len(after):
        raise ConfigurationError("paired needs as many values before and after as the experts gave")
    fixed = broken = skipped = 0
    for truth, old, new in zip(expert, before, after, strict=True):
        if old is None or new is None:
            skipped += 1
            continue
        right = scale.check(truth)
        was, now = scale.check(old) == right, scale.check(new) == right
        fixed += now and not was
        broken += was and not now
    return Paired(n=len(expert) - skipped, fixed=fixed, broken=broken, skipped=skipped, p_value=mcnemar_p(fixed, broken))


def short(number: float, *, digits: int = 2) -> str:
    """Write a number as ".75", "1.00" or "-.12"."""
    text = f"{round(number, digits) + 0.0:.{digits}f}"  # + 0.0: never "-.00"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


class _Sample:
    """Judged items, measured under any number of weightings at once.

    A resample is a row of non-negative weights, shape (resamples, n), so that one matrix product gives every sum that the metrics need.
    """

    def __init__(self, scale: Scale, expert: npt.NDArray[np.intp], judge: npt.NDArray[np.intp]) -> None:
        self.scale = scale
        self.occurring, codes = np.unique(np.concatenate([expert, judge]), return_inverse=True)
        self.expert, self.judge = codes[: len(expert)], codes[len(expert) :]
        numbers = np.arange(len(self.occurring))
        self.expert_is, self.judge_is = ((of[:, None] == numbers).astype(np.float64) for of in (self.expert, self.judge))
        self.hit = (expert == judge).astype(np.float64)
        self.x, self.y = expert.astype(np.float64), judge.astype(np.float64)

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Each metric of the scale, shape (resamples,); NaN where it is undefined. Weights have shape (resamples, n)."""
        total = weights.sum(axis=1)
        expert, judge, hits = weights @ self.expert_is, weights @ self.judge_is, weights @ (self.expert_is * self.hit[:, None])
        accuracy = hits.sum(axis=1) / total
        present = expert > 0
        several = present.sum(axis=1) > 1
        recall = np.divide(hits, expert, out=np.zeros_like(hits), where=present)
        balanced = recall.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
        metrics = {"accuracy": accuracy, "balanced_accuracy": np.where(several, balanced, np.nan)}
        if self.scale.ordinal:
            metrics["kappa"] = np.where(several, self._concordance(weights, total), np.nan)
        else:
            chance = (expert * judge).sum(axis=1) / total**2
            metrics["kappa"] = _ratio(accuracy - chance, np.where(several, 1 - chance, 0))
        if self.scale.kind == "boolean":
            for name, label in (("tpr", "yes"), ("tnr", "no")):
                column = self.occurring == self.scale.labels.index(label)
                metrics[name] = _ratio(hits[:, column].sum(axis=1), expert[:, column].sum(axis=1))
        if self.scale.kind == "score":
            metrics["ccc"] = metrics["kappa"]
            metrics["mae"] = weights @ np.abs(self.x - self.y) / total
            metrics["rank_correlation"] = _correlation(weights, _mean_ranks(expert)[:, self.expert], _mean_ranks(judge)[:, self.judge])
        return metrics

    def _concordance(self, weights: Floats, total: Floats) -> Floats:
        """One minus the mean squared difference over the one expected by chance: quadratically weighted kappa, and Lin's coefficient."""
        x, y = self.x - self.x.mean(), self.y - self.x.mean()
        mean_x, mean_y, mean_xx, mean_yy, gap = (weights @ np.stack([x, y, x * x, y * y, (x - y) ** 2], axis=1) / total[:, None]).T
        return 1 - _ratio(gap, mean_xx + mean_yy - 2 * mean_x * mean_y)


def _mean_ranks(counts: Floats) -> Floats:
    """Mean rank of each distinct value, from how often each occurs, ascending; both of shape (resamples, values)."""
    return np.cumsum(counts, axis=1) - (counts - 1) / 2


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Weighted Pearson correlation of rows; all three of shape (resamples, n)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    spread[spread < 1e-9] = 0  # ranks differ by halves: anything smaller is rounding
    return _ratio((weights * x * y).sum(axis=1), np.sqrt(spread))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _listed(scale: Scale, pairs: Sequence[tuple[Any, Any]]) -> tuple[Scale, Sequence[tuple[Any, Any]]]:
    """On the open scale every verdict that occurs is a category."""
    if scale.kind != "open":
        return scale, pairs
    named = [(scale.label_of(truth), scale.label_of(said)) for truth, said in pairs]
    labels = tuple(sorted({label for pair in named for label in pair}))
    return Scale("categories", labels, labels), named


def _numbered(groups: Sequence[Hashable]) -> npt.NDArray[np.intp]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)


def _resampled(clusters: npt.NDArray[np.intp], resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of weights, shape (block, n): how often each item's cluster was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    n = int(clusters.max()) + 1
    block = max(1, _BLOCK_CELLS // len(clusters))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        yield counts[:, clusters].astype(np.float64)


def _confusion(scale: Scale, expert: npt.NDArray[np.intp], judge: npt.NDArray[np.intp]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(expert.tolist(), judge.tolist(), strict=True))
    few = len(scale.labels) <= _MOST_LABELS_SHOWN
    shown = range(len(scale.labels)) if few else sorted({place for pair in counts for place in pair})
    if len(shown) > MOST_LABELS_CROSSED:
        found: dict[str, dict[str, int]] = {}
        for row, column in sorted(counts):
            found.setdefault(scale.labels[row], {})[scale.labels[column]] = counts[row, column]
        return found
    return {scale.labels[row]: {scale.labels[column]: counts[row, column] for column in shown} for row in shown}


def mcnemar_p(fixed: int, broken: int) -> float:
    """Two-sided exact McNemar test: the probability, under fair coins, of a split at least as uneven. In whole numbers, so exact for any count."""
    flips, ways, term = fixed + broken, 0, 1
    for successes in range(min(fixed, broken) + 1):
        ways += term
        term = term * (flips - successes) // (successes + 1)
    return min(1.0, 2 * ways / (1 << flips))
