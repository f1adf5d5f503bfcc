"""What the stores have in common: opened at first use, once a process, with the schema brought up; foreign errors translated."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, Select, Table, and_, column, func, inspect, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from memalign.errors import MemalignError, StoreError
from memalign.stores.migrations import HEAD, migrate
from memalign.stores.schema import metadata

WAIT_SECONDS = 60.0
"""How long a writer waits for its turn."""

_inherited: list[Engine] = []
"""Engines of the parent process, kept for ever: to close one of their connections here would disturb the parent's."""


class Database(ABC):
    """A store on an SQLAlchemy engine. Safe for threads, forks and several processes."""

    _namespace: ClassVar[str | None] = None
    """The schema, in the sense of SQL, in which the tables lie."""
    _driver_errors: tuple[type[Exception], ...] = ()
    """What the driver raises when it is used without SQLAlchemy."""

    def __init__(self, location: str | None, wait_seconds: float) -> None:
        self._location = location
        self._wait_seconds = wait_seconds
        self._engine: Engine | None = None
        self._before: str | None = None
        self._pid = 0
        self._lock = threading.RLock()

    @property
    def location(self) -> str | None:
        """Where it lies, fit to be shown, or None for RAM."""
        return self._location

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot; sees nothing of a transaction that is under way."""
        with self._translating(), self._transaction(self._open(), writing=False) as connection:
            yield connection

    @property
    def near(self) -> bool:
        """Only what lies in a file on this machine is."""
        return False

    def fetch(self, query: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Any]:
        """All rows of one query."""
        with self.reading() as connection:
            return connection.execute(query, parameters).all()

    @contextmanager
    def writing(self, judge_id: int | None = None) -> Iterator[Connection]:
        """A transaction that holds the write lock, of one judge or of all, from its start."""
        with self._translating(), self._transaction(self._open(), writing=True, judge_id=judge_id) as connection:
            yield connection

    def upgrade(self) -> tuple[str | None, str]:
        """The version of the schema when this store was opened, and now."""
        with self._translating():
            self._open()
        return self._before, HEAD

    def faults(self) -> list[str]:
        """What is wrong with pages, indexes and references."""
        with self.reading() as connection:
            return self._damage(connection) or _orphans(connection)

    def link(self, _embedder: str, _dimension: int, _stop: Callable[[], bool]) -> bool:
        """Most databases have no such index."""
        return False

    def nearest(self, _judge_id: int, _embedder: str, _query: bytes, _count: int) -> Sequence[str] | None:
        """Most databases have no such index."""
        return None

    def unlink(self) -> int:
        """Most databases have no such index."""
        return 0

    def close(self) -> None:
        """Give back all connections."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            if self._pid == os.getpid():
                engine.dispose()
            else:
                _inherited.append(engine)

    @abstractmethod
    def _new_engine(self) -> Engine:
        """An engine on a place that can hold the schema."""

    @abstractmethod
    def _transaction(self, engine: Engine, *, writing: bool, judge_id: int | None = None) -> AbstractContextManager[Connection]:
        """A transaction as ``reading`` and ``writing`` promise."""

    @abstractmethod
    def _translated(self, error: Exception) -> MemalignError:
        """A foreign error in memalign's words; never with a password."""

    @abstractmethod
    def _damage(self, connection: Connection) -> list[str]:
        """What the database finds wrong with its pages and indexes."""

    def _prepare(self, engine: Engine) -> None:  # noqa: B027 - most have nothing to do
        """Set what outlives connections, once it is known that the database is no one else's."""

    @contextmanager
    def _translating(self) -> Iterator[None]:
        foreign: tuple[type[Exception], ...] = (SQLAlchemyError, *self._driver_errors)
        try:
            yield
        except foreign as error:
            raise self._translated(_cause(error)) from error

    def _open(self) -> Engine:
        engine = self._engine
        if engine is None or self._forked():
            with self._lock:
                if self._forked():
                    self.close()
                if self._engine is None:
                    engine = self._new_engine()
                    try:
                        self._migrate(engine)
                    except BaseException:
                        engine.dispose()
                        raise
                    self._engine, self._pid = engine, os.getpid()
                engine = self._engine
        return engine

    def _forked(self) -> bool:
        """Whether the connections belong to the parent process: neither sockets nor SQLite's locks survive a fork, memory in RAM does."""
        return self._engine is not None and self._location is not None and self._pid != os.getpid()

    def _migrate(self, engine: Engine) -> None:
        with self._transaction(engine, writing=False) as connection:
            self._before = self._version(connection)  # refuses a foreign database before anything is written to it
        self._prepare(engine)
        if self._before == HEAD:
            return
        with self._transaction(engine, writing=True) as connection:
            if self._version(connection) != HEAD:  # else another process was faster
                migrate(connection, namespace=self._namespace)

    def _version(self, connection: Connection) -> str | None:
        tables = inspect(connection).get_table_names(schema=self._namespace)
        if not tables:
            return None
        if "alembic_version" not in tables or "feedback" not in tables:
            raise StoreError(f"{self.location} is a database, but not a memory of memalign; name another one")
        versions = table("alembic_version", column("version_num"), schema=self._namespace)
        version: str | None = connection.execute(select(versions.c.version_num)).scalar()
        if version is not None and version > HEAD:
            raise StoreError(f"{self.location} was written by a newer memalign (schema {version}, this one knows {HEAD}); upgrade memalign")
        return version


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; one whose key another writer has just taken stays as that one wrote it."""
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def found_in(blocks: Iterable[bytes], passages: Sequence[bytes]) -> set[bytes]:
    """Which passages stand in what the blocks make together."""
    found, rest = set[bytes](), b""
    longest = max(map(len, passages), default=0)
    for block in blocks:
        seen = rest + block
        found |= {passage for passage in passages if passage in seen}
        rest = seen[-longest:]
    return found


def _cause(error: Exception) -> Exception:
    """What the driver said, or else SQLAlchemy's own complaint."""
    return error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error


def _orphans(connection: Connection) -> list[str]:
    """References that lead nowhere."""
    found = []
    for child in metadata.sorted_tables:
        for key in child.foreign_key_constraints:
            parent: Table = key.referred_table.alias("parent")  # type: ignore[assignment]
            match = and_(*(element.parent == parent.c[element.column.name] for element in key.elements))
            missing = next(iter(parent.primary_key)).is_(None)
            given = and_(*(element.parent.is_not(None) for element in key.elements))
            query = select(func.count()).select_from(child.outerjoin(parent, match)).where(missing, given)
            if count := connection.execute(query).scalar_one():
                found.append(f"{count} row(s) of {child.name} refer to a row of {key.referred_table.name} that is not there")
    return found
