"""Feedback and items in files: good rows become records, bad rows become problems, and nothing is lost in silence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from memalign.errors import BadRecord
from memalign.records import Feedback, Item, canonical, content_hash
from memalign.rows import STDIN, Row, RowProblem, read_rows, write_rows
from memalign.scale import Scale, Value

COLUMNS = ("id", "inputs", "outputs", "expectations", "value", "rationale", "annotator", "created_at", "source")
"""The columns of a feedback file; ``label`` may stand for ``value``. Only ``outputs`` (or ``inputs``) and ``value`` are needed."""

MAX_FIELD_BYTES = 10_000_000
"""Longest field that is read by default, in bytes of UTF-8."""

_KNOWN = frozenset({*COLUMNS, "label"})
_CONTENT = ("inputs", "outputs", "expectations")
_NAMES = ("id", "annotator")
"""White space around them, as behind the commas of a table that was made by hand, is no part of them."""

T = TypeVar("T")
Seen = dict[str, tuple[str, int, str]]
"""Id -> file, row and digest of the record that was read first."""


@dataclass(frozen=True, slots=True)
class ReadResult(Generic[T]):
    """What a file gave: the records of its good rows, and what was wrong with the others, both in the file's order."""

    records: tuple[T, ...]
    problems: tuple[RowProblem, ...]

    @property
    def errors(self) -> tuple[RowProblem, ...]:
        """The rows that were not read."""
        return tuple(problem for problem in self.problems if not problem.warning)

    @property
    def warnings(self) -> tuple[RowProblem, ...]:
        """What was remarked without leaving a row out."""
        return tuple(problem for problem in self.problems if problem.warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """An item to be judged, as it stands in a file."""

    row: int
    id: str
    """The file's id, else the digest of the item's content."""
    item: Item
    value: Value | None = None
    """An expert's verdict, if the file has one and a scale was given to read it."""


def read_feedback(
    path: Path | str, scale: Scale, *, ignore: Collection[str] = (), max_field_bytes: int = MAX_FIELD_BYTES, seen: Seen | None = None
) -> ReadResult[Feedback]:
    """Read feedback from JSONL, CSV or Parquet by suffix; "-" is JSONL on standard input. See ``iter_feedback``."""
    return _collected(iter_feedback(path, scale, ignore=ignore, max_field_bytes=max_field_bytes, seen=seen))


def read_items(
    path: Path | str, scale: Scale | None = None, *, ignore: Collection[str] = (), max_field_bytes: int = MAX_FIELD_BYTES
) -> ReadResult[ItemRow]:
    """Read items to be judged, in the formats of ``read_feedback``; a value is not needed, and is read only with a scale."""
    return _collected(iter_items(path, scale, ignore=ignore, max_field_bytes=max_field_bytes))


def iter_feedback(
    path: Path | str, scale: Scale, *, ignore: Collection[str] = (), max_field_bytes: int = MAX_FIELD_BYTES, seen: Seen | None = None
) -> Iterator[Feedback | RowProblem]:
    """Yield one record or problem for each row, holding one row at a time (and a digest of each row read).

    Columns in ``ignore`` are skipped; any other unknown column is remarked once. Times without a zone are UTC, whole-number ids become
    text, the source is the file's name unless a column gives it. Of rows with one id the first is kept: a repeat is remarked, different
    content is a problem, also across files that are given one dictionary as ``seen``. Raises ConfigurationError when there is no such file or
    its suffix is unknown, MissingExtra for Parquet.
    """
    source = "stdin" if str(path) == STDIN else Path(path).name
    seen = {} if seen is None else seen
    for number, record in _records(path, lambda row: _feedback(row, scale, source), _example(scale), True, ignore, max_field_bytes):
        if isinstance(record, RowProblem):
            yield record
            continue
        digest = content_hash([record.inputs, record.outputs, record.expectations, record.value, record.rationale])
        file, first, known = seen.setdefault(record.id, (str(path), number, digest))
        here = file == str(path)
        if known != digest:
            where = f"row {first}" if here else f"row {first} of {file}"
            yield RowProblem(number, "id", f"{_clash(record.id, where)}; where no id is given, item and annotator make it")
        elif here and first != number:
            yield RowProblem(number, "", f"says the same as row {first}; it is read once", warning=True)
        else:
            yield record


def iter_items(
    path: Path | str, scale: Scale | None = None, *, ignore: Collection[str] = (), max_field_bytes: int = MAX_FIELD_BYTES
) -> Iterator[ItemRow | RowProblem]:
    """Yield one item or problem for each row, as ``iter_feedback`` does; repeated rows are kept, each is to be judged."""
    seen: dict[str, tuple[int, str]] = {}
    for number, record in _records(path, lambda row: _item(row, scale), _example(scale, False), False, ignore, max_field_bytes):
        if isinstance(record, RowProblem):
            yield record
            continue
        first, known = seen.setdefault(record.id, (number, record.item.id))
        if known == record.item.id:
            yield ItemRow(row=number, id=record.id, item=record.item, value=record.value)
        else:
            yield RowProblem(number, "id", f"{_clash(record.id, f'row {first}')}; give each item its own")


def write_feedback(path: Path | str, records: Iterable[Feedback]) -> int:
    """Write feedback as JSONL, CSV or Parquet by suffix ("-": JSONL on standard output) and return how many records.

    JSONL and Parquet give back what was written. In CSV, an empty text and a missing one are the same, and text that looks like a JSON
    object or list is read as one. Raises ConfigurationError when the file cannot be written, MissingExtra for Parquet.
    """
    return write_rows(path, COLUMNS, ({name: getattr(record, name) for name in COLUMNS} for record in records))


def _records(
    path: Path | str, build: Callable[[Row], T], example: str, labelled: bool, ignore: Collection[str], max_field_bytes: int
) -> Iterator[tuple[int, T | RowProblem]]:
    """Yield each row's number and the record built from it, or its problem."""
    remarked: set[str] = {*ignore, *_KNOWN}
    cells_are_text = Path(path).suffix.lower() in {".csv", ".tsv"}
    is_table = cells_are_text or Path(path).suffix.lower() in {".parquet", ".pq"}
    empty = unchecked = True
    for entry in read_rows(path, max_row_bytes=len(_KNOWN) * max_field_bytes):
        if isinstance(entry, RowProblem):
            empty = False
            yield entry.row, entry
            continue
        number, row = entry
        for name in sorted(row.keys() - remarked):
            yield number, RowProblem(number, name, _unknown_column(name), warning=True)
        remarked |= row.keys()
        if is_table and unchecked and (reason := _missing_columns(row, labelled)):
            yield 1, RowProblem(1, "", f"{reason}; {example}")
            return
        empty = unchecked = False
        try:
            row = {name: row[name] for name in row if name in _KNOWN and name not in ignore}
            yield number, build(_cleaned(row, cells_are_text, max_field_bytes))
        except BadRecord as error:
            yield number, RowProblem(number, error.field, error.reason)
        except RecursionError:
            yield number, RowProblem(number, "", "is nested too deeply")
    if empty:
        yield 0, RowProblem(0, "", f"the file has no rows; {example}")


def _cleaned(row: Row, cells_are_text: bool, max_field_bytes: int) -> Row:
    """Check that every field is JSON and not too long; of text cells, read objects and lists as JSON and empty ones as None."""
    if cells_are_text:
        row = {name: cell.strip() if name in _NAMES else cell for name, cell in row.items()}
        row = {name: None if cell == "" else _json_or_text(cell) if name in _CONTENT else cell for name, cell in row.items()}
    for name, cell in row.items():
        if cell is None or isinstance(cell, bool | int) or (name == "created_at" and isinstance(cell, date)):
            continue
        try:
            text = cell if isinstance(cell, str) else canonical(cell)
        except BadRecord as error:
            raise BadRecord(error.reason, field=name) from error
        if len(text) * 4 > max_field_bytes and (size := len(text.encode())) > max_field_bytes:
            raise BadRecord(f"has {size:,} bytes, the limit (max_field_bytes) is {max_field_bytes:,}; shorten it", field=name)
    return row


def _json_or_text(cell: str) -> Any:
    if not cell.lstrip().startswith(("{", "[")):
        return cell
    try:
        value = json.loads(cell)
        canonical(value).encode()
    except (ValueError, RecursionError, BadRecord):
        return cell
    return value


def _feedback(row: Row, scale: Scale, source: str) -> Feedback:
    value = _value(row, scale)
    if value is None:
        raise BadRecord("is missing", field="value")
    created_at = _time(row.get("created_at"))
    return Feedback(
        **_content(row),
        value=value,
        rationale=_text(row, "rationale"),
        annotator=_text(row, "annotator"),
        id=_text(row, "id"),
        source=_text(row, "source") or source,
        **({} if created_at is None else {"created_at": created_at}),
    )


def _item(row: Row, scale: Scale | None) -> ItemRow:
    item = Item(**_content(row))
    return ItemRow(row=0, id=_text(row, "id") or item.id, item=item, value=_value(row, scale) if scale else None)


def _content(row: Row) -> dict[str, Any]:
    content = {name: row.get(name) for name in _CONTENT}
    if content["inputs"] is None and content["outputs"] is None:
        raise BadRecord("inputs and outputs are both missing", field="outputs")
    return content


def _value(row: Row, scale: Scale) -> Value | None:
    found = {}
    for name in ("value", "label"):
        cell = row.get(name)
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        try:
            found[name] = scale.check(cell)
        except BadRecord as error:
            raise BadRecord(error.reason, field=name) from error
    if len(set(found.values())) > 1:
        raise BadRecord(f"says {found['label']!r:.60}, but value says {found['value']!r:.60}", field="label")
    return next(iter(found.values()), None)


def _text(row: Row, name: str) -> str:
    cell = row.get(name)
    if name in {"id", "annotator"} and type(cell) is int:
        return str(cell)
    if cell is not None and not isinstance(cell, str):
        raise BadRecord(f"must be text, not {type(cell).__name__}", field=name)
    return cell or ""


def _time(cell: Any) -> datetime | None:
    if isinstance(cell, str) and cell.strip():
        try:
            cell = datetime.fromisoformat(cell.strip())
        except ValueError as error:
            raise BadRecord(f"{cell!r:.60} is not a time such as 2026-02-14T09:30:00Z", field="created_at") from error
    if isinstance(cell, datetime):
        return cell if cell.tzinfo else cell.replace(tzinfo=UTC)
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day, tzinfo=UTC)
    if cell is None or cell == "" or isinstance(cell, str):
        return None
    raise BadRecord(f"must be a time such as 2026-02-14T09:30:00Z, not {type(cell).__name__}", field="created_at")


def _unknown_column(name: str) -> str:
    close = difflib.get_close_matches(name.strip().casefold(), sorted(_KNOWN), n=1)
    advice = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(COLUMNS)}"
    return f"this column is not known and was not read; {advice}"


def _missing_columns(row: Row, labelled: bool) -> str:
    if not row.keys() & {"inputs", "outputs"}:
        return "there is no column 'outputs' or 'inputs'"
    return "there is no column 'value' (or 'label')" if labelled and not row.keys() & {"value", "label"} else ""


def _example(scale: Scale | None, labelled: bool = True) -> str:
    row: Row = {"inputs": {"question": "..."}, "outputs": "..."}
    if scale and labelled:
        row |= {"value": scale.values[0] if scale.values else "...", "rationale": "why"}
    return f"a row looks like {json.dumps(row)}"


def _clash(identity: str, where: str) -> str:
    return f"{where} has the same id {identity!r:.60} with other content"


def _collected(entries: Iterator[T | RowProblem]) -> ReadResult[T]:
    records: list[T] = []
    problems: list[RowProblem] = []
    for entry in entries:
        if isinstance(entry, RowProblem):
            problems.append(entry)
        else:
            records.append(entry)
    return ReadResult(tuple(records), tuple(problems))
