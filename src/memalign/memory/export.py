"""Writing a memory to one file, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from memalign import __version__
from memalign.memory import archive, revisions
from memalign.stores import schema
from memalign.stores.types import parsed

_PAGE = 500
_LOG = ("verdict", "call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    path: str
    judge: str
    revision: int
    counts: dict[str, int]
    """Lines of each kind."""
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short account in plain text."""
        held = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items() if count)
        return [f"{self.path}: judge {self.judge!r} at revision {self.revision}, {self.bytes:,} bytes", f"  {held or 'an empty memory'}"]


def export(
    connection: Connection,
    judge_id: int,
    path: Path,
    *,
    vectors: bool,
    log: bool,
    overwrite: bool,
    progress: Callable[[str, int, int], None],
) -> Exported:
    """Write all that a judge's memory holds in one snapshot: every version, with evidence and taint. See ``archive.writing`` for errors."""
    wanted = [kind for kind in archive.KINDS if (vectors or kind != "vector") and (log or kind not in _LOG)]
    counts = {kind: _count(connection, judge_id, kind) for kind in wanted}
    revision = revisions.current(connection, judge_id)
    judge = connection.execute(select(schema.judge).where(schema.judge.c.id == judge_id)).one()
    header = {
        "format": archive.FORMAT,
        "version": archive.VERSION,
        "memalign": __version__,
        "judge": {**{name: value for name, value in judge._mapping.items() if name != "id"}, "settings": parsed(judge.settings)},
        "revision": revision,
        "counts": counts,
    }
    total = sum(counts.values())
    with archive.writing(path, overwrite=overwrite) as writer:
        writer.write("header", header)
        for kind in wanted:
            for fields in _fields(connection, judge_id, kind):
                writer.write(kind, fields)
                if writer.lines % _PAGE == 0:
                    progress("export", writer.lines, total)
    progress("export", total, total)
    return Exported(path=str(path), judge=judge.name, revision=revision, counts=counts, bytes=path.stat().st_size)


def _count(connection: Connection, judge_id: int, kind: str) -> int:
    return connection.execute(select(func.count()).select_from(archive.KINDS[kind]).where(_own(judge_id, kind))).scalar_one()


def _own(judge_id: int, kind: str) -> ColumnElement[bool]:
    """The condition that a row belongs to a judge; vectors belong to the texts that have their hash."""
    if kind == "vector":
        return schema.vector.c.content_hash.in_(select(schema.feedback.c.content_hash).where(schema.feedback.c.judge_id == judge_id))
    owner: ColumnElement[bool] = archive.KINDS[kind].c.judge_id == judge_id
    return owner


def _fields(connection: Connection, judge_id: int, kind: str) -> Iterator[dict[str, Any]]:
    if kind == "vector":
        yield from _vectors(connection, judge_id)
    elif kind == "guideline":
        for page in _pages(connection, schema.guideline, _own(judge_id, kind), ["row"]):
            yield from _guidelines(connection, page)
    else:
        keys = {"revision": ["number"], "tombstone": ["key", "digest"]}.get(kind, ["row"])
        yield from _plain(connection, kind, _own(judge_id, kind), keys)


def _vectors(connection: Connection, judge_id: int) -> Iterator[dict[str, Any]]:
    """By embedder and hash; the hashes come by pages from the records, so that no page looks through all of them."""
    table, record = schema.vector, schema.feedback
    for embedder in connection.execute(select(table.c.embedder).distinct().order_by(table.c.embedder)).scalars().all():
        last = ""
        while True:
            own = (record.c.judge_id == judge_id) & (record.c.content_hash > last)
            hashes = (
                connection.execute(select(record.c.content_hash).where(own).distinct().order_by(record.c.content_hash).limit(_PAGE)).scalars().all()
            )
            held = select(table).where(table.c.embedder == embedder, table.c.content_hash.in_(hashes)).order_by(table.c.content_hash)
            for row in connection.execute(held).all():
                yield archive.fields_of("vector", dict(row._mapping))
            if len(hashes) < _PAGE:
                break
            last = hashes[-1]


def _plain(connection: Connection, kind: str, condition: ColumnElement[bool], keys: list[str]) -> Iterator[dict[str, Any]]:
    for page in _pages(connection, archive.KINDS[kind], condition, keys):
        for row in page:
            yield archive.fields_of(kind, dict(row._mapping))


def _pages(connection: Connection, table: Table, condition: ColumnElement[bool], keys: list[str]) -> Iterator[Sequence[Row[Any]]]:
    """Rows by their keys, so many at a time; asked for anew each time, so that no store keeps a result open."""
    order = [table.c[name] for name in keys]
    last: ColumnElement[bool] | None = None
    while page := connection.execute(select(table).where(condition if last is None else condition & last).order_by(*order).limit(_PAGE)).all():
        yield page
        if len(page) < _PAGE:
            return
        last = _behind(order, [page[-1]._mapping[name] for name in keys])


def _behind(columns: list[Any], values: list[Any]) -> ColumnElement[bool]:
    first, value = columns[0], values[0]
    further: ColumnElement[bool] = first > value
    return further if len(columns) == 1 else further | ((first == value) & _behind(columns[1:], values[1:]))


def _guidelines(connection: Connection, page: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
    rows = [row.row for row in page]
    evidence = _links(connection, schema.evidence, rows, schema.evidence.c.sign)
    taint = _links(connection, schema.taint, rows)
    trials: dict[int, list[dict[str, Any]]] = {}
    for trial in connection.execute(select(schema.trial).where(schema.trial.c.guideline_row.in_(rows)).order_by(schema.trial.c.row)):
        kept = {name: value for name, value in trial._mapping.items() if name not in ("row", "guideline_row")}
        trials.setdefault(trial.guideline_row, []).append(kept)
    for row in page:
        fields = archive.fields_of("guideline", dict(row._mapping))
        yield fields | {"evidence": evidence.get(row.row, []), "taint": taint.get(row.row, []), "trials": trials.get(row.row, [])}


def _links(connection: Connection, link: Table, rows: list[int], *more: ColumnElement[int]) -> dict[int, list[list[Any]]]:
    record = schema.feedback
    query = (
        select(link.c.guideline_row, record.c.id, record.c.version, *more)
        .join(record, record.c.row == link.c.feedback_row)
        .where(link.c.guideline_row.in_(rows))
        .order_by(link.c.guideline_row, link.c.feedback_row)
    )
    found: dict[int, list[list[Any]]] = {}
    for guideline_row, *fields in connection.execute(query):
        found.setdefault(guideline_row, []).append(fields)
    return found
