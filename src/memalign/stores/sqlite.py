"""SQLite: WAL, one writer, many readers, deleted bytes overwritten."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from memalign.errors import ConfigurationError, MemalignError, StoreBusy, StoreError

HEAD = "0002"
"""The schema's newest migration."""

WAIT_SECONDS = 60.0
"""How long a writer waits for its turn."""


_migrating = threading.Lock()
"""Alembic keeps the connection it works on in a module: two stores must not migrate at the same time."""


class SqliteStore:
    """A store in one file, or in RAM when the location is None. Opens at first use; safe for threads, forks and several processes."""

    def __init__(self, location: str | None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._location = location
        self._wait_seconds = wait_seconds
        self._engine: Engine | None = None
        self._writer: Engine
        """The same connections, whose transactions hold the write lock from their start."""
        self._pid = 0
        self._lock = threading.RLock()

    @property
    def location(self) -> str | None:
        """The path of the file, or None for RAM."""
        return self._location

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot; sees nothing of a transaction that is under way."""
        with self._connection(writing=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its start."""
        with self._connection(writing=True) as connection:
            yield connection

    def close(self) -> None:
        """Close the file's connections."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose(close=not self._forked())
                self._engine = None

    @contextmanager
    def _connection(self, *, writing: bool) -> Iterator[Connection]:
        in_ram = self._location is None
        if in_ram:  # one connection serves all threads, so they take turns
            self._lock.acquire()
        try:
            engine = self._open()
            with (self._writer if writing else engine).connect() as connection, connection.begin():
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._translated(error) from error
        finally:
            if in_ram:
                self._lock.release()

    def _open(self) -> Engine:
        if self._engine is None or self._forked():
            with self._lock:
                if self._forked():
                    self.close()
                if self._engine is None:
                    engine = self._new_engine()
                    try:
                        _migrate(engine, self._location)
                    except BaseException:
                        engine.dispose()
                        raise
                    self._writer = engine.execution_options(memalign_writing=True)
                    self._engine, self._pid = engine, os.getpid()
        return self._engine

    def _forked(self) -> bool:
        """Whether the connections belong to the parent process: SQLite's locks do not survive a fork, memory in RAM does."""
        return self._engine is not None and self._location is not None and self._pid != os.getpid()

    def _new_engine(self) -> Engine:
        if self._location is None:
            engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        else:
            path = Path(self._location)
            if path.is_dir():
                raise ConfigurationError(f"memory {self._location!r} is a folder; give the path of a file, e.g. {path / 'judge.db'}")
            if not path.parent.is_dir():
                raise ConfigurationError(f"memory {self._location!r}: the folder {path.parent} does not exist; create it first")
            engine = create_engine(
                "sqlite://",
                creator=lambda: sqlite3.connect(path, timeout=self._wait_seconds, check_same_thread=False),
                poolclass=QueuePool,
                pool_size=4,
                max_overflow=60,
                pool_reset_on_return=None,  # every use ends its own transaction
            )
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", _on_begin)
        return engine

    def _on_connect(self, connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the begin event says what kind of transaction it is
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self._wait_seconds * 1000)}")
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def _translated(self, error: Exception) -> MemalignError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        message, where = str(cause), self._location or "in RAM"
        if "locked" in message or "busy" in message:
            return StoreBusy(f"memory {where} is locked by another process for more than {self._wait_seconds:g} s; try again when it has finished")
        if "malformed" in message or "not a database" in message or "encrypted" in message:
            return StoreError(f"memory {where} is not a usable SQLite database ({message}); restore it from a copy, or name another file")
        if "readonly" in message or "unable to open" in message:
            return StoreError(f"memory {where} cannot be written ({message}); check the permissions of the file and of its folder")
        if "full" in message:
            return StoreError(f"memory {where}: the disk is full; nothing of this change was stored: free some space and repeat it")
        return StoreError(f"memory {where}: {message}")


def _on_begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("memalign_writing", False)
    # Past SQLAlchemy's own execute, which costs more than the statement; all reads of a judgement come through here.
    connection.connection.cursor().execute("BEGIN IMMEDIATE" if writing else "BEGIN").close()


def _migrate(engine: Engine, location: str | None) -> None:
    """Bring the schema to HEAD. Alembic is imported only when there is something to do: it costs more than opening the file."""
    with engine.connect() as connection, connection.begin():
        version = _version(connection, location)  # refuses a foreign file before anything is written to it
    if location is not None:
        _use_wal(engine)
    if version == HEAD:
        return
    with engine.connect() as connection:
        connection.execution_options(memalign_writing=True)
        with connection.begin():
            if _version(connection, location) == HEAD:  # another process was faster
                return
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            with _migrating:
                command.upgrade(config, HEAD)


def _use_wal(engine: Engine) -> None:
    """Keep the file in WAL from now on; a transaction cannot change it, and a file that is in WAL already takes no lock."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL").close()
    finally:
        connection.close()


def _version(connection: Connection, location: str | None) -> str | None:
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if "alembic_version" not in tables or "feedback" not in tables:
        raise StoreError(f"{location} is a database, but not a memory of memalign; name another file")
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version is not None and version > HEAD:
        raise StoreError(f"{location} was written by a newer memalign (schema {version}, this one knows {HEAD}); upgrade memalign")
    return version
