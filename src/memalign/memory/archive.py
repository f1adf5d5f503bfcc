"""The file that an export is: JSON lines in one zstd stream, a header first, a checksum last. docs/format.md describes it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, String, Table, TypeDecorator

from memalign.errors import BadRecord, ConfigurationError, StoreError
from memalign.records import canonical, content_hash
from memalign.stores import schema
from memalign.stores.types import parsed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = "memalign memory"
VERSION = 1
"""Of the format. A reader refuses a higher one; a new optional column does not raise it."""

KINDS: Mapping[str, Table] = {
    "revision": schema.revision,
    "tombstone": schema.tombstone,
    "feedback": schema.feedback,
    "guideline": schema.guideline,
    "question": schema.question,
    "vector": schema.vector,
    "verdict": schema.verdict,
    "call": schema.ledger,
}
"""The kinds of lines between header and end, in the order of the file, and the table whose columns they have."""

JSON_COLUMNS: Mapping[str, frozenset[str]] = {
    "feedback": frozenset({"inputs", "outputs", "expectations", "value", "judged"}),
    "verdict": frozenset({"value"}),
}
"""Columns that hold canonical JSON: in the file they are the values themselves."""

LINKS = ("evidence", "taint", "trials")
"""What a guideline's line has beside its columns."""

_LEFT_OUT = frozenset({"row", "judge_id"})
_LONGEST = 1 << 28
"""Bytes of a line."""
_MAGIC = b"\x28\xb5\x2f\xfd"

Line = tuple[int, str, dict[str, Any]]
"""Number, kind and fields."""


@cache
def columns(kind: str) -> dict[str, Column[Any]]:
    """The columns of a kind of line."""
    return {column.name: column for column in KINDS[kind].columns if column.name not in _LEFT_OUT}


def fields_of(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the database as the fields of a line."""
    fields: dict[str, Any] = {}
    for field in _shape(kind):
        value = row[field.name]
        if value is not None and field.is_json:
            value = parsed(value)
        elif value is not None and field.is_binary:
            value = base64.b64encode(value).decode()
        fields[field.name] = value
    return fields


def row_of(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line as the columns of a row; what the file lacks has its default in the database."""
    row: dict[str, Any] = {}
    for field in _shape(kind):
        if field.name not in fields:
            continue
        value = fields[field.name]
        if field.is_json and not (value is None and field.nullable):
            value = canonical(value)
        elif value is not None and field.is_binary:
            value = base64.b64decode(value)
        row[field.name] = value
    return row


class _Field(NamedTuple):
    name: str
    types: tuple[type, ...]
    """In Python, as JSON gives them; a number that is true or false fits only where that is meant."""
    nullable: bool
    has_default: bool
    is_json: bool
    is_binary: bool


@cache
def _shape(kind: str) -> tuple[_Field, ...]:
    decoded, fields = JSON_COLUMNS.get(kind, frozenset()), []
    for name, column in columns(kind).items():
        plain: Any = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
        types = next(types for sort, types in _TYPES if isinstance(plain, sort))
        nullable, default = bool(column.nullable), column.server_default is not None
        fields.append(_Field(name, types, nullable, default, name in decoded, isinstance(plain, LargeBinary)))
    return tuple(fields)


_TYPES: tuple[tuple[type, tuple[type, ...]], ...] = (
    (Boolean, (bool,)),
    (Integer, (int,)),
    (Float, (int, float)),
    (String, (str,)),
    (LargeBinary, (str,)),
)


class Writer:
    """Writes the lines of an archive, and counts and digests them."""

    def __init__(self, stream: zstd.ZstdFile) -> None:
        self._stream = stream
        self._digest = hashlib.blake2b(digest_size=32)
        self.lines = 0

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append a line."""
        line = _encoded({"kind": kind, **fields})
        self._stream.write(line)
        self._digest.update(line)
        self.lines += 1

    def end(self) -> None:
        """Append the last line."""
        self._stream.write(_encoded({"kind": "end", "lines": self.lines, "blake2b": self._digest.hexdigest()}))


@contextmanager
def writing(path: Path, *, overwrite: bool) -> Iterator[Writer]:
    """A writer whose file takes its name when it is complete and on the disk, and is gone when anything fails.

    Raises ConfigurationError for a file that exists (unless ``overwrite``) or a folder that does not, StoreError when it cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError(f"cannot export to {path}: {'it is a folder' if path.is_dir() else f'the folder {path.parent} does not exist'}")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists; name another file, or overwrite it with --overwrite (overwrite=True)")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as raw:
            with zstd.ZstdFile(raw, "wb", options={zstd.CompressionParameter.checksum_flag: 1}) as stream:
                writer = Writer(stream)
                yield writer
                writer.end()
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror or error}); no file was left: free space or check the permissions") from error
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path, *, known: str = "") -> Iterator[Line]:
    """Yield the header and all lines behind it, checked one by one, the end as well; that the file is whole is known only then.

    With a digest that is ``known`` from an earlier reading the lines are not checked again, but must be the same.
    Holds one line at a time. Raises ConfigurationError when there is no such file, StoreError when it is foreign, newer, truncated or damaged.
    """
    try:
        with path.open("rb") as raw:
            if raw.read(len(_MAGIC)) != _MAGIC:
                raise StoreError(f"{path} is no export of memalign (it is not zstd); nothing was changed")
            raw.seek(0)
            with zstd.ZstdFile(raw, "rb") as stream:
                yield from _lines(path, stream, known)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no file {path}; check the path") from error
    except EOFError as error:
        _truncated(path, error)
    except zstd.ZstdError as error:
        raise StoreError(f"{path} is damaged ({error}); nothing was changed: copy or export it again") from error
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror or error}); nothing was changed") from error


