"""A judge at work: its models, embedder and memory, opened at first use, and the account of what they consumed."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from memalign.embedders.queue import Queue
from memalign.errors import EmbeddingError, MemalignError, UnreadableReply
from memalign.memory import Memory
from memalign.memory.log import Call
from memalign.models import ChatModel, ChatReply, ChatRequest
from memalign.prices import cost_usd
from memalign.records import Usage

if TYPE_CHECKING:
    from memalign.embedders import Embedder, Vectors

T = TypeVar("T")

_REMEMBERED_VECTORS = 4096


class Meter:
    """The calls of one verb, for its report and the ledger."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stages: dict[str, float] = {}
        """Stage -> seconds."""
        self._started = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(stage, time.perf_counter() - started)

    def spent(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def usage(self) -> Usage:
        """The sum over all calls."""
        return sum((call.usage for call in self.calls), Usage())

    @property
    def cost_usd(self) -> float | None:
        """The sum, or None when one of the prices is unknown."""
        costs = [call.cost_usd for call in self.calls]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    @property
    def seconds(self) -> float:
        """Since the meter was made."""
        return time.perf_counter() - self._started


class Session:
    """What the verbs work with. Safe for concurrent use."""

    def __init__(self, memory: Memory, model: ChatModel, reflection_model: ChatModel, embedder: Embedder) -> None:
        self.memory = memory
        self.model = model
        self.reflection_model = reflection_model
        self.embedder = Queue(embedder)
        self._recent: OrderedDict[str, Vectors] = OrderedDict()
        self._purged = 0
        self._complete = self._priced = False
        self._desks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def ask(self, meter: Meter, model: ChatModel, request: ChatRequest) -> ChatReply:
        """One model call, on the account whether it succeeds or not."""
        started = time.perf_counter()
        try:
            reply = await model.complete(request)
        except MemalignError as error:
            seconds = time.perf_counter() - started
            used = error.usage if isinstance(error, UnreadableReply) else None
            usage, cost = (Usage(calls=1), 0.0) if used is None else (used, await self._cost(model, used))
            failed = Call(purpose=request.purpose, model=model.name, usage=usage, cost_usd=cost, seconds=seconds, error=type(error).__name__)
            meter.calls.append(failed)
            raise
        whole = time.perf_counter() - started
        cost = await self._cost(model, reply.usage)
        seconds = min(reply.seconds, whole) or whole  # a model's own figure leaves out the wait for a turn
        meter.spent("queue", whole - seconds)
        meter.spent("model", seconds)
        meter.calls.append(Call(purpose=request.purpose, model=model.name, usage=reply.usage, cost_usd=cost, seconds=seconds))
        return reply

    async def _cost(self, model: ChatModel, usage: Usage) -> float | None:
        cost = cost_usd(model.name, usage) if self._priced else await asyncio.to_thread(cost_usd, model.name, usage)
        self._priced = True  # the price list is loaded
        return cost

    async def vectors(self, meter: Meter, texts: Mapping[str, str], *, looked_up: bool = False, kept: bool = False) -> dict[str, Vectors]:
        """Content hash -> unit vector, for texts by content hash; only texts never seen before are embedded.

        ``looked_up``: memory was asked already and holds none of them. ``kept``: memory keeps those that are new to it.
        """
        if self._purged != self.memory.purged:  # none of what was purged stays in RAM
            self._purged = self.memory.purged
            self._recent.clear()
        found = {key: self._recent[key] for key in texts if key in self._recent}
        unseen = [key for key in texts if key not in found]
        if unseen:
            found |= {} if looked_up else await asyncio.to_thread(self.memory.known_vectors, unseen)
            fresh = [key for key in unseen if key not in found]
            embedded = dict(zip(fresh, await self._embed(meter, [texts[key] for key in fresh]), strict=True))
            if kept and embedded:
                await asyncio.to_thread(self.memory.keep_vectors, embedded)
            found |= embedded
        for key, vector in found.items():
            self._recent[key] = vector
            self._recent.move_to_end(key)
        while len(self._recent) > _REMEMBERED_VECTORS:
            self._recent.popitem(last=False)
        return found

    async def looked_up(self, work: Callable[[], T]) -> T:
        """What some work on memory gives: done here where that is quicker than to hand it to a thread, one judgement a turn of the event loop.

        Else the first of many judgements would ask its model when the last one had been prepared.
        """
        if not self.memory.swift:
            return await asyncio.to_thread(work)
        async with self._desks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            found = work()
            await asyncio.sleep(0)
        return found

    async def complete_vectors(self, meter: Meter) -> None:
        """Once a session: embed what memory holds but the present embedder has not seen (after a change of embedder)."""
        if self._complete:
            return
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):  # the first embeds, the others wait for it
            if self._complete:
                return
            texts = await asyncio.to_thread(self.memory.texts_without_vector)
            if texts:
                found = dict(zip(texts, await self._embed(meter, list(texts.values())), strict=True))
                await asyncio.to_thread(self.memory.store_vectors, found)
            self._complete = True

    async def aclose(self) -> None:
        """Give back connections and memory."""
        for part in (self.model, self.reflection_model, self.embedder):
            await part.aclose()
        self.memory.close()

    async def _embed(self, meter: Meter, texts: Sequence[str]) -> list[Vectors]:
        if not texts:
            return []
        import numpy as np

        started = time.perf_counter()
        rows = await self.embedder.embed(texts)
        if rows.ndim != 2 or len(rows) != len(texts) or not bool(np.isfinite(rows).all()):
            raise EmbeddingError(
                f"embedder {self.embedder.id} gave an array of shape {rows.shape} with NaN or of a wrong size for {len(texts)} texts"
            )
        usage = Usage(calls=1, embedded_texts=len(texts))
        cost = None if self.embedder.id.startswith("openai/") else 0.0
        meter.calls.append(Call(purpose="embed", model=self.embedder.id, usage=usage, cost_usd=cost, seconds=time.perf_counter() - started))
        return list(rows)
