"""One embedder, and memory as it is searched by its vectors."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from memalign.embedders.queue import Queue
from memalign.errors import EmbeddingError
from memalign.memory import Memory
from memalign.memory.log import Call
from memalign.records import Usage

if TYPE_CHECKING:
    from memalign.embedders import Embedder, Vectors
    from memalign.session import Meter

T = TypeVar("T")

_REMEMBERED_VECTORS = 4096
_UNIT = 1e-3
"""How far a length may be from 1."""
_BATCH_IN_PROCESS = 64
_BATCH_HOSTED = 1024
"""Texts that are embedded and stored together: what an end midway loses, and what another request waits for."""


class Space:
    """Vectors of one embedder can be compared with each other only: texts and memory meet here. Safe for concurrent use."""

    def __init__(self, memory: Memory, embedder: Embedder) -> None:
        self.memory = memory
        self.embedder = embedder if isinstance(embedder, Queue) else Queue(embedder)
        self._recent: OrderedDict[str, Vectors] = OrderedDict()
        self._purged = 0
        self._desks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

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

    async def fill(self, meter: Meter, hashes: Sequence[str], done: Callable[[int], None] = lambda _texts: None) -> None:
        """Embed the texts of content hashes that memory holds, some at a time, each part stored before the next; ``done`` hears how many.

        What another process embeds meanwhile is not embedded here. Raises what the embedder raises, and what ``done`` raises.
        """
        size = _BATCH_IN_PROCESS if self.embedder.id.startswith("local/") else _BATCH_HOSTED
        for start in range(0, len(hashes), size):
            texts = await asyncio.to_thread(self.memory.texts, hashes[start : start + size])
            if texts:
                found = dict(zip(texts, await self._embed(meter, list(texts.values())), strict=True))
                await asyncio.to_thread(self.memory.store_vectors, found)
            done(min(start + size, len(hashes)))
        await asyncio.to_thread(self.memory.reread)

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
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            place = int(np.argmin(lengths)) + 1
            raise EmbeddingError(f"embedder {self.embedder.id} gave zeros for text {place} of {len(texts)}; it must give every text a direction")
        if bool((np.abs(lengths - 1) > _UNIT).any()):  # similarity is read off products
            rows = (rows / lengths).astype(np.float32)
        usage = Usage(calls=1, embedded_texts=len(texts))
        cost = None if self.embedder.id.startswith("openai/") else 0.0
        meter.calls.append(Call(purpose="embed", model=self.embedder.id, usage=usage, cost_usd=cost, seconds=time.perf_counter() - started))
        return list(rows)
