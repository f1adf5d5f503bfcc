"""What an alignment is about to do: proposals, and the guidelines that would hold with them. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from memalign.alignment.budget import Limits, over_budget
from memalign.memory.episodic import Stored
from memalign.memory.semantic import normalised, outvoted
from memalign.memory.trials import Tried
from memalign.records import Guideline, GuidelineState

if TYPE_CHECKING:
    from memalign.embedders import Vectors

NEW = "new"
"""Before the place of a proposal: its id until it is stored."""

HELD: Collection[GuidelineState] = ("active", "candidate", "quarantined")
"""States of guidelines that new evidence can join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """What a proposal does to another guideline, which exists."""

    state: GuidelineState | None = None
    text: str = ""
    """Its new wording; empty: as it is."""
    scope: str = ""
    against: frozenset[int] = frozenset()
    """Rows of feedback that speak against it from now on."""


@dataclass(slots=True, eq=False)
class Proposal:
    """One change of semantic memory, the unit that verification accepts or drops: a new guideline, or a change of one that exists."""

    text: str = ""
    """Of a new guideline, or the new wording of an old one; empty: the wording stays."""
    scope: str = ""
    batch: int = -1
    guideline_id: str | None = None
    """The guideline that it changes; None: it makes one."""
    state: GuidelineState | None = None
    """None: a new one is active, an old one stays as it is."""
    evidence: set[int] = field(default_factory=set)
    """Rows of the feedback for it."""
    against: set[int] = field(default_factory=set)
    """Rows of the feedback against it."""
    overcome: set[int] = field(default_factory=set)
    """Of these the rows for proposals that contradicted it and gave way."""
    taint: set[int] = field(default_factory=set)
    """Rows of all feedback that stood in a prompt which produced it."""
    others: dict[str, Revised] = field(default_factory=dict)
    """What it does to other guidelines, by id."""
    rival: Proposal | str | None = None
    """The proposal or the guideline that contradicts it, where only the experts can decide."""
    tried: Tried | None = None
    """What replays found out about it."""


@dataclass(slots=True)
class Plan:
    """What an alignment found in memory before it asked anything."""

    waiting: list[Stored]
    again: list[Stored]
    """Evidence of guidelines that rest on a version about to be replaced: it is distilled again, without the old text."""
    guidelines: list[Guideline]
    """Those that will stay: active, candidate or quarantined."""
    withheld: frozenset[str] = frozenset()
    """Of these the ids of those that no distilling model may read: they may say what experts have replaced."""
    purged: int = 0
    """The revision of the newest purge of then: after another one, nothing that came of this plan may be stored."""
    embedded: dict[str, Vectors] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Feedback id -> weight, of the records whose annotators do not count 1."""

    @property
    def records(self) -> dict[int, Stored]:
        """All that may be learned from, by row."""
        return {stored.row: stored for stored in [*self.again, *self.waiting]}


def outlook(plan: Plan, proposals: Sequence[Proposal], limits: Limits) -> list[Guideline]:
    """The guidelines that the judge would read if just these proposals were carried out; new ones are called new1, new2 ... by their place.

    Call it with no proposals for those that stay anyway, with a subset to ask what that subset would do.
    """
    ids = {row: stored.feedback.id for row, stored in plan.records.items()}
    held = {guideline.id: guideline for guideline in plan.guidelines}
    for place, proposal in enumerate(proposals, start=1):
        key = proposal.guideline_id or same_text(proposal.text, list(held.values())) or f"{NEW}{place}"
        if key not in held and proposal.guideline_id is not None:
            continue
        held[key] = after(held.get(key), proposal, ids, key, plan.weights, rivals=proposals)
        for other, revised in proposal.others.items():
            if other in held:
                held[other] = revised_by(held[other], revised, ids)
    shown = [guideline for guideline in held.values() if guideline.state == "active"]
    archived = set(over_budget(shown, limits))
    return [guideline for guideline in shown if guideline.id not in archived]


def after(
    old: Guideline | None,
    proposal: Proposal,
    ids: Mapping[int, str],
    key: str,
    weights: Mapping[str, float],
    *,
    rivals: Collection[Proposal] | None = None,
) -> Guideline:
    """A guideline as a proposal leaves it; ``ids``: row -> feedback id of the evidence that counts, ``weights``: id -> how much, 1 if none is given.

    A text that an expert pinned stays. A candidate that gains evidence competes again. One that new cases contradict, so that those against it
    weigh at least as much as those for it, is quarantined, unless they changed its wording. A proposal whose rival is not among ``rivals`` has none.
    """
    old = old or Guideline(id=key, version=0, text=proposal.text, scope=proposal.scope)
    found = _with(old, {ids[row] for row in proposal.evidence if row in ids}, {ids[row] for row in proposal.against if row in ids})
    if old.pinned:
        return found
    state = proposal.state or ("active" if old.state == "candidate" and proposal.evidence else old.state)
    if isinstance(proposal.rival, Proposal) and rivals is not None and proposal.rival not in rivals:
        state = "active"
    found = replace(found, text=proposal.text or old.text, scope=proposal.scope or old.scope, state=state)
    if (proposal.text and proposal.guideline_id is not None) or proposal.against <= proposal.overcome:
        return found
    lost = state == "active" and outvoted(found, weights, overcome={ids[row] for row in proposal.overcome if row in ids})
    return replace(found, state="quarantined") if lost else found


def revised_by(old: Guideline, revised: Revised, ids: Mapping[int, str]) -> Guideline:
    """A guideline as a proposal for another one leaves it; pinned ones only note what speaks against them."""
    found = _with(old, set(), {ids[row] for row in revised.against if row in ids})
    if old.pinned:
        return found
    return replace(found, text=revised.text or old.text, scope=revised.scope or old.scope, state=revised.state or old.state)


def same_text(text: str, guidelines: Sequence[Guideline]) -> str | None:
    """The id of a guideline that says it in the same words."""
    return next((guideline.id for guideline in guidelines if normalised(guideline.text) == normalised(text)), None)


def _with(old: Guideline, supporting: set[str], against: set[str]) -> Guideline:
    supported = dict.fromkeys([*(key for key in old.evidence_for if key not in against), *sorted(supporting - set(old.evidence_for))])
    opposed = dict.fromkeys([*(key for key in old.evidence_against if key not in supporting), *sorted(against - set(old.evidence_against))])
    return replace(old, evidence_for=tuple(supported), evidence_against=tuple(key for key in opposed if key not in supported))
