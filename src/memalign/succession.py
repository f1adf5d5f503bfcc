"""A change of embedder: the former one serves until the present one knows all that memory holds."""

from __future__ import annotations

import asyncio
import random
import time
import warnings
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from memalign.edge import background_loop
from memalign.embedders import reopened
from memalign.errors import MemalignError
from memalign.meter import Meter
from memalign.space import Space

if TYPE_CHECKING:
    from memalign.memory import Embedded

RETRIED_AFTER_SECONDS = 60.0
"""Between attempts, once the present embedder has failed."""
GRACE_SECONDS = 5.0
"""That closing a session waits for the part under way."""
_NOW = "to embed it now and see how far it is: memalign memory index"


class Succession:
    """Embeds, behind judging, what the present embedder lacks. What is embedded is stored at once, so another process goes on from there."""

    def __init__(self, space: Space, former: Space | None) -> None:
        """``space`` is the present embedder's; the former one's serves meanwhile, if there is one."""
        self.former = former
        self._retired = former
        self._space = space
        self._work: Future[bool] | None = None
        self._stopped = False
        self._warned = ""
        self._ended = 0.0

    @property
    def finished(self) -> bool:
        """Whether the present embedder has taken over."""
        return self._work is not None and self._work.done() and self._error() is None and self._work.result()

    def start(self) -> None:
        """Embed behind what this process does."""
        self._work = asyncio.run_coroutine_threadsafe(self._embed(), background_loop())

    def tend(self) -> None:
        """Say once that the present embedder fails, and let it try again after a while."""
        if self._work is None or not self._work.done() or (error := self._error()) is None:
            return
        if not self._ended:
            self._ended = time.monotonic()
        self._warn(
            f"embedder {self._space.embedder.id!r} fails ({error}); judgements go on with the vectors of "
            f"{self.former.embedder.id if self.former else None!r}: mend it, or choose another with memalign init --embedder"
        )
        if time.monotonic() - self._ended > RETRIED_AFTER_SECONDS:
            self._ended = 0.0
            self.start()

    async def wait(self) -> None:
        """Until all is embedded. Raises what the present embedder raises."""
        if self._work is None or (self._work.done() and not self.finished):
            self.start()
        assert self._work is not None
        await asyncio.shield(asyncio.wrap_future(self._work))

    async def stop(self) -> None:
        """End after the part under way, which is stored unless it takes too long, and give back the former embedder."""
        self._stopped = True
        if self._work is not None:
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.wrap_future(self._work), GRACE_SECONDS)
        if self._retired is not None:
            await asyncio.to_thread(self._retired.memory.rest)
            await self._retired.embedder.aclose()

    def renounce(self, error: MemalignError) -> None:
        """The former embedder cannot serve: judgements wait for the present one."""
        self._warn(f"the former embedder {self.former.embedder.id if self.former else None!r} fails ({error}); judging waits for the present one")
        self.former = None

    def beside(self, space: Space) -> Succession:
        """The same for another view of the same memory: what the present embedder lacks is embedded once, for both."""
        former = None if self.former is None else Space(space.memory.under(self.former.embedder.id), self.former.embedder)
        made = Succession(space, former)
        made._work = self._work
        return made

    def _error(self) -> BaseException | None:
        assert self._work is not None
        return None if self._work.cancelled() else self._work.exception()

    def _warn(self, message: str) -> None:
        if self._warned != message:
            self._warned = message
            warnings.warn(message, stacklevel=2)

    async def _embed(self) -> bool:
        space, meter = self._space, Meter()
        try:
            while lacking := await asyncio.to_thread(space.memory.lacking):
                random.shuffle(lacking)  # processes that do the same work share it
                await space.fill(meter, lacking, self._go_on)
            await asyncio.to_thread(space.memory.view)  # so that the first judgement after the change does not wait for the index
            self.former = None
        except _Stopped:
            return False
        finally:
            space.memory.log(meter.calls)
        return True

    def _go_on(self, _texts: int) -> None:
        if self._stopped:
            raise _Stopped


class _Stopped(Exception):
    """Somebody closes the session, or embeds in the foreground."""


def begun(space: Space, found: Embedded) -> Succession:
    """The work of making one embedder's vectors whole, begun; with the former one at the ready, or a warning that judging waits."""
    former, reason = None, "no other embedder knows more of them"
    if found.former is not None:
        try:
            former = Space(space.memory.under(found.former), reopened(found.former))
        except MemalignError as error:
            reason = f"{found.former!r} cannot be opened any more ({error})"
    made = Succession(space, former)
    if former is None:
        made._warn(f"embedder {space.embedder.id!r} has to embed {found.lacking:,} texts before the first judgement: {reason}; {_NOW}")
    made.start()
    return made
