"""Vectors in the database: bound to embedder and content, so that equal text is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, Row, Select, bindparam, func, select

from memalign.errors import EmbeddingError
from memalign.memory.revisions import NEWEST, PURGED, holds_at
from memalign.stores import schema
from memalign.stores.database import insert_new

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Fetch = Callable[[Select[Any], Mapping[str, Any]], Sequence[Any]]
"""Asks a query with its parameters; gives the rows."""

_TABLE = schema.vector
_CHUNK = 500
_MANY = 2000
"""From here on, reading all vectors of the embedder in their order is faster than finding each (10,000: 0.1 s against 0.45 s)."""
_STREAMED = {"stream_results": True, "yield_per": 10_000}
"""Records that are in RAM at once: of a million, all of them would take gigabytes."""
_VECTORS_STREAMED = {"stream_results": True, "yield_per": 1_000}
"""Vectors at once: so many stay in the processor's cache while they are taken in (10,000 vectors: .05 s against .15 s)."""
_KNOWN = select(_TABLE.c.content_hash, _TABLE.c.data).where(
    _TABLE.c.embedder == bindparam("embedder"), _TABLE.c.content_hash.in_(bindparam("hashes", expanding=True))
)
_NEWEST_AND_ONE = select(
    NEWEST.scalar_subquery(),
    PURGED.scalar_subquery(),
    select(_TABLE.c.data).where(_TABLE.c.embedder == bindparam("embedder"), _TABLE.c.content_hash == bindparam("hash")).scalar_subquery(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """How far an embedder knows what memory holds."""

    texts: int
    """Different texts that memory holds."""
    lacking: int
    """Of these, how many the embedder has not seen."""
    former: str | None
    """The id of the embedder that knows most of them, if that is another one."""


def known(connection: Connection, embedder: str, hashes: Sequence[str]) -> dict[str, Vectors]:
    """Content hash -> vector, for those that are stored."""
    return {key: np.frombuffer(data, dtype="<f4") for key, data in _stored(connection, embedder, hashes).items()}


def newest_and_one(fetch: Fetch, judge_id: int, embedder: str, content_hash: str) -> tuple[int, int, Vectors | None]:
    """The newest revision of a memory, its newest purge and, if it is stored, the vector of a text: in one query, since every judgement asks."""
    number, purged, data = fetch(_NEWEST_AND_ONE, {"judge": judge_id, "embedder": embedder, "hash": content_hash})[0]
    return number or 0, purged or 0, None if data is None else np.frombuffer(data, dtype="<f4")


def store(connection: Connection, embedder: str, vectors: Mapping[str, Vectors]) -> None:
    """Store vectors by content hash; one that another process stored meanwhile stays as it is.

    Raises EmbeddingError for another dimension than that of the vectors which this embedder gave before: they could not be compared.
    """
    new = set(vectors) - set(known(connection, embedder, list(vectors)))  # sorted below: two writers must not wait for each other crosswise
    _check_dimension(connection, embedder, {len(vectors[key]) for key in new})
    rows = [
        {"embedder": embedder, "content_hash": key, "dimension": len(vectors[key]), "data": vectors[key].astype("<f4").tobytes()}
        for key in sorted(new)
    ]
    if rows:
        insert_new(connection, _TABLE, rows)


def entered(connection: Connection, judge_id: int, *, after: int, until: int, texts: bool = False) -> Iterator[Sequence[Row[Any]]]:
    """What the search knows of the records that entered memory after one revision and hold in another, oldest first, some at a time."""
    record = schema.feedback
    columns = [record.c[name] for name in ("row", "item_id", "content_hash", "value", "judged", "annotator", "source", "created_at")]
    columns += [record.c.inputs, record.c.outputs] if texts else []
    query = select(*columns).where(record.c.judge_id == judge_id, record.c.since > after, holds_at(record, until)).order_by(record.c.row)
    yield from connection.execute(query, execution_options=_STREAMED).partitions()


def left(connection: Connection, judge_id: int, *, after: int, until: int) -> list[int]:
    """The rows of the records that left memory between two revisions."""
    record = schema.feedback
    query = select(record.c.row).where(record.c.judge_id == judge_id, record.c.until > after, record.c.until <= until)
    return list(connection.execute(query).scalars())


def stored(connection: Connection, embedder: str, hashes: Sequence[str]) -> Iterator[tuple[Sequence[str], Vectors]]:
    """Content hashes with their vectors, shape (n, dimension), some at a time; others than those wanted may be among them when those are many.

    Raises EmbeddingError when they differ in dimension.
    """
    if len(hashes) > _MANY:
        everything = select(_TABLE.c.content_hash, _TABLE.c.data).where(_TABLE.c.embedder == embedder)
        for part in connection.execute(everything, execution_options=_VECTORS_STREAMED).partitions():
            yield _stacked(embedder, part)
    elif found := list(_stored(connection, embedder, hashes).items()):
        yield _stacked(embedder, found)


def missing(connection: Connection, judge_id: int, embedder: str, revision: int) -> list[str]:
    """Content hashes of records that hold in a revision and have no vector of this embedder."""
    known = select(_TABLE.c.content_hash).where(_TABLE.c.embedder == embedder)
    return [row.content_hash for row in connection.execute(_held(judge_id, revision).except_(known))]


def embedded(connection: Connection, judge_id: int, embedder: str, revision: int) -> Embedded:
    """How far an embedder knows what memory holds in a revision, and which one knows most."""
    total = connection.execute(select(func.count()).select_from(_held(judge_id, revision).subquery())).scalar_one()
    lacking = {embedder: len(missing(connection, judge_id, embedder, revision))}
    if lacking[embedder]:
        lacking |= {other: len(missing(connection, judge_id, other, revision)) for other in _embedders(connection)}
    best = min(lacking, key=lambda known: lacking[known])  # of equals, the present one
    return Embedded(texts=total, lacking=lacking[embedder], former=best if lacking[best] < lacking[embedder] else None)


def _embedders(connection: Connection) -> list[str]:
    """The ids under which vectors are stored, found one by one: reading all rows for it would read all vectors."""
    found: list[str] = []
    while (another := _following(connection, found[-1] if found else "")) is not None:
        found.append(another)
    return found


def _following(connection: Connection, embedder: str) -> str | None:
    query = select(_TABLE.c.embedder).where(_TABLE.c.embedder > embedder).order_by(_TABLE.c.embedder).limit(1)
    found: str | None = connection.execute(query).scalar()
    return found


def _held(judge_id: int, revision: int) -> Select[tuple[str]]:
    record = schema.feedback
    return select(record.c.content_hash).where(record.c.judge_id == judge_id, holds_at(record, revision)).distinct()


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


def _check_dimension(connection: Connection, embedder: str, dimensions: set[int]) -> None:
    held = connection.execute(select(_TABLE.c.dimension).where(_TABLE.c.embedder == embedder).limit(1)).scalars()
    different = dimensions.union(held)
    if len(different) > 1:
        raise EmbeddingError(
            f"embedder {embedder!r} gave vectors of {' and '.join(map(str, sorted(different)))} dimensions; nothing was stored: "
            "an embedder that changes needs another id"
        )


def _stacked(embedder: str, found: Sequence[Row[tuple[str, bytes]] | tuple[str, bytes]]) -> tuple[Sequence[str], Vectors]:
    keys, parts = zip(*found, strict=True)
    sizes = set(map(len, parts))
    if len(sizes) > 1:
        dimensions = " and ".join(str(size // 4) for size in sorted(sizes))
        raise EmbeddingError(f"memory holds vectors of embedder {embedder!r} with {dimensions} dimensions; name another embedder")
    return keys, np.frombuffer(b"".join(parts), dtype="<f4").reshape(len(found), -1)
