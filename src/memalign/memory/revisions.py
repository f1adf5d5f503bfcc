"""Revisions: the number that every change of memory raises, and who changed what when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, insert, or_, select

from memalign.memory import audit
from memalign.stores import schema
from memalign.stores.types import parsed

NEWEST = select(func.max(schema.revision.c.number)).where(schema.revision.c.judge_id == bindparam("judge"))
"""The newest revision of the judge that is bound; null when nothing was ever stored."""

PURGED = select(schema.judge.c.purged).where(schema.judge.c.id == bindparam("judge"))
"""The revision of its newest purge, 0 when there was none: what was read before it must be read again, or be dropped."""
_STANDING = select(NEWEST.scalar_subquery(), PURGED.scalar_subquery())


def now() -> str:
    """This instant, as stored: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the experts' own labels decided about judging; as made by default, it decides nothing.

    The evidence for a label is ``model_weight`` times the logarithm of its probability, ``vote_weight`` times the cases' support for it, and its
    offset; probabilities follow by softmax. On the boolean scale this is logistic regression on the model's log-odds and the vote.
    """

    model_weight: float = 1.0
    """Below 1 the model is taken to be too sure of itself, above 1 too unsure."""
    vote_weight: float = 0.0
    """How much the vote of the experts' cases counts; 0: it is not asked."""
    offsets: tuple[float, ...] = ()
    """Added to each label's evidence, in the order of the scale's labels: what the model says too seldom or too often."""
    votes: int = 0
    """How many replies a judgement counts, as when this was fitted; 0: probabilities come from the tokens."""
    model: str | None = None
    """Of which model this holds; None: of any."""
    cases: int | None = None
    """How many similar cases a judgement is shown."""
    guidelines: bool = True
    """Whether the model reads guidelines; else only those that experts pinned."""

    @property
    def fitted(self) -> bool:
        """Whether anything was fitted."""
        return self.model_weight != 1.0 or self.changes_values

    @property
    def changes_values(self) -> bool:
        """Whether verdicts may differ from the model's own, not only confidences."""
        return self.vote_weight > 0.0 or any(self.offsets)

    def of(self, model: str) -> Decision:
        """What holds for a model: this, or nothing but the number of cases when it was fitted on another one."""
        return self if self.model in (None, model) else Decision(cases=self.cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One change of memory."""

    number: int
    at: str
    actor: str
    verb: str
    counts: Mapping[str, int]


def holds_at(table: Table, revision: int | ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a version of a row holds in a revision."""
    return (table.c.since <= revision) & or_(table.c.until.is_(None), table.c.until > revision)


def current(connection: Connection, judge_id: int) -> int:
    """The newest revision of a judge's memory; 0 when nothing was ever stored."""
    number: int | None = connection.execute(NEWEST, {"judge": judge_id}).scalar()
    return number or 0


def standing(connection: Connection, judge_id: int) -> tuple[int, int]:
    """The newest revision, and that of the newest purge; each 0 when there was none."""
    number, purged = connection.execute(_STANDING, {"judge": judge_id}).one()
    return number or 0, purged or 0


def decision_at(connection: Connection, judge_id: int, revision: int) -> Decision:
    """The decision in force in a revision."""
    table = schema.revision
    stored: str | None = connection.execute(
        select(table.c.decision)
        .where(table.c.judge_id == judge_id, table.c.number <= revision, table.c.decision.is_not(None))
        .order_by(table.c.number.desc())
        .limit(1)
    ).scalar()
    if not stored:
        return Decision()
    found = parsed(stored)
    bias = found.pop("bias", 0.0)  # of a boolean scale, as it was once stored: in favour of yes
    return Decision(**found | {"offsets": tuple(found.get("offsets", (bias, 0.0)))})


def commit(
    connection: Connection,
    judge_id: int,
    number: int,
    *,
    verb: str,
    actor: str,
    counts: Mapping[str, int],
    decision: Decision | None = None,
    ids: Iterable[str] = (),
) -> None:
    """Write the row that makes a revision real, sealed with those before it; part of the caller's transaction. ``ids``: the records it named."""
    key = audit.key(connection, judge_id)
    values: dict[str, Any] = {
        "judge_id": judge_id,
        "number": number,
        "at": now(),
        "actor": actor,
        "verb": verb,
        "counts": json.dumps(counts),
        "decision": None if decision is None else json.dumps(asdict(decision)),
        "ids": audit.digest_of_all(key, ids),
    }
    values["hash"] = audit.seal(key, audit.previous_seal(connection, judge_id, key), values)
    connection.execute(insert(schema.revision).values(values))


def history(connection: Connection, judge_id: int) -> list[Revision]:
    """All revisions, oldest first."""
    table = schema.revision
    found = connection.execute(select(table).where(table.c.judge_id == judge_id).order_by(table.c.number))
    return [Revision(number=row.number, at=row.at, actor=row.actor, verb=row.verb, counts=parsed(row.counts)) for row in found]


def mark(connection: Connection, judge_id: int, number: int) -> str:
    """A digest of a revision of this judge as it was made: no other judge has one that is equal, of whatever name."""
    at = connection.execute(select(schema.revision.c.at).where(schema.revision.c.judge_id == judge_id, schema.revision.c.number == number)).scalar()
    return audit.digest(audit.key(connection, judge_id), f"{number} {at}")


def purges_since(connection: Connection, judge_id: int, revision: int) -> list[int]:
    """The purges after a revision, oldest first: what they deleted can neither be shown nor brought back."""
    table = schema.revision
    query = select(table.c.number).where(table.c.judge_id == judge_id, table.c.number > revision, table.c.verb == "purge")
    return list(connection.execute(query.order_by(table.c.number)).scalars())
