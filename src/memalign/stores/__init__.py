"""Stores: the protocol, and the one place that turns a location into a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

_POSTGRES = re.compile(r"^postgres(?:ql)?(?:\+psycopg)?://")
_USER_PART = re.compile(r"(://[^:/?@]*):.*@", re.DOTALL)
_PASSWORD_OPTION = re.compile(r"([?&](?:ssl)?password=)[^&]*")


class Store(Protocol):
    """A database with memalign's schema.

    All back-ends hold the tables of ``memalign.stores.schema``; what differs between them stays behind these methods. They raise
    StoreBusy (another writer held the lock too long), StoreUnavailable (its server cannot be reached) and StoreError (corrupt, unwritable,
    foreign or newer database).
    """

    @property
    def location(self) -> str | None:
        """Where it lies, fit to be shown (no password), or None when it is in RAM only."""

    def exists(self) -> bool:
        """Whether there is a memory already; asking makes none."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection on one consistent snapshot; concurrent with any writer."""

    @property
    def near(self) -> bool:
        """Whether ``fetch`` takes some microseconds and waits for nobody, so that it needs no thread of its own."""

    def fetch(self, query: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of one query of numbers, texts and bytes, by the names of its columns, on a snapshot of its own.

        For what every judgement asks: the same query object each time, without the cost of a connection and a transaction.
        """

    def writing(self, judge_id: int | None = None) -> AbstractContextManager[Connection]:
        """A transaction that holds a write lock from its start: all of it happens, or nothing. Writers wait their turn.

        With a ``judge_id`` it may write what is of that judge, and add vectors; a store with many writers then lets writers of other judges
        work at the same time. Without one it excludes all other writers.
        """

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema up, which opening does as well; gives its version before (None: there was none) and now."""

    def faults(self) -> list[str]:
        """What the database finds wrong with itself: pages, indexes, references. Empty when it is sound; reads all of it."""

    def vacuum(self) -> None:
        """Rewrite the database without what was deleted: its bytes are gone, and its space is given back. Excludes everyone else meanwhile."""

    def size_bytes(self) -> int:
        """How much room it takes on disk, logs of changes included where they are its own; in RAM 0."""

    def find(self, passages: Sequence[bytes]) -> Mapping[str, int]:
        """Where some bytes still stand in what it keeps: file or table -> how many of the passages were found in it."""

    def link(self, embedder: str, dimension: int, stop: Callable[[], bool]) -> bool:
        """Make an index for ``nearest``, if the database has such ones and this one is not there yet; a cache that follows changes by itself.

        False where there is none afterwards: for so many dimensions, because another process is at it, or since ``stop`` said so.
        """

    def nearest(self, judge_id: int, embedder: str, query: bytes, count: int) -> Sequence[str] | None:
        """By that index: item ids of records that hold now, nearest to a vector (little-endian float32); approximate.

        An item with several records comes several times. None where there is no such index.
        """

    def unlink(self) -> int:
        """Drop such indexes; gives how many there were."""

    def close(self) -> None:
        """Give back connections; the store may be used again afterwards, except one in RAM, which is lost."""


def open_store(location: str | None) -> Store:
    """The store at a location: a file path, postgresql://user@host/database, or None for RAM. The schema is created, or migrated up, as needed.

    Raises ConfigurationError for a location of an unknown kind, MissingExtra, StoreError as the protocol says.
    """
    from memalign.errors import ConfigurationError

    if location is not None and _POSTGRES.match(location):
        from memalign.stores.postgres import PostgresStore

        return PostgresStore(_POSTGRES.sub("postgresql://", location))
    if location is not None and "://" in location:
        kind = location.split("://")[0]
        raise ConfigurationError(
            f"memory {kind}://... is not supported; give the path of a file, e.g. support.db, or postgresql://user@host/database"
        )
    from memalign.stores.sqlite import SqliteStore

    return SqliteStore(location)


def shown(location: str | None) -> str | None:
    """A location as it may be shown: without the password, if it holds one."""
    if location is None or "://" not in location:
        return location
    return _PASSWORD_OPTION.sub(r"\1***", _USER_PART.sub(r"\1:***@", location))
