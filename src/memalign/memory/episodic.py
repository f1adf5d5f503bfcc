"""Episodic memory: the experts' verdicts, version by version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from memalign.memory import drafts
from memalign.memory.revisions import holds_at, now
from memalign.records import Episode, Feedback, Item, canonical, content_hash
from memalign.rendering import search_text
from memalign.scale import Scale
from memalign.stores import Store, schema
from memalign.stores.types import parsed

_TABLE = schema.feedback
_CHUNK = 500
"""Ids in one query: below every database's limit of parameters."""

_OF_ITEMS = select(_TABLE).where(_TABLE.c.judge_id == bindparam("judge"), _TABLE.c.item_id.in_(bindparam("items", expanding=True)))
"""Without a condition on revisions: given one, SQLite reads all that hold, by that index, instead of the few items."""
_FEW = 8
_OF_FEW_ITEMS = select(_TABLE).where(_TABLE.c.judge_id == bindparam("judge"), _TABLE.c.item_id.in_([bindparam(f"item{n}") for n in range(_FEW)]))

Change = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A version of a feedback record with its place in the database."""

    row: int
    version: int
    item_id: str
    feedback: Feedback
    judged: Any
    stored_at: str
    since: int | None
    distilled: int | None
    content_hash: str

    def missed(self, scale: Scale) -> bool:
        """Whether the judge is known to have been wrong about it."""
        return self.judged is not None and scale.wrong(self.feedback.value, self.judged)


def text_hash(item: Item) -> str:
    """The digest of the text by which an item is found again."""
    return content_hash(search_text(item))


def record(connection: Connection, judge_id: int, feedback: Feedback, *, judged: Any = None) -> Change:
    """Store a record durably, waiting for its first commit; an unchanged one is left alone."""
    newest = _newest(connection, judge_id, feedback.id)
    if newest is not None and newest.until is None and said(newest).teaches_the_same_as(feedback):
        return "unchanged"
    if newest is not None and newest.since is None:  # never committed: nothing can refer to it
        drafts.discard(connection, judge_id, [newest.row])
        connection.execute(_TABLE.delete().where(_TABLE.c.row == newest.row))
    connection.execute(
        insert(_TABLE).values(
            judge_id=judge_id,
            id=feedback.id,
            version=1 if newest is None else newest.version + 1,
            item_id=feedback.item.id,
            inputs=canonical(feedback.inputs),
            outputs=canonical(feedback.outputs),
            expectations=canonical(feedback.expectations),
            value=canonical(feedback.value),
            rationale=feedback.rationale,
            annotator=feedback.annotator,
            source=feedback.source,
            created_at=feedback.created_at.isoformat(),
            stored_at=now(),
            judged=None if judged is None else canonical(judged),
            content_hash=text_hash(feedback.item),
        )
    )
    return "new" if newest is None or newest.until is not None else "changed"


def waiting(connection: Connection, judge_id: int) -> list[Stored]:
    """What memory has not fully learned: the newest versions that are uncommitted or not distilled, oldest first."""
    found = connection.execute(
        select(_TABLE)
        .where(_TABLE.c.judge_id == judge_id, _TABLE.c.until.is_(None), (_TABLE.c.since.is_(None)) | (_TABLE.c.distilled.is_(None)))
        .order_by(_TABLE.c.row)
    ).all()
    newest = {row.id: row for row in found}  # a changed record waits beside the version that it will replace
    return [_stored(row) for row in newest.values()]


def live(connection: Connection, judge_id: int, revision: int) -> list[Stored]:
    """All records that hold in a revision, oldest first."""
    found = connection.execute(select(_TABLE).where(_TABLE.c.judge_id == judge_id, holds_at(_TABLE, revision)).order_by(_TABLE.c.row))
    return [_stored(row) for row in found]


def of_items(connection: Connection, judge_id: int, revision: int, item_ids: Sequence[str]) -> list[Stored]:
    """The records on some items that hold in a revision, oldest first."""
    chunks = (list(item_ids[start : start + _CHUNK]) for start in range(0, len(item_ids), _CHUNK))
    return _held([row for chunk in chunks for row in connection.execute(_OF_ITEMS, {"judge": judge_id, "items": chunk})], revision)


def of_few_items(store: Store, judge_id: int, revision: int, item_ids: Sequence[str]) -> list[Stored]:
    """As ``of_items``, without a connection: for what a judgement shows."""
    found: list[Any] = []
    for start in range(0, len(item_ids), _FEW):
        few = item_ids[start : start + _FEW]
        found += store.fetch(_OF_FEW_ITEMS, {"judge": judge_id} | {f"item{n}": few[min(n, len(few) - 1)] for n in range(_FEW)})
    return _held(found, revision)


def _held(found: Sequence[Row[Any]], revision: int) -> list[Stored]:
    held = [row for row in found if row.since is not None and row.since <= revision and (row.until is None or row.until > revision)]
    return [_stored(row) for row in sorted(held, key=lambda row: row.row)]


def of_ids(connection: Connection, judge_id: int, revision: int, ids: Sequence[str]) -> list[Stored]:
    """The records of some ids that hold in a revision, oldest first."""
    condition = (_TABLE.c.judge_id == judge_id) & holds_at(_TABLE, revision)
    found = [
        row
        for start in range(0, len(ids), _CHUNK)
        for row in connection.execute(select(_TABLE).where(condition, _TABLE.c.id.in_(ids[start : start + _CHUNK])))
    ]
    return [_stored(row) for row in sorted(found, key=lambda row: row.row)]


def of_texts(connection: Connection, judge_id: int, revision: int, hashes: Sequence[str]) -> list[Stored]:
    """The records of some content hashes that hold in a revision."""
    condition = (_TABLE.c.judge_id == judge_id) & holds_at(_TABLE, revision)
    chunks = (hashes[start : start + _CHUNK] for start in range(0, len(hashes), _CHUNK))
    return [_stored(row) for chunk in chunks for row in connection.execute(select(_TABLE).where(condition, _TABLE.c.content_hash.in_(chunk)))]


def live_rows(connection: Connection, judge_id: int, ids: Iterable[str]) -> dict[str, int]:
    """Id -> row of the committed version that holds now."""
    wanted, found = list(ids), {}
    for start in range(0, len(wanted), _CHUNK):
        condition = (_TABLE.c.judge_id == judge_id) & _TABLE.c.id.in_(wanted[start : start + _CHUNK])
        rows = connection.execute(select(_TABLE.c.id, _TABLE.c.row).where(condition, _TABLE.c.until.is_(None), _TABLE.c.since.is_not(None)))
        found.update({row.id: row.row for row in rows})
    return found


def admit(connection: Connection, rows: Sequence[int], revision: int) -> None:
    """Let waiting versions into memory from a revision on."""
    _set(connection, rows, since=revision)


def retract(connection: Connection, rows: Sequence[int], revision: int) -> None:
    """Take versions out of memory from a revision on."""
    _set(connection, rows, until=revision)


def mark_distilled(connection: Connection, rows: Sequence[int], revision: int | None) -> None:
    """Say in which revision semantic memory learned from versions; None sends them to distillation again."""
    _set(connection, rows, distilled=revision)


def note_judged(connection: Connection, judge_id: int, records: Sequence[Stored]) -> None:
    """Note with versions what the judge says of their items; what was known before stays."""
    present = existing(connection, judge_id, records)
    for stored in (stored for stored in records if stored.row in present):
        unknown = (_TABLE.c.row == stored.row) & _TABLE.c.judged.is_(None)
        connection.execute(update(_TABLE).where(unknown).values(judged=canonical(stored.judged)))


def drop_waiting(connection: Connection, judge_id: int, records: Sequence[Stored]) -> None:
    """Delete those versions that were recorded but never committed."""
    rows = [stored.row for stored in records if stored.since is None]
    drafts.discard(connection, judge_id, rows)
    for start in range(0, len(rows), _CHUNK):
        connection.execute(_TABLE.delete().where(_TABLE.c.row.in_(rows[start : start + _CHUNK])))


def existing(connection: Connection, judge_id: int, records: Sequence[Stored]) -> dict[int, Row[Any]]:
    """Row -> since, until and distilled of now, for those of some versions that were not deleted meanwhile.

    SQLite gives the number of a deleted row to the next record, so what has the same row may be another one.
    """
    read = {stored.row: (judge_id, stored.feedback.id, stored.stored_at) for stored in records}
    rows, found = list(read), dict[int, Row[Any]]()
    columns = [_TABLE.c[name] for name in ("row", "judge_id", "id", "stored_at", "since", "until", "distilled")]
    for start in range(0, len(rows), _CHUNK):
        held = connection.execute(select(*columns).where(_TABLE.c.row.in_(rows[start : start + _CHUNK])))
        found |= {row.row: row for row in held if (row.judge_id, row.id, row.stored_at) == read[row.row]}
    return found


def held_texts(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Which content hashes are of the text of some record, of whatever judge and state."""
    found: set[str] = set()
    for start in range(0, len(hashes), _CHUNK):
        condition = _TABLE.c.content_hash.in_(hashes[start : start + _CHUNK])
        found |= set(connection.execute(select(_TABLE.c.content_hash).where(condition).distinct()).scalars())
    return found


