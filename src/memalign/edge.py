"""The one thin edge between sync callers and the async core: a background event loop, so that it also works inside a running loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from memalign.errors import ConfigurationError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = 0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on the background loop. Ctrl-C cancels it, waits until it has cleaned up, and is raised again.

    Raises ConfigurationError on the background loop itself, which would wait for itself for ever.
    """
    loop, outcome = background_loop(), Future[T]()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise ConfigurationError("a sync verb of a judge was called by a model or embedder, on memalign's own event loop; await its a... twin there")
    tasks: list[asyncio.Task[T]] = []

    def start() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(lambda task: _hand_over(task, outcome))

    loop.call_soon_threadsafe(start)
    try:
        return outcome.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # after ``start``, as the loop keeps the order
        wait([outcome])
        raise


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process; started at first use, and again after a fork."""
    global _loop, _pid
    with _lock:
        if _loop is None or _pid != os.getpid():
            _loop, _pid = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_serve, args=(_loop,), name="memalign", daemon=True).start()
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # asyncio lets those of a task through; the task holds it as well, and hands it over
            continue
        return


def _hand_over(task: asyncio.Task[T], outcome: Future[T]) -> None:
    if task.cancelled():
        outcome.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())
