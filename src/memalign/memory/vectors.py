"""Vectors in the database: bound to embedder and content, so that equal text is embedded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection, bindparam, select

from memalign.memory.revisions import NEWEST, PURGED, holds_at
from memalign.stores import schema
from memalign.stores.database import insert_new

if TYPE_CHECKING:
    from memalign.embedders import Vectors

_TABLE = schema.vector
_CHUNK = 500
_MANY = 2000
"""From here on, reading all vectors of the embedder in their order is faster than finding each (10,000: 0.1 s against 0.45 s)."""
_KNOWN = select(_TABLE.c.content_hash, _TABLE.c.data).where(
    _TABLE.c.embedder == bindparam("embedder"), _TABLE.c.content_hash.in_(bindparam("hashes", expanding=True))
)
_NEWEST_AND_ONE = select(
    NEWEST.scalar_subquery(),
    PURGED.scalar_subquery(),
    select(_TABLE.c.data).where(_TABLE.c.embedder == bindparam("embedder"), _TABLE.c.content_hash == bindparam("hash")).scalar_subquery(),
)


def known(connection: Connection, embedder: str, hashes: Sequence[str]) -> dict[str, Vectors]:
    """Content hash -> vector, for those that are stored."""
    return {key: np.frombuffer(data, dtype="<f4") for key, data in _stored(connection, embedder, hashes).items()}


def newest_and_one(connection: Connection, judge_id: int, embedder: str, content_hash: str) -> tuple[int, int, Vectors | None]:
    """The newest revision of a memory, its newest purge and, if it is stored, the vector of a text: in one query, since every judgement asks."""
    number, purged, data = connection.execute(_NEWEST_AND_ONE, {"judge": judge_id, "embedder": embedder, "hash": content_hash}).one()
    return number or 0, purged or 0, None if data is None else np.frombuffer(data, dtype="<f4")


def store(connection: Connection, embedder: str, vectors: Mapping[str, Vectors]) -> None:
    """Store vectors by content hash; one that another process stored meanwhile stays as it is."""
    new = set(vectors) - set(known(connection, embedder, list(vectors)))  # sorted below: two writers must not wait for each other crosswise
    rows = [
        {"embedder": embedder, "content_hash": key, "dimension": len(vectors[key]), "data": vectors[key].astype("<f4").tobytes()}
        for key in sorted(new)
    ]
    if rows:
        insert_new(connection, _TABLE, rows)


def of_memory(connection: Connection, judge_id: int, embedder: str, *, after: int, until: int) -> list[tuple[str, bytes]]:
    """Item id and vector bytes of the records that entered memory after one revision and hold in another."""
    record = schema.feedback
    entered = connection.execute(
        select(record.c.item_id, record.c.content_hash)
        .where(record.c.judge_id == judge_id, record.c.since > after, holds_at(record, until))
        .order_by(record.c.row)
    ).all()
    stored = _stored(connection, embedder, list({key for _, key in entered}))
    return [(item_id, stored[key]) for item_id, key in entered if key in stored]


def left_memory(connection: Connection, judge_id: int, *, after: int, until: int) -> list[str]:
    """Item ids that some record left between two revisions and that no record holds any more."""
    record = schema.feedback
    left = select(record.c.item_id).where(record.c.judge_id == judge_id, record.c.until > after, record.c.until <= until)
    held = select(record.c.item_id).where(record.c.judge_id == judge_id, holds_at(record, until))
    return list(connection.execute(left.except_(held)).scalars())


def missing(connection: Connection, judge_id: int, embedder: str, revision: int) -> list[str]:
    """Content hashes of records that hold in a revision and have no vector of this embedder."""
    record = schema.feedback
    held = select(record.c.content_hash).where(record.c.judge_id == judge_id, holds_at(record, revision))
    return list(connection.execute(held.except_(select(_TABLE.c.content_hash).where(_TABLE.c.embedder == embedder))).scalars())


def _stored(connection: Connection, embedder: str, hashes: Sequence[str]) -> dict[str, bytes]:
    if len(hashes) > _MANY:
        wanted = set(hashes)
        everything = connection.execute(select(_TABLE.c.content_hash, _TABLE.c.data).where(_TABLE.c.embedder == embedder))
        return {key: data for key, data in everything if key in wanted}
    found: dict[str, bytes] = {}
    for start in range(0, len(hashes), _CHUNK):
        chunk = {"embedder": embedder, "hashes": list(hashes[start : start + _CHUNK])}
        found |= {key: data for key, data in connection.execute(_KNOWN, chunk)}
    return found
