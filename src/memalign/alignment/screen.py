"""Screening: what the judge says of new records now, without them; and the order in which distillation reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from memalign.engines import in_flight
from memalign.memory import Memory, episodic
from memalign.memory.episodic import Stored
from memalign.memory.semantic import normalised
from memalign.records import Failure, Item, Verdict, canonical
from memalign.session import Meter

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Opinion = Callable[[Meter, Item], Awaitable[Verdict | Failure]]
"""What the judge says of an item, its own case hidden from it; calls go on the meter."""

_MOST_PAIRED = 1000
"""Errors that get a partner; the rest of them are read in order."""

AT_ONCE = 64
"""Items that are screened at once; models limit their own concurrency."""


@dataclass(frozen=True, slots=True)
class Case:
    """A record that distillation reads, and all that say the same: same verdict, same reason."""

    stored: Stored
    rows: frozenset[int]


async def screen(memory: Memory, meter: Meter, opinion: Opinion, records: Sequence[Stored], progress: Callable[[int, int], None]) -> list[Stored]:
    """The records, each with what the judge says of its item, where it can be had; one call an item, logged verdicts are used again.

    A judgement that fails leaves its records unscreened, which is no fault. What was heard is stored with the records, also when cancelled.
    """
    items = {stored.item_id: stored.feedback.item for stored in records if stored.judged is None}
    heard: dict[str, object] = {}
    done = 0
    try:
        keys = list(items)
        async for place, said in in_flight(items.values(), lambda item: opinion(meter, item), limit=AT_ONCE):
            done += 1
            progress(done, len(items))
            if isinstance(said, Verdict):
                heard[keys[place]] = said.value
    finally:
        rows = {stored.row: heard[stored.item_id] for stored in records if stored.judged is None and stored.item_id in heard}
        if rows:
            await asyncio.shield(asyncio.to_thread(_note, memory, rows))
    return [replace(stored, judged=rows[stored.row]) if stored.row in rows else stored for stored in records]


def missed(stored: Stored) -> bool:
    """Whether the judge is known to have said something else than the expert."""
    return stored.judged is not None and stored.judged != stored.feedback.value


def cases(records: Sequence[Stored], *, shown: int) -> list[Case]:
    """Records as cases, in order. Of those that share verdict and reason at most ``shown`` are read, and the others stand behind them."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for stored in records:
        groups.setdefault((canonical(stored.feedback.value), normalised(stored.feedback.rationale)), []).append(stored)
    found = []
    for group in groups.values():
        read = sorted(group, key=lambda stored: not missed(stored))[:shown]
        rest = [stored for stored in group if stored not in read]
        found += [Case(stored, frozenset({stored.row, *(other.row for other in rest[place :: len(read)])})) for place, stored in enumerate(read)]
    return sorted(found, key=lambda case: case.stored.row)


def paired(found: Sequence[Case], vectors: Mapping[str, Vectors]) -> list[Case]:
    """The judge's errors first, each followed by its nearest case of another verdict; then the others, in order.

    ``vectors``: content hash -> unit vector of the items; without them the order decides what is near.
    """
    left = {case.stored.row: case for case in found}
    ordered = list[Case]()
    near = _Nearness(found, vectors)
    for case in [case for case in found if missed(case.stored)][:_MOST_PAIRED]:
        if case.stored.row in left:
            ordered.append(left.pop(case.stored.row))
            other = near.opposite(case, left)
            if other is not None:
                ordered.append(left.pop(other))
    return [*ordered, *left.values()]


class _Nearness:
    """Cosine similarities of some cases' items."""

    def __init__(self, found: Sequence[Case], vectors: Mapping[str, Vectors]) -> None:
        self._rows = [case.stored.row for case in found]
        self._labels = {case.stored.row: case.stored.feedback.value for case in found}
        held = [vectors.get(case.stored.content_hash) for case in found]
        size = max((len(vector) for vector in held if vector is not None), default=1)
        self._matrix = np.stack([np.zeros(size, np.float32) if vector is None else vector for vector in held]) if held else np.zeros((0, size))
        self._place = {row: place for place, row in enumerate(self._rows)}

    def opposite(self, case: Case, left: Collection[int]) -> int | None:
        """The row of the nearest case with another verdict among those left; of equally near ones the first."""
        likeness = self._matrix @ self._matrix[self._place[case.stored.row]]
        places = [self._place[row] for row in left if self._labels[row] != case.stored.feedback.value]
        return self._rows[max(places, key=lambda place: (likeness[place], -place))] if places else None


def _note(memory: Memory, rows: Mapping[int, object]) -> None:
    with memory.store.writing() as connection:
        episodic.note_judged(connection, rows)
