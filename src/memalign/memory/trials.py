"""Trials: what replays found out about a version of a guideline, kept beside it for those who decide later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, insert, select

from memalign.memory import semantic
from memalign.stores import schema

_TABLE = schema.trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What happened to records that were judged without and with a change; the figures are of all changes that were tried together."""

    outcome: Literal["accepted", "refused", "overridden"]
    fixed: int
    broken: int
    unchanged: int
    p_value: float
    """Exact McNemar test."""
    reason: str = ""
    """Why it was refused, or would have been."""
    revision: int = 0
    """The revision that it led to."""


def note(connection: Connection, judge_id: int, revision: int, guideline_id: str, tried: Tried) -> None:
    """Keep a trial with the version of a guideline that holds now; it goes when the version is deleted."""
    row = semantic.live(connection, judge_id, guideline_id).row
    figures = {name: getattr(tried, name) for name in ("outcome", "fixed", "broken", "unchanged", "p_value", "reason")}
    connection.execute(insert(_TABLE).values(guideline_row=row, revision=revision, **figures))


def of(connection: Connection, judge_id: int, guideline_id: str, revision: int) -> list[Tried]:
    """The trials of a guideline up to a revision, all its versions, oldest first."""
    held = schema.guideline
    condition = (held.c.judge_id == judge_id) & (held.c.id == guideline_id) & (_TABLE.c.revision <= revision)
    rows = connection.execute(select(_TABLE).join(held, held.c.row == _TABLE.c.guideline_row).where(condition).order_by(_TABLE.c.row))
    return [Tried(**{name: getattr(row, name) for name in Tried.__dataclass_fields__}) for row in rows]