def known_ids(connection: Connection, judge_id: int, ids: Sequence[str]) -> set[str]:
    """Which of some ids have a record that holds or waits."""
    found: set[str] = set()
    for start in range(0, len(ids), _CHUNK):
        condition = (_TABLE.c.judge_id == judge_id) & _TABLE.c.id.in_(ids[start : start + _CHUNK]) & _TABLE.c.until.is_(None)
        found |= set(connection.execute(select(_TABLE.c.id).where(condition)).scalars())
    return found


def newest(connection: Connection, judge_id: int, ids: Sequence[str]) -> list[Stored]:
    """The newest versions of some ids that hold or wait."""
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), _CHUNK):
        condition = (_TABLE.c.judge_id == judge_id) & _TABLE.c.id.in_(ids[start : start + _CHUNK]) & _TABLE.c.until.is_(None)
        found |= {row.id: row for row in connection.execute(select(_TABLE).where(condition).order_by(_TABLE.c.version))}
    return [_stored(row) for row in found.values()]


def weighed(connection: Connection, judge_id: int, weights: Mapping[str, float], revision: int | None = None) -> dict[str, float]:
    """Id -> weight, of the records of the annotators in ``weights`` that hold in a revision; without one, of the newest that hold or wait."""
    if not weights:
        return {}
    holds = _TABLE.c.until.is_(None) if revision is None else holds_at(_TABLE, revision)
    ids = select(_TABLE.c.id).where(_TABLE.c.judge_id == judge_id, holds, _TABLE.c.annotator.in_(list(weights)))
    found = connection.execute(
        select(_TABLE.c.id, _TABLE.c.annotator).where(_TABLE.c.judge_id == judge_id, holds, _TABLE.c.id.in_(ids)).order_by(_TABLE.c.row)
    )
    return {row.id: float(weights.get(row.annotator, 1.0)) for row in found}


