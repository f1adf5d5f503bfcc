"""Bringing a memory in from a file: into a judge that has none as it was, else merged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, insert, select

from memalign.errors import BadRecord, ConfigurationError, MemalignError, StoreError
from memalign.memory import archive, identity, purging, restore, revisions, tombstones
from memalign.memory.archive import Line
from memalign.memory.merge import Conflict, Merge, Policy
from memalign.memory.scrubbing import scrub
from memalign.memory.selection import Selection, select_records
from memalign.scale import Scale
from memalign.stores import Store, schema
from memalign.stores.database import insert_new
from memalign.stores.types import parsed

Progress = Callable[[str, int, int], None]

_TOLD = 500
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did, or with ``dry_run`` would do."""

    path: str
    judge: str
    how: Literal["restored", "merged"]
    """``restored``: the judge had no memory; it now has that of the file, revision by revision. ``merged``: one new revision."""
    dry_run: bool
    revision: int
    """The revision of memory after it."""
    added: int
    """Records that are in memory now and were not, or read otherwise."""
    same: int = 0
    """Records that memory held with the same content."""
    waiting: int = 0
    """Records that wait for the next ``align``."""
    purged: int = 0
    """Records of this memory that a tombstone of the file names: they were purged here too, with all that came from them."""
    erased: bool | None = None
    """Whether the bytes of what was purged are gone from the disk; if not, the next opening, align or purge goes on with it."""
    buried: int = 0
    """Records of the file that were purged here: they stay out."""
    conflicts: tuple[Conflict, ...] = ()
    guidelines_added: int = 0
    guidelines_joined: tuple[str, ...] = ()
    """Guidelines of this memory that gained evidence."""
    guidelines_same: int = 0
    guidelines_left_out: tuple[str, ...] = ()
    """Guidelines of the file, by their ids there, that rest on records that were not taken."""
    retired: tuple[str, ...] = ()
    """Guidelines of this memory that rested on records which the file's replaced; what remains of their evidence is distilled again."""
    vectors: int = 0
    verdicts: int = 0
    """Logged verdicts that were restored. A merge leaves the file's log out: its revisions are not this memory's."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short account in plain text."""
        would = "would be " if self.dry_run else ""
        lines = [f"{self.path} {would}{self.how} into judge {self.judge!r}, revision {self.revision}"]
        lines.append(f"  records: {self.added} added, {self.same} known, {self.waiting} waiting, {len(self.conflicts)} in conflict")
        kept = f", {len(self.guidelines_joined)} joined, {self.guidelines_same} known" if self.how == "merged" else ""
        lines.append(f"  guidelines: {self.guidelines_added} added{kept}")
        lines += [f"  {self.purged} record(s) of this memory {would}purged, as they were there"] if self.purged else []
        lines += ["  their bytes are not yet gone from the disk"] if self.erased is False else []
        lines += [f"  {self.buried} record(s) were purged here and stay out"] if self.buried else []
        lines += [f"  guidelines left out, their cases were not taken: {', '.join(self.guidelines_left_out)}"] if self.guidelines_left_out else []
        lines += [f"  retired here, as the file replaced their cases: {', '.join(self.retired)}"] if self.retired else []
        for conflict in self.conflicts[:_SHOWN]:
            against = "was withdrawn here" if conflict.kind == "withdrawn" else "says something else here"
            lines.append(f"  ! {conflict.id} {against} ({conflict.ours_at[:16]}; theirs {conflict.theirs_at[:16]}): {conflict.taken} taken")
        lines += [f"  ... and {len(self.conflicts) - _SHOWN} more conflicts"] if len(self.conflicts) > _SHOWN else []
        return lines


@dataclass(slots=True)
class Survey:
    """What a file holds, once it is known to be whole."""

    header: dict[str, Any]
    digest: str = ""
    """Of all lines."""
    lines: int = 0
    live: int = 0
    """Records that hold."""
    waiting: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    guidelines: list[dict[str, Any]] = field(default_factory=list)
    """Those that hold and are in use, or could be again."""
    questions: list[dict[str, Any]] = field(default_factory=list)
    """Open ones."""
    tombstones: list[dict[str, Any]] = field(default_factory=list)


def survey(path: Path, progress: Progress) -> Survey:
    """Read a file to its end without changing anything. Raises what ``archive.read`` raises."""
    found: Survey | None = None
    for number, kind, fields in archive.read(path):
        if found is None:
            found, scale = Survey(header=fields), _scale(path, fields)
            total = sum(count for count in fields["counts"].values() if isinstance(count, int)) + 1
        found.lines = number
        found.counts[kind] += 1
        if kind == "end":
            found.digest = fields["blake2b"]
        elif kind == "feedback":
            _check_value(path, number, scale, fields["value"])
        if kind == "feedback" and fields["until"] is None:
            found.live += fields["since"] is not None
            found.waiting += fields["since"] is None
        elif kind == "guideline" and fields["until"] is None and fields["state"] not in ("retired", "superseded"):
            found.guidelines.append(fields)
        elif kind == "question" and fields["until"] is None:
            found.questions.append(fields)
        elif kind == "tombstone":
            found.tombstones.append(fields)
        if number % _TOLD == 0:
            progress("check", number, total)
    assert found is not None
    return found


