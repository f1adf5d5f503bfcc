"""The account of what a verb consumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from memalign.memory.log import Call
from memalign.records import Usage


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