def restated(connection: Connection, judge_id: int, records: Iterable[Stored]) -> set[int]:
    """Rows of those that are no first version, but say what the first version in memory says, as after a withdrawal or a rollback."""
    later = [stored for stored in records if stored.version > 1]
    ids = sorted({stored.feedback.id for stored in later})
    first: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), _CHUNK):
        condition = (_TABLE.c.judge_id == judge_id) & _TABLE.c.id.in_(ids[start : start + _CHUNK])
        first |= {row.id: row for row in connection.execute(select(_TABLE).where(condition).order_by(_TABLE.c.version.desc()))}
    pairs = [(stored, first[stored.feedback.id]) for stored in later if stored.feedback.id in first]
    return {stored.row for stored, oldest in pairs if oldest.row != stored.row and said(oldest).says_the_same_as(stored.feedback)}


def contested(connection: Connection, judge_id: int, revision: int, scale: Scale, weights: Mapping[str, float]) -> list[str]:
    """Items on which the verdicts of experts who carry any weight differ, by more than is near on the scale; ``weights``: annotator -> weight."""
    unheard = [annotator for annotator, weight in weights.items() if not weight]
    condition = (_TABLE.c.judge_id == judge_id) & holds_at(_TABLE, revision) & _TABLE.c.annotator.not_in(unheard)
    grouped = select(_TABLE.c.item_id).where(condition).group_by(_TABLE.c.item_id).having(func.count(_TABLE.c.value.distinct()) > 1)
    given: dict[str, list[Any]] = {}
    for row in connection.execute(select(_TABLE.c.item_id, _TABLE.c.value).where(condition, _TABLE.c.item_id.in_(grouped)).distinct()):
        given.setdefault(row.item_id, []).append(parsed(row.value))
    return sorted(item_id for item_id, values in given.items() if not scale.near(values))


