"""SQLite: WAL, one writer, many readers, deleted bytes overwritten."""

from __future__ import annotations

import glob
import sqlite3
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, LargeBinary, Select, cast, create_engine, event, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import QueuePool, StaticPool

from memalign.errors import ConfigurationError, MemalignError, StoreBusy, StoreError
from memalign.stores.database import WAIT_SECONDS, Database, found_in
from memalign.stores.schema import metadata
from memalign.stores.types import REPAIR

_MOST_FAULTS = 100
"""Lines of damage that are listed."""

_BLOCK = 1 << 24
"""Bytes that are searched at once."""


_COPY = """
import shutil, signal, sys
if hasattr(signal, "SIGPIPE"):  # whoever read has gone: there is nobody to tell
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
shutil.copyfileobj(open(sys.argv[1], "rb"), sys.stdout.buffer, 1 << 20)
"""


class SqliteStore(Database):
    """A store in one file, or in RAM when the location is None."""

    _driver_errors = (sqlite3.Error,)

    def __init__(self, location: str | None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        super().__init__(location, wait_seconds)
        self._writer: Engine
        """The same connections, whose transactions hold the write lock from their start."""

    def exists(self) -> bool:
        """Whether the file is there; RAM always is."""
        return self._location is None or Path(self._location).exists()

    def size_bytes(self) -> int:
        """The file with its log; 0 in RAM."""
        if self._location is None:
            return 0
        files = [Path(self._location + end) for end in ("", "-wal")]
        return sum(path.stat().st_size for path in files if path.exists())

    def vacuum(self) -> None:
        """Rewrite the file, and empty its log."""
        with self._translating():
            connection = self._open().raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute("VACUUM")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                cursor.close()
            finally:
                connection.close()
        if busy:
            raise StoreBusy(f"memory {self._location} is read by others for more than {self._wait_seconds:g} s; try again when they have finished")

    def find(self, passages: Sequence[bytes]) -> dict[str, int]:
        """Searched: the file and all that lie beside it under its name (log, caches, copies); of a memory in RAM its pages."""
        if not passages:
            return {}
        if self._location is None:
            with self.reading() as connection:
                pages = connection.connection.dbapi_connection.serialize()  # type: ignore[union-attr]
            found = {"RAM": sum(passage in pages for passage in passages)}
        else:
            path = Path(self._location)
            beside = [each for each in path.parent.glob(f"{glob.escape(path.name)}*") if each.is_file()]
            found = {each.name: len(found_in(_blocks(each), passages)) for each in sorted(beside)}
        return {place: count for place, count in found.items() if count}

    @property
    def near(self) -> bool:
        """A file is: readers wait for no writer. In RAM all take turns."""
        return self._location is not None

    def fetch(self, query: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Any]:
        """All rows of one query, by the driver itself: one statement is a snapshot, and SQLAlchemy would take ten times as long as SQLite."""
        if self._location is None:
            return super().fetch(query, parameters)
        text, names, row = _compiled(query)
        with self._translating():
            connection = self._open().raw_connection()
            try:
                cursor = connection.cursor()
                found = cursor.execute(text, [parameters[name] for name in names]).fetchall()
                cursor.close()
            finally:
                connection.close()
        return [*map(row, found)]

    @contextmanager
    def _transaction(self, engine: Engine, *, writing: bool, judge_id: int | None = None) -> Iterator[Connection]:
        in_ram = self._location is None
        if in_ram:  # one connection serves all threads, so they take turns
            self._lock.acquire()
        try:
            with (self._writer if writing else engine).connect() as connection, connection.begin():
                yield connection
        finally:
            if in_ram:
                self._lock.release()

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
        self._writer = engine.execution_options(memalign_writing=True)
        return engine

    def _prepare(self, engine: Engine) -> None:
        """Keep the file in WAL from now on; a transaction cannot change it, and a file that is in WAL already takes no lock."""
        if self._location is None:
            return
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL").close()
        finally:
            connection.close()

    def _damage(self, connection: Connection) -> list[str]:
        found = list(connection.exec_driver_sql(f"PRAGMA integrity_check({_MOST_FAULTS})").scalars())
        return list(_undecodable(connection)) if found == ["ok"] else found

    def _on_connect(self, connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the begin event says what kind of transaction it is
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self._wait_seconds * 1000)}")
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def _translated(self, error: Exception) -> MemalignError:
        message, where = str(error), self._location or "in RAM"
        if "locked" in message or "busy" in message:
            return StoreBusy(f"memory {where} is locked by another process for more than {self._wait_seconds:g} s; try again when it has finished")
        if "Could not decode" in message:
            return StoreError(f"memory {where} holds a damaged text; {REPAIR}")
        if "malformed" in message or "not a database" in message or "encrypted" in message:
            return StoreError(f"memory {where} is not a usable SQLite database ({message}); restore it from a copy, or name another file")
        if "readonly" in message or "unable to open" in message:
            return StoreError(f"memory {where} cannot be written ({message}); check the permissions of the file and of its folder")
        if "full" in message:
            return StoreError(f"memory {where}: the disk is full; nothing of this change was stored: free some space and repeat it")
        if "disk I/O" in message:  # what SQLite says of a full disk when it was not the database itself that could not grow
            return StoreError(
                f"memory {where}: the disk is full, over its quota or failing ({message}); nothing of this change was stored: "
                "free some space and repeat it"
            )
        return StoreError(f"memory {where}: {message}")


@lru_cache(maxsize=32)
def _compiled(query: Select[Any]) -> tuple[str, Sequence[str], Callable[[Any], Any]]:
    """The text of a query, the names of its parameters in order, and what makes a row of what the driver gives."""
    compiled = query.compile(dialect=sqlite.dialect())
    made: Any = namedtuple  # else the type checker wants the names here
    row = made("Row", query.selected_columns.keys(), rename=True)
    return str(compiled), compiled.positiontup or (), row._make


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, read by another process.

    Closing a file drops every lock that the process has on it (POSIX), SQLite's among them: others would then take the memory for unused, and cut
    short the log's index under those who read it.
    """
    command = [sys.executable, "-I", "-S", "-c", _COPY, str(path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as copying:  # noqa: S603 - our own words and path
        assert copying.stdout is not None
        while block := copying.stdout.read(_BLOCK):
            yield block
    if copying.returncode:
        raise StoreError(f"{path.name} could not be read through; look at the message above, and purge again")


def _undecodable(connection: Connection) -> Iterator[str]:
    """Texts that are not valid UTF-8, which SQLite itself does not look at."""
    connection.connection.dbapi_connection.create_function("decodes", 1, _decodes)  # type: ignore[union-attr]
    for table in metadata.sorted_tables:
        for column in table.columns:
            query = select(func.count()).select_from(table).where(func.typeof(column) == "text", func.decodes(cast(column, LargeBinary)) == 0)
            if count := connection.execute(query).scalar_one():
                yield f"{count} text(s) in {table.name}.{column.name} are not valid UTF-8"


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _on_begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("memalign_writing", False)
    # Past SQLAlchemy's own execute, which costs more than the statement; all reads of a judgement come through here.
    connection.connection.cursor().execute("BEGIN IMMEDIATE" if writing else "BEGIN").close()
