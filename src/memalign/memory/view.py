"""What a judgement gets from memory."""

from __future__ import annotations

from dataclasses import dataclass

from memalign.memory.revisions import Decision
from memalign.records import Episode, Guideline


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What holds in one revision and stands before every judgement."""

    revision: int
    guidelines: tuple[Guideline, ...]
    """The active ones, oldest first."""
    decision: Decision
    exemplars: tuple[Episode, ...]
    """The cases that stand before every judgement, in a stable order."""
    items: int
    """How many items episodic memory holds, as the search knows it."""
    whole: bool = True
    """Whether the search knows all of them: those whose text the embedder has not seen are overlooked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Episodes for one judgement, most similar last; those of one item stand together."""

    episodes: tuple[Episode, ...]
    similarity: tuple[float, ...]
    """Cosine similarity of each episode's item; 1.0 for the item itself."""
