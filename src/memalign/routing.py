"""Which guidelines a judgement reads when not all of them fit. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memalign.records import Guideline

CORE_SHARE = 0.5
"""Of the budget, for guidelines that stand before every judgement, where a prefix cache serves them."""


@dataclass(frozen=True, slots=True)
class Routed:
    """Guidelines of one judgement; each in its place among all."""

    core: tuple[Guideline, ...]
    """The same for every item of a revision, oldest first."""
    chosen: tuple[Guideline, ...] = ()
    """For this item, the most relevant last."""
    left: tuple[Guideline, ...] = ()
    """Without room."""


def fits(guidelines: Sequence[Guideline], characters: int) -> bool:
    """Whether all guidelines have room."""
    return sum(len(guideline.text) for guideline in guidelines) <= characters


def core(guidelines: Sequence[Guideline], characters: int) -> tuple[Guideline, ...]:
    """What every judgement reads of guidelines that do not all fit: pinned ones, then the most useful, up to a share of the budget.

    Useful is more utility by leave-one-out replays, then more cases. A pinned one that does not fit even alone is left to relevance.
    """
    order = sorted(guidelines, key=lambda g: (not g.pinned, -(g.utility or 0.0), -len(g.evidence_for)))
    room, kept = characters * CORE_SHARE, set[str]()
    for guideline in order:
        limit = characters if guideline.pinned else room
        used = sum(len(g.text) for g in guidelines if g.id in kept)
        if used + len(guideline.text) <= limit:
            kept.add(guideline.id)
    return tuple(guideline for guideline in guidelines if guideline.id in kept)


def route(guidelines: Sequence[Guideline], relevance: Mapping[str, float], characters: int) -> Routed:
    """Share out the room: all are core when all fit; else the core, and of the others those most relevant to the item.

    ``relevance``: guideline id -> similarity to the item, more is nearer; those without one are not chosen.
    """
    if fits(guidelines, characters):
        return Routed(tuple(guidelines))
    kept = core(guidelines, characters)
    room = characters - sum(len(guideline.text) for guideline in kept)
    others = sorted((g for g in guidelines if g not in kept and g.id in relevance), key=lambda g: -relevance[g.id])
    chosen: list[Guideline] = []
    for guideline in others:
        if len(guideline.text) <= room:
            chosen.append(guideline)
            room -= len(guideline.text)
    shown = {guideline.id for guideline in (*kept, *chosen)}
    return Routed(kept, tuple(reversed(chosen)), tuple(guideline for guideline in guidelines if guideline.id not in shown))
