"""One judgement: recall, ask, read, log. And what the experts' labels say about how to judge."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from memalign.errors import BadRecord, ConfigurationError, ItemTooLong, MemalignError, UnreadableReply
from memalign.memory import Memory, revisions
from memalign.memory.revisions import Decision
from memalign.pairwise import mirrored, mirrored_case
from memalign.recalling import Recall, Recalled, decision_for, recalled
from memalign.records import Failure, Item, Trace, Verdict
from memalign.session import Meter, Session
from memalign.verdicts import Answer, Reading, read, settled
from memalign.working import Task, WorkingMemory, request, spared

VOTES = 5
"""Replies that are counted when abstaining is asked for and the model does not tell token probabilities."""

_ATTEMPTS = 3
_VOTE_TEMPERATURE = 0.7
"""Of the replies beyond the first: without it, a memory without cases would give the same reply again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """How sure a verdict has to be, and what is spent on it."""

    votes: int | None = None
    """Replies that are counted, each shown other cases; None: as many as calibration counted, and five where abstaining is asked for and
    nothing else tells a confidence."""
    abstain_below: float | None = None
    """The least confidence of a verdict; below, the judge abstains."""
    both_orders: bool = False
    """Pairwise: whether outputs a and b are also shown in the other order."""
    expected_score: bool = False
    """Scores: whether the value is the score nearest to the mean under the probabilities, not the likeliest."""
    fitted: bool = True
    """Whether what the experts' labels fitted takes part."""

    def __post_init__(self) -> None:
        if self.votes is not None and self.votes < 1:
            raise ConfigurationError(f"votes must be 1 or more, not {self.votes}")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise ConfigurationError(f"abstain_below is a confidence from 0 to 1, not {self.abstain_below}")


PLAIN = Caution()


async def judge(session: Session, task: Task, item: Item, recall: Recall, *, temperature: float, caution: Caution = PLAIN) -> Verdict:
    """Judge one item. Raises what the model and the embedder raise; UnreadableReply after three unusable replies."""
    started = time.perf_counter()
    meter = Meter()
    try:
        if not isinstance(item, Item):
            raise BadRecord(f"must be an Item or a Feedback, not {type(item).__name__}")
        item_id = item.id  # refuses at once what is no JSON value
        brought = await recalled(session, meter, task, item, recall, fitted=caution.fitted)
        context, reading = await answered(session, meter, task, item, recall, brought, temperature=temperature, caution=caution)
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
        voter_ids=brought.voters,
        revision=brought.view.revision,
        usage=meter.usage,
        cost_usd=meter.cost_usd,
        seconds=time.perf_counter() - started,
        probabilities=reading.probabilities,
        abstained=_abstains(reading, caution),
        expected=reading.expected,
        votes=reading.votes,
        orders=reading.orders,
        trace=Trace(
            similarity=brought.similarity if context.episode_ids else {}, tokens=context.tokens, left_out=context.left_out, seconds=meter.stages
        ),
    )
    session.memory.log(meter.calls, item_id, verdict if in_service else None)
    return verdict


async def attempt(session: Session, task: Task, item: Item, recall: Recall, *, temperature: float, caution: Caution = PLAIN) -> Verdict | Failure:
    """Judge one item of a batch: whatever fails becomes a Failure in its place."""
    try:
        return await judge(session, task, item, recall, temperature=temperature, caution=caution)
    except MemalignError as error:
        return Failure(error=f"{type(error).__name__}: {error}", retryable=error.retryable, attempts=getattr(error, "attempts", 1))
    except Exception as error:  # of a model or embedder that breaks its contract: the verdicts of the other items must not be lost with it
        return Failure(error=f"{type(error).__name__}: {error}", retryable=False)


class Ask(Protocol):
    """Gets the answer to a context; raises what the model raises."""

    def __call__(self, context: WorkingMemory, temperature: float, *, seed: int = 0) -> Coroutine[Any, Any, Answer]:
        """``seed``: which of the replies that a warm model may give."""


async def answered(
    session: Session,
    meter: Meter,
    task: Task,
    item: Item,
    recall: Recall,
    brought: Recalled,
    *,
    temperature: float,
    caution: Caution = PLAIN,
    ask: Ask | None = None,
) -> tuple[WorkingMemory, Reading]:
    """The context of an item and the reading of the answers to it.

    Where the model's window does not hold all of the context, it is the item without cases, and with the guidelines alone that every item is
    judged by. Raises ItemTooLong when that does not fit either.
    """
    with meter.timed("assemble"):
        context = brought.context(task, item)
    listen = partial(heard, session, meter, task, item, recall, temperature=temperature, caution=caution, ask=ask)
    try:
        return context, await listen(brought, context)
    except ItemTooLong:
        lean = brought.leaner()
        less = spared(context, lean.context(task, item))
        if less.messages == context.messages:
            raise
    return less, await listen(lean, less)


