"""Judging again, as it would be: an item's own case hidden, under guidelines that need not be stored, and no answer paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memalign.errors import MemalignError
from memalign.judging import PLAIN, Caution, answered, asked
from memalign.memory import Memory, replays
from memalign.recalling import Recall, recalled
from memalign.records import Failure, Guideline, Item, Verdict, content_hash
from memalign.session import Meter, Session
from memalign.verdicts import Answer
from memalign.working import Task, WorkingMemory


class Replayer:
    """The judge as alignment uses it to try changes; it has the shape of ``memalign.alignment.Replay``."""

    def __init__(self, session: Session, task: Task, recall: Recall, *, temperature: float, caution: Caution = PLAIN) -> None:
        self._session = session
        self._caution = caution
        self._task = task
        self._recall = recall
        self._temperature = temperature

    async def __call__(
        self, meter: Meter, item: Item, guidelines: Sequence[Guideline] | None, *, draw: int = 0, purpose: str = "verify"
    ) -> Verdict | Failure:
        """What the judge says of an item in its ``draw``-th answer, under these guidelines or, with None, the active ones.

        An answer to the very same prompt that was given before is taken from memory. Calls go on the meter; the verdict log stays as it is.
        """
        try:
            return await self._replay(meter, item, guidelines, draw, purpose)
        except MemalignError as error:
            return Failure(error=f"{type(error).__name__}: {error}", retryable=error.retryable, attempts=getattr(error, "attempts", 1))
        except Exception as error:  # of a model that breaks its contract: the other replays must not be lost with it
            return Failure(error=f"{type(error).__name__}: {error}", retryable=False)

    async def _replay(self, meter: Meter, item: Item, guidelines: Sequence[Guideline] | None, draw: int, purpose: str) -> Verdict:
        session, task = self._session, self._task
        recall = replace(self._recall, own=False, guidelines=None if guidelines is None else tuple(guidelines))
        mine = Meter()

        async def ask(context: WorkingMemory, temperature: float, *, seed: int = 0) -> Answer:
            key = self._key(context, temperature, seed)
            known = await asyncio.to_thread(_known, session.memory, key, draw)
            if known is not None:
                return Answer(known[0], "", known[1])
            answer = await asked(session, mine, task, context, temperature, purpose=purpose, seed=seed)
            session.memory.remember(key, draw, answer.value, answer.probabilities)
            return answer

        try:
            brought = await recalled(session, mine, task, item, recall, fitted=self._caution.fitted)
            context, reading = await answered(
                session, mine, task, item, recall, brought, temperature=self._temperature, caution=self._caution, ask=ask
            )
        finally:
            meter.calls += mine.calls
        return Verdict(
            value=reading.value,
            rationale=reading.rationale,
            confidence=reading.confidence,
            guideline_ids=context.guideline_ids,
            episode_ids=context.episode_ids,
            voter_ids=brought.voters,
            revision=brought.view.revision,
            usage=mine.usage,
            cost_usd=mine.cost_usd,
            seconds=mine.seconds,
            probabilities=reading.probabilities,
            expected=reading.expected,
            votes=reading.votes,
            orders=reading.orders,
        )

    def _key(self, context: WorkingMemory, temperature: float, seed: int) -> str:
        turns = [[message.role, message.content] for message in context.messages]
        return content_hash(self._session.model.name, temperature, seed, self._task.explain, self._task.scale.labels, turns)


def _known(memory: Memory, key: str, draw: int) -> tuple[Any, dict[str, float] | None] | None:
    with memory.store.reading() as connection:
        return replays.find(connection, memory.judge_id, key, draw)
