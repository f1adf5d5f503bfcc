"""From proposals to proven proposals: what an alignment found is verified before it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from memalign.alignment.budget import Limits
from memalign.alignment.distil import Distillation
from memalign.alignment.gate import Case
from memalign.alignment.plan import Plan, Proposal, outlook
from memalign.alignment.proof import Refused, Verification
from memalign.alignment.report import AlignReport
from memalign.alignment.verify import Trial, Trying, verify
from memalign.memory import Memory
from memalign.memory.trials import Tried
from memalign.records import Guideline
from memalign.session import Meter
from memalign.working import Task


async def prove(
    trying: Trying,
    memory: Memory,
    meter: Meter,
    task: Task,
    plan: Plan,
    distilled: Distillation,
    limits: Limits,
    *,
    progress: Callable[[str, int, int], None],
) -> Verification:
    """Verify the proposals and take the sting out of those that are refused: new guidelines become candidates, old ones stay as they are.

    Contradictions are not the gate's business: experts decide about them, so what they quarantine stays quarantined. When nothing
    could be decided, the records stay unconsumed, so that the next alignment takes them up.
    """
    held = {guideline.id: guideline for guideline in plan.guidelines}
    settled = [proposal for proposal in distilled.proposals if _contradicts(proposal)]
    open_ = [proposal for proposal in distilled.proposals if not _contradicts(proposal)]
    trial: Trial[Proposal] = await verify(
        trying,
        meter,
        task.scale,
        open_,
        await asyncio.to_thread(_cases, memory, plan, open_) if trying.mode != "off" else [],
        outlook=lambda some: outlook(plan, [*settled, *some], limits),
        describe=lambda proposal: proposal.text or held[proposal.guideline_id or ""].text,
        progress=progress,
    )
    proof = trial.verification
    if proof.outcome == "undone":
        distilled.proposals, distilled.consumed = [], set()
        return proof
    for proposal, refused in zip(trial.refused, proof.refused, strict=True):
        proposal.tried = _tried("refused", refused, refused.reason)
        _withhold(proposal, held)
    if proof.outcome not in ("off", "nothing"):
        for proposal in (one for one in trial.accepted if one.text or _stands_by(one, held)):  # the others only bring evidence
            proposal.tried = _tried("overridden" if proof.outcome == "overridden" else "accepted", proof, proof.note)
    return proof


def named(report: AlignReport, proof: Verification, *, unread: bool) -> AlignReport:
    """The report with what was found, refused guidelines by the ids under which they are kept; ``unread`` as there."""
    ids = {guideline.text: guideline.id for guideline in [*report.added, *report.joined, *report.refined]}
    refused = tuple(replace(one, guideline_id=ids.get(one.text)) for one in proof.refused)
    return replace(report, verification=replace(proof, refused=refused), unread=unread)


def _cases(memory: Memory, plan: Plan, proposals: list[Proposal]) -> list[Case]:
    """Every record that will hold after the alignment, with the proposals that rest on it.

    Records for what a newer word supersedes are left out: their verdicts are what the experts have turned away from, so nothing has to keep them.
    So are those of annotators without weight.
    """
    outdated = _outdated(plan, proposals)
    rests: dict[int, set[int]] = {}
    for place, proposal in enumerate(proposals):
        for row in proposal.evidence | proposal.against:
            rests.setdefault(row, set()).add(place)
    held = {stored.feedback.id: stored for stored in [*memory.stored(), *plan.waiting]}  # what waits replaces what it changes
    return [
        Case(
            record=stored.feedback,
            changes=frozenset(rests.get(stored.row, ())),
            missed=None if stored.judged is None else stored.missed(memory.scale),
        )
        for stored in held.values()
        if stored.feedback.id not in outdated and memory.weight(stored.feedback.annotator) > 0
    ]


def _outdated(plan: Plan, proposals: list[Proposal]) -> set[str]:
    """Ids of the records that superseded guidelines and proposals rest on."""
    ids = {row: stored.feedback.id for row, stored in plan.records.items()}
    gone = {other for proposal in proposals for other, revised in proposal.others.items() if revised.state == "superseded"}
    lost = [proposal for proposal in proposals if proposal.state == "superseded" or proposal.guideline_id in gone]
    found = {ids[row] for proposal in lost for row in proposal.evidence if row in ids}
    return found.union(*(guideline.evidence_for for guideline in plan.guidelines if guideline.id in gone))


def _tried(outcome: Literal["accepted", "refused", "overridden"], found: Verification | Refused, reason: str) -> Tried:
    fixed, broken = len(found.fixed), len(found.broken)
    return Tried(outcome=outcome, fixed=fixed, broken=broken, unchanged=found.unchanged, p_value=found.p_value, reason=reason)


def _withhold(proposal: Proposal, held: Mapping[str, Guideline]) -> None:
    """Let a proposal bring nothing that the judge would read: its evidence is kept, for and against, for the day when there is more of it."""
    if proposal.guideline_id is None:
        proposal.state = "candidate"
    else:
        proposal.text, proposal.scope = "", ""
        proposal.state = "candidate" if _stands_by(proposal, held) else None
    proposal.others = {}


def _stands_by(proposal: Proposal, held: Mapping[str, Guideline]) -> bool:
    """Whether it is about a guideline that is a candidate."""
    return proposal.guideline_id is not None and proposal.guideline_id in held and held[proposal.guideline_id].state == "candidate"


def _contradicts(proposal: Proposal) -> bool:
    """Whether it has a rival, or brings nothing but evidence against a guideline."""
    return proposal.rival is not None or (proposal.guideline_id is not None and bool(proposal.against) and not proposal.text)
