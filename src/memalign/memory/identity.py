"""Which judges a store holds: their names, settings and secrets."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from memalign.errors import ConfigurationError, NotFound, StoreError
from memalign.memory.revisions import now
from memalign.stores import Store, schema
from memalign.stores.types import REPAIR, parsed

_TABLE = schema.judge


def of(store: Store, name: str, settings: Mapping[str, Any]) -> tuple[int, str]:
    """The key and the secret of a judge, which is registered, or whose settings are brought up to date, if need be.

    Raises ConfigurationError when the stored judge has another scale, or a name that differs in case alone.
    """
    with store.reading() as connection:
        row = connection.execute(select(_TABLE).where(_TABLE.c.name == name)).first()
    if row is not None and _read(name, row.settings) == settings:
        return row.id, row.secret
    return _registered(store, name, settings)


def _registered(store: Store, name: str, settings: Mapping[str, Any]) -> tuple[int, str]:
    text = json.dumps(settings)
    with store.writing() as connection:
        row = connection.execute(select(_TABLE).where(_TABLE.c.name == name)).first()
        if row is None:
            _unlike_others(connection, store, name)
            values = {"name": name, "settings": text, "secret": secrets.token_hex(8), "created_at": now()}
            created = connection.execute(insert(_TABLE).values(values).returning(_TABLE.c.id, _TABLE.c.secret)).one()
            return created.id, created.secret
        before = _read(name, row.settings)
        if before["scale"] != settings["scale"]:
            raise ConfigurationError(
                f"judge {name!r} in {store.location} has the scale {before['scale']}, not {settings['scale']}: "
                "verdicts of two scales cannot be mixed; give this judge another name"
            )
        connection.execute(update(_TABLE).where(_TABLE.c.id == row.id).values(settings=text))
        return row.id, row.secret


def _unlike_others(connection: Connection, store: Store, name: str) -> None:
    """A second judge whose name differs in case or spaces alone is a slip: it would have forgotten what the first one learned."""
    for other in connection.execute(select(_TABLE.c.name)).scalars():
        if other.strip().casefold() == name.strip().casefold():
            raise ConfigurationError(
                f"{store.location} holds a judge {other!r}, whose name differs from {name!r} in case or spaces alone: "
                f"write {other!r} to go on with it, or give a new judge a name of its own"
            )


def judge_names(store: Store) -> list[str]:
    """The judges that a store holds, oldest first."""
    with store.reading() as connection:
        return list(connection.execute(select(_TABLE.c.name).order_by(_TABLE.c.id)).scalars())


def judge_settings(store: Store, name: str) -> dict[str, Any]:
    """The stored settings of a judge. Raises NotFound; a file that does not exist is not made."""
    if not store.exists():
        raise NotFound(f"no memory {store.location}, so no judge {name!r}; check the path, or make the judge with Judge(...)")
    with store.reading() as connection:
        stored: str | None = connection.execute(select(_TABLE.c.settings).where(_TABLE.c.name == name)).scalar()
    if stored is None:
        known = ", ".join(map(repr, judge_names(store))) or "none"
        raise NotFound(f"no judge {name!r} in {store.location}; it holds: {known}")
    return _read(name, stored)


def settings_of(connection: Connection, judge_id: int) -> dict[str, Any]:
    """The stored settings of a judge that is there."""
    row = connection.execute(select(_TABLE.c.name, _TABLE.c.settings).where(_TABLE.c.id == judge_id)).one()
    return _read(row.name, row.settings)


def _read(name: str, stored: str) -> dict[str, Any]:
    settings = parsed(stored)
    if not isinstance(settings, dict) or "scale" not in settings:
        raise StoreError(f"the settings of judge {name!r} are damaged; {REPAIR}")
    return settings
