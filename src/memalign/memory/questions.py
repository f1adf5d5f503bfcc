"""Questions to the experts: guidelines that evidence alone cannot decide between."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from memalign.memory import episodic, identity, semantic
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
    """Close the questions that a change has answered; to be called in every transaction that changes states or evidence.

    A guideline that is no longer quarantined answers its questions: the other one is superseded when this one is active, and active again
    when this one is gone, unless another question about it is still open. One that its own cases no longer outvote is active again as well.
    """
    open_ = at(connection, judge_id, revision)
    guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)} if open_ else {}
    states = {key: guideline.state for key, guideline in guidelines.items()}
    annotators = identity.settings_of(connection, judge_id).get("weights") or {} if open_ else {}
    weights = episodic.weighed(connection, judge_id, annotators, revision)

    def answered(row: Row[Any]) -> bool:
        left = any(states.get(key, "retired") != "quarantined" for key in (row.first, row.second) if key)
        return left or (row.second is None and not semantic.outvoted(guidelines[row.first], weights))

    while closing := [row for row in open_ if answered(row)]:  # each change of state may answer further questions
        open_ = [row for row in open_ if row not in closing]
        still = {key for row in open_ for key in (row.first, row.second)}
        connection.execute(update(_TABLE).where(_TABLE.c.row.in_([row.row for row in closing])).values(until=revision))
        rivals: dict[str, set[str | None]] = {}
        for row in closing:
            for key, other in ((row.first, row.second), (row.second, row.first)):
                if key and states.get(key) == "quarantined":
                    rivals.setdefault(key, set()).add(states.get(other))
        for key, others in rivals.items():
            if "active" in others or key not in still:
                states[key] = "superseded" if "active" in others else "active"
                semantic.change(connection, judge_id, revision, key, state=states[key])
