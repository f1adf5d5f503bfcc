"""PostgreSQL with pgvector: a server for teams; writers of different judges work side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, RootTransaction, String, Text, cast, create_engine, func, select
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from memalign.errors import ConfigurationError, MemalignError, MissingExtra, StoreBusy, StoreError, StoreUnavailable
from memalign.stores import neighbours, shown
from memalign.stores.database import WAIT_SECONDS, Database, found_in
from memalign.stores.schema import metadata

if TYPE_CHECKING:
    import psycopg

NAMESPACE = "memalign"
"""The schema, in the sense of SQL, that holds the tables: they can stand in a database beside others."""

_LOCKS = 0x6D656D61
"""The first key of all advisory locks; the second is a judge's id, or 0 for all judges."""

_KEPT_OPEN, _MOST_OPEN = 4, 20
"""Connections of one process that stay open when idle, and at most."""

_CONNECT_SECONDS = 10

_BUSY = {"55P03", "40P01", "40001", "57014"}
_AWAY = {"57P01", "57P02", "57P03", "57P05", "53300", "25P03", "25P04"}
_FULL = {"53100", "53200"}
_READ_ONLY = {"25006", "0A000"}
_REFUSED = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist", "is not permitted to log in")
_NOT_YET = ("starting up", "shutting down", "too many clients", "too many connections", "connection slots", "recovery mode")


class PostgresStore(Database):
    """A store on a server. The location is what libpq accepts as a URL; environment, password file and service file work as usual."""

    _namespace = NAMESPACE

    def __init__(self, location: str, *, wait_seconds: float = WAIT_SECONDS) -> None:
        super().__init__(location, wait_seconds)
        self._url = location
        self._search_path = NAMESPACE
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("psycopg", "postgres") from error
        self._driver_errors = (psycopg.Error,)

    @property
    def location(self) -> str | None:
        """The URL without its password."""
        return shown(self._url)

    def exists(self) -> bool:
        """Whether the database holds the tables."""
        with self._translating(), self._connect() as connection:
            return _one(connection, f"SELECT to_regclass('{NAMESPACE}.alembic_version') IS NOT NULL") is True

    def size_bytes(self) -> int:
        """All tables with their indexes; not the server's log of changes."""
        with self.reading() as connection:
            tables = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace"
            return int(connection.exec_driver_sql(f"{tables}('{NAMESPACE}')").scalar_one())

    def vacuum(self) -> None:
        """Rewrite each table and its indexes; each is closed to all others meanwhile.

        Graphs are dropped first and made anew by whoever searches next: to rewrite one takes a minute for 60,000 vectors.
        """
        self.unlink()
        with self._translating(), self._connect() as connection:
            connection.execute(f"SET lock_timeout = {self._wait_milliseconds}")
            for table in metadata.sorted_tables:
                connection.execute(f'VACUUM (FULL, ANALYZE) "{NAMESPACE}"."{table.name}"')

    def find(self, passages: Sequence[bytes]) -> dict[str, int]:
        """Searched: all rows of all tables, as a dump would hold them, without vectors, and the planner's samples. The server's files are its own."""
        found: dict[str, int] = {}
        self.upgrade()
        with self._translating(), self._connect() as connection, connection.cursor() as cursor:
            for table in metadata.sorted_tables if passages else ():
                columns = ", ".join(f'"{column.name}"' for column in table.columns if isinstance(column.type, String))
                if columns:
                    with cursor.copy(f'COPY "{NAMESPACE}"."{table.name}" ({columns}) TO STDOUT') as copy:
                        found[table.name] = len(found_in(map(bytes, copy), passages))
            if passages:
                samples = cursor.execute("SELECT convert_to(s::text, 'UTF8') FROM pg_stats s WHERE schemaname = %s", (NAMESPACE,))
                found["samples of the planner"] = len(found_in((row[0] for row in samples), passages))
        return {table: count for table, count in found.items() if count}

    def link(self, embedder: str, dimension: int, stop: Callable[[], bool]) -> bool:
        """Make pgvector's graph of an embedder's vectors; writers go on meanwhile."""
        self.upgrade()
        with self._translating(), self._connect() as connection:
            connection.execute(f"SET search_path = {self._search_path}")
            return neighbours.link(connection, NAMESPACE, _LOCKS + 1, embedder, dimension, stop)

    def nearest(self, judge_id: int, embedder: str, query: bytes, count: int) -> list[str] | None:
        """By pgvector's graph."""
        with self.reading() as connection:
            driver: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
            return neighbours.near(driver, NAMESPACE, judge_id, embedder, query, count)

    def unlink(self) -> int:
        """Drop pgvector's graphs."""
        self.upgrade()
        with self._translating(), self._connect() as connection:
            connection.execute(f"SET lock_timeout = {self._wait_milliseconds}")
            return neighbours.unlink(connection, NAMESPACE)

    @contextmanager
    def _transaction(self, engine: Engine, *, writing: bool, judge_id: int | None = None) -> Iterator[Connection]:
        connection, transaction = self._begun(engine, self._beginning(judge_id) if writing else self._snapshot)
        with connection, transaction:
            yield connection

    @property
    def _snapshot(self) -> str:
        return f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = {self._search_path}"

    def _beginning(self, judge_id: int | None) -> str:
        """A writer's first words: it waits for its turn, and only then does it look: READ COMMITTED sees what the one before it has written.

        Whoever writes for one judge shares the lock of all judges.
        """
        patience = f"SET LOCAL lock_timeout = {self._wait_milliseconds}"
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL search_path = {self._search_path}; {patience}"
        if judge_id is None:
            return f"{begin}; SELECT pg_advisory_xact_lock({_LOCKS}, 0)"
        return f"{begin}; SELECT pg_advisory_xact_lock_shared({_LOCKS}, 0); SELECT pg_advisory_xact_lock({_LOCKS}, {int(judge_id)})"

    @property
    def _wait_milliseconds(self) -> int:
        return max(1, int(self._wait_seconds * 1000))

    def _begun(self, engine: Engine, statements: str) -> tuple[Connection, RootTransaction]:
        """A connection on which the statements were executed in one message; one that broke while it lay idle is replaced."""
        import psycopg

        for attempt in range(_KEPT_OPEN + 1):
            connection = engine.connect()
            try:
                transaction = connection.begin()
                driver: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
                driver.execute(statements, prepare=False)
                return connection, transaction
            except psycopg.OperationalError:
                broken = driver.closed
                if broken:
                    connection.invalidate()
                connection.close()
                if not broken or attempt == _KEPT_OPEN:
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("the last attempt raises or returns")

    def _new_engine(self) -> Engine:
        with self._connect() as connection:
            self._search_path = _prepared(connection)
        return create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=QueuePool,
            pool_size=_KEPT_OPEN,
            max_overflow=_MOST_OPEN - _KEPT_OPEN,
            pool_timeout=self._wait_seconds,
        )

    def _connect(self) -> psycopg.Connection[Any]:
        """A connection that begins no transaction by itself."""
        import psycopg

        try:
            given = psycopg.conninfo.conninfo_to_dict(self._url)
        except psycopg.ProgrammingError:  # its message may quote a piece of the password
            raise ConfigurationError(
                "the memory's URL cannot be read; it must look like postgresql://user@host:5432/database, with special characters "
                "of user and password percent-encoded (or leave the password to PGPASSWORD or a password file)"
            ) from None
        usual: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "application_name": "memalign"}
        return psycopg.connect(**(usual | given), autocommit=True)

    def _damage(self, connection: Connection) -> list[str]:
        """Indexes that are not valid; every row is read whole, which raises StoreError where a page or a long value is damaged."""
        invalid = "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE NOT i.indisvalid"
        names = connection.exec_driver_sql(f"{invalid} AND c.relnamespace = to_regnamespace('{NAMESPACE}')").scalars().all()
        for table in metadata.sorted_tables:
            widths = [func.sum(func.length(cast(column, Text))) for column in table.columns]
            connection.execute(select(*widths)).one()
        lasting = [name for name in names if not name.rpartition(".")[2].startswith(neighbours.PREFIX)]  # a graph may be in the making
        return [f"index {name} is not valid: rebuild it with REINDEX" for name in lasting]

    def _translated(self, error: Exception) -> MemalignError:
        state, where = getattr(error, "sqlstate", None) or "", self.location
        message = _first_line(error)
        if isinstance(error, PoolTimeout):
            return StoreBusy(f"memory {where}: all {_MOST_OPEN} connections of this process were in use for {self._wait_seconds:g} s; try again")
        if state in _BUSY:
            return StoreBusy(f"memory {where} is locked by another process for more than {self._wait_seconds:g} s ({message}); try again")
        if state in _AWAY or state.startswith("08") or (not state and any(words in message for words in _NOT_YET)):
            return StoreUnavailable(f"memory {where}: the server takes no work just now ({message}); try again")
        if state in _FULL:
            return StoreError(f"memory {where}: the server's disk or memory is full ({message}); nothing of this change was stored: repeat it")
        if state in _READ_ONLY:
            return StoreError(f"memory {where} cannot be written ({message}); name the primary server, or a user who may write")
        if state == "42501":
            return StoreError(f"memory {where}: {message}; let the database's owner grant it, see docs/postgresql.md")
        if state.startswith("28") or (not state and any(words in message for words in _REFUSED)):
            return ConfigurationError(f"memory {where}: the server refuses ({message}); check user, password and database name of the URL")
        if not state and type(error).__name__ in ("OperationalError", "ConnectionTimeout"):
            return StoreUnavailable(f"memory {where}: no connection to the server ({message}); check that it runs, and the URL's host and port")
        return StoreError(f"memory {where}: {message}")


