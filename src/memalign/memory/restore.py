"""Restoring an export into a judge that has no memory yet: row by row as it was, revisions and seals included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Table, exists, insert, select, update

from memalign.errors import StoreError
from memalign.memory import archive
from memalign.memory.archive import Line
from memalign.stores import schema
from memalign.stores.database import insert_new

_PAGE = 500


def is_empty(connection: Connection, judge_id: int) -> bool:
    """Whether a judge's memory never held anything."""
    held = [exists().where(table.c.judge_id == judge_id) for table in (schema.revision, schema.feedback, schema.tombstone)]
    return not any(connection.execute(select(each)).scalar() for each in held)


def restore(connection: Connection, judge_id: int, lines: Iterable[Line], done: Callable[[int], None]) -> None:
    """Insert all lines of an archive, header first; part of the caller's transaction. Raises StoreError for one that does not fit the others.

    The judge takes over the secret of the one that was exported: it keys the seals of the history and the marks in prompts.
    """
    rest = iter(lines)
    number, _, header = next(rest)
    judge = {name: header["judge"][name] for name in ("secret", "created_at", "purged", "numbered", "scrubbed") if name in header["judge"]}
    connection.execute(update(schema.judge).where(schema.judge.c.id == judge_id).values(judge))
    for kind, group in groupby(rest, key=lambda line: line[1]):
        for page in _pages(group):
            number = page[-1][0]
            if kind == "guideline":
                _guidelines(connection, judge_id, page)
            elif kind == "vector":
                put_vectors(connection, [fields for _, _, fields in page])
            else:
                rows = [archive.row_of(kind, fields) | {"judge_id": judge_id} for _, _, fields in page]
                _insert(connection, archive.KINDS[kind], rows)
            done(number)


def put_vectors(connection: Connection, vectors: list[dict[str, Any]]) -> int:
    """Store vectors that are not stored yet, whichever judge they came with; gives how many."""
    table = schema.vector
    rows = {(row["embedder"], row["content_hash"]): row for row in (archive.row_of("vector", fields) for fields in vectors)}
    for embedder in {embedder for embedder, _ in rows}:
        hashes = [key for name, key in rows if name == embedder]
        known = connection.execute(select(table.c.content_hash).where(table.c.embedder == embedder, table.c.content_hash.in_(hashes))).scalars()
        for key in list(known):
            del rows[embedder, key]
    if rows:
        insert_new(connection, table, [rows[key] for key in sorted(rows)])  # in one order, so that writers never wait for each other crosswise
    return len(rows)


def rows_of(connection: Connection, judge_id: int, ids: Iterable[str]) -> dict[tuple[str, int], int]:
    """(record, version) -> row, of all versions of some records."""
    table, wanted = schema.feedback, sorted(set(ids))
    found: dict[tuple[str, int], int] = {}
    for start in range(0, len(wanted), _PAGE):
        condition = (table.c.judge_id == judge_id) & table.c.id.in_(wanted[start : start + _PAGE])
        found |= {(row.id, row.version): row.row for row in connection.execute(select(table.c.id, table.c.version, table.c.row).where(condition))}
    return found


def _guidelines(connection: Connection, judge_id: int, page: list[Line]) -> None:
    rows = [archive.row_of("guideline", fields) | {"judge_id": judge_id} for _, _, fields in page]
    table = schema.guideline
    made = connection.execute(insert(table).returning(table.c.row, sort_by_parameter_order=True), rows).scalars().all()
    places = rows_of(connection, judge_id, {link[0] for _, _, fields in page for name in ("evidence", "taint") for link in fields[name]})
    evidence, taint, trials = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for (number, _, fields), row in zip(page, made, strict=True):
        try:
            evidence += [{"guideline_row": row, "feedback_row": places[key, version], "sign": sign} for key, version, sign in fields["evidence"]]
            taint += [{"guideline_row": row, "feedback_row": places[key, version]} for key, version in fields["taint"]]
        except KeyError as error:
            raise StoreError(f"line {number}: guideline {fields['id']} refers to record {error.args[0]}, which the file lacks") from error
        trials += [trial | {"guideline_row": row} for trial in fields["trials"]]
    for link, values in ((schema.evidence, evidence), (schema.taint, taint), (schema.trial, trials)):
        _insert(connection, link, values)


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows that may lack different columns, which then have their defaults."""
    for _, group in groupby(rows, key=lambda row: sorted(row)):
        connection.execute(insert(table), list[Mapping[str, Any]](group))


def _pages(lines: Iterable[Line]) -> Iterator[list[Line]]:
    page: list[Line] = []
    for line in lines:
        page.append(line)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page
