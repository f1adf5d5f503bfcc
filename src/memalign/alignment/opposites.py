"""Errors that no new case stands against: there memory's nearest case of another verdict shows where a principle ends.

Such a case stands in the prompt, so it taints what comes of it; it is neither learned from again nor evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memalign.alignment.batches import Case
from memalign.memory import Memory, episodic
from memalign.memory.episodic import Stored
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.embedders import Vectors

_MOST = 1000
"""Errors that memory is searched for."""
_AMONG = 50
"""Nearest items among which a case of another verdict is sought: one that is farther away tells little."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A case of memory that a batch is shown."""

    stored: Stored
    places: tuple[int, ...]
    """Of the batch's errors that it stands against, from 0."""


def alone(rounds: Iterable[Sequence[Case]], scale: Scale) -> list[Stored]:
    """The judge's errors in whose batch no case has a verdict that is not near theirs."""
    return [
        case.stored
        for batch in rounds
        for case in batch
        if case.stored.missed(scale) and all(scale.near([case.stored.feedback.value, other.stored.feedback.value]) for other in batch)
    ][:_MOST]


def opposites(memory: Memory, scale: Scale, errors: Sequence[Stored], vectors: Mapping[str, Vectors], without: Collection[str]) -> dict[int, Stored]:
    """Row of an error -> the record on the nearest item with a verdict that is not near its own, as it holds now, where there is one.

    ``vectors``: of the errors' items by content hash; ``without``: ids of records that are about to be learned, or replaced.
    """
    view = memory.view()
    chosen = dict[int, str]()
    for error in errors if view.items else ():
        query = vectors.get(error.content_hash)
        if query is not None:
            cases = memory.cases(view, error.item_id, query, k=_AMONG, floor=-1.0, own=False)
            others = [
                (likeness, episode.feedback.id)
                for episode, likeness in zip(cases.episodes, cases.similarity, strict=True)
                if episode.feedback.id not in without and not scale.near([error.feedback.value, episode.feedback.value])
            ]
            if others:
                chosen[error.row] = max(others)[1]
    with memory.store.reading() as connection:
        held = {stored.feedback.id: stored for stored in episodic.of_ids(connection, memory.judge_id, view.revision, sorted(set(chosen.values())))}
    return {row: held[key] for row, key in chosen.items() if key in held}


def beside(batch: Sequence[Case], found: Mapping[int, Stored]) -> list[Beside]:
    """What a batch is shown, each record once."""
    places: dict[int, list[int]] = {}
    records = dict[int, Stored]()
    for place, case in enumerate(batch):
        other = found.get(case.stored.row)
        if other is not None:
            records[other.row] = other
            places.setdefault(other.row, []).append(place)
    return [Beside(records[row], tuple(placed)) for row, placed in places.items()]
