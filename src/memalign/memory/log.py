"""What was said and what it cost: the verdict log and the call ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, exists, func, insert, select

from memalign.memory.revisions import holds_at, now
from memalign.records import Usage, Verdict, canonical
from memalign.stores import schema
from memalign.stores.types import parsed

_CHUNK = 500
"""Ids in one query: below every database's limit of parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call for the ledger; no prompt text."""

    purpose: str
    model: str
    usage: Usage
    cost_usd: float | None
    seconds: float
    error: str | None = None


def log_calls(connection: Connection, judge_id: int, calls: Sequence[Call]) -> None:
    """Append to the ledger."""
    if rows := call_rows(judge_id, calls):
        connection.execute(insert(schema.ledger), rows)


def call_rows(judge_id: int, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as rows of the ledger."""
    return [
        {
            "judge_id": judge_id,
            "at": now(),
            "purpose": call.purpose,
            "model": call.model,
            "calls": call.usage.calls,
            "prompt_tokens": call.usage.prompt_tokens,
            "cached_tokens": call.usage.cached_tokens,
            "completion_tokens": call.usage.completion_tokens,
            "embedded_texts": call.usage.embedded_texts,
            "cost_usd": call.cost_usd,
            "seconds": call.seconds,
            "error": call.error,
        }
        for call in calls
    ]


def verdict_row(judge_id: int, item_id: str, verdict: Verdict) -> dict[str, Any]:
    """A verdict as a row of the verdict log."""
    return {
        "judge_id": judge_id,
        "id": verdict.id or None,
        "at": now(),
        "item_id": item_id,
        "value": canonical(verdict.value),
        "rationale": verdict.rationale.encode("utf-8", "replace").decode(),  # a model may write half of a surrogate pair
        "confidence": verdict.confidence,
        "revision": verdict.revision,
        "guideline_ids": json.dumps(verdict.guideline_ids),
        "episode_ids": json.dumps(verdict.episode_ids),
        "voter_ids": json.dumps(verdict.voter_ids),
    }


def outlasting(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows that may still be written: a verdict that was under way during a purge may rest on what was purged, so it is not logged."""
    if table is not schema.verdict:
        return rows
    judge = schema.judge
    judges = {row["judge_id"] for row in rows}
    purged = {row.id: row.purged for row in connection.execute(select(judge.c.id, judge.c.purged).where(judge.c.id.in_(judges)))}
    return [row for row in rows if row["revision"] >= purged.get(row["judge_id"], 0)]


def last_verdicts(connection: Connection, judge_id: int, item_ids: Sequence[str]) -> dict[str, Any]:
    """Item id -> the value last given to it, where it was judged while memory held no case of its own: such a verdict repeats the experts' word."""
    table, found = schema.verdict, dict[str, str]()
    record = schema.feedback
    own = exists().where(record.c.judge_id == table.c.judge_id, record.c.item_id == table.c.item_id, holds_at(record, table.c.revision))
    for start in range(0, len(item_ids), _CHUNK):
        condition = (table.c.judge_id == judge_id) & table.c.item_id.in_(item_ids[start : start + _CHUNK]) & ~own
        found |= {row.item_id: row.value for row in connection.execute(select(table.c.item_id, table.c.value).where(condition).order_by(table.c.row))}
    return {item_id: parsed(value) for item_id, value in found.items()}


def confidences(connection: Connection, judge_id: int, item_ids: Sequence[str], revision: int) -> dict[str, float]:
    """Item id -> the confidence of the last verdict on it up to a revision, where it had one."""
    table, found = schema.verdict, {}
    for start in range(0, len(item_ids), _CHUNK):
        condition = (table.c.judge_id == judge_id) & table.c.item_id.in_(item_ids[start : start + _CHUNK]) & (table.c.revision <= revision)
        for row in connection.execute(select(table.c.item_id, table.c.confidence).where(condition).order_by(table.c.row)):
            found[row.item_id] = row.confidence
    return {item_id: confidence for item_id, confidence in found.items() if confidence is not None}


def spent(connection: Connection, judge_id: int) -> tuple[Usage, float | None, float]:
    """Usage, cost in US dollars (None when a price is unknown) and seconds of all calls so far."""
    table = schema.ledger
    sums = [func.coalesce(func.sum(column), 0) for column in _COUNTED]
    row = connection.execute(
        select(*sums, func.sum(table.c.cost_usd), func.count(table.c.cost_usd), func.count(), func.coalesce(func.sum(table.c.seconds), 0.0)).where(
            table.c.judge_id == judge_id
        )
    ).one()
    usage = Usage(**{column.name: int(value) for column, value in zip(_COUNTED, row, strict=False)})
    cost, priced, total, seconds = row[len(_COUNTED) :]
    return usage, (float(cost or 0.0) if priced == total else None), float(seconds)


_COUNTED = [schema.ledger.c[name] for name in ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "embedded_texts")]
