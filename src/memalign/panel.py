"""The panel: how far the experts agree among themselves. Pure functions on feedback records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from memalign.agreement import Interval, measure
from memalign.records import Feedback
from memalign.rendering import item_text
from memalign.scale import Scale

Floats = npt.NDArray[np.float64]

_RESAMPLES = 1000
_MOST_LISTED = 10
"""Experts, and pairs of them, in the lines; those with the most shared items."""
_FEW_ITEMS = 10
"""Shared items below which an interval says little, and the lines say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two experts on the items that both judged."""

    annotators: tuple[str, str]
    n: int
    accuracy: Interval
    """Share of equal verdicts."""
    kappa: Interval | None
    """Cohen's kappa, on an ordinal scale with quadratic weights; None when one of the two gave one value only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """How far the experts agree among themselves."""

    records: Mapping[str, int]
    """Annotator -> how many of the shared items they judged."""
    shared: int
    """Items that several experts judged."""
    alpha: Interval | None
    """Krippendorff's alpha over the shared items, bootstrapped over items: 1 is perfect, 0 is chance, below 0 is systematic disagreement.
    On an ordinal scale differences are squared distances of the values, so 4 and 5 are close. None: no item is shared, or all verdicts are equal."""
    pairs: tuple[Pair, ...]
    contested: tuple[tuple[Feedback, ...], ...]
    """For each item on which experts differ, by more than is near on an ordinal scale, their records, the widest apart first."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; contested records by id."""
        plain = {name: value for name, value in asdict(self).items() if name != "contested"}
        return plain | {"contested": [[record.id for record in records] for records in self.contested]}

    def lines(self) -> list[str]:
        """The measurement as short lines of plain text; none when no item is shared."""
        if not self.shared:
            return []
        named = ", ".join(f"{_named(name)} {count}" for name, count in list(self.records.items())[:_MOST_LISTED])
        named += f" and {left} more" if (left := len(self.records) - _MOST_LISTED) > 0 else ""
        lines = [f"experts on {self.shared} items that several judged: {named}"]
        if self.alpha is not None:
            few = f"; {self.shared} shared items say little" if self.shared < _FEW_ITEMS else ""
            lines.append(f"Krippendorff's alpha {self.alpha}{few}")
        most = sorted(self.pairs, key=lambda pair: -pair.n)[:_MOST_LISTED]
        for pair in (pair for pair in self.pairs if pair in most):
            kappa = "" if pair.kappa is None else f", kappa {pair.kappa}"
            lines.append(f"{' and '.join(map(_named, pair.annotators))}: same verdict {pair.accuracy}{kappa}, n = {pair.n}")
        lines += [f"and {left} more pairs of experts"] if (left := len(self.pairs) - _MOST_LISTED) > 0 else []
        lines += [f"contested: {_contest(records)}" for records in self.contested[:3]]
        if len(self.contested) > 3:
            lines.append(f"and {len(self.contested) - 3} more contested items")
        return lines


def panel(scale: Scale, records: Iterable[Feedback], *, seed: int = 0) -> Panel:
    """Measure the experts against each other on the items that several of them judged; an expert's newest record on an item counts.

    Of records with one id the one given last counts: it replaces the others, whoever gave them.
    """
    said: defaultdict[str, dict[str, Feedback]] = defaultdict(dict)
    held = {record.id: record for record in records}
    for record in sorted(held.values(), key=lambda record: record.created_at):
        said[record.item.id][record.annotator] = record
    shared = [records for records in said.values() if len(records) > 1]
    counts = Counter(annotator for records in shared for annotator in records)
    both: defaultdict[tuple[str, str], list[tuple[Any, Any]]] = defaultdict(list)
    for given in shared:
        for one, other in combinations(sorted(given), 2):
            both[one, other].append((given[one].value, given[other].value))
    positions = {label: place for place, label in enumerate(scale.labels)}
    contested = [list(records.values()) for records in shared if not scale.near(record.value for record in records.values())]
    contested.sort(key=lambda records: -_spread(scale, positions, records))
    return Panel(
        records=dict(counts.most_common()),
        shared=len(shared),
        alpha=_alpha(scale, shared, seed),
        pairs=tuple(_pair(scale, names, both[names], seed) for names in sorted(both)),
        contested=tuple(tuple(records) for records in contested),
    )


def _pair(scale: Scale, names: tuple[str, str], both: Sequence[tuple[Any, Any]], seed: int) -> Pair:
    measured = measure(scale, both, resamples=_RESAMPLES, seed=seed)
    assert measured.accuracy is not None
    return Pair(annotators=names, n=len(both), accuracy=measured.accuracy, kappa=measured.kappa)


def _alpha(scale: Scale, shared: Sequence[Mapping[str, Feedback]], seed: int) -> Interval | None:
    """Krippendorff's alpha (Content Analysis, 2004, section 11.3): one minus observed over expected disagreement."""
    if not shared:
        return None
    positions = {label: place for place, label in enumerate(scale.labels)}
    counts = np.zeros((len(shared), len(scale.labels)))
    for row, records in enumerate(shared):
        for record in records.values():
            counts[row, positions[scale.label_of(record.value)]] += 1
    places = np.arange(len(scale.labels), dtype=np.float64)
    distance = (places[:, None] - places) ** 2 if scale.ordinal else (places[:, None] != places).astype(np.float64)
    observed = np.einsum("uc,ck,uk->u", counts, distance, counts) / (counts.sum(axis=1) - 1)  # of each item, over its pairs of verdicts
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(shared), np.full(len(shared), 1 / len(shared)), size=_RESAMPLES).astype(np.float64)
    values = _alphas(np.vstack([np.ones(len(shared)), drawn]), counts, observed, distance)
    if np.isnan(values[0]):
        return None
    low, high = np.nanquantile(values[1:], (0.025, 0.975)) if not np.isnan(values[1:]).all() else (values[0], values[0])
    return Interval(float(values[0]), float(low), float(high))


def _alphas(weights: Floats, counts: Floats, observed: Floats, distance: Floats) -> Floats:
    """Alpha under each weighting of the items; shapes (resamples, items), (items, labels), (items,), (labels, labels)."""
    totals = weights @ counts
    n = totals.sum(axis=1)
    expected = np.einsum("rc,ck,rk->r", totals, distance, totals) / np.maximum(n - 1, 1)
    ratio = np.divide(weights @ observed, expected, out=np.full(len(weights), np.nan), where=expected > 0)
    alphas: Floats = 1 - ratio
    return alphas


def _spread(scale: Scale, positions: Mapping[str, int], records: Sequence[Feedback]) -> float:
    places = [positions[scale.label_of(record.value)] for record in records]
    return float(max(places) - min(places)) if scale.ordinal else float(len(set(places)))


def _contest(records: Sequence[Feedback]) -> str:
    sides = ", ".join(f"{_named(record.annotator)} says {record.value!r}" for record in records)
    text = " ".join(item_text(records[0].item).split())
    return f"{sides}: {text if len(text) <= 80 else text[:79] + '…'}"


def _named(annotator: str) -> str:
    return annotator or "(unnamed)"