def _prepared(connection: psycopg.Connection[Any]) -> str:
    """Make schema and extension where they are missing; gives the search path. Raises StoreError naming what only an administrator may do."""
    where = "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    home, made = _one(connection, where), _one(connection, f"SELECT to_regnamespace('{NAMESPACE}') IS NOT NULL")
    if home is None or not made:
        with connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({_LOCKS}, 0)")
            if home is None:
                _add_extension(connection)
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {NAMESPACE}")
        home = _one(connection, where)
    return NAMESPACE if home == NAMESPACE else f'{NAMESPACE}, "{home}"'


def _add_extension(connection: psycopg.Connection[Any]) -> None:
    import psycopg

    name = _one(connection, "SELECT current_database()")
    if _one(connection, "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'") is None:
        raise StoreError(
            f"the PostgreSQL server of database {name!r} has no pgvector; install it there (Debian: apt install postgresql-16-pgvector, "
            "with the server's own version; hosted servers: switch on the extension 'vector')"
        )
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except psycopg.errors.InsufficientPrivilege:
        what = f"database {name!r} lacks the extension pgvector, and this user may not add it"
        raise StoreError(f"{what}; let an administrator run in it: CREATE EXTENSION vector") from None


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]


def _first_line(error: Exception) -> str:
    """What the server said, without the detail: that may quote a record."""
    with suppress(AttributeError):
        if primary := error.diag.message_primary:  # type: ignore[attr-defined]
            return str(primary)
    return str(error).split("\n")[0].strip()