async def heard(
    session: Session,
    meter: Meter,
    task: Task,
    item: Item,
    recall: Recall,
    brought: Recalled,
    context: WorkingMemory,
    *,
    temperature: float,
    caution: Caution = PLAIN,
    ask: Ask | None = None,
) -> Reading:
    """One reading of as many answers as caution asks for: to the context, to that in the other order, then others that are shown other cases."""
    decision = decision_for(session, brought.view, recall, fitted=caution.fitted)
    ask = partial(asked, session, meter, task) if ask is None else ask
    both = caution.both_orders and task.scale.kind == "pairwise" and mirrored(item) is not None

    async def answer(number: int, seen: Recalled, warmth: float) -> Answer:
        if both and number % 2:
            return (await ask(_swapped(seen, task, item), warmth, seed=number // 2)).seen_from(task.scale)
        return await ask(context if seen is brought else seen.context(task, item), warmth, seed=number // 2 if both else number)

    def read_so_far() -> Reading:
        return settled(task.scale, answers, decision=decision, vote=brought.vote, expected_score=caution.expected_score)

    answers = [await answer(0, brought, temperature)]
    if both:  # not at once: the second call finds all but the item in the provider's prefix cache
        answers.append(await answer(1, brought, temperature))
    reading = read_so_far()
    wanted = caution.votes or 0
    if caution.votes is None and any(found.probabilities is None for found in answers):
        unsure = caution.abstain_below is not None and reading.confidence is None
        wanted = decision.votes if decision.votes > len(answers) else VOTES if unsure else 0
    if wanted <= len(answers):
        return reading
    wanted += both and wanted % 2  # as many of each order
    pool = brought
    if not brought.lean:
        pool = await recalled(session, meter, task, item, replace(recall, guidelines=brought.view.guidelines), fitted=False, more=1)
    warmth = max(temperature, _VOTE_TEMPERATURE)
    others = [(number, _drawn(pool, item, number // 2 if both else number)) for number in range(len(answers), wanted)]
    answers += await asyncio.gather(*(answer(number, seen, warmth) for number, seen in others))
    return read_so_far()


def _drawn(brought: Recalled, item: Item, number: int) -> Recalled:
    """With half of the similar items' cases, drawn at random but the same at every call, in their order; the item's own are always among them."""
    own = item.id
    items = list(dict.fromkeys(case.item_id for case in brought.similar if case.item_id != own))
    kept = set(random.Random(f"{own} {number}").sample(items, (len(items) + 1) // 2)) | {own}
    return replace(brought, similar=tuple(case for case in brought.similar if case.item_id in kept))


def _swapped(brought: Recalled, task: Task, item: Item) -> WorkingMemory:
    """The context of the item with a and b swapped; its own cases are swapped with it, others stay as they are."""
    other = mirrored(item)
    assert other is not None
    own = item.id
    turned = tuple(mirrored_case(case) if case.item_id == own else case for case in brought.similar)
    return replace(brought, similar=turned).context(task, other)


async def asked(
    session: Session, meter: Meter, task: Task, context: WorkingMemory, temperature: float, *, purpose: str = "judge", seed: int = 0
) -> Answer:
    """An answer that can be read; an unreadable one is asked for again, a little warmer, since the same call would give the same reply.

    It also gets more room each time: the reply may have been cut, or have spent its room on thoughts that are not shown.
    """
    first = request(task, context, temperature=temperature)
    for number in range(1, _ATTEMPTS + 1):
        warmth = temperature if number == 1 else max(temperature, 0.3 * number)
        try:
            room = first.max_tokens * 2 ** (number - 1)
            reply = await session.ask(meter, session.model, replace(first, temperature=warmth, max_tokens=room, purpose=purpose, seed=seed))
            with meter.timed("read"):
                return read(task.scale, reply, explain=task.explain)
        except UnreadableReply as error:
            if number == _ATTEMPTS:
                told = f"{session.model.name} gave no readable verdict in {_ATTEMPTS} attempts; the last time: {error}"
                raise UnreadableReply(f"{told}; try again, or choose a model that can follow the form") from error
    raise AssertionError


def _abstains(reading: Reading, caution: Caution) -> bool:
    """Where orders disagree and no tie is allowed, always; else below the wanted confidence, or when there is none."""
    if reading.disputed:
        return True
    return caution.abstain_below is not None and (reading.confidence is None or reading.confidence < caution.abstain_below)


def decide(memory: Memory, decision: Decision, *, actor: str, judged: int) -> int:
    """Store what the experts' labels decided; gives the new revision."""
    judge_id = memory.judge_id
    with memory.store.writing(judge_id) as connection:
        revision = revisions.current(connection, judge_id) + 1
        revisions.commit(connection, judge_id, revision, verb="calibrate", actor=actor, counts={"judged": judged}, decision=decision)
    return revision
