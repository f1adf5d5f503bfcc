"""What distinguishes two revisions of a memory, as an expert would tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from memalign.memory import episodic, revisions, semantic
from memalign.memory.revisions import Decision, Revision
from memalign.records import Episode, Guideline
from memalign.rendering import item_text, one_line

_SHORT = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordChange:
    """A record that entered memory, left it, or says something else."""

    kind: Literal["added", "withdrawn", "changed"]
    before: Episode | None
    after: Episode | None

    @property
    def id(self) -> str:
        """The record's id."""
        held = self.after or self.before
        assert held is not None
        return held.feedback.id


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidelineChange:
    """A guideline that came into force, left it, reads differently, or rests on other cases."""

    kind: Literal["added", "retired", "changed", "evidence", "state"]
    """``added`` and ``retired``: it is active in one of both revisions only. ``changed``: active in both with another text. ``evidence``: active in
    both with other cases, or pinned in one of them. ``state``: active in neither."""
    before: Guideline | None
    after: Guideline | None

    @property
    def id(self) -> str:
        """The guideline's id."""
        held = self.after or self.before
        assert held is not None
        return held.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What distinguishes revision ``after`` from revision ``before``; either may be the older one."""

    before: int
    after: int
    revisions: tuple[Revision, ...]
    """The changes that lie between, oldest first."""
    records: tuple[RecordChange, ...]
    guidelines: tuple[GuidelineChange, ...]
    decision: tuple[Decision, Decision] | None
    """How model and cases were weighed, before and after; None when that is the same."""
    purged: tuple[int, ...]
    """Purges since the older of both revisions: what they deleted is not shown."""

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.records or self.guidelines or self.decision)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that is ready for JSON but for its times."""
        return asdict(self)

    def lines(self, label: Callable[[Any], str] = str) -> list[str]:
        """An account in plain text; ``label`` writes a verdict's value."""
        lines = [f"revision {self.before} -> {self.after}" + ("" if self else ": nothing differs")]
        lines += [
            f"  {made.number}  {made.at[:16].replace('T', ' ')}  {made.verb}" + (f" by {made.actor}" if made.actor else "") for made in self.revisions
        ]
        if self.records:
            lines.append("records")
        for record in self.records:
            lines += _record_lines(record, label)
        if self.guidelines:
            lines.append("guidelines")
        for guideline in self.guidelines:
            lines += _guideline_lines(guideline)
        if self.decision is not None:
            lines += ["how model and cases are weighed", f"  was: {_weights(self.decision[0])}", f"  now: {_weights(self.decision[1])}"]
        if self.purged:
            lines.append(f"purged since, so not shown: what revision(s) {', '.join(map(str, self.purged))} deleted")
        return lines


def between(connection: Connection, judge_id: int, before: int, after: int) -> Difference:
    """Compare two revisions that exist."""
    older, newer = sorted((before, after))
    weighed = tuple(revisions.decision_at(connection, judge_id, number) for number in (before, after))
    return Difference(
        before=before,
        after=after,
        revisions=tuple(made for made in revisions.history(connection, judge_id) if older < made.number <= newer),
        records=_records(*(episodic.live(connection, judge_id, number) for number in (before, after))),
        guidelines=guidelines(*(semantic.at(connection, judge_id, number) for number in (before, after))),
        decision=None if weighed[0] == weighed[1] else (weighed[0], weighed[1]),
        purged=tuple(revisions.purges_since(connection, judge_id, older)),
    )


def _records(before: Sequence[episodic.Stored], after: Sequence[episodic.Stored]) -> tuple[RecordChange, ...]:
    old = {stored.feedback.id: stored for stored in before}
    new = {stored.feedback.id: stored for stored in after}
    changes = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was is not None and now is not None:
            if not was.feedback.teaches_the_same_as(now.feedback):
                changes.append(RecordChange(kind="changed", before=episodic.episode(was), after=episodic.episode(now)))
        elif now is not None:
            changes.append(RecordChange(kind="added", before=None, after=episodic.episode(now)))
        elif was is not None:
            changes.append(RecordChange(kind="withdrawn", before=episodic.episode(was), after=None))
    return tuple(changes)


