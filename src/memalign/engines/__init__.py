"""Running many judgements at once on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 256
"""Judgements that are prepared at once; models limit their own concurrency."""


async def in_flight(items: Iterable[T], work: Callable[[T], Awaitable[R]], *, limit: int = IN_FLIGHT) -> AsyncIterator[tuple[int, R]]:
    """Work on items concurrently; yields (place, result) as results come. Items are taken from the iterable only as room comes free.

    When the caller stops, or is cancelled, work under way is cancelled. An exception of ``work`` is raised.
    """
    waiting = enumerate(items)
    tasks: dict[asyncio.Task[R], int] = {}
    done = asyncio.Queue[asyncio.Task[R]]()
    try:
        while True:
            while len(tasks) < limit and (following := next(waiting, None)) is not None:
                task = asyncio.ensure_future(_run(work, following[1]))
                tasks[task] = following[0]
                task.add_done_callback(done.put_nowait)  # asyncio.wait would look at all of them for each one that ends
            if not tasks:
                return
            task = await done.get()
            yield tasks.pop(task), task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _run(work: Callable[[T], Awaitable[R]], item: T) -> R:
    return await work(item)