def shared(connection: Connection, judge_id: int, revision: int, item_ids: Sequence[str] = ()) -> list[Stored]:
    """The records on items that several annotators judged, and on some more items, that hold in a revision."""
    condition = (_TABLE.c.judge_id == judge_id) & holds_at(_TABLE, revision)
    grouped = select(_TABLE.c.item_id).where(condition).group_by(_TABLE.c.item_id).having(func.count(_TABLE.c.annotator.distinct()) > 1)
    return of_items(connection, judge_id, revision, list(dict.fromkeys([*connection.execute(grouped).scalars(), *item_ids])))


def by_rows(connection: Connection, rows: Sequence[int]) -> list[Stored]:
    """Versions by their rows, oldest first."""
    found = [
        _stored(row)
        for start in range(0, len(rows), _CHUNK)
        for row in connection.execute(select(_TABLE).where(_TABLE.c.row.in_(rows[start : start + _CHUNK])))
    ]
    return sorted(found, key=lambda stored: stored.row)


def episode(stored: Stored) -> Episode:
    """The public record."""
    stored_at = datetime.fromisoformat(stored.stored_at)
    return Episode(feedback=stored.feedback, judged=stored.judged, stored_at=stored_at, item_id=stored.item_id)


def _set(connection: Connection, rows: Sequence[int], **values: int | None) -> None:
    for start in range(0, len(rows), _CHUNK):
        connection.execute(update(_TABLE).where(_TABLE.c.row.in_(rows[start : start + _CHUNK])).values(values))


def _newest(connection: Connection, judge_id: int, feedback_id: str) -> Row[Any] | None:
    condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.id == feedback_id)
    return connection.execute(select(_TABLE).where(condition).order_by(_TABLE.c.version.desc()).limit(1)).first()


def said(row: Row[Any]) -> Feedback:
    """The record that a row holds."""
    return Feedback(
        id=row.id,
        inputs=parsed(row.inputs),
        outputs=parsed(row.outputs),
        expectations=parsed(row.expectations),
        value=parsed(row.value),
        rationale=row.rationale,
        annotator=row.annotator,
        source=row.source,
        created_at=datetime.fromisoformat(row.created_at),
    )


def _stored(row: Row[Any]) -> Stored:
    return Stored(
        row=row.row,
        version=row.version,
        item_id=row.item_id,
        feedback=said(row),
        judged=None if row.judged is None else parsed(row.judged),
        stored_at=row.stored_at,
        since=row.since,
        distilled=row.distilled,
        content_hash=row.content_hash,
    )
