"""Which cases distillation reads, and which of them together. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memalign.alignment.relate import content_words
from memalign.memory.episodic import Stored
from memalign.memory.semantic import normalised
from memalign.records import canonical
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.embedders import Vectors

_MOST_PAIRED = 1000
"""Errors that get a partner; the rest of them are read in order."""
_RELATED = 0.05
"""Likeness of reasons, by their words, from which cases are read together first."""
_TOO_COMMON = 0.5
"""Share of the reasons above which a word tells nothing."""
_MOST_HOLDING = 500
"""Reasons above which a word is not followed, however many there are: it would cost more time than it tells."""


@dataclass(frozen=True, slots=True)
class Case:
    """A record that distillation reads, and all that say the same: same verdict, same reason."""

    stored: Stored
    rows: frozenset[int]


def cases(records: Sequence[Stored], scale: Scale, *, shown: int) -> list[Case]:
    """Records as cases, in order. Of those that share verdict and reason at most ``shown`` are read, and the others stand behind them."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for stored in records:
        groups.setdefault((canonical(stored.feedback.value), normalised(stored.feedback.rationale)), []).append(stored)
    found = []
    for group in groups.values():
        read = sorted(group, key=lambda stored: not stored.missed(scale))[:shown]
        rest = [stored for stored in group if stored not in read]
        found += [Case(stored, frozenset({stored.row, *(other.row for other in rest[place :: len(read)])})) for place, stored in enumerate(read)]
    return sorted(found, key=lambda case: case.stored.row)


def paired(found: Sequence[Case], vectors: Mapping[str, Vectors], scale: Scale) -> list[list[Case]]:
    """The judge's errors first, each with its nearest case of a verdict that is not near its own; then the others, one by one, in order.

    ``vectors``: content hash -> unit vector of the items; without them the order decides what is near.
    """
    left = {case.stored.row: case for case in found}
    units = list[list[Case]]()
    near = _Nearness(found, vectors, scale)
    for case in [case for case in found if case.stored.missed(scale)][:_MOST_PAIRED]:
        if case.stored.row in left:
            unit = [left.pop(case.stored.row)]
            other = near.opposite(case, left)
            if other is not None:
                unit.append(left.pop(other))
            units.append(unit)
    return [*units, *([case] for case in left.values())]


def batches(units: Sequence[Sequence[Case]], size: int) -> list[list[Case]]:
    """Units in batches of at most ``size`` cases; each unit with those whose reasons share the most telling words. Too large ones are split.

    Cases of one principle read together make one guideline with all its evidence, where apart they make one each that must be found alike later.
    What is like nothing else fills up what is left, in order.
    """
    units = [unit[start : start + size] for unit in units for start in range(0, len(unit), size)]
    if size == 1:
        return [list(unit) for unit in units]
    near = _Likeness([set[str]().union(*(content_words(case.stored.feedback.rationale) for case in unit)) for unit in units])
    left = dict.fromkeys(range(len(units)))
    groups = list[list[int]]()
    for seed in range(len(units)):
        if seed not in left:
            continue
        del left[seed]
        group, held = [seed], len(units[seed])
        for other in near.ranked(seed, left):
            if held + len(units[other]) <= size:
                del left[other]
                group.append(other)
                held += len(units[other])
        groups.append(group)
    return [[case for place in sorted(places) for case in units[place]] for places in _packed(groups, [len(unit) for unit in units], size)]


def _packed(groups: Sequence[Sequence[int]], sizes: Sequence[int], size: int) -> list[list[int]]:
    """Groups together as long as they fit, the larger first; batches in the order of their first units."""
    bins = list[list[int]]()
    room = list[int]()
    for group in sorted(groups, key=lambda group: -sum(sizes[place] for place in group)):
        needed = sum(sizes[place] for place in group)
        found = next((place for place, free in enumerate(room) if free >= needed), None)
        if found is None:
            bins.append(list(group))
            room.append(size - needed)
        else:
            bins[found] += group
            room[found] -= needed
    return sorted(bins, key=min)


class _Likeness:
    """How alike texts are by their words, the rare ones more: cosine of inverse document frequencies."""

    def __init__(self, words: Sequence[Collection[str]]) -> None:
        self._words = words
        self._holding: defaultdict[str, list[int]] = defaultdict(list)
        for place, some in enumerate(words):
            for word in some:
                self._holding[word].append(place)
        most = min(_MOST_HOLDING, _TOO_COMMON * len(words))
        self._weight = {word: math.log(len(words) / len(places)) ** 2 for word, places in self._holding.items() if len(places) <= most}
        self._length = [math.sqrt(sum(self._weight.get(word, 0.0) for word in some)) for some in words]

    def ranked(self, seed: int, among: Collection[int]) -> list[int]:
        """The related ones, the likest first."""
        shared: defaultdict[int, float] = defaultdict(float)
        for word in self._words[seed]:
            for place in self._holding[word] if word in self._weight else ():
                if place in among:
                    shared[place] += self._weight[word]
        likeness = {place: weight / (self._length[seed] * self._length[place]) for place, weight in shared.items() if weight}
        return sorted((place for place in likeness if likeness[place] >= _RELATED), key=lambda place: (-likeness[place], place))


class _Nearness:
    """Cosine similarities of some cases' items."""

    def __init__(self, found: Sequence[Case], vectors: Mapping[str, Vectors], scale: Scale) -> None:
        self._rows = [case.stored.row for case in found]
        self._labels = {case.stored.row: canonical(case.stored.feedback.value) for case in found}
        given = {canonical(case.stored.feedback.value): case.stored.feedback.value for case in found}
        self._near = {one: {two for two in given if scale.near([given[one], given[two]])} if scale.ordinal else {one} for one in given}
        held = [vectors.get(case.stored.content_hash) for case in found]
        size = max((len(vector) for vector in held if vector is not None), default=1)
        self._matrix = np.stack([np.zeros(size, np.float32) if vector is None else vector for vector in held]) if held else np.zeros((0, size))
        self._place = {row: place for place, row in enumerate(self._rows)}

    def opposite(self, case: Case, left: Collection[int]) -> int | None:
        """The row of the nearest case among those left with a verdict that is not near the case's; of equally near ones the first."""
        likeness = self._matrix @ self._matrix[self._place[case.stored.row]]
        near = self._near[self._labels[case.stored.row]]
        places = [self._place[row] for row in left if self._labels[row] not in near]
        return self._rows[max(places, key=lambda place: (likeness[place], -place))] if places else None
