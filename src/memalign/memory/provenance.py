"""Where a guideline comes from, and what a case led to: all versions, and the verdicts that they touched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, true

from memalign.memory import episodic
from memalign.records import Feedback, GuidelineState
from memalign.stores import schema
from memalign.stores.types import parsed

_CHUNK = 500
_GUIDELINE, _FEEDBACK, _VERDICT = schema.guideline, schema.feedback, schema.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidelineVersion:
    """A version of a guideline and the revisions in which it holds: ``since <= r < until``."""

    id: str
    version: int
    text: str
    scope: str
    state: GuidelineState
    pinned: bool
    since: int
    until: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordVersion:
    """A version of a record and the revisions in which it holds; ``since`` is None while it waits for its first alignment."""

    id: str
    version: int
    feedback: Feedback
    since: int | None
    until: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a version of a guideline and a version of a record belong together."""

    guideline_id: str
    guideline_version: int
    record_id: str
    record_version: int
    role: Literal["for", "against", "seen"]
    """``seen``: it stood in the prompt that produced the guideline, but is no evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """A logged verdict that a guideline or a case took part in."""

    id: str | None
    """None for verdicts of the first release's log."""
    at: str
    item_id: str
    value: Any
    revision: int
    through: tuple[str, ...]
    """``shown`` and ``voted`` for a case that the judge was shown or that voted, and the ids of guidelines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a guideline comes from, or what a case led to."""

    id: str
    kind: Literal["guideline", "case"]
    guidelines: tuple[GuidelineVersion, ...]
    """All versions of the guideline, or of every guideline that rests on the case or was made with it in sight; oldest first."""
    records: tuple[RecordVersion, ...]
    """All versions of the case, or of every case that the guideline rests on or was made with in sight; oldest first."""
    links: tuple[Link, ...]
    verdicts: tuple[Touched, ...]
    """The newest verdicts that it touched, newest first."""
    verdict_count: int
    """How many there are in all."""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that is ready for JSON but for its times."""
        return asdict(self)


def of(connection: Connection, judge_id: int, key: str, *, verdicts: int) -> Provenance | None:
    """The provenance of a guideline or a case, with at most so many verdicts; None for an unknown id."""
    guidelines = connection.execute(select(_GUIDELINE).where(_GUIDELINE.c.judge_id == judge_id, _GUIDELINE.c.id == key)).all()
    if guidelines:
        links = _links(connection, _GUIDELINE.c.row, [row.row for row in guidelines])
        records = _rows(connection, _FEEDBACK, {link.feedback_row for link in links})
        touching = _names(_VERDICT.c.guideline_ids, key)
        kind: Literal["guideline", "case"] = "guideline"
    else:
        records = list(connection.execute(select(_FEEDBACK).where(_FEEDBACK.c.judge_id == judge_id, _FEEDBACK.c.id == key)).all())
        if not records:
            return None
        links = _links(connection, _FEEDBACK.c.row, [row.row for row in records])
        guidelines = _rows(connection, _GUIDELINE, {link.guideline_row for link in links})
        touching = or_(_names(_VERDICT.c.episode_ids, key), _names(_VERDICT.c.voter_ids, key), *_given(guidelines))
        kind = "case"
    count, touched = _touched(connection, judge_id, touching, verdicts)
    return Provenance(
        id=key,
        kind=kind,
        guidelines=tuple(map(_guideline, sorted(guidelines, key=lambda row: row.row))),
        records=tuple(map(_record, sorted(records, key=lambda row: row.row))),
        links=tuple(_link(link) for link in links),
        verdicts=tuple(_verdict(row, key, guidelines) for row in touched),
        verdict_count=count,
    )


def _links(connection: Connection, column: ColumnElement[int], rows: Sequence[int]) -> list[Row[Any]]:
    """Taint with, where there is one, the sign of the evidence; taint holds all evidence too."""
    taint, evidence = schema.taint, schema.evidence
    joined = (
        select(
            taint.c.guideline_row,
            taint.c.feedback_row,
            evidence.c.sign,
            _GUIDELINE.c.id.label("guideline_id"),
            _GUIDELINE.c.version.label("guideline_version"),
            _FEEDBACK.c.id.label("record_id"),
            _FEEDBACK.c.version.label("record_version"),
        )
        .select_from(taint)
        .join(_GUIDELINE, _GUIDELINE.c.row == taint.c.guideline_row)
        .join(_FEEDBACK, _FEEDBACK.c.row == taint.c.feedback_row)
        .outerjoin(evidence, and_(evidence.c.guideline_row == taint.c.guideline_row, evidence.c.feedback_row == taint.c.feedback_row))
        .order_by(taint.c.guideline_row, taint.c.feedback_row)
    )
    found = list[Any]()
    for start in range(0, len(rows), _CHUNK):
        found += connection.execute(joined.where(column.in_(rows[start : start + _CHUNK]))).all()
    return found


def _rows(connection: Connection, table: Any, rows: Iterable[int]) -> list[Row[Any]]:
    wanted = sorted(rows)
    chunks = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
    return [row for chunk in chunks for row in connection.execute(select(table).where(table.c.row.in_(chunk)))]


def _names(column: ColumnElement[str], key: str) -> ColumnElement[bool]:
    """Whether a column with a JSON list of texts names one."""
    return column.contains(json.dumps(key), autoescape=True)


def _given(guidelines: Iterable[Row[Any]]) -> list[ColumnElement[bool]]:
    """Conditions: verdicts that were given one of these versions. Those that follow one another share one, as SQLite nests only so deep."""
    spans: list[tuple[str, int, int | None]] = []
    for held in sorted(guidelines, key=lambda row: (row.id, row.version)):
        if spans and spans[-1][0] == held.id and spans[-1][2] == held.since:
            spans[-1] = (held.id, spans[-1][1], held.until)
        else:
            spans.append((held.id, held.since, held.until))
    return [
        and_(
            _names(_VERDICT.c.guideline_ids, key),
            _VERDICT.c.revision >= since,
            true() if until is None else _VERDICT.c.revision < until,
        )
        for key, since, until in spans
    ]


def _touched(connection: Connection, judge_id: int, touching: ColumnElement[bool], limit: int) -> tuple[int, Sequence[Row[Any]]]:
    condition = and_(_VERDICT.c.judge_id == judge_id, touching)
    count = connection.execute(select(func.count()).select_from(_VERDICT).where(condition)).scalar_one()
    return count, connection.execute(select(_VERDICT).where(condition).order_by(_VERDICT.c.row.desc()).limit(limit)).all()


def _verdict(row: Row[Any], key: str, guidelines: Iterable[Row[Any]]) -> Touched:
    given = set(parsed(row.guideline_ids))
    through = [role for role, ids in (("shown", row.episode_ids), ("voted", row.voter_ids)) if key in parsed(ids)]
    through += [
        held.id for held in guidelines if held.id in given and held.since <= row.revision and (held.until is None or row.revision < held.until)
    ]
    return Touched(id=row.id, at=row.at, item_id=row.item_id, value=parsed(row.value), revision=row.revision, through=tuple(dict.fromkeys(through)))


def _link(row: Row[Any]) -> Link:
    role: Literal["for", "against", "seen"] = "seen" if row.sign is None else "for" if row.sign > 0 else "against"
    return Link(
        guideline_id=row.guideline_id,
        guideline_version=row.guideline_version,
        record_id=row.record_id,
        record_version=row.record_version,
        role=role,
    )


def _guideline(row: Row[Any]) -> GuidelineVersion:
    return GuidelineVersion(
        id=row.id, version=row.version, text=row.text, scope=row.scope, state=row.state, pinned=row.pinned, since=row.since, until=row.until
    )


def _record(row: Row[Any]) -> RecordVersion:
    return RecordVersion(id=row.id, version=row.version, feedback=episodic.said(row), since=row.since, until=row.until)
