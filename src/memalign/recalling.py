"""What memory brings to one judgement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from memalign.errors import MemalignError
from memalign.memory import Memory, View
from memalign.memory.revisions import Decision
from memalign.pairwise import mirrored, mirrored_case
from memalign.records import Episode, Guideline, Item, content_hash
from memalign.rendering import search_text
from memalign.routing import fits
from memalign.session import Meter, Session
from memalign.space import Space
from memalign.working import CHARACTERS_PER_TOKEN, Task, WorkingMemory, assemble

if TYPE_CHECKING:
    from memalign.embedders import Vectors

    Seen = tuple[View, Vectors | None]

Part = Literal["both", "guidelines", "cases", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How memory takes part in a judgement."""

    k: int
    """How many similar items' cases are shown, beside the exemplars."""
    floor: float
    """The least cosine similarity of a case that is shown."""
    own: bool = True
    """Whether the item's own verdicts may be seen: yes in service, no in evaluation."""
    part: Part = "both"
    """Which memory takes part; with none, this is the unaligned judge."""
    guidelines: tuple[Guideline, ...] | None = None
    """These in place of the active ones, to see what a change would do before it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What memory brings to a judgement."""

    view: View
    guidelines: tuple[Guideline, ...] = ()
    exemplars: tuple[Episode, ...] = ()
    similar: tuple[Episode, ...] = ()
    """Similar cases, the most similar last; those of the item itself, where they may be seen, at the very end."""
    vote: tuple[float, ...] = ()
    """The vote of the cases, if it counts."""
    voters: tuple[str, ...] = ()
    """Ids of the records that carried it."""
    similarity: Mapping[str, float] = field(default_factory=dict)
    """Of each similar case to the item, by feedback id."""
    relevance: Mapping[str, float] = field(default_factory=dict)
    """Of each guideline to the item, where not all have room."""
    lean: bool = False
    """Whether this is no more than every item is judged by, since the model's window does not hold more."""

    def context(self, task: Task, item: Item) -> WorkingMemory:
        """The messages that ask for a verdict on the item."""
        return assemble(task, item, self.guidelines, self.exemplars, self.similar, relevance=self.relevance)

    def leaner(self) -> Recalled:
        """Without cases, and without guidelines chosen for the item."""
        return replace(self, exemplars=(), similar=(), similarity={}, relevance={}, lean=True)


async def recalled(session: Session, meter: Meter, task: Task, item: Item, recall: Recall, *, fitted: bool = True, more: int = 0) -> Recalled:
    """What memory brings to a judgement; with ``more``, so many times the cases that are shown, to draw from.

    ``fitted``: whether what the experts' labels fitted takes part.
    """
    key = content_hash(search_text(item))
    while True:
        space = session.serving
        with meter.timed("search"):
            standing = space.memory.unchanged(key) if space.memory.swift else None
            if standing is None:
                standing = await asyncio.to_thread(space.memory.view_and_vector, key)
            view, stored = standing
        if not view.whole:
            space = await session.completed(meter)
            view, stored = await asyncio.to_thread(space.memory.view_and_vector, key)
        try:
            return await _brought(session, space, meter, task, item, recall, (view, stored), fitted, more)
        except MemalignError as error:
            if not session.without(space, error):
                raise


async def _brought(
    session: Session, space: Space, meter: Meter, task: Task, item: Item, recall: Recall, seen: Seen, fitted: bool, more: int
) -> Recalled:
    view, query = seen  # the vector of the item, if it is stored
    decision = decision_for(session, view, recall, fitted=fitted)
    if recall.guidelines is not None:
        view = replace(view, guidelines=recall.guidelines)
    elif not decision.guidelines:
        view = replace(view, guidelines=tuple(guideline for guideline in view.guidelines if guideline.pinned))
    guidelines = view.guidelines if recall.part in ("both", "guidelines") else ()
    crowded = not fits(guidelines, task.guideline_tokens * CHARACTERS_PER_TOKEN)
    if recall.part not in ("both", "cases") and not crowded:
        return Recalled(view=view, guidelines=guidelines)
    k = (recall.k if view.decision.cases is None else view.decision.cases) * (1 + more)
    vote, voters = tuple[float, ...](), tuple[str, ...]()
    counts = decision.vote_weight > 0
    if not (((k > 0 or counts) and view.items) or crowded):
        query = None
    elif query is None:
        with meter.timed("embed"):
            text = search_text(item)
            (query,) = (await space.vectors(meter, {content_hash(text): text}, looked_up=True)).values()
    relevance = {} if query is None or not crowded else await _relevance(space, meter, guidelines, query)
    if recall.part not in ("both", "cases"):
        return Recalled(view=view, guidelines=guidelines, relevance=relevance)
    with meter.timed("search"):
        if counts and query is not None and view.items:
            vote, voters = await asyncio.to_thread(space.memory.vote, view, item, query, own=recall.own)
        similar, similarity = await space.looked_up(partial(_similar, space.memory, view, task, item, query, k, recall))
    exemplars = view.exemplars if recall.own else tuple(episode for episode in view.exemplars if episode.item_id != item.id)
    return Recalled(
        view=view,
        guidelines=guidelines,
        exemplars=exemplars,
        similar=_fresh(similar, exemplars),
        vote=vote,
        voters=voters,
        similarity=similarity,
        relevance=relevance,
    )


async def _relevance(space: Space, meter: Meter, guidelines: Sequence[Guideline], query: Vectors) -> dict[str, float]:
    """Guideline id -> similarity of its text to the item."""
    texts = {guideline.id: guideline.text for guideline in guidelines}
    with meter.timed("embed"):
        known = await space.vectors(meter, {content_hash(text): text for text in texts.values()}, kept=True)
    return {key: float(known[content_hash(text)] @ query) for key, text in texts.items()}


def _similar(
    memory: Memory, view: View, task: Task, item: Item, query: Vectors | None, k: int, recall: Recall
) -> tuple[tuple[Episode, ...], dict[str, float]]:
    """Similar cases, then the item's own, and their similarity; a pair that experts judged in the other order is the item itself."""
    found = memory.cases(view, item.id, query, k=k, floor=recall.floor, own=recall.own, item=item)
    cases, similarity = found.episodes, {case.feedback.id: score for case, score in zip(found.episodes, found.similarity, strict=True)}
    other = mirrored(item) if task.scale.kind == "pairwise" else None
    if other is None:
        return cases, similarity
    turned = [mirrored_case(case) for case in memory.cases(view, other.id, None, k=0, floor=0.0, own=True).episodes] if recall.own else []
    ids = item.id, other.id
    own = [case for case in cases if case.item_id == ids[0]]
    chosen = tuple(case for case in cases if case.item_id not in ids) + tuple(turned) + tuple(own)
    return chosen, similarity | {case.feedback.id: 1.0 for case in turned}


def _fresh(similar: Sequence[Episode], exemplars: Sequence[Episode]) -> tuple[Episode, ...]:
    """Similar cases that do not stand among the exemplars already, where the prefix cache serves them."""
    shown = {episode.feedback.id for episode in exemplars}
    return tuple(episode for episode in similar if episode.feedback.id not in shown)


def decision_for(session: Session, view: View, recall: Recall, *, fitted: bool) -> Decision:
    """What the experts' labels decided about this judgement, if it takes part."""
    return view.decision.of(session.model.name) if recall.part == "both" and fitted else Decision()