def _lines(path: Path, stream: zstd.ZstdFile, known: str) -> Iterator[Line]:
    digest, number, stage = hashlib.blake2b(digest_size=32), 0, -1
    order = list(KINDS)
    while raw := stream.readline(_LONGEST):
        number += 1
        fields = _decoded(path, number, raw)
        kind = fields.pop("kind")
        if number == 1:
            _check_header(path, kind, fields)
        elif kind == "end":
            found = digest.hexdigest()
            if fields != {"lines": number - 1, "blake2b": found} or found != (known or found) or stream.read(1):
                raise StoreError(f"{path} was changed after it was written: its checksum does not fit; nothing was changed here")
            yield number, kind, fields
            return
        elif kind not in KINDS or order.index(kind) < stage:
            _bad(path, number, f"a line of the kind {kind!r} does not belong here")
        else:
            stage = order.index(kind)
            try:
                if not known:
                    _check(kind, fields)
            except (BadRecord, ValueError) as error:
                _bad(path, number, str(error))
        digest.update(raw)
        yield number, kind, fields
    _truncated(path)


def _decoded(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    if not raw.endswith(b"\n"):
        if len(raw) < _LONGEST:
            _truncated(path)
        _bad(path, number, f"is longer than {_LONGEST} bytes")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if number == 1:
            raise StoreError(f"{path} is no export of memalign; nothing was changed") from error
        _bad(path, number, "is no JSON")
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str):
        if number == 1:
            raise StoreError(f"{path} is no export of memalign; nothing was changed")
        _bad(path, number, "has no kind")
    return fields


def _check_header(path: Path, kind: str, header: Mapping[str, Any]) -> None:
    if kind != "header" or header.get("format") != FORMAT or not isinstance(header.get("version"), int):
        raise StoreError(f"{path} is no export of memalign; nothing was changed")
    if header["version"] > VERSION:
        raise StoreError(
            f"{path} has format {header['version']}, written by memalign {header.get('memalign')}; this one reads formats up to {VERSION}: "
            "upgrade memalign. Nothing was changed"
        )
    judge, counts = header.get("judge"), header.get("counts")
    texts = isinstance(judge, dict) and all(isinstance(judge.get(name), str) for name in ("name", "secret", "created_at"))
    if not texts or not isinstance(judge["settings"], dict) or not isinstance(counts, dict) or not _whole(header.get("revision")):  # type: ignore[index]
        _bad(path, 1, "the header is incomplete")


def _check(kind: str, fields: Mapping[str, Any]) -> None:
    extra = fields.keys() - columns(kind) - (set(LINKS) if kind == "guideline" else set())
    if extra:
        raise ValueError(f"{sorted(extra)[0]!r} is not known here: a newer memalign wrote it; upgrade memalign")
    for name, types, nullable, has_default, is_json, _ in _shape(kind):
        value = fields.get(name)
        if value is None:
            if not (nullable or (is_json and name in fields) or (has_default and name not in fields)):
                raise ValueError(f"{name!r} is missing")
        elif not is_json and type(value) not in types:
            raise ValueError(f"{name!r} is of a wrong type")
    if kind == "feedback":
        _check_feedback(fields)
    elif kind == "guideline":
        _check_guideline(fields)
    elif kind == "vector" and len(base64.b64decode(fields["data"], validate=True)) != 4 * fields["dimension"]:
        raise ValueError("'data' does not have 4 bytes a dimension")


def _check_feedback(fields: Mapping[str, Any]) -> None:
    if content_hash(fields["inputs"], fields["outputs"], fields["expectations"]) != fields["item_id"]:
        raise ValueError("'item_id' is not the digest of the item")
    for name in ("created_at", "stored_at"):
        datetime.fromisoformat(fields[name])


def _check_guideline(fields: Mapping[str, Any]) -> None:
    if not (fields["id"][:1] == "g" and fields["id"][1:].isdecimal()):
        raise ValueError("'id' is no guideline's")
    for name, size in (("evidence", 3), ("taint", 2)):
        links = fields.get(name)
        if not isinstance(links, list) or not all(
            isinstance(link, list) and len(link) == size and isinstance(link[0], str) and all(map(_whole, link[1:])) for link in links
        ):
            raise ValueError(f"{name!r} is no list of [record, version{', sign' if size == 3 else ''}]")
    trials = fields.get("trials")
    wanted = {column.name for column in schema.trial.columns} - {"row", "guideline_row"}
    if not isinstance(trials, list) or not all(isinstance(trial, dict) and set(trial) == wanted for trial in trials):
        raise ValueError(f"'trials' is no list of objects with {', '.join(sorted(wanted))}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encoded(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _bad(path: Path, number: int, reason: str) -> NoReturn:
    raise StoreError(f"{path}, line {number}: {reason}; nothing was changed")


def _truncated(path: Path, error: Exception | None = None) -> NoReturn:
    raise StoreError(f"{path} is truncated: its end is missing; nothing was changed: copy or export it again") from error
