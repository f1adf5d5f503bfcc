"""Approximate search on a PostgreSQL server: pgvector's navigable small-world graph (HNSW) over an embedder's vectors, a cache of the server's own.

The graph holds the vectors of all judges; which of them a judge remembers is looked up behind it, and the scan goes on until enough are found.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memalign.stores.types import as_text

if TYPE_CHECKING:
    import psycopg

PREFIX = "near_"
"""Of the names of such indexes."""
_MOST_DIMENSIONS = 4000
"""What pgvector links in half precision, from version 0.7 on."""
_OLDEST = (0, 8)
"""The version of pgvector whose scans go on: from an earlier one a judge with few of the vectors would get none."""
_LINKS, _EFFORT_TO_ADD, _EFFORT_TO_SEARCH = 16, 64, 100
_MEMORY = "512MB"
"""Of the server while it makes a graph: one that does not fit is made many times slower."""
_MOST_EFFORT = 1000
"""Of pgvector's setting."""
_LOOK_SECONDS = 0.1
_SEARCH = """
SET LOCAL hnsw.ef_search = {effort}; SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL jit = off;
SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass({index}) AND indisvalid);
SELECT f.item_id FROM embedding e JOIN feedback f ON f.content_hash = e.content_hash AND f.judge_id = {judge} AND f.until IS NULL
WHERE e.embedder = {embedder} AND e.dimension = {dimension}
AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass({index}) AND indisvalid)
ORDER BY (e.data::halfvec({dimension})) <#> {query}::halfvec({dimension}) LIMIT {count}
"""


def link(connection: psycopg.Connection[Any], namespace: str, lock: int, embedder: str, dimension: int, stop: Callable[[], bool]) -> bool:
    """Make the graph of an embedder's vectors beside all writers, unless it is there; False when it cannot be, or was stopped.

    It waits for writers that began before it. Stopped, it leaves a stump, which nobody uses.

    ``lock``: the advisory lock's first key; whoever does not get it leaves the work to the one who has it.
    """
    from psycopg import Error
    from psycopg.errors import QueryCanceled
    from psycopg.sql import SQL, Identifier, Literal

    name = name_of(embedder)
    if _valid(connection, namespace, name):
        return True
    if dimension > _MOST_DIMENSIONS or _version(connection) < _OLDEST:
        return False
    if not _one(connection, "SELECT pg_try_advisory_lock(%s, hashtext(%s))", lock, name):
        return False
    index, table = SQL(".").join([Identifier(namespace), Identifier(name)]), SQL(".").join([Identifier(namespace), Identifier("embedding")])
    made = threading.Event()
    watch = threading.Thread(target=_cancel, args=(connection, made, stop), name="memalign-watch", daemon=True)
    watch.start()
    try:
        if _valid(connection, namespace, name):  # another process was faster
            return True
        connection.execute(SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index))  # what is left of a build that was stopped
        connection.execute(f"SET maintenance_work_mem = '{_MEMORY}'")
        connection.execute(
            SQL(
                "CREATE INDEX CONCURRENTLY {} ON {} USING hnsw ((data::halfvec({})) halfvec_ip_ops) WITH (m = {}, ef_construction = {})"
                " WHERE embedder = {} AND dimension = {}"
            ).format(Identifier(name), table, Literal(dimension), Literal(_LINKS), Literal(_EFFORT_TO_ADD), Literal(embedder), Literal(dimension))
        )
    except QueryCanceled:
        return False
    finally:
        made.set()
        watch.join()
        with suppress(Error):  # else it goes with the connection, a moment later
            connection.execute("SELECT pg_advisory_unlock_all()")
    return True


def near(connection: psycopg.Connection[Any], namespace: str, judge_id: int, embedder: str, query: bytes, count: int) -> list[str] | None:
    """The items of a judge's records whose vectors are nearest, an item once for each record; None where there is no graph.

    ``connection``: within a transaction. ``query``: little-endian float32.
    """
    from psycopg.sql import SQL, Literal

    dimension = len(query) // 4
    values = {
        "effort": min(max(_EFFORT_TO_SEARCH, count), _MOST_EFFORT),
        "index": f"{namespace}.{name_of(embedder)}",
        "judge": judge_id,
        "embedder": embedder,
        "dimension": dimension,
        "query": as_text(query),
        "count": count,
    }
    # All in one message, since each costs a journey. The planner is told to use the graph, also where few vectors are the judge's.
    cursor = connection.execute(SQL(_SEARCH).format(**{name: Literal(value) for name, value in values.items()}), prepare=False)
    while cursor.description is None:
        cursor.nextset()
    valid = cursor.fetchone() == (True,)
    cursor.nextset()
    return [row[0] for row in cursor] if valid else None


def unlink(connection: psycopg.Connection[Any], namespace: str) -> int:
    """Drop all graphs; gives how many there were."""
    from psycopg.sql import SQL, Identifier

    listed = "SELECT indexname FROM pg_indexes WHERE schemaname = %s AND starts_with(indexname, %s)"
    names = [row[0] for row in connection.execute(listed, (namespace, PREFIX))]
    for name in names:
        connection.execute(SQL("DROP INDEX IF EXISTS {}.{}").format(Identifier(namespace), Identifier(name)))
    return len(names)


def name_of(embedder: str) -> str:
    """The name of the index on an embedder's vectors."""
    return f"{PREFIX}{hashlib.blake2b(embedder.encode(), digest_size=8).hexdigest()}"


def _cancel(connection: psycopg.Connection[Any], made: threading.Event, stop: Callable[[], bool]) -> None:
    """Cancel what the connection is at when it is told to stop."""
    while not made.wait(_LOOK_SECONDS):
        if stop():
            with suppress(Exception):  # it is over, or the server is away: either ends the statement
                connection.cancel()


def _valid(connection: psycopg.Connection[Any], namespace: str, name: str) -> bool:
    return _one(connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", f"{namespace}.{name}") is True


def _version(connection: psycopg.Connection[Any]) -> tuple[int, ...]:
    found = _one(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    return tuple(int(part) for part in str(found).split(".")[:2] if part.isdigit())


def _one(connection: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]
