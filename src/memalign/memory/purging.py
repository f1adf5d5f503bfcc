"""Purging: the closure of what came from some records, and its deletion, all in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, select, update

from memalign.memory import drafts, episodic, questions, replays, revisions, semantic, tombstones
from memalign.memory.episodic import Stored
from memalign.memory.selection import texts_of
from memalign.memory.traces import carries, distinctive, passages
from memalign.records import Guideline, content_hash
from memalign.stores import schema
from memalign.stores.types import parsed

_CHUNK = 500
_STREAMED = {"stream_results": True, "yield_per": 1000}
"""All texts of a large memory would not fit into RAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """What goes when some records go."""

    records: tuple[Stored, ...]
    """All versions."""
    by_evidence: tuple[Guideline, ...]
    """Guidelines of now that cite one of the records."""
    by_taint: tuple[Guideline, ...]
    """Guidelines of now whose text came from a prompt in which one of the records stood, or which carries words that only the records brought."""
    guideline_rows: tuple[int, ...]
    """Versions, of now and before, with such a text."""
    verdict_rows: tuple[int, ...]
    """Logged verdicts on the records' items, and those that rested on the records or on such a guideline."""
    passages: tuple[bytes, ...]
    """By which the records' texts would be known again in a file."""

    @property
    def rows(self) -> list[int]:
        """Of the records."""
        return [stored.row for stored in self.records]

    @property
    def ids(self) -> list[str]:
        """Of the records, each once."""
        return list(dict.fromkeys(stored.feedback.id for stored in self.records))


def closure(connection: Connection, judge_id: int, records: Sequence[Stored], *, instructions: str, everything: bool = False) -> Closure:
    """What came from some records, given with all their versions. ``everything``: all guidelines go, those written by hand as well."""
    rows = [stored.row for stored in records]
    texts = [text for stored in records for text in (*texts_of(stored.feedback), stored.feedback.id, stored.feedback.annotator)]
    grams = distinctive(texts, (instructions, *texts_kept(connection, judge_id, set(rows))))
    tainted = linked(connection, schema.taint, rows)
    every = connection.execute(select(schema.guideline).where(schema.guideline.c.judge_id == judge_id)).all()
    handmade = {row.row for row in every} - set(connection.execute(select(schema.taint.c.guideline_row).distinct()).scalars())
    gone = [
        row
        for row in every
        if everything or row.row in tainted or (grams and carries(f"{row.text}\n{row.scope}", grams, runs_only=row.row in handmade))
    ]
    gone_rows, cited = {row.row for row in gone}, linked(connection, schema.evidence, rows)
    by_id = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revisions.current(connection, judge_id))}
    now = {row.row: by_id[row.id] for row in every if row.until is None and row.state != "retired" and row.id in by_id}
    return Closure(
        records=tuple(records),
        by_evidence=tuple(guideline for row, guideline in now.items() if row in cited),
        by_taint=tuple(guideline for row, guideline in now.items() if row in gone_rows),
        guideline_rows=tuple(sorted(gone_rows)),
        verdict_rows=tuple(_verdicts(connection, judge_id, records, {row.id for row in gone})),
        passages=tuple(passages(texts, grams)),
    )


def retract(connection: Connection, judge_id: int, revision: int, records: Sequence[Stored], *, verb: str, actor: str) -> list[str]:
    """Take records that hold out of memory, in a new revision; gives the ids of the guidelines that retired for want of evidence."""
    rows = [stored.row for stored in records if stored.since is not None]
    drafts.discard(connection, judge_id, rows)
    retired, _ = semantic.without(connection, judge_id, revision, rows, renew=False)
    episodic.retract(connection, rows, revision)
    questions.settle(connection, judge_id, revision)
    _commit(connection, judge_id, revision, verb, actor, {"withdrawn": len(rows), "retired": len(retired)}, [s.feedback.id for s in records])
    return retired


