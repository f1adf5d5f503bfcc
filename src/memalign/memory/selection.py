"""Naming records: one selection for retracting, purging and listing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, Self

from sqlalchemy import ColumnElement, Connection, select

from memalign.errors import ConfigurationError, NotFound
from memalign.memory import episodic, tombstones
from memalign.memory.episodic import Stored
from memalign.records import Feedback
from memalign.rendering import value_text
from memalign.stores import schema

_TABLE = schema.feedback
_CHUNK = 500

Versions = Literal["held", "every"]
"""Which versions of a record are looked at: what holds or waits now, or all that were ever stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records are meant; all that is given must hold together. Nothing given selects nothing: ``everything`` has to be said."""

    ids: tuple[str, ...] = ()
    annotator: str | None = None
    before: datetime | None = None
    """Given by the expert before this time."""
    after: datetime | None = None
    """Given at this time or later."""
    source: str | None = None
    search: str | None = None
    """A text that occurs in the item, the reason or the source, whatever its case."""
    like: str | None = None
    """A text whose ``nearest`` items in meaning are meant."""
    nearest: int = 10
    item_ids: frozenset[str] | None = None
    """The items that ``like`` found."""
    everything: bool = False

    @classmethod
    def of(
        cls,
        ids: str | Iterable[str] | None = None,
        *,
        before: datetime | str | None = None,
        after: datetime | str | None = None,
        annotator: str | None = None,
        source: str | None = None,
        search: str | None = None,
        like: str | None = None,
        nearest: int = 10,
        everything: bool = False,
    ) -> Self:
        """A selection as users give it. Raises ConfigurationError when nothing is named, or for a time that cannot be read."""
        if not isinstance(ids, Iterable | None):
            raise ConfigurationError(f"ids are texts, not {ids!r:.80}")
        named = (ids,) if isinstance(ids, str) else tuple(dict.fromkeys(ids or ()))
        filters = [part for part in (annotator, before, after, source, search, like) if part is not None]
        if everything and (named or filters):
            raise ConfigurationError("everything and a selection of records exclude each other")
        if ids is None and not filters and not everything:
            raise ConfigurationError("name the records: by ids, annotator, before, after, source, search or like; or say everything=True")
        if (search is not None and not search.strip()) or (like is not None and not like.strip()):
            raise ConfigurationError("search and like need a text")
        if nearest < 1:
            raise ConfigurationError("nearest must be 1 or more")
        return cls(
            ids=named,
            annotator=annotator,
            before=_time(before),
            after=_time(after),
            source=source,
            search=search,
            like=like,
            nearest=nearest,
            everything=everything,
        )

    @property
    def empty(self) -> bool:
        """Whether it names nothing."""
        return self == replace(type(self)(), nearest=self.nearest)


def select_records(connection: Connection, judge_id: int, selection: Selection, *, versions: Versions) -> list[Stored]:
    """The selected records, oldest first: what holds or waits now, or all versions of each record of which any version is meant.

    Raises NotFound for an id that memory does not hold; with "every", a purged one is passed over.
    """
    if selection.empty:
        return []
    conditions: list[ColumnElement[bool]] = [] if versions == "every" else [_TABLE.c.until.is_(None)]
    if selection.annotator is not None:
        conditions.append(_TABLE.c.annotator == selection.annotator)
    if selection.source is not None:
        conditions.append(_TABLE.c.source == selection.source)
    found = _read(connection, judge_id, conditions, selection.ids)
    _all_known(connection, judge_id, selection, found if not conditions[1:] else None, versions)
    test = _test(selection)
    meant = [stored for stored in found if test(stored)]
    if versions == "held" or not meant:
        return meant
    return _read(connection, judge_id, [], tuple(dict.fromkeys(stored.feedback.id for stored in meant)))


def _read(connection: Connection, judge_id: int, conditions: Sequence[ColumnElement[bool]], ids: Sequence[str]) -> list[Stored]:
    query = select(_TABLE.c.row).where(_TABLE.c.judge_id == judge_id, *conditions)
    if not ids:
        rows = list(connection.execute(query).scalars())
    else:
        chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
        rows = [row for chunk in chunks for row in connection.execute(query.where(_TABLE.c.id.in_(chunk))).scalars()]
    return episodic.by_rows(connection, rows)


def _all_known(connection: Connection, judge_id: int, selection: Selection, found: list[Stored] | None, versions: Versions) -> None:
    if not selection.ids:
        return
    if found is None or versions == "every":
        found = _read(connection, judge_id, [] if versions == "every" else [_TABLE.c.until.is_(None)], selection.ids)
    unknown = set(selection.ids) - {stored.feedback.id for stored in found}
    if versions == "every":
        unknown -= tombstones.buried(connection, judge_id, unknown)
    if unknown:
        named = ", ".join(repr(key) for key in selection.ids if key in unknown) if len(unknown) <= 5 else f"{len(unknown)} of the ids given"
        name = connection.execute(select(schema.judge.c.name).where(schema.judge.c.id == judge_id)).scalar()
        raise NotFound(f"no feedback {named} in judge {name!r}; nothing was changed")


def _test(selection: Selection) -> Callable[[Stored], bool]:
    wanted = selection.search.casefold() if selection.search is not None else None

    def meant(stored: Stored) -> bool:
        given = stored.feedback.created_at
        return (
            (selection.before is None or given < selection.before)
            and (selection.after is None or given >= selection.after)
            and (selection.item_ids is None or stored.item_id in selection.item_ids)
            and (wanted is None or any(wanted in text.casefold() for text in texts_of(stored.feedback)))
        )

    return meant


def texts_of(feedback: Feedback) -> list[str]:
    """All that a record says, in the words of those who said it."""
    parts = [value_text(part) for part in (feedback.inputs, feedback.outputs, feedback.expectations) if part is not None]
    return [text for text in (*parts, feedback.rationale, feedback.source) if text]


def _time(given: datetime | str | None) -> datetime | None:
    if given is None:
        return None
    try:
        read = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigurationError(f"{given!r} is not a time; write it as 2026-01-31 or 2026-01-31T12:00:00+00:00") from error
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)
