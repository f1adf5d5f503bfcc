"""Rows of JSONL, CSV and Parquet files: plain dictionaries in and out, read as a stream. What a row means is not known here."""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, NoReturn

from memalign.errors import ConfigurationError, MissingExtra

STDIN = "-"
"""Stands for JSONL on standard input or output."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_UNDECODED = re.compile("[\udc80-\udcff]")
_JSON_COLUMN = {b"memalign": b"json"}
_PARQUET_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row, or something in it, that could not be used."""

    row: int
    """Line number in text files, row number in Parquet files, both from 1; 0: the file as a whole."""
    field: str
    """The column, or empty when the row as a whole is meant."""
    reason: str
    warning: bool = False
    """Whether it was only remarked, and nothing but a superfluous part was left out."""

    def __str__(self) -> str:
        """For example "row 3, field 'value': is missing"."""
        where = ", ".join(part for part in (f"row {self.row}" if self.row else "", f"field '{self.field}'" if self.field else "") if part)
        return f"{where}: {self.reason}" if where else self.reason


Row = dict[str, Any]


def read_rows(path: Path | str, *, max_row_bytes: int) -> Iterator[tuple[int, Row] | RowProblem]:
    """Yield each row with its number, or why it cannot be read; the header of a CSV file is row 1.

    Cells of CSV files are text. Raises ConfigurationError when there is no such file or its suffix is unknown, MissingExtra for Parquet.
    """
    kind = _kind(path)
    if kind == "parquet":
        yield from _read_parquet(Path(path))
        return
    with _opened(path) as stream:
        if kind == "jsonl":
            yield from _read_jsonl(stream, max_row_bytes)
        else:
            yield from _read_csv(stream, "\t" if Path(path).suffix.lower() == ".tsv" else ",")