def purge(connection: Connection, judge_id: int, revision: int, found: Closure, *, actor: str) -> list[str]:
    """Delete a closure and bury its records, in a new revision; gives the ids of guidelines that retired for want of evidence.

    What guidelines that go rested on besides is sent to distillation again. Other readers drop what they hold in RAM at their next call.
    """
    values = {"purged": revision, "numbered": semantic.highest_number(connection, judge_id)}
    connection.execute(update(schema.judge).where(schema.judge.c.id == judge_id).values(values))
    again = _evidence_left(connection, found)
    _delete(connection, schema.guideline.c.row, found.guideline_rows)
    retired, _ = semantic.without(connection, judge_id, revision, found.rows, renew=False)
    _delete(connection, schema.verdict.c.row, found.verdict_rows)
    _delete(connection, schema.feedback.c.row, found.rows)
    replays.forget(connection, judge_id)
    drafts.forget(connection, judge_id)  # a draft may say what stood in the guidelines that its model was shown
    questions.settle(connection, judge_id, revision)
    _delete(connection, schema.vector.c.content_hash, _orphans(connection))
    episodic.mark_distilled(connection, sorted(again), None)
    tombstones.bury(connection, judge_id, found.ids, revision)
    counts = {
        "purged": len(found.ids),
        "versions": len(found.rows),
        "guidelines": len(found.by_taint),
        "retired": len(retired),
        "verdicts": len(found.verdict_rows),
        "again": len(again),
    }
    _commit(connection, judge_id, revision, "purge", actor, counts, found.ids)
    return retired


def _commit(connection: Connection, judge_id: int, revision: int, verb: str, actor: str, counts: dict[str, int], ids: Iterable[str]) -> None:
    """Write the revision; a memory that is emptied gives back the judge as it was before anything was decided on the experts' labels."""
    table = schema.feedback
    left = connection.execute(select(table.c.row).where(table.c.judge_id == judge_id, table.c.until.is_(None)).limit(1)).scalar()
    decision = revisions.Decision() if left is None else None
    revisions.commit(connection, judge_id, revision, verb=verb, actor=actor, counts=counts, decision=decision, ids=ids)


def _evidence_left(connection: Connection, found: Closure) -> set[int]:
    """The records on which guidelines rest that go while they hold, and that stay themselves."""
    link, guideline, gone = schema.evidence, schema.guideline, set(found.rows)
    left: set[int] = set()
    for chunk in _chunks(found.guideline_rows):
        held = link.c.guideline_row.in_(chunk) & guideline.c.until.is_(None) & (guideline.c.state != "retired") & (link.c.sign > 0)
        left |= set(connection.execute(select(link.c.feedback_row).join(guideline, guideline.c.row == link.c.guideline_row).where(held)).scalars())
    return left - gone


def texts_kept(connection: Connection, judge_id: int, gone: set[int]) -> Iterator[str]:
    """What the judge's other records say, whatever their state, version by version."""
    table = schema.feedback
    columns = [table.c.row, table.c.inputs, table.c.outputs, table.c.expectations, table.c.rationale, table.c.source, table.c.id, table.c.annotator]
    with connection.execute(select(*columns).where(table.c.judge_id == judge_id), execution_options=_STREAMED) as found:
        for row in found:
            if row.row not in gone:
                yield "\n".join(row[1:])


def _verdicts(connection: Connection, judge_id: int, records: Sequence[Stored], guideline_ids: set[str]) -> Iterator[int]:
    table, record = schema.verdict, schema.feedback
    ids, rows = {stored.feedback.id for stored in records}, {stored.row for stored in records}
    items = {stored.item_id for stored in records}
    for chunk in _chunks(sorted(items)):  # an item on which another expert's record stays is known from that
        held = connection.execute(select(record.c.item_id, record.c.row).where(record.c.judge_id == judge_id, record.c.item_id.in_(chunk)))
        items -= {row.item_id for row in held if row.row not in rows}
    columns = [table.c.row, table.c.item_id, table.c.guideline_ids, table.c.episode_ids, table.c.voter_ids]
    for row in connection.execute(select(*columns).where(table.c.judge_id == judge_id).order_by(table.c.row)):
        if (
            row.item_id in items
            or not ids.isdisjoint(parsed(row.episode_ids))
            or not ids.isdisjoint(parsed(row.voter_ids))
            or not guideline_ids.isdisjoint(parsed(row.guideline_ids))
        ):
            yield row.row


def _orphans(connection: Connection) -> list[str]:
    """Content hashes of vectors whose text no record and no guideline of any judge holds."""
    used = set(connection.execute(select(schema.feedback.c.content_hash).distinct()).scalars())
    used |= {content_hash(text) for text in connection.execute(select(schema.guideline.c.text).distinct()).scalars()}
    return sorted(set(connection.execute(select(schema.vector.c.content_hash).distinct()).scalars()) - used)


def linked(connection: Connection, link: Table, rows: Sequence[int]) -> set[int]:
    """Rows of the guideline versions that a table links with some feedback."""
    return {
        row for chunk in _chunks(rows) for row in connection.execute(select(link.c.guideline_row).where(link.c.feedback_row.in_(chunk))).scalars()
    }


def _delete(connection: Connection, column: Column[Any], keys: Sequence[Any]) -> None:
    for chunk in _chunks(keys):
        connection.execute(delete(column.table).where(column.in_(chunk)))


def _chunks(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
