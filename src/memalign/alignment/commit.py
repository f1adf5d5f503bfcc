"""Putting an alignment into memory: one transaction, one revision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from memalign.alignment.budget import Limits, over_budget
from memalign.alignment.distil import Distillation
from memalign.alignment.operations import Rejected
from memalign.alignment.plan import HELD, Plan, Proposal, after, revised_by, same_text
from memalign.alignment.report import AlignReport
from memalign.memory import Memory, drafts, episodic, questions, replays, revisions, semantic, trials, vectors
from memalign.memory.log import log_calls
from memalign.records import Guideline
from memalign.session import Meter


@dataclass(slots=True)
class _Outcome:
    """Ids of guidelines by what happened to them, each in the order of its happening."""

    added: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    refined: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    archived: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    stranded: set[int] = field(default_factory=set)
    """Evidence for guidelines that another process took away meanwhile, or whose words rest on a record that it did: it has to be distilled again."""

    def counts(self) -> dict[str, int]:
        """How many, for the log of revisions."""
        names = ("added", "joined", "refined", "superseded", "quarantined", "archived", "retired")
        return {name: len(getattr(self, name)) for name in names}


def commit(
    memory: Memory, plan: Plan, distilled: Distillation, seen: Counter[str], meter: Meter, limits: Limits, *, actor: str
) -> AlignReport | None:
    """Put everything into memory at once. What another process consumed or retracted meanwhile is left out; after a purge all is: None."""
    judge_id = memory.judge_id
    with memory.store.writing(judge_id) as connection:
        before, purged = revisions.standing(connection, judge_id)
        if purged != plan.purged:
            return None
        present = episodic.existing(connection, judge_id, list(plan.records.values()))
        still = {stored.row for stored in plan.waiting if (now := present.get(stored.row)) and now.distilled is None and now.until is None}
        silent = {stored.row for stored in [*plan.waiting, *plan.again] if not stored.feedback.rationale.strip()}
        admitted = [stored for stored in plan.waiting if stored.row in still and present[stored.row].since is None]
        revision, outcome = before, _Outcome()
        if admitted or still & (distilled.consumed | silent):
            revision = before + 1
            vectors.store(connection, memory.embedder, plan.embedded)
            replaced = list(episodic.live_rows(connection, judge_id, [stored.feedback.id for stored in admitted]).values())
            outcome.retired, again = semantic.without(connection, judge_id, revision, replaced, renew=True)
            episodic.mark_distilled(connection, sorted(again), None)
            episodic.retract(connection, replaced, revision)
            episodic.admit(connection, [stored.row for stored in admitted], revision)
            usable = still | again
            ids = {row: stored.feedback.id for row, stored in plan.records.items() if row in usable}
            weights = episodic.weighed(connection, judge_id, memory.weights)
            gone = plan.records.keys() - present.keys()
            _apply(connection, judge_id, revision, distilled.proposals, ids, weights, gone, outcome)
            _archive(connection, judge_id, revision, limits, outcome)
            questions.settle(connection, judge_id, revision)
            learned = (distilled.consumed | silent) & usable - outcome.stranded
            episodic.mark_distilled(connection, sorted(learned), revision)
            drafts.discard(connection, judge_id, learned | outcome.stranded)
            counts = {"admitted": len(admitted), "replaced": len(replaced), **outcome.counts()}
            replays.trim(connection, judge_id)
            named = [stored.feedback.id for stored in admitted]
            revisions.commit(connection, judge_id, revision, verb="align", actor=actor, counts=counts, ids=named)
        log_calls(connection, judge_id, meter.calls)
        contested = tuple(episodic.contested(connection, judge_id, revision, memory.scale, memory.weights))
        return _report(connection, judge_id, revision, outcome, distilled, seen, contested, meter)


def _apply(
    connection: Connection,
    judge_id: int,
    revision: int,
    proposals: Sequence[Proposal],
    ids: Mapping[int, str],
    weights: Mapping[str, float],
    gone: set[int],
    outcome: _Outcome,
) -> None:
    """Carry out the proposals whose evidence still holds.

    ``ids``: row -> feedback id of the records that may be learned from; ``gone``: rows of those that were changed or withdrawn before they entered
    memory, so that no words may rest on them.
    """
    held = {g.id: g for g in semantic.at(connection, judge_id, revision) if g.state in HELD}
    retired = semantic.turned_down(connection, judge_id)
    stored: dict[Proposal, str] = {}
    lost = [proposal for proposal in proposals if proposal.text and proposal.evidence & gone]
    outcome.stranded |= {row for proposal in lost for row in proposal.evidence | proposal.against if row in ids}
    alive = [proposal for proposal in proposals if proposal not in lost and (proposal.evidence | proposal.against) & set(ids)]
    for proposal in alive:
        cited = {row: 1 for row in proposal.evidence if row in ids} | {row: -1 for row in proposal.against if row in ids}
        known = proposal.guideline_id or same_text(proposal.text, list(held.values()))
        if known is not None and known not in held:
            outcome.stranded |= set(cited)
            continue
        if known is None and (turned_down := same_text(proposal.text, retired)):
            outcome.rejected.append(Rejected(proposal.text, f"an expert retired {turned_down}, which says the same; pin that one to bring it back"))
            continue
        old = held.get(known) if known is not None else None
        new = after(old, proposal, ids, known or "", weights, rivals=alive)
        if old is None:
            key = semantic.add(
                connection, judge_id, revision, text=new.text, scope=new.scope, state=new.state, signs=cited, taint=proposal.taint - gone
            )
            outcome.added.append(key)
        else:
            key = old.id
            changes = {"text": new.text, "scope": new.scope, "state": new.state}
            semantic.change(connection, judge_id, revision, key, signs=cited, taint=proposal.taint - gone, **changes)
            (outcome.refined if new.text != old.text else outcome.joined).append(key)
        _note(outcome, key, old, new)
        if proposal.tried is not None:
            trials.note(connection, judge_id, revision, key, proposal.tried)
        stored[proposal] = key
        held[key] = replace(new, id=key)
        for other, revised in proposal.others.items():
            if other in held:
                was = held[other]
                held[other] = now = revised_by(was, revised, ids)
                signs, changes = {row: -1 for row in revised.against if row in ids}, {"text": now.text, "scope": now.scope, "state": now.state}
                semantic.change(connection, judge_id, revision, other, signs=signs, taint=proposal.taint - gone, **changes)
                _note(outcome, other, was, now)
                if now.text != was.text:
                    outcome.refined.append(other)
    _ask(connection, judge_id, revision, stored)


def _note(outcome: _Outcome, key: str, old: Guideline | None, new: Guideline) -> None:
    if old is None or old.state != new.state:
        if new.state == "superseded":
            outcome.superseded.append(key)
        elif new.state == "quarantined":
            outcome.quarantined.append(key)


def _ask(connection: Connection, judge_id: int, revision: int, stored: Mapping[Proposal, str]) -> None:
    """A question for each pair of rivals, and for each guideline that its own cases put in quarantine."""
    now = {g.id: g for g in semantic.at(connection, judge_id, revision)}
    asked = set[str]()
    for proposal, key in stored.items():
        rival = stored.get(proposal.rival) if isinstance(proposal.rival, Proposal) else proposal.rival
        if rival is not None and all(now[one].state == "quarantined" for one in (key, rival)):
            questions.ask(connection, judge_id, revision, *sorted((key, rival), key=lambda one: int(one[1:])))
            asked |= {key, rival}
    open_ = {one for row in questions.at(connection, judge_id, revision) for one in (row.first, row.second)}
    for key in stored.values():
        if now[key].state == "quarantined" and key not in asked | open_:
            questions.ask(connection, judge_id, revision, key)


def _archive(connection: Connection, judge_id: int, revision: int, limits: Limits, outcome: _Outcome) -> None:
    """Let the least useful guidelines stand by when there are more than the budget allows."""
    active = [guideline for guideline in semantic.at(connection, judge_id, revision) if guideline.state == "active"]
    outcome.archived = over_budget(active, limits)
    for key in outcome.archived:
        semantic.change(connection, judge_id, revision, key, state="candidate")


def _report(
    connection: Connection,
    judge_id: int,
    revision: int,
    outcome: _Outcome,
    distilled: Distillation,
    seen: Counter[str],
    contested: tuple[str, ...],
    meter: Meter,
) -> AlignReport:
    guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}

    def named(keys: Iterable[str]) -> tuple[Guideline, ...]:
        return tuple(guidelines[key] for key in dict.fromkeys(keys))

    return AlignReport(
        revision=revision,
        new=seen["new"],
        changed=seen["changed"],
        unchanged=seen["unchanged"],
        purged=seen["purged"],
        added=named(outcome.added),
        joined=named(key for key in outcome.joined if key not in outcome.added),
        refined=named(outcome.refined),
        superseded=named(outcome.superseded),
        quarantined=named(outcome.quarantined),
        archived=named(outcome.archived),
        retired=named(outcome.retired),
        rejected=(*distilled.rejected, *outcome.rejected),
        contested=contested,
        failed_batches=tuple(distilled.failed),
        unrelated=tuple(distilled.unrelated),
        unconsumed=len(episodic.waiting(connection, judge_id)),
        usage=meter.usage,
        cost_usd=meter.cost_usd,
        seconds=meter.seconds,
    )
