"""Questions to the experts: guidelines that evidence alone cannot decide between."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from memalign.memory import semantic
from memalign.memory.revisions import holds_at
from memalign.stores import schema

_TABLE = schema.question


def ask(connection: Connection, judge_id: int, revision: int, first: str, second: str | None = None) -> str:
    """Open a question about one or two quarantined guidelines, unless it is open; gives its id."""
    for row in at(connection, judge_id, revision):
        if {row.first, row.second} == {first, second}:
            return str(row.id)
    asked: int = connection.execute(select(func.count(_TABLE.c.id.distinct())).where(_TABLE.c.judge_id == judge_id)).scalar_one()
    key = f"q{asked + 1}"
    connection.execute(insert(_TABLE).values(judge_id=judge_id, id=key, first=first, second=second, since=revision))
    return key


def at(connection: Connection, judge_id: int, revision: int) -> list[Row[Any]]:
    """The questions that are open in a revision, oldest first: rows of id, first, second."""
    query = select(_TABLE).where(_TABLE.c.judge_id == judge_id, holds_at(_TABLE, revision)).order_by(_TABLE.c.row)
    return list(connection.execute(query).all())


def settle(connection: Connection, judge_id: int, revision: int) -> None:
    """Close the questions that a change of state has answered; to be called in every transaction that changes states.

    A guideline that is no longer quarantined answers its question: the other one is superseded when this one is active, and active
    again when this one is gone, unless another question about it is still open.
    """
    open_ = at(connection, judge_id, revision)
    states = {guideline.id: guideline.state for guideline in semantic.at(connection, judge_id, revision)} if open_ else {}
    answered = [row for row in open_ if any(states.get(key, "retired") != "quarantined" for key in (row.first, row.second) if key)]
    still = {key for row in open_ if row not in answered for key in (row.first, row.second)}
    for row in answered:
        connection.execute(update(_TABLE).where(_TABLE.c.row == row.row).values(until=revision))
        for key, other in ((row.first, row.second), (row.second, row.first)):
            if key and other and states.get(key) == "quarantined" and key not in still:
                state = "superseded" if states.get(other) == "active" else "active"
                semantic.change(connection, judge_id, revision, key, state=state)
