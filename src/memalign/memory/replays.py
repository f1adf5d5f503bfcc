"""Replays: what the judge said of items when changes of memory were tried, so that nothing is asked twice.

Keyed by all that the model read, so an answer holds for as long as that is the same, whatever the revision. It is a cache: all of it may be
forgotten at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from memalign.records import canonical
from memalign.stores import schema
from memalign.stores.types import parsed

_TABLE = schema.replay

KEPT = 20_000
"""Newest replays of a judge that are kept."""


def find(connection: Connection, judge_id: int, key: str, draw: int) -> tuple[Any, dict[str, float] | None] | None:
    """Value and label probabilities that the model gave in its ``draw``-th answer (from 0) to what ``key`` stands for, if it is known."""
    condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.key == key) & (_TABLE.c.draw == draw)
    row = connection.execute(select(_TABLE.c.value, _TABLE.c.probabilities).where(condition).order_by(_TABLE.c.row).limit(1)).first()
    return None if row is None else (parsed(row.value), None if row.probabilities is None else parsed(row.probabilities))


def row(judge_id: int, key: str, draw: int, value: Any, probabilities: Mapping[str, float] | None) -> dict[str, Any]:
    """An answer as a row of the table."""
    told = None if probabilities is None else json.dumps(dict(probabilities))
    return {"judge_id": judge_id, "key": key, "draw": draw, "value": canonical(value), "probabilities": told}


def trim(connection: Connection, judge_id: int) -> None:
    """Forget all but the newest."""
    newest = connection.execute(select(func.max(_TABLE.c.row)).where(_TABLE.c.judge_id == judge_id)).scalar()
    if newest is not None:
        connection.execute(_TABLE.delete().where(_TABLE.c.judge_id == judge_id, _TABLE.c.row <= newest - KEPT))


def forget(connection: Connection, judge_id: int) -> None:
    """Forget all of a judge's replays."""
    connection.execute(_TABLE.delete().where(_TABLE.c.judge_id == judge_id))
