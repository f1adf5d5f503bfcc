"""Questions to the experts: guidelines that evidence alone cannot decide between."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from memalign.memory import semantic
from memalign.memory.revisions import holds_at
from memalign.stores import schema
from memalign.stores.types import parsed

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
    states = {guideline.id: guideline.state for guideline in semantic.at(connection, judge_id, revision)} if open_ else {}

    def answered(row: Row[Any]) -> bool:
        left = any(states.get(key, "retired") != "quarantined" for key in (row.first, row.second) if key)
        return left or (row.second is None and not _outvoted(connection, judge_id, row.first))

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


def _outvoted(connection: Connection, judge_id: int, guideline_id: str) -> bool:
    """Whether the cases against a guideline weigh at least as much as those for it, each as much as its annotator."""
    link, record, held = schema.evidence, schema.feedback, semantic.live(connection, judge_id, guideline_id)
    settings = parsed(connection.execute(select(schema.judge.c.settings).where(schema.judge.c.id == judge_id)).scalar_one())
    weights = settings.get("weights") or {}
    query = select(link.c.sign, record.c.annotator).join(record, record.c.row == link.c.feedback_row)
    cited = connection.execute(query.where(link.c.guideline_row == held.row)).all()
    supporting, against = (sum(weights.get(row.annotator, 1.0) for row in cited if row.sign == sign) for sign in (1, -1))
    return bool(against >= supporting and against > 0)
