"""Going back to an earlier revision, as a new revision: by new rows, so that nothing is rewritten and going back can itself be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Table, func, insert, select, update

from memalign.memory import difference, episodic, questions, revisions, semantic
from memalign.memory.difference import Difference
from memalign.memory.revisions import holds_at
from memalign.stores import schema

_CHUNK = 500
_FEEDBACK, _GUIDELINE = schema.feedback, schema.guideline


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """What a rollback did, or with ``dry_run`` would do."""

    target: int
    """The revision it goes back to."""
    revision: int
    """The revision of memory after it: a new one, or the same as before when nothing differs or nothing was to be changed."""
    dry_run: bool
    difference: Difference
    """What it changes."""
    purged: tuple[int, ...]
    """Purges since the target: what they deleted does not come back."""
    again: int
    """Records that will be distilled again by the next ``align``, because memory had not learned from them at the target."""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that is ready for JSON but for its times."""
        return asdict(self)

    def lines(self, label: Callable[[Any], str] = str) -> list[str]:
        """An account in plain text; ``label`` writes a verdict's value."""
        lines = self.difference.lines(label)[1:] if self.difference else []
        lines = [line for line in lines if not line.startswith("purged since")]
        if not self.difference:
            lines.append(f"memory is as it was in revision {self.target}; nothing to do")
        elif self.dry_run:
            lines.append(f"nothing was changed; without --dry-run this goes back to revision {self.target}")
        else:
            lines.append(f"revision {self.revision}: memory is as it was in revision {self.target}; to undo: rollback to {self.revision - 1}")
        if self.purged:
            numbers = ", ".join(map(str, self.purged))
            lines.append(f"what was purged in revision(s) {numbers} does not come back; the rest of revision {self.target} does")
        if self.again:
            lines.append(f"{self.again} record(s) will be distilled again by the next align")
        return lines


def to(connection: Connection, judge_id: int, target: int, *, actor: str, dry_run: bool) -> Rollback:
    """Make memory as it was in ``target``, which exists; part of the caller's transaction."""
    before = revisions.current(connection, judge_id)
    purged = revisions.purges_since(connection, judge_id, target)
    lost = semantic.unsupported(connection, judge_id, then=target, now=before) if purged else set[int]()
    changes = _changes(connection, judge_id, before, target, lost)
    then, now = (_holding(connection, _FEEDBACK, judge_id, number) for number in (target, before))
    rested = _evidence(connection, judge_id, target)
    unlearned = [row for row in then.values() if row.rationale.strip() and not _learned(row, target, rested)]
    sent_again = [row.row for row in unlearned if row.row in now and row.distilled is not None]
    again = len(sent_again) + sum(row.row not in now for row in unlearned)
    revision = before
    if changes and not dry_run:
        revision = before + 1
        moved = _restore_records(connection, judge_id, revision, then, now, {row.row for row in unlearned})
        episodic.mark_distilled(connection, sent_again, None)
        episodic.mark_distilled(connection, [key for key in rested if key in now and now[key].distilled is None], revision)
        _restore_guidelines(connection, judge_id, revision, target, moved, lost)
        _restore_questions(connection, judge_id, revision, target)
        questions.settle(connection, judge_id, revision)
        counts = {"to": target, "restored": len(moved), "withdrawn": len(now.keys() - then.keys()), "guidelines": len(changes.guidelines)}
        decision, named = revisions.decision_at(connection, judge_id, target), [change.id for change in changes.records]
        revisions.commit(connection, judge_id, revision, verb="rollback", actor=actor, counts=counts, decision=decision, ids=named)
    return Rollback(target=target, revision=revision, dry_run=dry_run, difference=changes, purged=changes.purged, again=again if changes else 0)


def _changes(connection: Connection, judge_id: int, before: int, target: int, lost: set[int]) -> Difference:
    """What going back changes: guidelines that lost their evidence to a purge come back as retired, where they come back at all."""
    changes = difference.between(connection, judge_id, before, target)
    if not lost:
        return changes
    now = semantic.at(connection, judge_id, before)
    gone = {row.id for row in _holding(connection, _GUIDELINE, judge_id, target).values() if row.row in lost}
    then = [replace(guideline, state="retired") if guideline.id in gone else guideline for guideline in semantic.at(connection, judge_id, target)]
    return replace(changes, guidelines=difference.guidelines(now, then))


def _learned(row: Row[Any], target: int, rested: set[int]) -> bool:
    """Whether semantic memory had learned from a record at the target. One that a guideline of then rests on may have been distilled again since."""
    return row.row in rested or (row.distilled is not None and row.distilled <= target)


def _restore_records(
    connection: Connection, judge_id: int, revision: int, then: dict[int, Row[Any]], now: dict[int, Row[Any]], unlearned: set[int]
) -> dict[int, int]:
    """Close what holds now but did not then; give what held then but does not now a new version. Gives old row -> new row."""
    episodic.retract(connection, sorted(now.keys() - then.keys()), revision)
    back = [then[key] for key in sorted(then.keys() - now.keys())]
    version = _newest_versions(connection, _FEEDBACK, judge_id, [row.id for row in back])
    values = []
    for row in back:
        version[row.id] += 1
        distilled = None if row.row in unlearned else revision
        values.append(_copied(row) | {"version": version[row.id], "since": revision, "until": None, "distilled": distilled})
    made = _inserted(connection, _FEEDBACK, values)
    _let_wait_behind(connection, judge_id, version)
    return {row.row: key for row, key in zip(back, made, strict=True)}


