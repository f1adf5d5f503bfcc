"""A verdict explained later: what memory said when it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from memalign.memory import episodic, revisions, semantic
from memalign.memory.revisions import Revision
from memalign.records import Episode, Guideline
from memalign.rendering import item_text, one_line
from memalign.stores import schema
from memalign.stores.types import parsed

_SHORT = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """On what a logged verdict rests, as memory stood at its revision."""

    verdict_id: str
    at: str
    item_id: str
    value: Any
    rationale: str
    confidence: float | None
    revision: int
    made: Revision | None
    """The change of memory that made this revision; None for revision 0, an empty memory."""
    guidelines: tuple[Guideline, ...]
    """Those the judge was given, with their text of then."""
    cases: tuple[Episode, ...]
    """Those the judge was shown, most similar last, as they read then."""
    voters: tuple[Episode, ...]
    """Those whose vote counted, the strongest first."""
    gone: tuple[str, ...]
    """Ids of guidelines and records that were purged since; their text is nowhere any more."""
    outdated: tuple[str, ...]
    """Ids of guidelines and records that memory no longer holds in this form."""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that is ready for JSON but for its times."""
        return asdict(self)

    def lines(self, label: Callable[[Any], str] = str) -> list[str]:
        """An account in plain text; ``label`` writes a verdict's value."""
        sure = "" if self.confidence is None else f" ({self.confidence:.2f})"
        made = f", made by {self.made.verb} on {self.made.at[:16].replace('T', ' ')}" if self.made is not None else ", an empty memory"
        lines = [f"verdict {self.verdict_id}: {label(self.value)}{sure}, given {self.at[:16].replace('T', ' ')} (UTC)"]
        lines += [f"item {self.item_id}", f"revision {self.revision}{made}"]
        lines += [f"rationale: {self.rationale}"] if self.rationale else []
        lines.append(f"{len(self.guidelines)} guideline(s)" + (":" if self.guidelines else ""))
        lines += [f"  {held.id}  {held.text}{self._since(held.id)}" for held in self.guidelines]
        for title, episodes in (("shown", self.cases), ("voted", self.voters)):
            lines += [f"{len(episodes)} case(s) {title}:"] if episodes else []
            for episode in episodes:
                said = episode.feedback
                reason = one_line(said.rationale, _SHORT)
                lines.append(f"  {said.id}  {label(said.value)}{' - ' + reason if reason else ''}{self._since(said.id)}")
                lines.append(f"      {one_line(item_text(said.item), _SHORT)}")
        return lines + ([f"purged since: {', '.join(self.gone)}"] if self.gone else [])

    def _since(self, key: str) -> str:
        return "  (no longer so)" if key in self.outdated else ""


def of(connection: Connection, judge_id: int, verdict_id: str) -> Explanation | None:
    """Explain a verdict of the log; None when it has no verdict of this id."""
    table = schema.verdict
    row = connection.execute(select(table).where(table.c.judge_id == judge_id, table.c.id == verdict_id)).first()
    return None if row is None else _explained(connection, judge_id, row)


def _explained(connection: Connection, judge_id: int, row: Row[Any]) -> Explanation:
    given, shown, voted = (tuple[str, ...](parsed(ids)) for ids in (row.guideline_ids, row.episode_ids, row.voter_ids))
    newest = revisions.current(connection, judge_id)
    guidelines = _guidelines(connection, judge_id, row.revision, given)
    records = _records(connection, judge_id, row.revision, [*shown, *voted])
    later = {held.id: held for held in _guidelines(connection, judge_id, newest, given)}
    outdated = [held.id for held in guidelines if held.id not in later or later[held.id].state != "active" or later[held.id].text != held.text]
    now = _records(connection, judge_id, newest, list(records))
    outdated += [key for key, then in records.items() if key not in now or not now[key].feedback.says_the_same_as(then.feedback)]
    made = {revision.number: revision for revision in revisions.history(connection, judge_id)}
    return Explanation(
        verdict_id=row.id,
        at=row.at,
        item_id=row.item_id,
        value=parsed(row.value),
        rationale=row.rationale,
        confidence=row.confidence,
        revision=row.revision,
        made=made.get(row.revision),
        guidelines=tuple(guidelines),
        cases=tuple(records[key] for key in shown if key in records),
        voters=tuple(records[key] for key in voted if key in records),
        gone=tuple(dict.fromkeys(key for key in (*given, *shown, *voted) if key not in records and key not in {held.id for held in guidelines})),
        outdated=tuple(outdated),
    )


def _guidelines(connection: Connection, judge_id: int, revision: int, ids: Sequence[str]) -> list[Guideline]:
    held = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
    return [held[key] for key in ids if key in held]


def _records(connection: Connection, judge_id: int, revision: int, ids: Sequence[str]) -> dict[str, Episode]:
    return {stored.feedback.id: episodic.episode(stored) for stored in episodic.of_ids(connection, judge_id, revision, ids)}
