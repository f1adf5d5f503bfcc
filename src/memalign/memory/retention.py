"""Retention: how long, and how many, of the experts' records a judge keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select

from memalign.errors import ConfigurationError
from memalign.stores import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Limits beyond which records are purged, at the next ``align`` or by ``memalign purge --expired``."""

    max_age_days: float | None = None
    """By the time at which the expert gave them."""
    max_records: int | None = None
    """The newest are kept."""

    def __post_init__(self) -> None:
        if self.max_age_days is not None and not self.max_age_days > 0:
            raise ConfigurationError("max_age_days must be more than 0")
        if self.max_records is not None and self.max_records < 1:
            raise ConfigurationError("max_records must be 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def expired(connection: Connection, judge_id: int, rule: Retention, *, now: datetime | None = None) -> list[str]:
    """The ids of the records beyond a rule's limits, whatever their state, oldest first."""
    table = schema.feedback
    found = connection.execute(select(table.c.id, table.c.created_at, table.c.until, table.c.row).where(table.c.judge_id == judge_id))
    newest: dict[str, tuple[datetime, int]] = {}
    held: set[str] = set()
    for row in found:
        given = datetime.fromisoformat(row.created_at)
        newest[row.id] = max(newest.get(row.id, (given, row.row)), (given, row.row))
        held |= {row.id} if row.until is None else set()
    ordered = sorted(newest, key=newest.__getitem__)
    gone = dict[str, None]()
    if rule.max_age_days is not None:
        age = rule.max_age_days * timedelta(days=1).total_seconds()  # in seconds: a limit may be older than the calendar
        latest = now or datetime.now(UTC)
        gone |= dict.fromkeys(each for each in ordered if (latest - newest[each][0]).total_seconds() > age)
    if rule.max_records is not None:
        counted = [each for each in ordered if each in held and each not in gone]
        gone |= dict.fromkeys(counted[: max(0, len(counted) - rule.max_records)])
    return list(gone)
