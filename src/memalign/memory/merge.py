"""Merging an export into a memory that holds something already, as one new revision. An import adds and replaces; only tombstones remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select

from memalign.errors import ConfigurationError
from memalign.memory import archive, episodic, identity, purging, questions, revisions, semantic
from memalign.memory.archive import Line
from memalign.memory.restore import put_vectors
from memalign.memory.traces import carries, distinctive
from memalign.records import GuidelineState
from memalign.rendering import value_text
from memalign.stores import schema

_TABLE = schema.feedback
_PAGE = 500
_SAYS = ("inputs", "outputs", "expectations", "value", "rationale", "annotator")

Policy = Literal["newer", "ours", "theirs", "error"]
Reference = tuple[str, int]
"""A version of a record in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A record of which file and memory say different things, and who won."""

    id: str
    kind: Literal["changed", "withdrawn"]
    """``withdrawn``: memory held it once and took it back."""
    taken: Literal["ours", "theirs"]
    ours_at: str
    """When this memory's expert spoke, or took it back."""
    theirs_at: str


@dataclass(slots=True)
class Merged:
    """What a merge did."""

    revision: int
    added: int = 0
    same: int = 0
    waiting: int = 0
    buried: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    guidelines_added: list[str] = field(default_factory=list)
    guidelines_joined: list[str] = field(default_factory=list)
    guidelines_same: int = 0
    guidelines_left_out: list[str] = field(default_factory=list)
    """Their ids in the file: they rested on records that were not taken, or were made with a purged one in sight."""
    retired: list[str] = field(default_factory=list)
    vectors: int = 0


