"""A judge at work: its models, embedder and memory, opened at first use."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from memalign.embedders.queue import Queue
from memalign.errors import MemalignError, StoreError, UnreadableReply
from memalign.memory import Memory
from memalign.memory.log import Call
from memalign.meter import Meter as Meter
from memalign.models import ChatModel, ChatReply, ChatRequest
from memalign.prices import cost_usd
from memalign.records import Usage
from memalign.space import Space
from memalign.succession import Succession, begun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memalign.embedders import Embedder, Vectors

AT_ONCE = 64
"""Texts that a new embedder lacks and a judgement waits for; with more, the former one serves meanwhile."""


class Session:
    """What the verbs work with. Safe for concurrent use."""

    def __init__(self, memory: Memory, model: ChatModel, reflection_model: ChatModel, embedder: Embedder) -> None:
        self.model = model
        self.reflection_model = reflection_model
        self.space = Space(memory, embedder)
        """Of the present embedder: what is learned is written there."""
        self._succession: Succession | None = None
        self._priced = False
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def memory(self) -> Memory:
        """The judge's memory."""
        return self.space.memory

    @property
    def embedder(self) -> Queue:
        """The present embedder."""
        return self.space.embedder

    @property
    def serving(self) -> Space:
        """What judgements search: the present embedder's vectors, or the former one's while those are being made."""
        current = self._succession
        if current is None or current.former is None or current.finished:
            return self.space
        current.tend()
        return current.former

    def under(self, memory: Memory) -> Session:
        """The same parts with another view of the same memory: of an earlier revision, or with other settings of retrieval."""
        made = Session(memory, self.model, self.reflection_model, self.embedder)
        if self._succession is not None and not self._succession.finished:
            made._succession = self._succession.beside(made.space)
        return made

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

    async def vectors(self, meter: Meter, texts: Mapping[str, str]) -> dict[str, Vectors]:
        """Content hash -> unit vector by the present embedder; see ``Space.vectors``."""
        return await self.space.vectors(meter, texts)

    async def reader(self, meter: Meter) -> Space:
        """What is searched now, with an index in which no item is missing. Raises what the embedder raises."""
        space = self.serving
        view = await asyncio.to_thread(space.memory.view)
        return space if view.whole else await self.completed(meter)

    async def completed(self, meter: Meter) -> Space:
        """What is searched now, once its index lacks items: the missing texts are embedded, or left to another embedder's vectors meanwhile."""
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):  # the first embeds, the others wait for it
            while True:
                space = self.serving
                if (await asyncio.to_thread(space.memory.view)).whole:
                    return space
                lacking = await asyncio.to_thread(space.memory.lacking)
                if space is not self.space or len(lacking) <= AT_ONCE:
                    try:
                        await space.fill(meter, lacking)
                    except MemalignError as error:
                        if not self.without(space, error):
                            raise
                    continue
                succession = await asyncio.to_thread(self._succeeded)
                if succession.former is None:
                    await succession.wait()
                    await asyncio.to_thread(space.memory.reread)

    def without(self, space: Space, error: MemalignError) -> bool:
        """Whether judging can go on without an embedder that failed, because it is only the former one."""
        if isinstance(error, StoreError) or space is self.space:
            return False
        if self._succession is not None and self._succession.former is space:
            self._succession.renounce(error)
        return True

    async def embed_all(self, progress: Callable[[str, int, int], None]) -> int:
        """Embed now what the present embedder lacks, instead of behind judging; gives how many texts that were."""
        meter, count = Meter(), 0
        if self._succession is not None:
            await self._succession.stop()
        while lacking := await asyncio.to_thread(self.memory.lacking):
            count += len(lacking)
            await self.space.fill(meter, lacking, partial(_told, progress, len(lacking)))
        self._succession = None
        self.memory.log(meter.calls)
        return count

    async def aclose(self) -> None:
        """Give back connections and memory."""
        if self._succession is not None:
            await self._succession.stop()
        for part in (self.model, self.reflection_model, self.embedder):
            await part.aclose()
        await asyncio.to_thread(self.memory.close)

    def _succeeded(self) -> Succession:
        """The succession under way, begun if need be."""
        with self._lock:
            if self._succession is None or self._succession.finished:
                self._succession = begun(self.space, self.memory.embedded())
            return self._succession


def _told(progress: Callable[[str, int, int], None], total: int, done: int) -> None:
    progress("embed", done, total)
