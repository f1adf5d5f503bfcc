"""How much of semantic memory may be active. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memalign.records import Guideline
from memalign.working import CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What semantic memory may hold; set by MEMALIGN_GUIDELINES, MEMALIGN_GUIDELINE_TOKENS and MEMALIGN_PERSONAL_DATA."""

    guidelines: int = 40
    """Active ones; pinned ones count, but are never archived."""
    tokens: int = 2000
    """Of all active ones, estimated at four characters a token."""
    personal_data: bool = False
    """Whether a guideline may hold what looks like an e-mail address, a telephone, card or account number."""


def over_budget(guidelines: Sequence[Guideline], limits: Limits) -> list[str]:
    """Which of the active guidelines (oldest first) do not fit: the least useful go first.

    Useful is, in this order: pinned; more utility by leave-one-out replays (one never measured counts as 0); more cases for it; newer, since
    requirements move.
    """
    order = sorted(enumerate(guidelines), key=lambda found: (found[1].pinned, found[1].utility or 0.0, len(found[1].evidence_for), found[0]))
    characters = sum(len(guideline.text) for guideline in guidelines)
    count, gone = len(guidelines), list[str]()
    for _, guideline in order:
        if guideline.pinned or (count <= limits.guidelines and characters <= limits.tokens * CHARACTERS_PER_TOKEN):
            break
        gone.append(guideline.id)
        count, characters = count - 1, characters - len(guideline.text)
    return gone
