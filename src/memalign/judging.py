"""One judgement: recall, ask, read, log. And what the experts' labels say about how to judge."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Literal
from uuid import uuid4

from memalign.errors import MemalignError, UnreadableReply
from memalign.memory import Memory, View, revisions
from memalign.memory.revisions import Decision
from memalign.models import ChatReply
from memalign.records import Episode, Failure, Guideline, Item, Verdict, content_hash
from memalign.rendering import search_text
from memalign.session import Meter, Session
from memalign.verdicts import read
from memalign.working import Task, WorkingMemory, assemble, request

Part = Literal["both", "guidelines", "cases", "none"]

_ATTEMPTS = 3


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


async def judge(session: Session, task: Task, item: Item, recall: Recall, *, temperature: float) -> Verdict:
    """Judge one item. Raises what the model and the embedder raise; UnreadableReply after three unusable replies."""
    started = time.perf_counter()
    meter = Meter()
    try:
        item.id  # noqa: B018 - refuses at once what is no JSON value
        view, context, vote, voters = await recalled(session, meter, task, item, recall)
        reply = await asked(session, meter, task, context, temperature)
        reading = read(task.scale, reply, explain=task.explain, decision=view.decision if recall.part == "both" else Decision(), vote=vote)
    except MemalignError:
        session.memory.log(meter.calls)
        raise
    in_service = recall.own and recall.part == "both" and recall.guidelines is None and session.memory.pinned_revision is None
    verdict = Verdict(
        value=reading.value,
        id=uuid4().hex if in_service else "",
        rationale=reading.rationale,
        confidence=reading.confidence,
        guideline_ids=context.guideline_ids,
        episode_ids=context.episode_ids,
        voter_ids=voters,
        revision=view.revision,
        usage=meter.usage,
        cost_usd=meter.cost_usd,
        seconds=time.perf_counter() - started,
        probabilities=reading.probabilities,
    )
    session.memory.log(meter.calls, item.id, verdict if in_service else None)
    return verdict


async def attempt(session: Session, task: Task, item: Item, recall: Recall, *, temperature: float) -> Verdict | Failure:
    """Judge one item of a batch: whatever fails becomes a Failure in its place."""
    try:
        return await judge(session, task, item, recall, temperature=temperature)
    except MemalignError as error:
        return Failure(error=f"{type(error).__name__}: {error}", retryable=error.retryable, attempts=getattr(error, "attempts", 1))
    except Exception as error:  # of a model or embedder that breaks its contract: the verdicts of the other items must not be lost with it
        return Failure(error=f"{type(error).__name__}: {error}", retryable=False)


async def recalled(session: Session, meter: Meter, task: Task, item: Item, recall: Recall) -> tuple[View, WorkingMemory, float, tuple[str, ...]]:
    """What memory brings to a judgement: the view, the context, and, if it counts, the vote of the cases with those that carried it."""
    await session.complete_vectors(meter)
    text = search_text(item)
    key = content_hash(text)
    view, stored = await asyncio.to_thread(session.memory.view_and_vector, key)
    if recall.guidelines is not None:
        view = replace(view, guidelines=recall.guidelines)
    guidelines = view.guidelines if recall.part in ("both", "guidelines") else ()
    if recall.part not in ("both", "cases"):
        return view, assemble(task, item, guidelines), 0.0, ()
    k = recall.k if view.decision.cases is None else view.decision.cases
    query, vote, voters = None, 0.0, tuple[str, ...]()
    counts = view.decision.vote_weight > 0 and recall.part == "both"
    if (k > 0 or counts) and view.items:
        query = stored if stored is not None else (await session.vectors(meter, {key: text}, looked_up=True))[key]
        if counts:
            vote, voters = await asyncio.to_thread(session.memory.vote, view, item.id, query, own=recall.own)
    cases = await asyncio.to_thread(session.memory.cases, view, item.id, query, k=k, floor=recall.floor, own=recall.own)
    exemplars = [episode for episode in view.exemplars if recall.own or episode.feedback.item.id != item.id]
    return view, assemble(task, item, guidelines, exemplars, _fresh(cases.episodes, exemplars)), vote, voters


def _fresh(similar: tuple[Episode, ...], exemplars: list[Episode]) -> list[Episode]:
    """Similar cases that do not stand among the exemplars already, where the prefix cache serves them."""
    shown = {episode.feedback.id for episode in exemplars}
    return [episode for episode in similar if episode.feedback.id not in shown]


async def asked(session: Session, meter: Meter, task: Task, context: WorkingMemory, temperature: float, *, purpose: str = "judge") -> ChatReply:
    """A reply that can be read; an unreadable one is asked for again, a little warmer, since the same call would give the same reply."""
    for number in range(1, _ATTEMPTS + 1):
        warmth = temperature if number == 1 else max(temperature, 0.3 * number)
        try:
            reply = await session.ask(meter, session.model, replace(request(task, context, temperature=warmth), purpose=purpose))
            read(task.scale, reply, explain=task.explain, decision=Decision())
            return reply
        except UnreadableReply as error:
            if number == _ATTEMPTS:
                raise UnreadableReply(f"{session.model.name} gave no readable verdict in {_ATTEMPTS} attempts; the last time: {error}") from error
    raise AssertionError


def decide(memory: Memory, decision: Decision, *, actor: str, judged: int) -> int:
    """Store what the experts' labels decided; gives the new revision."""
    judge_id = memory.judge_id
    with memory.store.writing(judge_id) as connection:
        revision = revisions.current(connection, judge_id) + 1
        revisions.commit(connection, judge_id, revision, verb="calibrate", actor=actor, counts={"judged": judged}, decision=decision)
    return revision