def write_rows(path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows by suffix and return how many; a file is complete or not there at all.

    In CSV, objects and lists become JSON text. In Parquet, columns that hold more than one plain type become JSON text, marked as such.
    """
    kind = _kind(path)
    if str(path) == STDIN:
        return _write_jsonl(sys.stdout, rows)
    target = Path(path)
    draft = target.with_name(f".{target.name}.part")
    try:
        if kind == "parquet":
            count = _write_parquet(draft, columns, rows)
        else:
            with draft.open("w", encoding="utf-8", newline="") as stream:
                delimiter = "\t" if target.suffix.lower() == ".tsv" else ","
                count = _write_jsonl(stream, rows) if kind == "jsonl" else _write_csv(stream, columns, rows, delimiter)
        draft.replace(target)
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


def _kind(path: Path | str) -> str:
    if str(path) == STDIN:
        return "jsonl"
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigurationError(f"cannot tell the format of {str(path)!r} from its name; known endings: {', '.join(_SUFFIXES)}")
    return _SUFFIXES[suffix]


def _opened(path: Path | str) -> AbstractContextManager[IO[bytes]]:
    if str(path) == STDIN:
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(path).open("rb")
    except OSError as error:
        _refuse(Path(path), error)


def _refuse(path: Path, error: OSError) -> NoReturn:
    """Raise ConfigurationError that says which file may have been meant."""
    if not isinstance(error, FileNotFoundError):
        raise ConfigurationError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    advice = f"did you mean {close[0]!r}?" if close else "check the path, it is relative to the working directory"
    raise ConfigurationError(f"there is no file {str(path)!r}; {advice}") from error


def _read_jsonl(stream: IO[bytes], max_row_bytes: int) -> Iterator[tuple[int, Row] | RowProblem]:
    for number, line in _lines(stream, max_row_bytes):
        if line is None:
            yield RowProblem(number, "", f"is longer than {max_row_bytes:,} bytes")
            continue
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield RowProblem(0, "", "the file is UTF-16; save it as UTF-8")
            return
        try:
            text = line.removeprefix(codecs.BOM_UTF8).decode() if number == 1 else line.decode()
            if not text.strip():
                continue
            row = json.loads(text, parse_constant=_no_constant)
            if "\\ud" in text.lower():
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            yield RowProblem(number, "", f"is not valid UTF-8 (byte {error.start + 1}); save the file as UTF-8")
        except UnicodeEncodeError:
            yield RowProblem(number, "", "holds half of a surrogate pair, which is not valid Unicode")
        except json.JSONDecodeError as error:
            yield RowProblem(number, "", f"is not complete JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:
            yield RowProblem(number, "", f"is not usable JSON ({error!s:.120})")
        else:
            yield (number, row) if isinstance(row, dict) else RowProblem(number, "", f"must be a JSON object, not {_json_type(row)}")


def _lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield numbered lines without ever holding more than ``limit`` bytes; None stands for a longer line."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(limit)
        yield number, None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _json_type(value: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _read_csv(stream: IO[bytes], delimiter: str) -> Iterator[tuple[int, Row] | RowProblem]:
    csv.field_size_limit(2**31 - 1)  # the caller has its own limit, with a better message
    with TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header: list[str] = []
        for number, cells in _cells(text, delimiter):
            if isinstance(cells, RowProblem):
                yield cells
            elif not header:
                header = [cell.strip() for cell in cells]
                if problem := _header_problem(header):
                    yield problem
                    return
            elif len(cells) != len(header):
                yield RowProblem(number, "", f"has {len(cells)} cells, the header has {len(header)}")
            elif damaged := [name for name, cell in zip(header, cells, strict=True) if _UNDECODED.search(cell)]:
                yield RowProblem(number, damaged[0], "is not valid UTF-8; save the file as UTF-8")
            else:
                yield number, dict(zip(header, cells, strict=True))


def _cells(text: IO[str], delimiter: str) -> Iterator[tuple[int, list[str] | RowProblem]]:
    """Yield the cells of each row that is not blank, with the number of the line on which it starts."""
    table = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        number = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            last = table.line_num
            swallowed = f"; lines {number} to {last} are read as this one row: look for a quote that is not closed" if last > number else ""
            yield number, RowProblem(number, "", f"is not readable CSV ({error}){swallowed}")
        else:
            if any(cell.strip() for cell in cells):
                yield number, cells


def _header_problem(header: list[str]) -> RowProblem | None:
    if _UNDECODED.search("".join(header)):
        return RowProblem(1, "", "the header is not valid UTF-8; save the file as UTF-8")
    repeated = sorted({name for name in header if header.count(name) > 1})
    return RowProblem(1, repeated[0], "this column stands twice in the header") if repeated else None


def _read_parquet(path: Path) -> Iterator[tuple[int, Row] | RowProblem]:
    pyarrow = _pyarrow()
    with _opened(path) as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            encoded = [field.name for field in file.schema_arrow if dict(field.metadata or {}).items() >= _JSON_COLUMN.items()]
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in _unpacked(batch, pyarrow):
                    number += 1
                    if isinstance(row, RowProblem):
                        yield RowProblem(number, row.field, row.reason)
                    else:
                        yield number, row | {name: json.loads(row[name]) for name in encoded if row[name] is not None}
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            yield RowProblem(0, "", f"is not a readable Parquet file ({error!s:.120}); write it anew, or as .jsonl or .csv")


def _unpacked(batch: Any, pyarrow: Any) -> Iterator[Row | RowProblem]:
    """Yield the rows of a record batch; nanoseconds, which datetime cannot hold, are cut to microseconds."""
    columns = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        nanoseconds = pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns"
        columns[field.name] = column.cast(pyarrow.timestamp("us", field.type.tz), safe=False) if nanoseconds else column
    try:
        lists = {name: column.to_pylist() for name, column in columns.items()}
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            yield _cell_by_cell(columns, index)
        return
    for index in range(batch.num_rows):
        yield {name: cells[index] for name, cells in lists.items()}


def _cell_by_cell(columns: Mapping[str, Any], index: int) -> Row | RowProblem:
    row = {}
    for name, column in columns.items():
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return RowProblem(0, name, "is not valid UTF-8")
    return row


def _write_jsonl(stream: IO[str], rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in rows:
        stream.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")
        count += 1
    return count


def _write_csv(stream: IO[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]], delimiter: str) -> int:
    table = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    count = 0
    for row in rows:
        cells = _plain(row).items()
        table.writerow({key: json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list | bool) else cell for key, cell in cells})
        count += 1
    return count


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    pyarrow = _pyarrow()
    held = [_plain(row) for row in rows]
    arrays, fields = [], []
    for name in columns:
        cells = [row.get(name) for row in held]
        plain = {type(cell) for cell in cells if cell is not None}
        mixed = len(plain) > 1 or not plain <= {str, int, bool, float}
        array = pyarrow.array([cell if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells] if mixed else cells)
        arrays.append(array)
        fields.append(pyarrow.field(name, array.type, metadata=_JSON_COLUMN if mixed else None))
    pyarrow.parquet.write_table(pyarrow.table(arrays, schema=pyarrow.schema(fields)), path)
    return len(held)


def _plain(row: Mapping[str, Any]) -> Row:
    return {key: cell.isoformat() if isinstance(cell, datetime) else cell for key, cell in row.items()}


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    return pyarrow
