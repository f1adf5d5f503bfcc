"""Tombstones: keyed digests of the ids of purged records, so that an old file or export does not bring one back."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, delete, insert, select

from memalign.memory import audit
from memalign.memory.revisions import now
from memalign.stores import schema

_TABLE = schema.tombstone
_CHUNK = 500


def bury(connection: Connection, judge_id: int, ids: Collection[str], revision: int) -> None:
    """Remember that records were purged; those that are buried already stay so."""
    key, at = audit.key(connection, judge_id), now()
    new = set(ids) - buried(connection, judge_id, ids)
    rows = [{"judge_id": judge_id, "key": key, "digest": audit.digest(key, each), "revision": revision, "at": at} for each in sorted(new)]
    if rows:
        connection.execute(insert(_TABLE), rows)


def buried(connection: Connection, judge_id: int, ids: Iterable[str]) -> set[str]:
    """Which of some ids were purged from this judge's memory, whatever memory their tombstones came from."""
    found: set[str] = set()
    wanted = list(ids)
    for key in _keys(connection, judge_id):
        by_digest = {audit.digest(key, each): each for each in wanted}
        digests = list(by_digest)
        for start in range(0, len(digests), _CHUNK):
            condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.key == key) & _TABLE.c.digest.in_(digests[start : start + _CHUNK])
            found |= {by_digest[digest] for digest in connection.execute(select(_TABLE.c.digest).where(condition)).scalars()}
    return found


def lift(connection: Connection, judge_id: int, ids: Collection[str]) -> set[str]:
    """Take tombstones away, so that the records may be learned again; gives the ids that had one."""
    found = buried(connection, judge_id, ids)
    for key in _keys(connection, judge_id):
        for each in found:
            condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.key == key) & (_TABLE.c.digest == audit.digest(key, each))
            connection.execute(delete(_TABLE).where(condition))
    return found


def _keys(connection: Connection, judge_id: int) -> list[str]:
    return list(connection.execute(select(_TABLE.c.key).where(_TABLE.c.judge_id == judge_id).distinct()).scalars())