class Merge:
    """One merge; part of the caller's transaction."""

    def __init__(self, connection: Connection, judge_id: int, policy: Policy, buried: Callable[[list[str]], set[str]]) -> None:
        self._connection = connection
        self._judge_id = judge_id
        self._policy = policy
        self._buried = buried
        self._before = revisions.current(connection, judge_id)
        self._at = {made.number: made.at for made in revisions.history(connection, judge_id)}
        self._places: dict[Reference, int] = {}
        """Where a version of the file stands in memory."""
        self._live: set[Reference] = set()
        """Those of them that hold: only they can be evidence."""
        self._gone: set[str] = set()
        """Records of the file that were purged here."""
        self._unsaid: list[str] = []
        """What they say."""
        self._brought: set[int] = set()
        """Rows that this merge made."""
        self._replaced: list[int] = []
        self._named: list[str] = []
        self.done = Merged(self._before + 1)

    def run(
        self, lines: Iterable[Line], guidelines: list[dict[str, Any]], asked: list[dict[str, Any]], actor: str, tell: Callable[[int], None]
    ) -> Merged:
        """Merge the lines of a file; ``guidelines`` and ``asked`` are those of its guidelines and questions that hold."""
        known = {semantic.normalised(held.text) for held in semantic.at(self._connection, self._judge_id, self._before) if held.state != "retired"}
        linked = {(key, version) for held in guidelines if semantic.normalised(held["text"]) not in known for key, version in held["taint"]}
        page: list[dict[str, Any]] = []
        vectors: list[dict[str, Any]] = []
        for number, kind, fields in lines:
            if kind == "feedback":
                page.append(fields)
            elif kind == "vector":
                vectors.append(fields)
            if len(page) == _PAGE or (page and kind != "feedback"):
                self._records(page, linked)
                page = []
            if len(vectors) == _PAGE:
                self._vectors(vectors)
                vectors = []
            tell(number)
        self._records(page, linked)
        self._vectors(vectors)
        settled = self._settle(guidelines, asked)
        if settled or self.done.added or self._replaced or self.done.waiting:
            self._commit(actor)
        else:
            self.done.revision = self._before
        return self.done

    def _records(self, page: list[dict[str, Any]], linked: set[Reference]) -> None:
        ids = list(dict.fromkeys(fields["id"] for fields in page))
        gone = self._buried(ids)
        self._gone |= gone
        held: dict[str, list[Row[Any]]] = {key: [] for key in ids}
        for start in range(0, len(ids), _PAGE):
            condition = (_TABLE.c.judge_id == self._judge_id) & _TABLE.c.id.in_(ids[start : start + _PAGE])
            for row in self._connection.execute(select(_TABLE).where(condition).order_by(_TABLE.c.version)):
                held[row.id].append(row)
        for fields in page:
            if fields["id"] in gone:
                self.done.buried += fields["until"] is None
                self._unsaid += _texts(fields)
            else:
                self._record(fields, held[fields["id"]], (fields["id"], fields["version"]) in linked)

    def _record(self, fields: dict[str, Any], mine: list[Row[Any]], linked: bool) -> None:
        reference, row = (fields["id"], fields["version"]), archive.row_of("feedback", fields)
        if fields["until"] is not None:
            if linked:
                self._places[reference] = self._past(row, mine)
            return
        newest = next((held for held in reversed(mine) if held.until is None), None)
        if newest is not None and _same(newest, row):
            self.done.same += 1
            self._places[reference] = newest.row
            self._live |= {reference} if newest.since is not None else set()
            return
        ours = [held for held in mine if held.row not in self._brought]
        if ours and (newest is None or newest in ours) and not self._theirs(row, newest, ours):
            if linked:
                self._places[reference] = self._past(row, mine)
            return
        for held in [held for held in mine if held.until is None]:
            if held.since is None:
                self._drop(held, mine)
            elif fields["since"] is not None and held.row not in self._replaced:
                self._replaced.append(held.row)
        if fields["since"] is None:
            self._put(row | {"since": None, "until": None, "distilled": None}, mine)
            self.done.waiting += 1
            return
        distilled = None if fields["distilled"] is None else self.done.revision
        self._places[reference] = self._put(row | {"since": self.done.revision, "until": None, "distilled": distilled}, mine)
        self._live.add(reference)
        self._named.append(fields["id"])
        self.done.added += 1

    def _theirs(self, row: Mapping[str, Any], newest: Row[Any] | None, mine: list[Row[Any]]) -> bool:
        """Whether the file's word is taken against memory's own; ``newest`` is what memory holds, None when it took the record back."""
        if newest is None:
            ended = max(held.until for held in mine)
            ours_at = self._at.get(ended, mine[-1].stored_at)
        else:
            ours_at = newest.created_at
        if self._policy == "error":
            what = "was withdrawn here" if newest is None else "says something else here"
            raise ConfigurationError(f"record {row['id']!r} of the file {what}; nothing was changed: choose newer, ours or theirs for conflicts")
        newer = datetime.fromisoformat(row["created_at"]) > datetime.fromisoformat(ours_at)
        theirs = self._policy == "theirs" or (self._policy == "newer" and newer)
        self.done.conflicts.append(
            Conflict(
                id=row["id"],
                kind="withdrawn" if newest is None else "changed",
                taken="theirs" if theirs else "ours",
                ours_at=ours_at,
                theirs_at=row["created_at"],
            )
        )
        return theirs

    def _past(self, row: dict[str, Any], mine: list[Row[Any]]) -> int:
        """A version that holds in no revision here: kept because it stood in the prompt of a guideline, so that a purge finds both."""
        twin = next((held.row for held in mine if _same(held, row)), None)
        return twin or self._put(row | {"since": self.done.revision, "until": self.done.revision, "distilled": self.done.revision}, mine)

    def _put(self, row: dict[str, Any], mine: list[Row[Any]]) -> int:
        """Insert a version behind those of memory; one that waits for its first align stays the last."""
        waits = [held for held in mine if held.since is None and held.until is None]
        last = max((held.version for held in mine), default=0)
        values = row | {"judge_id": self._judge_id, "version": last + 1}
        made = self._connection.execute(insert(_TABLE).values(values).returning(_TABLE)).one()
        mine.append(made)
        self._brought.add(made.row)
        if row["until"] is not None:
            for held in waits:
                self._drop(held, mine)
                again = {name: value for name, value in held._mapping.items() if name != "row"}
                mine.append(self._connection.execute(insert(_TABLE).values(again | {"version": last + 2}).returning(_TABLE)).one())
        key: int = made.row
        return key

    def _drop(self, held: Row[Any], mine: list[Row[Any]]) -> None:
        """Delete a version that waits: nothing refers to it."""
        self._connection.execute(_TABLE.delete().where(_TABLE.c.row == held.row))
        mine.remove(held)

    def _vectors(self, vectors: list[dict[str, Any]]) -> None:
        """Of the texts that memory holds now; what was purged or not taken leaves no vector either."""
        hashes = [fields["content_hash"] for fields in vectors]
        held = select(_TABLE.c.content_hash).where(_TABLE.c.judge_id == self._judge_id, _TABLE.c.content_hash.in_(hashes))
        known = set(self._connection.execute(held).scalars())
        self.done.vectors += put_vectors(self._connection, [fields for fields in vectors if fields["content_hash"] in known])

    def _settle(self, guidelines: list[dict[str, Any]], asked: list[dict[str, Any]]) -> bool:
        """Once all records stand: withdraw what was replaced, then bring the guidelines and the questions about them."""
        connection, judge_id, revision = self._connection, self._judge_id, self.done.revision
        self.done.retired, again = semantic.without(connection, judge_id, revision, self._replaced, renew=True)
        episodic.mark_distilled(connection, sorted(again), None)
        episodic.retract(connection, self._replaced, revision)
        same = {semantic.normalised(held.text): held for held in semantic.at(connection, judge_id, revision) if held.state != "retired"}
        open_ = [question for question in asked if all(key is None or key in {held["id"] for held in guidelines} for key in _about(question))]
        quarantined = {key for question in open_ for key in _about(question)}
        here: dict[str, str] = {}
        purged = self._of_purged(guidelines)
        for held in guidelines:
            signs = {self._places[key, version]: sign for key, version, sign in held["evidence"] if (key, version) in self._live}
            taint = {self._places[key, version] for key, version in held["taint"] if (key, version) in self._places}
            known = same.get(semantic.normalised(held["text"]))
            unsupported = bool(held["evidence"]) and not held["pinned"] and not any(sign > 0 for sign in signs.values())
            if unsupported or held["id"] in purged:
                self.done.guidelines_left_out.append(held["id"])
                episodic.mark_distilled(connection, [row for row, sign in signs.items() if sign > 0], None)
            elif known is not None:
                here[held["id"]] = known.id
                self._join(known.id, signs)
            else:
                state: GuidelineState = "candidate" if held["state"] == "quarantined" and held["id"] not in quarantined else held["state"]
                text, scope, pinned = held["text"], held["scope"], held["pinned"]
                here[held["id"]] = semantic.add(
                    connection, judge_id, revision, text=text, scope=scope, state=state, pinned=pinned, signs=signs, taint=taint
                )
                self.done.guidelines_added.append(here[held["id"]])
        for question in open_:
            about = [None if key is None else here.get(key) for key in _about(question)]
            if about[0] is not None and set(about) - {None} <= set(self.done.guidelines_added):
                questions.ask(connection, judge_id, revision, about[0], about[1])
        questions.settle(connection, judge_id, revision)
        return bool(self.done.guidelines_added or self.done.guidelines_joined)

    def _of_purged(self, guidelines: list[dict[str, Any]]) -> set[str]:
        """Ids of the guidelines that were made with a purged record in sight, or carry words that only purged records of the file brought."""
        told = {held["id"]: f"{held['text']}\n{held['scope']}" for held in guidelines}
        instructions = identity.settings_of(self._connection, self._judge_id)["instructions"]
        kept = chain((instructions,), purging.texts_kept(self._connection, self._judge_id, set()))
        grams = distinctive(self._unsaid, kept, within=told.values())
        return {
            held["id"]
            for held in guidelines
            if any(key in self._gone for key, _ in held["taint"]) or carries(told[held["id"]], grams, runs_only=not held["taint"])
        }

    def _join(self, guideline_id: str, signs: dict[int, int]) -> None:
        row = semantic.live(self._connection, self._judge_id, guideline_id).row
        link = schema.evidence
        known = set(self._connection.execute(select(link.c.feedback_row).where(link.c.guideline_row == row)).scalars())
        new = {key: sign for key, sign in signs.items() if key not in known}
        if new:
            semantic.change(self._connection, self._judge_id, self.done.revision, guideline_id, signs=new)
            self.done.guidelines_joined.append(guideline_id)
        else:
            self.done.guidelines_same += 1

    def _commit(self, actor: str) -> None:
        done = self.done
        counts = {
            "admitted": done.added,
            "replaced": len(self._replaced),
            "waiting": done.waiting,
            "added": len(done.guidelines_added),
            "joined": len(done.guidelines_joined),
            "retired": len(done.retired),
        }
        revisions.commit(self._connection, self._judge_id, done.revision, verb="import", actor=actor, counts=counts, ids=self._named)


def _same(held: Row[Any], row: Mapping[str, Any]) -> bool:
    return all(getattr(held, name) == row[name] for name in _SAYS)


def _texts(fields: Mapping[str, Any]) -> list[str]:
    """All that a record of the file says."""
    parts = [value_text(fields[name]) for name in ("inputs", "outputs", "expectations") if fields[name] is not None]
    return [*parts, *(fields[name] for name in ("rationale", "source", "id", "annotator"))]


def _about(question: Mapping[str, Any]) -> tuple[Any, Any]:
    return question["first"], question.get("second")