def _let_wait_behind(connection: Connection, judge_id: int, version: dict[str, int]) -> None:
    """A record that waits for its first align stays the newest of its id: it was given after what has just been restored."""
    ids = list(version)
    for start in range(0, len(ids), _CHUNK):
        waits = (_FEEDBACK.c.judge_id == judge_id) & _FEEDBACK.c.since.is_(None) & _FEEDBACK.c.id.in_(ids[start : start + _CHUNK])
        rows = connection.execute(select(_FEEDBACK).where(waits).order_by(_FEEDBACK.c.row)).all()
        connection.execute(_FEEDBACK.delete().where(waits))
        _inserted(connection, _FEEDBACK, [_copied(row) | {"version": version[row.id] + 1} for row in {row.id: row for row in rows}.values()])


def _restore_guidelines(connection: Connection, judge_id: int, revision: int, target: int, moved: dict[int, int], lost: set[int]) -> None:
    then, now = (_holding(connection, _GUIDELINE, judge_id, number) for number in (target, revision - 1))
    gone = sorted(now.keys() - then.keys())
    for start in range(0, len(gone), _CHUNK):
        connection.execute(update(_GUIDELINE).where(_GUIDELINE.c.row.in_(gone[start : start + _CHUNK])).values(until=revision))
    back = [then[key] for key in sorted(then.keys() - now.keys())]
    version = _newest_versions(connection, _GUIDELINE, judge_id, [row.id for row in back])
    values = [
        _copied(row) | {"version": version[row.id] + 1, "since": revision, "until": None, "state": "retired" if row.row in lost else row.state}
        for row in back
    ]
    made = {row.row: key for row, key in zip(back, _inserted(connection, _GUIDELINE, values), strict=True)}
    for link in (schema.evidence, schema.taint):
        _copy_links(connection, link, made, moved)


def _restore_questions(connection: Connection, judge_id: int, revision: int, target: int) -> None:
    table = schema.question
    then, now = (_holding(connection, table, judge_id, number) for number in (target, revision - 1))
    settled = sorted(now.keys() - then.keys())
    connection.execute(update(table).where(table.c.row.in_(settled)).values(until=revision))
    _inserted(connection, table, [_copied(then[key]) | {"since": revision, "until": None} for key in sorted(then.keys() - now.keys())])


def _copy_links(connection: Connection, link: Table, made: dict[int, int], moved: dict[int, int]) -> None:
    """The restored guidelines rest on the restored records; taint keeps the earlier versions as well, which stood in the prompts."""
    old = list(made)
    for start in range(0, len(old), _CHUNK):
        found = connection.execute(select(link).where(link.c.guideline_row.in_(old[start : start + _CHUNK]))).all()
        values: dict[tuple[int, int], dict[str, Any]] = {}
        for row in found:
            guideline = made[row.guideline_row]
            for place in {moved.get(row.feedback_row, row.feedback_row)} | ({row.feedback_row} if link is schema.taint else set()):
                values[guideline, place] = {**row._mapping, "guideline_row": guideline, "feedback_row": place}
        if values:
            connection.execute(insert(link), list(values.values()))


def _holding(connection: Connection, table: Table, judge_id: int, revision: int) -> dict[int, Row[Any]]:
    found = connection.execute(select(table).where(table.c.judge_id == judge_id, holds_at(table, revision)).order_by(table.c.row))
    return {row.row: row for row in found}


def _evidence(connection: Connection, judge_id: int, revision: int) -> set[int]:
    """The records that the active guidelines of a revision rest on."""
    link = schema.evidence
    query = select(link.c.feedback_row).join(_GUIDELINE, _GUIDELINE.c.row == link.c.guideline_row)
    held = (_GUIDELINE.c.judge_id == judge_id) & holds_at(_GUIDELINE, revision) & (_GUIDELINE.c.state == "active")
    return set(connection.execute(query.where(held)).scalars())


def _newest_versions(connection: Connection, table: Table, judge_id: int, ids: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(ids), _CHUNK):
        condition = (table.c.judge_id == judge_id) & table.c.id.in_(ids[start : start + _CHUNK])
        found |= {
            key: newest for key, newest in connection.execute(select(table.c.id, func.max(table.c.version)).where(condition).group_by(table.c.id))
        }
    return found


def _inserted(connection: Connection, table: Table, values: Iterable[dict[str, Any]]) -> list[int]:
    """Insert rows; gives their keys in the same order."""
    rows = list(values)
    return list(connection.execute(insert(table).returning(table.c.row, sort_by_parameter_order=True), rows).scalars()) if rows else []


def _copied(row: Row[Any]) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "row"}
