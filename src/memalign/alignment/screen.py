"""Screening: what the judge says of new records now, without them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from memalign.engines import in_flight
from memalign.memory import Memory, episodic
from memalign.memory.episodic import Stored
from memalign.records import Failure, Item, Verdict
from memalign.session import Meter

Opinion = Callable[[Meter, Item], Awaitable[Verdict | Failure]]
"""What the judge says of an item, its own case hidden from it; calls go on the meter."""

AT_ONCE = 64
"""Items that are screened at once; models limit their own concurrency."""


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
        unknown = [stored for stored in records if stored.judged is None and stored.item_id in heard]
        screened = {stored.row: replace(stored, judged=heard[stored.item_id]) for stored in unknown}
        if screened:
            await asyncio.shield(asyncio.to_thread(_note, memory, list(screened.values())))
    return [screened.get(stored.row, stored) for stored in records]


def _note(memory: Memory, screened: Sequence[Stored]) -> None:
    with memory.store.writing() as connection:
        episodic.note_judged(connection, memory.judge_id, screened)
