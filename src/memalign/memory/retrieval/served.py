"""Approximate search by an index of the database's own: it proposes, and the vectors in RAM decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memalign.memory.retrieval.exact import Exact, ranked
from memalign.memory.retrieval.ids import Ids, packed
from memalign.memory.retrieval.products import along

if TYPE_CHECKING:
    from memalign.embedders import Vectors
    from memalign.memory.retrieval.exact import Slots

_MORE = 16
"""Items asked for beyond those that are wanted, since some have several records."""

Ask = Callable[[bytes, int], Sequence[str] | None]
"""Query and number of records -> their items; None once there is no index."""


class Served:
    """The search of a large memory whose database searches faster than comparing everything. What it does not answer well is compared exactly."""

    def __init__(self, ids: Ids, exact: Exact, ask: Ask) -> None:
        self._ids = ids
        self._exact = exact
        self._ask = ask
        self.answers = True
        """Whether there was an index when it was asked last."""

    def nearest(self, query: Vectors, wanted: int, usable: npt.NDArray[np.bool_]) -> tuple[Slots, Vectors]:
        """At most ``wanted`` usable slots with their cosine similarity, best first."""
        free = int(np.count_nonzero(usable))
        if self.answers and free > len(usable) // 2:  # else it would have to look at many more than are wanted
            found = self._ask(query.astype("<f4").tobytes(), wanted * len(usable) // free + _MORE)
            self.answers = found is not None
            slots = np.unique(self._ids.slots(packed(found or ())))
            slots = slots[slots >= 0]
            slots = slots[usable[slots]]
            if len(slots) >= wanted:
                return ranked(slots, along(self._exact.vectors(slots), query), wanted)
        return self._exact.nearest(query, wanted, usable)
