"""Column types: one meaning in Python, in each database the form that suits it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Dialect, LargeBinary, String, Text, TypeDecorator, func
from sqlalchemy.types import TypeEngine, UserDefinedType

from memalign.errors import StoreError

REPAIR = "see what else is with: memalign db check, and restore the memory from a copy or an export"
"""What to do about damage."""

_POSTGRES = "postgresql"


def parsed(text: str) -> Any:
    """The value of a stored JSON text. Raises StoreError, which does not show it, when it is damaged."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"a text in this memory is damaged ({error}); {REPAIR}") from None


class Words(TypeDecorator[str]):
    r"""Text of any length that people, files or models wrote. ``length`` is what SQLite's schema says, where it binds nobody.

    PostgreSQL's text can hold no NUL: there it is written as ``\x01`` and ``0``, and ``\x01`` as ``\x01`` and ``1``, so that nothing is lost and
    equal texts stay equal.
    """

    impl = Text
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """The column's type in a database."""
        return Text() if dialect.name == _POSTGRES or self.length is None else String(self.length)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is stored."""
        if value is None or dialect.name != _POSTGRES or not ("\x00" in value or "\x01" in value):
            return value
        return value.replace("\x01", "\x011").replace("\x00", "\x010")

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """None where nothing is to be undone: a call for each value read takes a third of the time of reading."""
        return super().result_processor(dialect, coltype) if dialect.name == _POSTGRES else None

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """What was meant."""
        if value is None or dialect.name != _POSTGRES or "\x01" not in value:
            return value
        return value.replace("\x010", "\x00").replace("\x011", "\x01")


class Numbers(TypeDecorator[bytes]):
    """A vector as little-endian float32 bytes: a blob in SQLite, pgvector's ``vector`` in PostgreSQL, sent by it in binary form."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type in a database."""
        return PgVector() if dialect.name == _POSTGRES else LargeBinary()


class PgVector(UserDefinedType[bytes]):
    """pgvector's type: written as text, which keeps every bit of a float32, and read in the form of ``vector_send``."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        """Its name in SQL."""
        return "VECTOR"

    def bind_processor(self, _dialect: Dialect) -> Any:
        """Bytes to ``[1.0,2.0]``."""
        return lambda data: None if data is None else as_text(data)

    def column_expression(self, colexpr: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read as bytes: two of dimension, two unused, then big-endian float32."""
        return func.vector_send(colexpr, type_=self)

    def result_processor(self, _dialect: Dialect, _coltype: object) -> Any:
        """The bytes of ``vector_send`` to little-endian float32."""
        return lambda sent: None if sent is None else np.frombuffer(sent, dtype=">f4", offset=4).astype("<f4").tobytes()


def as_text(data: bytes) -> str:
    """A vector as pgvector reads it."""
    return f"[{','.join(map(repr, np.frombuffer(data, dtype='<f4').tolist()))}]"
