"""What must hold in every memory, whatever happened to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, Table, func, or_, select

from memalign.stores import schema

_AT_ONCE = 1000
"""Rows that are read together."""

_NEWEST = select(schema.revision.c.judge_id, func.max(schema.revision.c.number).label("number")).group_by(schema.revision.c.judge_id).subquery()


_JSON = {
    schema.revision: ("counts", "decision"),
    schema.feedback: ("inputs", "outputs", "expectations", "value", "judged"),
    schema.draft: ("content",),
    schema.verdict: ("value", "guideline_ids", "episode_ids", "voter_ids"),
    schema.replay: ("value", "probabilities"),
}
"""Where JSON texts lie, besides a judge's settings."""


def faults(connection: Connection) -> list[str]:
    """What does not hold, a line each; empty when all is well. Reads all of the database's texts and vectors."""
    names = {row.id: row.name for row in connection.execute(select(schema.judge.c.id, schema.judge.c.name))}
    found = [f"judge {names.get(judge, judge)!r}: {count} {what}" for what, query in _rules() for judge, count in connection.execute(query)]
    return [*found, *_settings(connection), *_texts(connection, names), *_vectors(connection)]


def _rules() -> Iterator[tuple[str, Select[Any]]]:
    """What is counted, and the query that gives judge and count where it is wrong."""
    revision = schema.revision.c
    missing = func.max(revision.number) - func.count()
    yield "revision(s) missing in the log", select(revision.judge_id, missing).group_by(revision.judge_id).having(missing != 0)
    for table, others in ((schema.feedback, (schema.feedback.c.distilled,)), (schema.guideline, ())):
        name, held = table.name, table.c
        yield f"{name} version(s) end before they begin", _count(table, held.until < held.since)
        numbers = [held.since, held.until, *others]
        later = or_(*(number > func.coalesce(_NEWEST.c.number, 0) for number in numbers))
        joined = select(held.judge_id, func.count()).select_from(table.outerjoin(_NEWEST, _NEWEST.c.judge_id == held.judge_id))
        yield f"{name} version(s) belong to a revision that is not in the log", joined.where(later).group_by(held.judge_id)
        open_ones = select(held.judge_id, held.id).where(held.since.is_not(None), held.until.is_(None)).group_by(held.judge_id, held.id)
        twice = open_ones.having(func.count() > 1).subquery()
        yield f"{name} record(s) hold in two versions at once", select(twice.c.judge_id, func.count()).group_by(twice.c.judge_id)
    for link in (schema.evidence, schema.taint):
        both = link.join(schema.guideline, schema.guideline.c.row == link.c.guideline_row).join(
            schema.feedback, schema.feedback.c.row == link.c.feedback_row
        )
        counted = select(schema.guideline.c.judge_id, func.count()).select_from(both)
        elsewhere = counted.where(schema.guideline.c.judge_id != schema.feedback.c.judge_id)
        yield f"row(s) of {link.name} refer to another judge's records", elsewhere.group_by(schema.guideline.c.judge_id)


def _count(table: Table, condition: Any) -> Select[Any]:
    return select(table.c.judge_id, func.count()).where(condition).group_by(table.c.judge_id)


def _settings(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(schema.judge.c.name, schema.judge.c.settings)):
        try:
            readable = "scale" in json.loads(row.settings)
        except (ValueError, TypeError):
            readable = False
        if not readable:
            yield f"judge {row.name!r}: its settings cannot be read"


def _texts(connection: Connection, names: Mapping[int, str]) -> Iterator[str]:
    for table, columns in _JSON.items():
        for column in (table.c[name] for name in columns):
            wrong = Counter[int]()
            query = select(table.c.judge_id, column).where(column.is_not(None)).execution_options(yield_per=_AT_ONCE)
            for judge_id, text in connection.execute(query):
                wrong[judge_id] += not _is_json(text)
            yield from (
                f"judge {names.get(judge, judge)!r}: {count} text(s) in {table.name}.{column.name} are no JSON" for judge, count in (+wrong).items()
            )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _vectors(connection: Connection) -> Iterator[str]:
    table = schema.vector
    wrong = 0
    query = select(table.c.dimension, table.c.data).execution_options(yield_per=_AT_ONCE)
    for row in connection.execute(query):
        wrong += len(row.data) != 4 * row.dimension or not bool(np.isfinite(np.frombuffer(row.data[: len(row.data) // 4 * 4], dtype="<f4")).all())
    if wrong:
        yield f"{wrong} vector(s) are not what their dimension says, or not finite"
