"""What experts do with guidelines by hand: each verb is one revision, and can be undone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import Connection

from memalign.errors import BadRecord, ConfigurationError, NotFound
from memalign.memory import episodic, questions, revisions, semantic, trials
from memalign.memory.episodic import Stored
from memalign.memory.lookup import Lookup
from memalign.memory.trials import Tried
from memalign.records import Episode, Guideline, Question, canonical
from memalign.rendering import guideline_text

LONGEST = 2000
"""Characters of a guideline."""


class Guidance(Lookup):
    """Guidelines in the experts' hands.

    The states: *active* (the judge reads it), *candidate* (stands by: more useful ones fill the budget, or it was not proven yet), *quarantined*
    (contradicted; a question to the experts is open), *superseded* (another one took its place), *retired* (its evidence is gone, or an expert
    took it out). Only active ones are read by the judge; nothing is deleted. *Pinned* means that an expert answers for it: no
    alignment changes, supersedes or archives it.
    """

    def pin(self, guideline_id: str, *, actor: str = "") -> Guideline:
        """Keep a guideline whatever alignment finds; one that is not active becomes active. Raises NotFound."""
        return self._change("pin", guideline_id, actor, pinned=True, state="active")

    def unpin(self, guideline_id: str, *, actor: str = "") -> Guideline:
        """Let alignment change a guideline again. Raises NotFound."""
        return self._change("unpin", guideline_id, actor, pinned=False)

    def edit(self, guideline_id: str, text: str, *, actor: str = "") -> Guideline:
        """Replace a guideline's text by an expert's, in force from now on and pinned; its evidence stays. Raises NotFound, BadRecord."""
        return self._change("edit", guideline_id, actor, text=_text(text), pinned=True, state="active")

    def add(self, text: str, scope: str = "", *, actor: str = "") -> Guideline:
        """A guideline in an expert's own words, pinned; with a ``scope`` it reads "When <scope>, <text>." Raises BadRecord."""
        worded = guideline_text(_text(scope), _text(text)) if scope.strip() else _text(text)

        def work(connection: Connection, revision: int) -> str:
            held = semantic.at(connection, self.judge_id, revision)
            same = next((g for g in held if g.state != "retired" and semantic.normalised(g.text) == semantic.normalised(worded)), None)
            if same is not None:
                raise BadRecord(f"guideline {same.id} ({same.state}) says the same; pin or edit that one", field="text")
            return semantic.add(connection, self.judge_id, revision, text=worded, scope=" ".join(scope.split()), pinned=True)

        return self._revise("add", actor, work)

    def retire(self, guideline_id: str, *, actor: str = "") -> Guideline:
        """Take a guideline out of judging, pinned or not; ``pin`` brings it back. Raises NotFound."""
        return self._change("retire", guideline_id, actor, state="retired", pinned=False)

    def accept(self, guideline_id: str, *, actor: str = "") -> Guideline:
        """Let the judge read a guideline that stands by, whatever replays found (see ``trials``); alignment may still change it. Raises NotFound."""
        return self._change("accept", guideline_id, actor, state="active")

    def trials(self, guideline_id: str) -> list[Tried]:
        """What replays found out about a guideline, oldest first; empty when it was never verified."""
        with self._reading() as (connection, revision):
            return trials.of(connection, self.judge_id, guideline_id, revision)

    def questions(self) -> list[Question]:
        """What only the experts can decide, with the cases of all sides: first between guidelines, then on contested items; oldest first."""
        with self._reading() as (connection, revision):
            open_ = questions.at(connection, self.judge_id, revision)
            guidelines = {guideline.id: guideline for guideline in semantic.at(connection, self.judge_id, revision)} if open_ else {}
            held = {stored.feedback.id: episodic.episode(stored) for stored in episodic.live(connection, self.judge_id, revision)} if open_ else {}
            contested = episodic.contested(connection, self.judge_id, revision, self.scale, self.weights)
            disputed = episodic.of_items(connection, self.judge_id, revision, contested)
        found = []
        for row in open_:
            keys = [key for key in (row.first, row.second) if key]
            if not guidelines.keys() >= set(keys):  # one was purged since: there is nothing left to decide
                continue
            about = tuple(guidelines[key] for key in keys)
            ids = (about[0].evidence_for, about[1].evidence_for if len(about) > 1 else about[0].evidence_against)
            one, other = (tuple(held[key] for key in side if key in held) for side in ids)
            found.append(Question(id=row.id, guidelines=about, sides=(one, other)))
        return [*found, *_on_items(disputed)]

    def answer(self, question_id: str, *, keep: Collection[str] = (), actor: str = "") -> list[Guideline]:
        """Decide between quarantined guidelines: those to keep become active and pinned, the others are superseded.

        Raises NotFound for a question that is not open, ConfigurationError for one about an item, which is answered by overwriting or
        taking back a record.
        """
        self._writable()
        asked = next((question for question in self.questions() if question.id == question_id), None)
        if asked is None:
            raise NotFound(f"no question {question_id!r} is open in judge {self.name!r}; see judge.memory.questions()")
        about = [guideline.id for guideline in asked.guidelines]
        if not about:
            records = ", ".join(repr(episode.feedback.id) for side in asked.sides for episode in side)
            raise ConfigurationError(f"{question_id} asks about an item: the experts answer it by overwriting or taking back one of {records}")
        if unknown := set(keep) - set(about):
            raise NotFound(f"{question_id} does not ask about {', '.join(sorted(unknown))}, but about {' and '.join(about)}")
        judge_id = self.judge_id
        with self.store.writing(judge_id) as connection:
            revision = revisions.current(connection, judge_id) + 1
            for key in about:
                changes: dict[str, Any] = {"state": "active", "pinned": True} if key in keep else {"state": "superseded", "pinned": False}
                semantic.change(connection, judge_id, revision, key, **changes)
            questions.settle(connection, judge_id, revision)
            revisions.commit(connection, judge_id, revision, verb="answer", actor=actor, counts={"guidelines": len(about)})
            return [guideline for guideline in semantic.at(connection, judge_id, revision) if guideline.id in about]

    def _writable(self) -> None:
        if self.pinned_revision is not None:
            raise ConfigurationError(f"this memory is pinned to revision {self.pinned_revision} and read-only; use the judge it was made from")

    def _change(self, verb: str, guideline_id: str, actor: str, **changes: Any) -> Guideline:
        def work(connection: Connection, revision: int) -> str:
            old = semantic.live(connection, self.judge_id, guideline_id)
            if any(getattr(old, name) != value for name, value in changes.items()):
                semantic.change(connection, self.judge_id, revision, guideline_id, **changes)
            return guideline_id

        return self._revise(verb, actor, work)

    def _revise(self, verb: str, actor: str, work: Callable[[Connection, int], str]) -> Guideline:
        """One transaction and one revision; none when nothing changed."""
        self._writable()
        judge_id = self.judge_id
        with self.store.writing(judge_id) as connection:
            revision = revisions.current(connection, judge_id) + 1
            guideline_id = work(connection, revision)
            if semantic.live(connection, judge_id, guideline_id).since == revision:
                questions.settle(connection, judge_id, revision)
                revisions.commit(connection, judge_id, revision, verb=verb, actor=actor, counts={"guidelines": 1})
            return next(g for g in semantic.at(connection, judge_id, revision) if g.id == guideline_id)


def _on_items(disputed: Iterable[Stored]) -> list[Question]:
    """Questions about contested items; each verdict is a side."""
    items: dict[str, dict[str, list[Episode]]] = {}
    for stored in disputed:
        items.setdefault(stored.item_id, {}).setdefault(canonical(stored.feedback.value), []).append(episodic.episode(stored))
    return [Question(id=f"i{item_id[:8]}", guidelines=(), sides=tuple(map(tuple, sides.values()))) for item_id, sides in items.items()]


def _text(text: str) -> str:
    folded = " ".join(text.split())
    if not folded or len(folded) > LONGEST:
        raise BadRecord(f"a guideline has 1 to {LONGEST} characters, this one {len(folded)}", field="text")
    try:
        folded.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("holds half of a surrogate pair, which is not valid Unicode", field="text") from error
    return folded
