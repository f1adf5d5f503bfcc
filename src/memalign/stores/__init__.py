"""Stores: the protocol, and the one place that turns a location into a database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Store(Protocol):
    """A database with memalign's schema.

    All back-ends hold the tables of ``memalign.stores.schema``; what differs between them stays behind these three methods. They raise
    StoreBusy (another writer held the lock too long) and StoreError (corrupt, unwritable, foreign or newer database).
    """

    @property
    def location(self) -> str | None:
        """Where it lies, or None when it is in RAM only."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection on one consistent snapshot; concurrent with any writer."""

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that holds the write lock from its start: all of it happens, or nothing. Writers wait their turn."""

    def close(self) -> None:
        """Give back connections; the store may be used again afterwards, except one in RAM, which is lost."""


def open_store(location: str | None) -> Store:
    """The store at a location: a file path, or None for RAM. The schema is created, or migrated up, as needed.

    Raises ConfigurationError for a location of an unknown kind, StoreError as the protocol says.
    """
    from memalign.errors import ConfigurationError
    from memalign.stores.sqlite import SqliteStore

    if location is not None and "://" in location:
        raise ConfigurationError(f"memory {location.split('://')[0]}://... is not supported; give the path of a file, e.g. support.db")
    return SqliteStore(location)
