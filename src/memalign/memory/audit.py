"""The audit: each revision is sealed with all that came before it, so that a later change of the log is seen. No content, only keyed digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from memalign.records import canonical
from memalign.stores import schema
from memalign.stores.types import parsed

_TABLE = schema.revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the audit: who changed memory, when and how much; whose records it was, only as a digest."""

    number: int
    """The revision that the change made."""
    at: str
    actor: str
    verb: str
    counts: Mapping[str, int]
    ids: str
    """Keyed digest of the ids of the records that the change named; empty when it named none."""
    hash: str
    """Seals this line and all before it; empty for changes from before the audit was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The audit log of a judge's memory, and whether its chain holds."""

    entries: tuple[Entry, ...]
    broken_at: int | None
    """The first revision that is missing or does not fit its seal; None when the chain holds."""

    @property
    def intact(self) -> bool:
        """Whether no line was changed, moved or taken out. That the newest lines were cut off shows only against a ``head`` noted elsewhere."""
        return self.broken_at is None

    @property
    def head(self) -> str:
        """The newest seal: note it elsewhere, and it proves later that nothing was cut off."""
        return self.entries[-1].hash if self.entries else ""

    def holds(self, head: str) -> bool:
        """Whether the log goes on from a head that was noted earlier."""
        return self.intact and head in {entry.hash for entry in self.entries if entry.hash}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"intact": self.intact, "broken_at": self.broken_at, "head": self.head, "entries": [asdict(entry) for entry in self.entries]}


def key_of(secret: str) -> str:
    """The key of a judge's digests; its secret cannot be told from it."""
    return hashlib.blake2b(secret.encode(), person=b"memalign digest", digest_size=16).hexdigest()


def digest(key: str, text: str) -> str:
    """The keyed digest of one id: equal for equal ids, and of no use without guessing them."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=bytes.fromhex(key), digest_size=16).hexdigest()


def digest_of_all(key: str, ids: Iterable[str]) -> str:
    """One keyed digest of a set of ids, whatever their order; empty for none."""
    parts = sorted({digest(key, each) for each in ids})
    return digest(key, "\n".join(parts)) if parts else ""


def key(connection: Connection, judge_id: int) -> str:
    """The key of a judge's digests."""
    return key_of(connection.execute(select(schema.judge.c.secret).where(schema.judge.c.id == judge_id)).scalar_one())


def seal(key: str, previous: str, values: Mapping[str, Any]) -> str:
    """The hash of a row of the revision log and of the seal before it."""
    fields = [values["number"], values["at"], values["actor"], values["verb"], values["counts"], values.get("decision"), values["ids"]]
    return hashlib.blake2b(f"{previous}\n{canonical(fields)}".encode("utf-8", "surrogatepass"), key=bytes.fromhex(key), digest_size=32).hexdigest()


def previous_seal(connection: Connection, judge_id: int, key: str) -> str:
    """The seal of the newest revision; of rows from before the audit it is computed, so that the next seal covers them as well."""
    newest = connection.execute(select(_TABLE.c.hash).where(_TABLE.c.judge_id == judge_id).order_by(_TABLE.c.number.desc()).limit(1)).scalar()
    if newest is None or newest:
        return newest or ""
    last = ""
    for row in _rows(connection, judge_id):
        last = seal(key, last, row._asdict())
    return last


def read(connection: Connection, judge_id: int) -> Audit:
    """The log, with its chain computed anew and compared."""
    own, last, broken, sealed = key(connection, judge_id), "", None, False
    entries = []
    for place, row in enumerate(_rows(connection, judge_id), start=1):
        expected = seal(own, last, row._asdict())
        sealed = sealed or bool(row.hash)
        if broken is None and (row.number != place or (sealed and row.hash != expected)):
            broken = place
        last = row.hash or expected
        entries.append(Entry(number=row.number, at=row.at, actor=row.actor, verb=row.verb, counts=parsed(row.counts), ids=row.ids, hash=row.hash))
    return Audit(entries=tuple(entries), broken_at=broken)


def _rows(connection: Connection, judge_id: int) -> list[Row[Any]]:
    return list(connection.execute(select(_TABLE).where(_TABLE.c.judge_id == judge_id).order_by(_TABLE.c.number)))
