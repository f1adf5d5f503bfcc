"""What a judge has to beat: verdicts that look at nothing but the length of an output. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from memalign.errors import ConfigurationError
from memalign.records import canonical


class HasOutputs(Protocol):
    """An item, a feedback record, or anything else with ``outputs``."""

    @property
    def outputs(self) -> Any:
        """Any JSON value."""


def length_baseline(items: Sequence[HasOutputs], values: Sequence[Any]) -> float | None:
    """How well the length of the output alone ranks the labels: 0.5 is chance, 1 means that longer is always better.

    For boolean values this is the area under the ROC curve; for scores its extension to all pairs of different scores; for "a" and "b" the
    length of output a minus that of b is ranked. Ties and values without an order are left out. None when nothing is left to compare.
    """
    if len(items) != len(values):
        raise ConfigurationError("length_baseline needs one value for each item")
    kept = [(_length(item.outputs), _worth(value)) for item, value in zip(items, values, strict=True) if _worth(value) is not None]
    lengths = np.array([length for length, _ in kept], dtype=np.float64)
    worth = np.array([value for _, value in kept], dtype=np.float64)
    wins = comparisons = 0.0
    for level in np.unique(worth)[1:]:
        shorter, mine = np.sort(lengths[worth < level]), lengths[worth == level]
        wins += float(np.searchsorted(shorter, mine, "left").sum() + np.searchsorted(shorter, mine, "right").sum()) / 2
        comparisons += len(shorter) * len(mine)
    return wins / comparisons if comparisons else None


def _worth(value: Any) -> float | None:
    return {"a": 1.0, "b": 0.0}.get(value) if isinstance(value, str) else float(value)


def _length(outputs: Any) -> int:
    if isinstance(outputs, Mapping) and outputs.keys() == {"a", "b"}:
        return _length(outputs["a"]) - _length(outputs["b"])
    return len(outputs) if isinstance(outputs, str) else len(canonical(outputs))
