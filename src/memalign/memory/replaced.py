"""What experts replaced, and the guidelines that may still say it: a call that distils the new words must not read the old ones in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from memalign.memory import episodic, purging
from memalign.memory.episodic import Stored
from memalign.memory.selection import texts_of
from memalign.memory.traces import carries, distinctive
from memalign.records import Guideline
from memalign.stores import schema

_CHUNK = 500
_RECORD, _GUIDELINE, _EVIDENCE, _TAINT = schema.feedback, schema.guideline, schema.evidence, schema.taint


def carriers(
    connection: Connection, judge_id: int, learning: Sequence[Stored], guidelines: Sequence[Guideline], *, instructions: str
) -> frozenset[str]:
    """Ids of the guidelines whose text came from a prompt with an earlier version of what is about to be learned, or has words from it alone.

    Earlier versions are also those that stood beside a record as evidence of a guideline, when it is this guideline's loss that sends the record to
    distillation again.
    """
    old = _earlier(connection, judge_id, learning)
    if not old or not guidelines:
        return frozenset()
    rows = _rows_of(connection, judge_id, guidelines)
    tainted = purging.linked(connection, _TAINT, [stored.row for stored in old]) & set(rows)
    handmade = set(rows) - set(_all(connection, _TAINT.c.guideline_row, _TAINT.c.guideline_row, sorted(rows)))
    told = {guideline.id: f"{guideline.text}\n{guideline.scope}" for guideline in guidelines}
    kept = chain((instructions,), _texts(learning), purging.texts_kept(connection, judge_id, {stored.row for stored in old}))
    grams = distinctive(_texts(old), kept, within=told.values())
    return frozenset(key for row, key in rows.items() if row in tainted or carries(told[key], grams, runs_only=row in handmade))


def _earlier(connection: Connection, judge_id: int, learning: Sequence[Stored]) -> list[Stored]:
    """What the same experts said before in other words, and what left the evidence of guidelines on which the records rest or rested."""
    rows = {stored.row for stored in learning}
    mine = {stored.feedback.id: stored for stored in learning}
    found = set(_all(connection, _RECORD.c.row, _RECORD.c.id, sorted(mine), _RECORD.c.judge_id == judge_id)) - rows
    cited = _all(
        connection, _EVIDENCE.c.guideline_row, _EVIDENCE.c.feedback_row, sorted(stored.row for stored in learning if stored.since is not None)
    )
    mates = _all(connection, _EVIDENCE.c.feedback_row, _EVIDENCE.c.guideline_row, sorted(set(cited)))
    found |= set(_all(connection, _RECORD.c.row, _RECORD.c.row, sorted(set(mates) - rows), _RECORD.c.until.is_not(None)))
    return [
        stored
        for stored in episodic.by_rows(connection, sorted(found))
        if stored.feedback.id not in mine or not stored.feedback.says_the_same_as(mine[stored.feedback.id].feedback)
    ]


def _rows_of(connection: Connection, judge_id: int, guidelines: Sequence[Guideline]) -> dict[int, str]:
    """Row of the version that holds now -> id."""
    held = (_GUIDELINE.c.judge_id == judge_id) & _GUIDELINE.c.until.is_(None)
    wanted = {guideline.id for guideline in guidelines}
    return {row.row: row.id for row in connection.execute(select(_GUIDELINE.c.row, _GUIDELINE.c.id).where(held)) if row.id in wanted}


def _texts(records: Sequence[Stored]) -> list[str]:
    return [text for stored in records for text in texts_of(stored.feedback)]


def _all(
    connection: Connection, wanted: ColumnElement[Any], column: ColumnElement[Any], keys: Sequence[Any], *also: ColumnElement[bool]
) -> list[Any]:
    """A column of the rows in which another one has one of some values."""
    chunks = (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
    return [value for chunk in chunks for value in connection.execute(select(wanted).where(column.in_(chunk), *also)).scalars()]
