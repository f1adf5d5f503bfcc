"""Scrubbing: what a purge deleted goes from the disk as well; a scrub that was cut short is taken up by whoever opens the memory next."""

from __future__ import annotations

from sqlalchemy import select, update

from memalign.memory.retrieval import cachefile
from memalign.stores import Store, schema

_JUDGE = schema.judge


def scrub(store: Store) -> bool:
    """Rewrite the database if a purge is not through yet; gives whether one was. Raises StoreBusy while someone else reads on, StoreError."""
    with store.reading() as connection:
        query = select(_JUDGE.c.id, _JUDGE.c.purged).where(_JUDGE.c.purged > _JUDGE.c.scrubbed)
        waiting = [(row.id, row.purged) for row in connection.execute(query)]
    if not waiting:
        return False
    store.vacuum()
    for judge_id, purged in waiting:
        cachefile.drop(store.location, judge_id)
        with store.writing(judge_id) as connection:
            connection.execute(update(_JUDGE).where(_JUDGE.c.id == judge_id, _JUDGE.c.scrubbed < purged).values(scrubbed=purged))
    return True
