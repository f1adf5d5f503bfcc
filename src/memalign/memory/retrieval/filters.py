"""Which slots hold a record that may be shown: by annotator, source and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memalign.retrieval import Retrieval

if TYPE_CHECKING:
    from memalign.memory.retrieval.facts import Facts


def admitted(facts: Facts, retrieval: Retrieval, slots: int) -> npt.NDArray[np.bool_]:
    """Whether some record of each slot passes the filters, one entry a slot."""
    passing: npt.NDArray[np.bool_] = facts["slot"] >= 0
    for name, wanted in (("annotator", retrieval.annotators), ("source", retrieval.sources)):
        if wanted:
            passing &= np.isin(facts[name], [facts.code(text) for text in wanted])
    if retrieval.since:
        passing &= facts["time"] >= retrieval.since.timestamp()
    if retrieval.until:
        passing &= facts["time"] < retrieval.until.timestamp()
    usable = np.zeros(slots, dtype=np.bool_)
    usable[facts["slot"][passing]] = True
    return usable