def _scale(path: Path, header: dict[str, Any]) -> Scale:
    try:
        return Scale.from_dict(header["judge"]["settings"]["scale"])
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise StoreError(f"{path}, line 1: the judge has no scale that is known here; nothing was changed") from error


def _check_value(path: Path, number: int, scale: Scale, value: Any) -> None:
    try:
        scale.check(value)
    except BadRecord as error:
        raise StoreError(f"{path}, line {number}: {error}; nothing was changed") from error


def _judge(connection: Connection, name: str, exported: dict[str, Any]) -> int:
    """The key of the judge of a name; one that does not exist is registered with the settings of the file."""
    table = schema.judge
    row = connection.execute(select(table).where(table.c.name == name)).first()
    if row is None:
        settings = json.dumps(exported["settings"])
        values = {"name": name, "settings": settings, "secret": exported["secret"], "created_at": exported["created_at"]}
        key: int = connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
        return key
    mine, theirs = parsed(row.settings)["scale"], exported["settings"].get("scale")
    if mine != theirs:
        raise ConfigurationError(
            f"judge {name!r} has the scale {mine}, the file {theirs}: verdicts of two scales cannot be mixed; nothing was changed"
        )
    judge_id: int = row.id
    return judge_id


class _Undo(Exception):
    """Takes a dry run's changes back."""


def bring(
    store: Store,
    name: str,
    path: Path,
    found: Survey,
    *,
    on_conflict: Policy,
    actor: str,
    dry_run: bool,
    progress: Progress,
) -> Imported:
    """Import a surveyed file into a judge, which is registered if need be; one transaction.

    Raises ConfigurationError for another scale or (``on_conflict="error"``) a conflict, StoreError for a file that contradicts itself.
    """
    if on_conflict not in ("newer", "ours", "theirs", "error"):
        raise ConfigurationError(f"on_conflict={on_conflict!r} is not known; choose newer, ours, theirs or error")
    report: list[Imported] = []
    with store.reading() as connection:
        judge_id = connection.execute(select(schema.judge.c.id).where(schema.judge.c.name == name)).scalar()
    try:
        with store.writing(judge_id) as connection:
            report.append(_brought(connection, name, path, found, on_conflict=on_conflict, actor=actor, dry_run=dry_run, progress=progress))
            if dry_run:
                raise _Undo
    except _Undo:
        return report[0]
    if not report[0].purged:
        return report[0]
    try:
        scrub(store)
    except MemalignError:  # someone reads on: the next opening tries again
        return replace(report[0], erased=False)
    return replace(report[0], erased=True)


def _brought(
    connection: Connection, name: str, path: Path, found: Survey, *, on_conflict: Policy, actor: str, dry_run: bool, progress: Progress
) -> Imported:
    judge_id = _judge(connection, name, found.header["judge"])

    def tell(number: int) -> None:
        if number % _TOLD == 0 or number == found.lines:
            progress("import", number, found.lines)

    if restore.is_empty(connection, judge_id):
        restore.restore(connection, judge_id, _again(path, found), tell)
        return Imported(
            path=str(path),
            judge=name,
            how="restored",
            dry_run=dry_run,
            revision=revisions.current(connection, judge_id),
            added=found.live,
            waiting=found.waiting,
            guidelines_added=len(found.guidelines),
            vectors=found.counts["vector"],
            verdicts=found.counts["verdict"],
        )
    purged = _replayed(connection, judge_id, found.tombstones, actor)
    merge = Merge(connection, judge_id, on_conflict, lambda ids: tombstones.buried(connection, judge_id, ids))
    done = merge.run(_again(path, found), found.guidelines, found.questions, actor, tell)
    return Imported(
        path=str(path),
        judge=name,
        how="merged",
        dry_run=dry_run,
        revision=done.revision,
        purged=purged,
        added=done.added,
        same=done.same,
        waiting=done.waiting,
        buried=done.buried,
        conflicts=tuple(done.conflicts),
        guidelines_added=len(done.guidelines_added),
        guidelines_joined=tuple(done.guidelines_joined),
        guidelines_same=done.guidelines_same,
        guidelines_left_out=tuple(done.guidelines_left_out),
        retired=tuple(done.retired),
        vectors=done.vectors,
    )


def _again(path: Path, found: Survey) -> Iterator[Line]:
    """The lines of a file that was surveyed."""
    return (line for line in archive.read(path, known=found.digest) if line[1] != "end")


def _replayed(connection: Connection, judge_id: int, stones: list[dict[str, Any]], actor: str) -> int:
    """Take over the tombstones of a file, and purge here what they name, as a revision of its own; gives how many records."""
    if not stones:
        return 0
    newest = revisions.current(connection, judge_id)
    rows = [archive.row_of("tombstone", stone) | {"judge_id": judge_id, "revision": newest} for stone in stones]
    insert_new(connection, schema.tombstone, rows)
    ids = list(connection.execute(select(schema.feedback.c.id).where(schema.feedback.c.judge_id == judge_id).distinct()).scalars())
    gone = tombstones.buried(connection, judge_id, ids)
    if not gone:
        return 0
    records = select_records(connection, judge_id, Selection.of(sorted(gone)), versions="every")
    found = purging.closure(connection, judge_id, records, instructions=identity.settings_of(connection, judge_id)["instructions"])
    purging.purge(connection, judge_id, newest + 1, found, actor=actor)
    return len(found.ids)
