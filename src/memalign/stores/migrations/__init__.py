"""Alembic migrations; one file a released schema."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0003"
"""The schema's newest migration."""

_turn = threading.Lock()
"""Alembic keeps the connection it works on in a module: two stores must not migrate at the same time."""


def migrate(connection: Connection, version: str = HEAD, *, namespace: str | None = None) -> None:
    """Bring the tables up to a version, within the connection's transaction. ``namespace``: the schema, in the sense of SQL, that they lie in."""
    from alembic import command  # costs more than opening a file, so only those who need it load it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"connection": connection, "namespace": namespace}
    with _turn:
        command.upgrade(config, version)
