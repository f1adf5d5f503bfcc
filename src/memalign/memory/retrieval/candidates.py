"""What the choice of cases knows of an item that could be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item of memory that resembles the one to be judged."""

    slot: int
    similarity: float
    """Cosine similarity to the item to be judged."""
    labels: frozenset[int]
    """The experts' verdicts on it, as codes."""
    missed: bool
    """Whether the judge's own verdict on it was another one."""
