"""Which of two guidelines that contradict each other holds: a fixed order, no model. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memalign.memory.episodic import Stored

CLEAR = 2 / 3
"""A majority is clear when one side has more than this share of the annotators' weight."""

Weight = Callable[[str], float]
"""How much an annotator counts."""

Outcome = Literal["first", "second", "split", "open"]


def alike_weight(_annotator: str) -> float:
    """Every annotator counts the same."""
    return 1.0


@dataclass(frozen=True, slots=True)
class Side:
    """A guideline in a conflict, with the records it rests on."""

    pinned: bool
    records: Sequence[Stored]
    restated: Collection[int] = ()
    """Rows of records that were given or restored again as they first were."""


def settle(first: Side, second: Side, *, splits: bool, weight: Weight = alike_weight) -> Outcome:
    """Which side holds, the older one being first; ``splits``: their texts name situations that do not meet.

    In this order: what an expert pinned; what rests on a record that its expert thought over and overwrote; both, by scope; of one and the
    same annotator the newer word; of several a clear majority; else neither, and the experts are asked. Records of annotators without weight
    do not count, unless there are no others.
    """
    if any(weight(stored.feedback.annotator) > 0 for stored in (*first.records, *second.records)):
        first, second = (replace(side, records=[one for one in side.records if weight(one.feedback.annotator) > 0]) for side in (first, second))
    for mine, other in ((first.pinned, second.pinned), (_thought_over(first), _thought_over(second))):
        if mine != other:
            return "first" if mine else "second"
    if splits:
        return "split"
    one, two = _annotators(first), _annotators(second)
    if len(one | two) <= 1:
        return "first" if _newest(first) > _newest(second) else "second"
    for_one, for_two = sum(map(weight, one)), sum(map(weight, two))
    if for_one > CLEAR * (for_one + for_two):
        return "first"
    return "second" if for_two > CLEAR * (for_one + for_two) else "open"


def _thought_over(side: Side) -> bool:
    return any(stored.version > 1 and stored.row not in side.restated for stored in side.records)


def _annotators(side: Side) -> set[str]:
    return {stored.feedback.annotator for stored in side.records}


def _newest(side: Side) -> float:
    return max((stored.feedback.created_at.timestamp() for stored in side.records), default=float("-inf"))
