"""A queue before an embedder: requests that come while it works share its next call; an idle one is asked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from memalign.embedders import Embedder, Vectors

IN_PROCESS_CALLS = 1
HOSTED_CALLS = 8
"""Calls under way at once; a request that finds one free never waits."""
MOST_TEXTS = 256
MOST_TEXTS_IN_PROCESS = 32
"""In one shared call. A single request with more of them stays whole. In process more at once gain nothing, and the first would wait for all."""


@dataclass(eq=False, slots=True)
class _Request:
    texts: Sequence[str]
    answer: asyncio.Future[Vectors]


@dataclass(slots=True)
class _Line:
    """The requests of one event loop."""

    waiting: list[_Request] = field(default_factory=list)
    workers: set[asyncio.Task[None] | None] = field(default_factory=set)


class Queue:
    """An Embedder that stands for another one. Equal texts of concurrent requests are embedded once."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        here = embedder.id.startswith("local/")
        self._calls, self._most_texts = (IN_PROCESS_CALLS, MOST_TEXTS_IN_PROCESS) if here else (HOSTED_CALLS, MOST_TEXTS)
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()

    @property
    def id(self) -> str:
        """Of the embedder behind it."""
        return self._embedder.id

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text. Raises what the embedder raises; the texts of others cannot make a request fail."""
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault(loop, _Line())
        request = _Request(texts, loop.create_future())
        line.waiting.append(request)
        if len(line.workers) < self._calls:
            line.workers.add(loop.create_task(self._work(line)))
        return await request.answer

    async def aclose(self) -> None:
        """Give back what the embedder holds."""
        await self._embedder.aclose()

    async def _work(self, line: _Line) -> None:
        try:
            while line.waiting:
                together = _next(line.waiting, self._most_texts)
                try:
                    await self._answer(together)
                finally:
                    for request in together:
                        if not request.answer.done():  # the loop is ending
                            request.answer.cancel()
        finally:  # at once, not when the task is seen to be done: who asks in between would wait for a worker that has gone
            line.workers.discard(asyncio.current_task())

    async def _answer(self, together: Sequence[_Request]) -> None:
        if len(together) == 1:
            await self._alone(together[0])
            return
        texts = list(dict.fromkeys(text for request in together for text in request.texts))
        try:
            rows = await self._embedder.embed(texts)
            if rows.ndim != 2 or len(rows) != len(texts):
                raise ValueError(rows.shape)
        except Exception:  # whose fault it is shows when each asks for itself
            for request in together:
                await self._alone(request)
            return
        place = {text: row for row, text in enumerate(texts)}
        for request in together:
            if not request.answer.done():
                request.answer.set_result(rows[[place[text] for text in request.texts]])

    async def _alone(self, request: _Request) -> None:
        if request.answer.done():  # the caller has gone
            return
        try:
            rows = await self._embedder.embed(request.texts)
        except Exception as error:  # it belongs to the caller
            if not request.answer.done():
                request.answer.set_exception(error)
        else:
            if not request.answer.done():
                request.answer.set_result(rows)


def _next(waiting: list[_Request], most_texts: int) -> list[_Request]:
    """Take the requests of the next call, in the order in which they came."""
    together = [waiting.pop(0)]
    texts = len(together[0].texts)
    while waiting and texts + len(waiting[0].texts) <= most_texts:
        texts += len(waiting[0].texts)
        together.append(waiting.pop(0))
    return together
