"""Drafts: distilled batches between their model call and the commit that consumes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from memalign.memory import revisions
from memalign.stores import schema
from memalign.stores.types import parsed

_TABLE, _LINK = schema.draft, schema.draft_record
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Draft:
    """What a model made of a batch, by a process that ended before it could commit it."""

    rows: frozenset[int]
    """Of all the records that it distilled."""
    content: Any


def keep(connection: Connection, judge_id: int, key: str, rows: Iterable[int], content: Any, *, purged: int) -> None:
    """Store what was paid for; ``key`` is the digest of what was asked beside the records, ``content`` any JSON value.

    ``purged``: the newest purge when it was asked; after another one it is thrown away, since it may say what was purged.
    """
    if revisions.standing(connection, judge_id)[1] != purged:
        return
    written = json.dumps({"rows": sorted(set(rows)), "content": content}, ensure_ascii=False)
    row = connection.execute(insert(_TABLE).values(judge_id=judge_id, key=key, content=written).returning(_TABLE.c.row)).scalar_one()
    connection.execute(insert(_LINK), [{"draft_row": row, "feedback_row": record} for record in sorted(set(rows))])


def waiting(connection: Connection, judge_id: int, key: str, rows: set[int]) -> list[Draft]:
    """The drafts whose records are all among ``rows``, oldest first; no record is in two of them."""
    found = connection.execute(
        select(_TABLE.c.row, _TABLE.c.content, _LINK.c.feedback_row)
        .join(_LINK, _LINK.c.draft_row == _TABLE.c.row)
        .where(_TABLE.c.judge_id == judge_id, _TABLE.c.key == key)
        .order_by(_TABLE.c.row)
    ).all()
    records: dict[int, set[int]] = {}
    for link in found:
        records.setdefault(link.row, set()).add(link.feedback_row)
    contents = {link.row: link.content for link in found}
    taken, usable = set[int](), list[Draft]()
    for row, held in records.items():
        content = parsed(contents[row])
        if set(content["rows"]) == held and held <= rows and not held & taken:
            taken |= held
            usable.append(Draft(frozenset(held), content["content"]))
    return usable


def forget(connection: Connection, judge_id: int) -> None:
    """Delete all drafts of a judge."""
    connection.execute(delete(_TABLE).where(_TABLE.c.judge_id == judge_id))


def discard(connection: Connection, judge_id: int, rows: Iterable[int]) -> None:
    """Delete every draft of a judge that says something of these records: they are learned, withdrawn or to be forgotten."""
    wanted = sorted(set(rows))
    for start in range(0, len(wanted), _CHUNK):
        of_records = select(_LINK.c.draft_row).where(_LINK.c.feedback_row.in_(wanted[start : start + _CHUNK]))
        connection.execute(delete(_TABLE).where(_TABLE.c.judge_id == judge_id, _TABLE.c.row.in_(of_records)))
