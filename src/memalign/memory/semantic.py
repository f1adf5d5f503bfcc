"""Semantic memory: guidelines, version by version, with the evidence they rest on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, insert, select, update

from memalign.errors import NotFound
from memalign.memory.revisions import holds_at
from memalign.records import Guideline, GuidelineState
from memalign.stores import schema
from memalign.stores.types import parsed

_TABLE = schema.guideline
_CHUNK = 500
_NOTHING: Mapping[int, int] = MappingProxyType({})


def at(connection: Connection, judge_id: int, revision: int) -> list[Guideline]:
    """The versions that hold in a revision, whatever their state, oldest guideline first."""
    rows = connection.execute(select(_TABLE).where(_TABLE.c.judge_id == judge_id, holds_at(_TABLE, revision)).order_by(_TABLE.c.row)).all()
    evidence = _evidence(connection, judge_id, revision)
    return sorted((_guideline(row, evidence[row.row]) for row in rows), key=_age)


def add(
    connection: Connection,
    judge_id: int,
    revision: int,
    *,
    text: str,
    scope: str = "",
    state: GuidelineState = "active",
    pinned: bool = False,
    signs: Mapping[int, int] = _NOTHING,
    taint: Iterable[int] = (),
) -> str:
    """A new guideline; gives its id. ``signs``: row of a feedback version -> 1 for, -1 against; ``taint``: rows as well."""
    guideline_id = f"g{highest_number(connection, judge_id) + 1}"
    new = {"text": text, "scope": scope, "state": state, "pinned": pinned, "utility": None}
    _insert(connection, judge_id, revision, (guideline_id, 1), new, signs, {*taint, *signs})
    return guideline_id


def outvoted(guideline: Guideline, weights: Mapping[str, float], *, overcome: Collection[str] = ()) -> bool:
    """Whether the cases against a guideline weigh at least as much as those for it.

    ``weights``: feedback id -> how much its annotator counts, 1 if none is given; ``overcome``: ids of cases against it that do not count.
    """
    supporting = sum(weights.get(key, 1.0) for key in guideline.evidence_for)
    against = sum(weights.get(key, 1.0) for key in guideline.evidence_against if key not in overcome)
    return 0 < against >= supporting


def change(
    connection: Connection,
    judge_id: int,
    revision: int,
    guideline_id: str,
    *,
    signs: Mapping[int, int] = _NOTHING,
    taint: Iterable[int] = (),
    **changes: Any,
) -> None:
    """A new version of a guideline: ``changes`` of text, scope, state, pinned.

    ``signs`` are added to what it has, ``taint`` with a new text only: what a text is seen with later does not taint it. One that comes back
    rests on what experts have not withdrawn meanwhile.
    """
    old = live(connection, judge_id, guideline_id)
    reworded = changes.get("text", old.text) != old.text
    tainted = _tainted(connection, old.row) | (set(taint) if reworded else set())
    had = _signs(connection, old.row)
    _replace(connection, judge_id, revision, old, changes, (_held(connection, had) if old.state == "retired" else had) | dict(signs), tainted)


def measured(connection: Connection, judge_id: int, utility: Mapping[str, float]) -> None:
    """Note the utility of guidelines (id -> how much worse the judge is without it) with the versions that hold now."""
    for guideline_id, value in utility.items():
        condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.id == guideline_id) & _TABLE.c.until.is_(None)
        connection.execute(update(_TABLE).where(condition).values(utility=value))


def without(connection: Connection, judge_id: int, revision: int, rows: Sequence[int], *, renew: bool) -> tuple[list[str], set[int]]:
    """Take retracted feedback out of the evidence.

    A guideline that loses support and has none left retires. One that still has some keeps its text; with ``renew`` it retires too, because its
    text may rest on what was withdrawn, and the evidence that remains is to be distilled again. Pinned guidelines stay, and those of which only
    contradicting cases go. Gives the ids that retired and the rows that are to be distilled again.
    """
    gone, retired, again = set(rows), list[str](), set[int]()
    for old in _resting_on(connection, judge_id, gone):
        signs = _signs(connection, old.row)
        supports = _supports(signs)
        lost = supports & gone and (renew or supports <= gone)
        state: GuidelineState = "retired" if lost and not old.pinned else old.state
        if state == "retired":
            retired.append(old.id)
            again |= supports - gone if old.state != "superseded" else set()
        signs = {row: sign for row, sign in signs.items() if row not in gone}
        _replace(connection, judge_id, revision, old, {"state": state}, signs, _tainted(connection, old.row))
    return retired, again


def unsupported(connection: Connection, judge_id: int, *, then: int, now: int) -> set[int]:
    """Rows of guidelines that held in an earlier revision, hold no longer and have lost what they were learned from.

    Pinned ones are not among them, nor those written by hand.
    """
    went = (_TABLE.c.judge_id == judge_id) & holds_at(_TABLE, then) & ~holds_at(_TABLE, now)
    held = went & (_TABLE.c.state != "retired") & ~_TABLE.c.pinned
    learned = exists().where(schema.taint.c.guideline_row == _TABLE.c.row)
    supported = exists().where(schema.evidence.c.guideline_row == _TABLE.c.row, schema.evidence.c.sign > 0)
    return set(connection.execute(select(_TABLE.c.row).where(held, learned, ~supported)).scalars())


def turned_down(connection: Connection, judge_id: int) -> list[Guideline]:
    """The guidelines that an expert retired; those that lost their evidence are not among them."""
    made = schema.revision
    chosen = select(_TABLE.c.id, _TABLE.c.version, _TABLE.c.text, made.c.verb, made.c.counts)
    joined = chosen.join(made, (made.c.judge_id == _TABLE.c.judge_id) & (made.c.number == _TABLE.c.since))
    retired: Select[Any] = joined.where(_TABLE.c.judge_id == judge_id, _TABLE.c.state == "retired")
    found = connection.execute(retired.where(_TABLE.c.until.is_(None))).all()
    return [Guideline(id=row.id, version=row.version, text=row.text, state="retired") for row in found if _by_hand(connection, retired, row)]


def resting_on(connection: Connection, judge_id: int, revision: int, rows: Sequence[int]) -> list[Guideline]:
    """The guidelines of now that cite some feedback."""
    cited = {old.id for old in _resting_on(connection, judge_id, set(rows))}
    return [guideline for guideline in at(connection, judge_id, revision) if guideline.id in cited]


def remaining_evidence(connection: Connection, judge_id: int, rows: Sequence[int]) -> set[int]:
    """The other evidence of guidelines that some feedback supports: what would be distilled again if it were withdrawn."""
    gone = set(rows)
    touched = [old for old in _resting_on(connection, judge_id, gone) if not old.pinned and old.state != "superseded"]
    supports = (_supports(_signs(connection, old.row)) for old in touched)
    return set[int]().union(*(each for each in supports if each & gone)) - gone


def highest_number(connection: Connection, judge_id: int) -> int:
    """The highest number a guideline ever had, purged ones included: none is given twice."""
    numbers = (int(each[1:]) for each in connection.execute(select(_TABLE.c.id).where(_TABLE.c.judge_id == judge_id).distinct()).scalars())
    purged: int = connection.execute(select(schema.judge.c.numbered).where(schema.judge.c.id == judge_id)).scalar_one()
    return max([purged, *numbers])


def normalised(text: str) -> str:
    """The text by which two guidelines count as the same: case, white space and end punctuation folded."""
    return " ".join(text.casefold().split()).rstrip(".!;, ")


def live(connection: Connection, judge_id: int, guideline_id: str) -> Row[Any]:
    """The row of the version that holds now. Raises NotFound."""
    condition = (_TABLE.c.judge_id == judge_id) & (_TABLE.c.id == guideline_id) & _TABLE.c.until.is_(None)
    found = connection.execute(select(_TABLE).where(condition)).first()
    if found is None:
        raise NotFound(f"no guideline {guideline_id!r}; nothing was changed (memory list --all shows what there is)")
    return found


def _replace(
    connection: Connection,
    judge_id: int,
    revision: int,
    old: Row[Any],
    changes: Mapping[str, Any],
    signs: Mapping[int, int],
    taint: Iterable[int],
) -> None:
    new = {name: changes.get(name, getattr(old, name)) for name in ("text", "scope", "state", "pinned", "utility")}
    if new["text"] != old.text:
        new["utility"] = None  # measured on another text
    if old.since == revision:  # made in this very transaction: no reader has seen it
        connection.execute(schema.evidence.delete().where(schema.evidence.c.guideline_row == old.row))
        connection.execute(schema.taint.delete().where(schema.taint.c.guideline_row == old.row))
        connection.execute(update(_TABLE).where(_TABLE.c.row == old.row).values(new))
        _link(connection, old.row, signs, taint)
        return
    connection.execute(update(_TABLE).where(_TABLE.c.row == old.row).values(until=revision))
    _insert(connection, judge_id, revision, (old.id, old.version + 1), new, signs, taint)


def _insert(
    connection: Connection,
    judge_id: int,
    revision: int,
    key: tuple[str, int],
    values: Mapping[str, Any],
    signs: Mapping[int, int],
    taint: Iterable[int],
) -> None:
    row = {"judge_id": judge_id, "id": key[0], "version": key[1], "since": revision, **values}
    _link(connection, connection.execute(insert(_TABLE).values(row).returning(_TABLE.c.row)).scalar_one(), signs, taint)


def _link(connection: Connection, guideline_row: int, signs: Mapping[int, int], taint: Iterable[int]) -> None:
    evidence = [{"guideline_row": guideline_row, "feedback_row": row, "sign": sign} for row, sign in signs.items()]
    tainted = [{"guideline_row": guideline_row, "feedback_row": row} for row in set(taint)]
    if evidence:
        connection.execute(insert(schema.evidence), evidence)
    if tainted:
        connection.execute(insert(schema.taint), tainted)


def _resting_on(connection: Connection, judge_id: int, rows: set[int]) -> Sequence[Row[Any]]:
    link, wanted = schema.evidence, sorted(rows)
    condition = (_TABLE.c.judge_id == judge_id) & _TABLE.c.until.is_(None) & (_TABLE.c.state != "retired")
    resting = select(_TABLE).join(link, link.c.guideline_row == _TABLE.c.row).where(condition)
    found: dict[int, Row[Any]] = {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = connection.execute(resting.where(link.c.feedback_row.in_(wanted[start : start + _CHUNK])))
        found |= {row.row: row for row in chunk}
    return [found[key] for key in sorted(found)]


def _signs(connection: Connection, guideline_row: int) -> dict[int, int]:
    link = schema.evidence
    found = connection.execute(select(link.c.feedback_row, link.c.sign).where(link.c.guideline_row == guideline_row))
    return {row.feedback_row: row.sign for row in found}


def _held(connection: Connection, signs: Mapping[int, int]) -> dict[int, int]:
    """Without the records that were withdrawn or replaced."""
    table, rows, gone = schema.feedback, sorted(signs), set[int]()
    for start in range(0, len(rows), _CHUNK):
        found = select(table.c.row).where(table.c.row.in_(rows[start : start + _CHUNK]), table.c.until.is_not(None))
        gone |= set(connection.execute(found).scalars())
    return {row: sign for row, sign in signs.items() if row not in gone}


def _by_hand(connection: Connection, retired: Select[Any], version: Row[Any]) -> bool:
    """Whether an expert retired a version; what a rollback brought back is judged by its target."""
    held: Row[Any] | None = version
    while held is not None and held.verb == "rollback":
        held = connection.execute(retired.where(_TABLE.c.id == held.id, holds_at(_TABLE, parsed(held.counts)["to"]))).first()
    return held is not None and held.verb == "retire"


def _supports(signs: Mapping[int, int]) -> set[int]:
    return {row for row, sign in signs.items() if sign > 0}


def _tainted(connection: Connection, guideline_row: int) -> set[int]:
    return set(connection.execute(select(schema.taint.c.feedback_row).where(schema.taint.c.guideline_row == guideline_row)).scalars())


def _evidence(connection: Connection, judge_id: int, revision: int) -> dict[int, list[tuple[int, str]]]:
    link, record = schema.evidence, schema.feedback
    found = connection.execute(
        select(link.c.guideline_row, link.c.sign, record.c.id)
        .join(_TABLE, _TABLE.c.row == link.c.guideline_row)
        .join(record, record.c.row == link.c.feedback_row)
        .where(_TABLE.c.judge_id == judge_id, holds_at(_TABLE, revision))
        .order_by(link.c.feedback_row)
    )
    by_guideline: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for row in found:
        by_guideline[row.guideline_row].append((row.sign, row.id))
    return by_guideline


def _guideline(row: Row[Any], evidence: list[tuple[int, str]]) -> Guideline:
    return Guideline(
        id=row.id,
        version=row.version,
        text=row.text,
        scope=row.scope,
        state=row.state,
        pinned=row.pinned,
        evidence_for=tuple(dict.fromkeys(feedback for sign, feedback in evidence if sign > 0)),
        evidence_against=tuple(dict.fromkeys(feedback for sign, feedback in evidence if sign < 0)),
        utility=row.utility,
    )


def _age(guideline: Guideline) -> int:
    return int(guideline.id[1:])