def guidelines(before: Sequence[Guideline], after: Sequence[Guideline]) -> tuple[GuidelineChange, ...]:
    """Compare the guidelines of two revisions."""
    old, new = {g.id: g for g in before}, {g.id: g for g in after}
    changes = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        kind = _kind(was, now)
        if kind is not None:
            changes.append(GuidelineChange(kind=kind, before=was, after=now))
    return tuple(changes)


def _kind(was: Guideline | None, now: Guideline | None) -> Literal["added", "retired", "changed", "evidence", "state"] | None:
    held, holds = (side is not None and side.state == "active" for side in (was, now))
    if held != holds:
        return "added" if holds else "retired"
    if not held:
        return "state" if (was and was.state) != (now and now.state) else None
    assert was is not None
    assert now is not None
    if (was.text, was.scope) != (now.text, now.scope):
        return "changed"
    same = was.pinned == now.pinned and all(
        set(mine) == set(theirs) for mine, theirs in ((was.evidence_for, now.evidence_for), (was.evidence_against, now.evidence_against))
    )
    return None if same else "evidence"


def _record_lines(change: RecordChange, label: Callable[[Any], str]) -> list[str]:
    shown = change.after or change.before
    assert shown is not None
    sign = {"added": "+", "withdrawn": "-", "changed": "~"}[change.kind]
    who = f", by {shown.feedback.annotator}" if shown.feedback.annotator else ""
    if change.before is not None and change.after is not None:
        head = [f"  {sign} {change.id}{who}", f"      was: {_said(change.before, label)}", f"      now: {_said(change.after, label)}"]
        items = list(dict.fromkeys(_item(episode) for episode in (change.before, change.after)))
        return [*head, *(f"      {which}  {item}" for which, item in zip(("of: ", "now of:"), items, strict=False))]
    return [f"  {sign} {change.id}{who}: {_said(shown, label)}", f"      of:  {_item(shown)}"]


def _item(episode: Episode) -> str:
    return one_line(item_text(episode.feedback.item), _SHORT)


def _said(episode: Episode, label: Callable[[Any], str]) -> str:
    reason = one_line(episode.feedback.rationale, _SHORT)
    return label(episode.feedback.value) + (f" - {reason}" if reason else "")


def _guideline_lines(change: GuidelineChange) -> list[str]:
    was, now = change.before, change.after
    if change.kind == "changed" and was is not None and now is not None:
        return [f"  ~ {change.id}", f"      was: {was.text}", f"      now: {now.text}"]
    if change.kind == "evidence" and was is not None and now is not None:
        counts = " -> ".join(f"{len(side.evidence_for)} for, {len(side.evidence_against)} against" for side in (was, now))
        pinned = "" if was.pinned == now.pinned else ", pinned" if now.pinned else ", no longer pinned"
        return [f"  = {change.id}  {now.text}", f"      cases: {counts}{pinned}"]
    shown = now or was
    assert shown is not None
    if change.kind == "state":
        return [f"  . {change.id}  {shown.text}", f"      state: {_state(was)} -> {_state(now)}"]
    sign = "+" if change.kind == "added" else "-"
    other = was if change.kind == "added" else now
    return [f"  {sign} {change.id}  {shown.text}" + (f"  ({'was ' if change.kind == 'added' else ''}{other.state})" if other is not None else "")]


def _state(guideline: Guideline | None) -> str:
    return "absent" if guideline is None else guideline.state


def _weights(decision: Decision) -> str:
    numbers = {name: value for name, value in asdict(decision).items() if isinstance(value, int | float) and not isinstance(value, bool)}
    offsets = "".join(f" {value:.3g}" for value in decision.offsets)
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()) + (
        (f", offsets{offsets}" if offsets else "") + ("" if decision.guidelines else ", the model reads pinned guidelines only")
    )
